"""A run in one compiled program, in one process: the fastest way to train, and the way that needs nothing else."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from locallearn.chain import Chain, Row
from locallearn.codec import Context, Spec
from locallearn.data.dataset import batches
from locallearn.data.intake import PLAIN, Intake
from locallearn.rule import Batch, step_keys
from locallearn.runtime.diagnostics import Diagnosis, Diagnostics
from locallearn.runtime.intake import seen, seen_in_training
from locallearn.runtime.local import Fused
from locallearn.runtime.parts import carried, fill, merge_rows, shard_part
from locallearn.runtime.session import Session, count_correct, padded, training_step
from locallearn.runtime.setup import Setup, Stage
from locallearn.runtime.stale import begun_with, kept, renewed
from locallearn.traffic import Channel, Traffic

CHUNK = 512
"""Steps whose indices are handed to the compiled loop at once; the loop runs as many of them as it is told."""


class Programs(NamedTuple):
    """What one stage compiles to. Seeds are arguments, so every seed of a configuration can use the same programs."""

    loop: Callable[..., Any]
    score: Mapping[bool, Callable[..., Any]]
    diagnose: Callable[..., Diagnosis]


class FusedSession(Session):
    """One compiled program for training, one for evaluation; data and state stay on the device.

    programs: by number of the stage, those of a session of the same configuration with another seed; what is missing is added.
    """

    def __init__(self, setup: Setup, programs: dict[int, Programs] | None = None):
        self.setup, self.traffic = setup, Traffic()
        self.programs = {} if programs is None else programs
        self._state: Any = None
        self._memory: list[Any] = []
        self._ring = Row(())
        self._x, self._y = jnp.asarray(setup.split.train.x), jnp.asarray(setup.split.train.y)

    def enter(self, stage: Stage) -> None:
        """Compile all that the stage needs; nothing compiles after that."""
        begun = time.perf_counter()
        setup, number = self.setup, self.setup.stages.index(stage)
        before = self.stage.wiring if self._state is not None else None
        self.stage = stage
        step, deployed = setup.plan_step(stage), setup.plan_evaluation(stage)
        exactly = replace(stage, wiring=stage.lossless) if stage.lossy else stage
        self._step, self._evaluation = step.traffic, {False: deployed.traffic, True: setup.plan_evaluation(exactly).traffic}
        self._metered, self._aside = (stage.wiring.metered(footprint.channels) for footprint in (step, deployed))
        self._decision = setup.plan_decision(stage).traffic
        # Not compiled as one: JAX finds its few kernels again for every rule and seed, and the bits are those of the other fabrics.
        self._state = setup.begin(stage, self._state)
        blank = jax.tree.map(jnp.array, setup.memory(stage))  # copies: what both ends begin with is given up twice
        self._memory = [carried(old, new, before, stage.wiring) for old, new in zip(self._memory or blank, blank, strict=True)]
        self._ring = kept(self._state, setup.staleness(stage))
        if number not in self.programs:
            self.programs[number] = self._compiled()
        self._loop, self._score = self.programs[number].loop, self.programs[number].score
        self.compile_seconds += time.perf_counter() - begun

    def _compiled(self) -> Programs:
        stage, setup = self.stage, self.setup
        index, keys = np.zeros((CHUNK, setup.batch), np.int32), np.zeros((CHUNK, 2), np.uint32)
        delays = np.zeros((CHUNK, len(stage.blocks)), np.int32)
        args = (self._state, self._memory, self._ring), self._x, self._y, index, keys, delays, np.int32(0), np.int32(0)
        loop = (
            jax.jit(functools.partial(_steps, stage, intake=setup.intake, metered=self._metered), donate_argnums=0).lower(*args).compile()
        )
        deployed = self._scorer(stage, self._memory[0], self._aside)
        lossless = self._scorer(replace(stage, wiring=stage.lossless), {}, ()) if stage.lossy else deployed
        return Programs(loop, {False: deployed, True: lossless}, Diagnostics(setup, stage))

    def _scorer(self, stage: Stage, memory: Any, metered: tuple[Channel, ...]) -> Callable[..., Any]:
        size = self.setup.evaluation_batch
        x, y = Spec((size, *self._x.shape[1:]), self._x.dtype), Spec((size,), jnp.int32)
        scored = functools.partial(_scored, stage, intake=self.setup.intake, metered=metered)
        program = jax.jit(scored).lower(self._state, memory, x, y, y).compile()
        return lambda state, known, *batch: program(state, known if memory else {}, *batch)

    def advance(self, start: int, stop: int) -> float:
        """At most CHUNK steps for each call of the program."""
        losses = []
        for first in range(start, stop, CHUNK):
            losses.append(self._advance(first, min(stop, first + CHUNK)))
        return float(np.mean(np.concatenate(losses), dtype=np.float64))

    def correct(self, part: Any, lossless: bool) -> int:
        """Through the deployed codecs, or lossless."""
        total = 0
        for x, y, index in padded(part, self.setup.evaluation_batch):
            right, sizes = self._score[lossless](self._state, self._memory[0], x, y, index)
            total += right
            channels = () if lossless else tuple(channel.counted(False) for channel in self._aside)
            self.traffic += _measured(self._evaluation[lossless], channels, sizes)
        return int(total)

    def diagnose(self, step: int) -> Diagnosis:
        """From programs that compile when they are first needed."""
        return self.programs[self.setup.stages.index(self.stage)].diagnose(self.setup, self._state, step)

    def decide(self, choice: int) -> int:
        """Nobody else to tell, but what telling them costs is counted."""
        self.traffic += self._decision
        return choice

    def snapshot(self) -> list[list[np.ndarray]]:
        """States and channel memories, each with its shard."""
        return [
            [np.array(leaf) for leaf in jax.tree.leaves(shard_part(self.stage.wiring, self._state, self._memory, self._ring, shard))]
            for shard in range(self.stage.wiring.shards)
        ]

    def restore(self, shards: Sequence[Sequence[np.ndarray]]) -> None:
        """The inverse of `snapshot`."""
        states, memories, rings = {}, {}, {}
        for shard, leaves in enumerate(shards):
            like = shard_part(self.stage.wiring, self._state, self._memory, self._ring, shard)
            states[shard], memories[shard], rings[shard] = fill(like, leaves)
        self._state, self._ring = (merge_rows(self.stage.wiring.placement, rows) for rows in (states, rings))
        self._memory = [
            {channel: (memories[channel.src][k][0][channel], memories[channel.dst][k][1][channel]) for channel in slot}
            for k, slot in enumerate(self._memory)
        ]

    def _advance(self, start: int, stop: int) -> np.ndarray:
        setup, n = self.setup, stop - start
        index = np.zeros((CHUNK, setup.batch), np.int32)
        index[:n] = batches(setup.seed, len(setup.split.train.y), setup.batch, start, stop)
        keys = step_keys(setup.seed, start, start + CHUNK)
        delays = np.zeros((CHUNK, len(self.stage.blocks)), np.int32)
        delays[:n] = setup.delays(self.stage, start, stop)
        carry, args = (self._state, self._memory, self._ring), (index, keys, delays, np.int32(start), np.int32(n))
        (self._state, self._memory, self._ring), losses, sizes = self._loop(carry, self._x, self._y, *args)
        self.traffic += _measured(self._step * n, self._metered, sizes)
        return np.asarray(losses)[:n]


def _measured(planned: Traffic, metered: Sequence[Channel], sizes: Sequence[Any]) -> Traffic:
    """What was planned, with the bytes that were sent on the metered channels. sizes: int32[..., 2], one for each channel."""
    if not metered:
        return planned
    sums = [np.asarray(size).reshape(-1, 2).sum(0, dtype=np.int64).tolist() for size in sizes]
    return planned.measured({channel: (size, count) for channel, (size, count) in zip(metered, sums, strict=True)})


def _steps(
    stage: Stage,
    carry: Any,
    x: Any,
    y: Any,
    index: Any,
    keys: Any,
    delays: Any,
    start: Any,
    n: Any,
    *,
    intake: Intake = PLAIN,
    metered: tuple[Channel, ...] = (),
) -> Any:
    """The first n of CHUNK steps from `start`: (carry, losses, bytes and frames of each step on each metered channel).

    carry: state, channel memories, older weights. delays: [CHUNK, blocks], how old they are to be.
    """

    def one(k: Any, now: Any) -> Any:
        (state, memory, ring), losses, sizes = now
        i = index[k]
        fabrics = [Fused(stage.wiring, m, Context(p), metered) for m, p in zip(memory, jnp.split(i, len(memory)), strict=True)]
        chains = [Chain(stage.blocks, fabric) for fabric in fabrics]
        batch = Batch(seen_in_training(intake, x[i], keys[k], i), y[i], i, keys[k])
        stale = begun_with(state, ring, start + k, delays[k])
        state, info = training_step(stage, chains, state, batch, lambda jobs: [job() for job in jobs], stale)
        ring = renewed(ring, state, start + k)
        memory = [fabric.memory for fabric in fabrics]
        sizes = tuple(all_.at[k].set(sum(f.sizes[channel] for f in fabrics)) for channel, all_ in zip(metered, sizes, strict=True))
        return (state, memory, ring), losses.at[k].set(info.loss.astype(losses.dtype)), sizes

    unknown = tuple(jnp.zeros((CHUNK, 2), jnp.int32) for _ in metered)
    return jax.lax.fori_loop(0, n, one, (carry, jnp.zeros(CHUNK, jnp.float32), unknown))


def _scored(
    stage: Stage,
    state: Row,
    memory: Any,
    x: Any,
    y: Any,
    index: Any,
    *,
    intake: Intake = PLAIN,
    metered: tuple[Channel, ...] = (),
) -> Any:
    """How many of one evaluation batch are right, and bytes and frames on each metered channel."""
    fabric = Fused(stage.wiring, memory, Context(index, training=False), metered)
    chain = Chain(stage.evaluating, fabric)
    right = chain.at_top(count_correct, stage.rule.predict(chain, state, seen(intake, x)), y)
    return right, tuple(fabric.sizes[channel] for channel in metered)
