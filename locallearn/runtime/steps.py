"""One training step inside a compiled program: of one chain, or of all replicas, one after the other, with what they average."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from locallearn.chain import Chain, Row
from locallearn.codec import Context
from locallearn.replicas import Replicas
from locallearn.rule import Batch, descended
from locallearn.runtime.averaging import Shared, agree, mean_gradients
from locallearn.runtime.local import Fused
from locallearn.runtime.ring import Deal, FusedRing
from locallearn.runtime.session import batch_gradients, training_step
from locallearn.runtime.setup import Stage
from locallearn.runtime.stale import begun_with, renewed
from locallearn.traffic import Channel

Sizes = tuple[Any, ...]
"""Bytes and frames on each metered channel: int32[2], or [R, 2] of replicas."""


class Copies(NamedTuple):
    """All replicas, stacked: states, channel memories by microbatch, and what they share."""

    state: Row
    memory: list[Any]
    shared: Shared


def chain_step(
    stage: Stage, metered: Sequence[Channel], carry: tuple[Row, list[Any], Row], batch: Batch, step: Any = 0, delays: Sequence[Any] = ()
) -> tuple[tuple[Row, list[Any], Row], Any, Sizes]:
    """((state, channel memories, older weights), loss, sizes) after one step of one chain. delays: of its weights, by block."""
    state, memory, older = carry
    chains, fabrics = _chains(stage, metered, memory, batch)
    state, info = training_step(stage, chains, state, batch, _in_turn, begun_with(state, older, step, delays))
    return (state, _memories(fabrics), renewed(older, state, step)), info.loss, _sizes(fabrics, metered)


def _half_step(stage: Stage, metered: Sequence[Channel], state: Row, memory: list[Any], batch: Batch) -> Any:
    """((gradients, rule's memory, info), channel memories, sizes) of one chain."""
    chains, fabrics = _chains(stage, metered, memory, batch)
    return batch_gradients(stage, chains, state, batch, _in_turn), _memories(fabrics), _sizes(fabrics, metered)


def _chains(stage: Stage, metered: Sequence[Channel], memory: list[Any], batch: Batch) -> tuple[list[Chain], list[Fused]]:
    """One for each microbatch."""
    fabrics = [Fused(stage.wiring, m, Context(p), metered) for m, p in zip(memory, jnp.split(batch.index, len(memory)), strict=True)]
    return [Chain(stage.blocks, fabric) for fabric in fabrics], fabrics


def _in_turn(jobs: list[Any]) -> list[Any]:
    return [job() for job in jobs]


def _memories(fabrics: Sequence[Fused]) -> list[Any]:
    return [fabric.memory for fabric in fabrics]


def _sizes(fabrics: Sequence[Fused], metered: Sequence[Channel]) -> Sizes:
    return tuple(sum(fabric.sizes[channel] for fabric in fabrics) for channel in metered)


def replicas_step(
    stage: Stage, replicas: Replicas, metered: Sequence[Channel], now: Copies, batch: Batch, due: Any
) -> tuple[Copies, Any, Sizes]:
    """The same of all replicas, with the average that belongs to the step or, if one is due, follows it. The loss is the first one's."""
    parts = _dealt(batch, replicas.count)
    ring = FusedRing(stage.wiring, Deal(stage.average, replicas.count), now.shared.ring)
    if replicas.average == "gradients":
        half = partial(_half_step, stage, metered)
        (grads, kept, info), memory, sizes = jax.lax.map(lambda args: half(*args), (now.state, now.memory, parts))
        grads = mean_gradients(stage.blocks, ring, grads)
        chain = Chain(stage.blocks, Fused(stage.wiring, {}, Context(batch.index)))
        half = partial(descended, stage.rule, chain)
        state = jax.lax.map(lambda args: half(*args), (now.state, now.state, grads, kept, info))
        return Copies(state, memory, now.shared._replace(ring=ring.memory)), info.loss[0], (*sizes, *ring.sizes.values())
    step, none = partial(chain_step, stage, metered), Row(() for _ in stage.blocks)
    (state, memory, _), loss, sizes = jax.lax.map(lambda args: step(*args), ((now.state, now.memory, none), parts))

    def average(state: Row, shared: Shared) -> Any:
        ring = FusedRing(stage.wiring, Deal(stage.average, replicas.count), shared.ring)
        state, agreement = agree(stage.blocks, ring, state, shared.agreement, replicas.outer)
        return state, Shared(agreement, ring.memory), ring.sizes

    state, shared, sent = jax.lax.cond(due, average, lambda state, shared: (state, shared, ring.sizes), state, now.shared)
    return Copies(state, memory, shared), loss[0], (*sizes, *sent.values())


def _dealt(batch: Batch, count: int) -> Batch:
    """Equal parts of a batch along a first axis, in order; each has the key folded with its number, as microbatches have."""
    x, y, index = (value.reshape(count, -1, *value.shape[1:]) for value in (batch.x, batch.y, batch.index))
    return Batch(x, y, index, jax.vmap(jax.random.fold_in, (None, 0))(batch.key, jnp.arange(count)))
