"""Steps that begin with older weights: which ones is told beforehand, by a timetable; they are kept in a ring for each block.

This is weight stashing (Narayanan et al. 2019, "PipeDream: Generalized Pipeline Parallelism for DNN Training"): the whole step of a batch,
what it sends up as what it learns from what comes down, uses the weights that each shard had when it began it, and changes the newest. No
shard waits until others have the same version, so shards may differ ("vertical sync" is not kept).

Steps are computed in their order, each at once. That is the same as letting them overlap: a step depends on others only through the weights
that it begins with, updates of a shard are made in the order of the steps, and so is each channel's memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from locallearn.chain import Row


class Timetable(NamedTuple):
    """What a virtual clock tells of the steps from one evaluation to the next.

    seconds: until all of it is over and decided. delays: int32[steps, shards], the updates that a shard had yet to make when it began
    a step.
    """

    seconds: float
    delays: np.ndarray

    @property
    def depth(self) -> int:
        """The oldest weights that any step begins with."""
        return int(self.delays.max(initial=0))


def kept(state: Row, depth: int) -> Row:
    """The ring of each block's last `depth + 1` weights, at first all those of now; empty where none are ever used."""
    if not depth:
        return Row(() for _ in state)
    return Row(jax.tree.map(lambda leaf: jnp.repeat(leaf[None], depth + 1, 0), value.params) for value in state)


def begun_with(state: Row, ring: Row, step: Any, delays: Sequence[Any]) -> Row | None:
    """The states with the weights that a step begins with; None where these are always the newest. delays: of each block."""
    if not jax.tree.leaves(ring):
        return None

    def older(value: Any, weights: Any, delay: Any) -> Any:
        return value._replace(params=jax.tree.map(lambda leaf: leaf[(step - delay) % leaf.shape[0]], weights))

    return Row(older(value, weights, delay) for value, weights, delay in zip(state, ring, delays, strict=True))


def renewed(ring: Row, state: Row, step: Any) -> Row:
    """The ring with the weights that a step left."""
    if not jax.tree.leaves(ring):
        return ring

    def put(leaf: Any, new: Any) -> Any:
        return leaf.at[(step + 1) % leaf.shape[0]].set(new)

    return Row(jax.tree.map(put, weights, value.params) for weights, value in zip(ring, state, strict=True))
