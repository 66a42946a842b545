"""Sessions: a run in progress on one fabric. `training.train` drives any of them in the same way."""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from locallearn.block import Block
from locallearn.chain import Chain, Row
from locallearn.errors import RuleError
from locallearn.rule import WHOLE_BATCH, Batch, Info, descended, gradients, mean, split_batch, whole_step
from locallearn.runtime.setup import Setup, Stage
from locallearn.traffic import Traffic

Delays = tuple[tuple[int, ...], ...]
"""By shard: how many of its steps so far began with weights that were 0, 1, 2 and so on updates old."""


class Session(abc.ABC):
    """A run in progress. Sessions are abstract or final.

    traffic: what was sent so far; replaced when more is, never changed, for events hold it. compile_seconds: time spent on compiling
    before the first step of each stage. whole: whether it holds all shards. asides: choreographies beside training so far, where these are
    numbered. delays: of the shards that are here, where steps overlap as they come.
    """

    setup: Setup
    stage: Stage
    traffic: Traffic
    compile_seconds: float = 0.0
    whole: bool = True
    asides: int = 0
    delays: Delays = ()

    @abc.abstractmethod
    def enter(self, stage: Stage) -> None:
        """Begin a stage, with the parameters that the one before it left; compile what it needs."""

    @abc.abstractmethod
    def advance(self, start: int, stop: int) -> float | None:
        """Train steps [start, stop) of the stage; the mean loss, where the top block is."""

    @abc.abstractmethod
    def correct(self, part: Any, lossless: bool) -> int | None:
        """How many examples of a part of the data are classified right, where the top block is."""

    def diagnose(self, step: int) -> Mapping[str, Sequence[float | None]]:
        """The run's diagnostics after `step` steps: by name, a number for each block. Only sessions that hold all blocks have any."""
        return {}

    @abc.abstractmethod
    def decide(self, choice: int) -> int:
        """The top's choice, known to every shard."""

    @abc.abstractmethod
    def conclude(self) -> None:
        """The run ends here and leaves what evaluations saw. Only replicas between two averages have anything else."""

    @abc.abstractmethod
    def snapshot(self) -> list[list[np.ndarray]]:
        """All arrays of the run, by shard: copies on the host."""

    @abc.abstractmethod
    def restore(self, shards: Sequence[Sequence[np.ndarray]]) -> None:
        """Take up the arrays of a snapshot, within the stage that it was taken in."""


Together = Callable[[list[Any]], list[Any]]
"""Runs the microbatches' jobs and returns what they give, in order."""


def training_step(
    stage: Stage, chains: Sequence[Chain], state: Row, batch: Batch, together: Together, stale: Row | None = None
) -> tuple[Row, Info]:
    """One step: the rule's own on one chain, or the mean of the gradients of equal microbatches, each on a chain of its own.

    stale: the states that the step began with, if older.
    """
    if len(chains) == 1:
        return whole_step(stage.rule, chains[0], state, batch, stale)
    begun = state if stale is None else stale
    grads, memory, info = batch_gradients(stage, chains, begun, batch, together)
    return descended(stage.rule, chains[0], state, begun, grads, memory, info), info


def batch_gradients(stage: Stage, chains: Sequence[Chain], begun: Row, batch: Batch, together: Together) -> tuple[Row, Row, Info]:
    """The first half of a step, of a rule that has `gradients`: (gradients, memory, info). begun: the states that it begins with."""
    if len(chains) == 1:
        return gradients(stage.rule, chains[0], begun, batch)
    if any(block.observes for block in stage.blocks):
        raise RuleError(WHOLE_BATCH)
    parts = split_batch(batch, len(chains))
    grads, memory, info = zip(
        *together([functools.partial(gradients, stage.rule, c, begun, p) for c, p in zip(chains, parts, strict=True)]),
        strict=True,
    )
    loss = chains[0].at_top(mean, *(part.loss for part in info))
    return chains[0].map(mean, *grads), memory[-1], Info(loss)


def padded(part: Any, size: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(x, y, index) in batches of one size; what pads the last one has label -1."""
    for start in range(0, len(part.y), size):
        index = np.arange(start, start + size, dtype=np.int32)
        where = np.minimum(index, len(part.y) - 1)
        yield part.x[where], np.where(index < len(part.y), part.y[where], -1).astype(np.int32), index


def count_correct(block: Block, scores: jax.Array, y: jax.Array) -> jax.Array:
    """How many examples have their label's score highest. scores: [batch, classes]; a label of -1 is padding."""
    return jnp.sum(jnp.argmax(scores, -1) == y)
