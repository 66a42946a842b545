"""What a learning rule is: the messages that it declares, and one step over a chain."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from locallearn.block import Block, State
from locallearn.chain import ABSENT, RESTING, Chain, Row
from locallearn.errors import RuleError
from locallearn.search import Range

ELEMENTWISE = "pre and elementwise post"
"""What rules need that work with the energy of a block's units."""

KINDS = ("activation", "error", "target", "label", "input", "weight", "scalar", "control", "evaluation", "checkpoint")


class Message(NamedTuple):
    """A value that a rule sends between blocks: its kind (one of `KINDS`), its direction in words, and what it is."""

    kind: str
    direction: str
    doc: str


class Batch(NamedTuple):
    """What a step sees. The bottom block has `x`, the top block `y`; indices and key follow from (seed, step) and are everyone's.

    x: [batch, *example_shape] float, y: [batch] int32, index: [batch] int32 positions in the training set, key: uint32[2].
    """

    x: Any
    y: Any
    index: Any
    key: Any


class Info(NamedTuple):
    """What a step reports.

    loss: scalar, mean over the batch, a value of the top block. inputs: the row of what each block saw, from which blocks that normalise
    over the batch keep their running statistics; a rule that tells none is refused for such blocks.
    """

    loss: Any
    inputs: Any = None


class Rule(abc.ABC):
    """A learning rule: a frozen dataclass whose fields are its hyperparameters and its YAML keys.

    Most rules define `gradients`; one that updates inside its step defines `step` instead.
    """

    messages: ClassVar[Mapping[str, Message]]
    family: ClassVar[str]
    assumes: ClassVar[str] = "nothing"
    """What a reader should know before comparing: labels below the top, symmetric weights, extra passes."""
    needs: ClassVar[str] = "apply"
    """`apply`: any block will do; `pre and post`: composite blocks are refused; `ELEMENTWISE`: and a bridge belongs to `pre`."""
    space: ClassVar[Mapping[str, Range]] = {}
    """What `tune` in a sweep may vary, and how far: by field, beside what its file names."""
    locking: ClassVar[tuple[str, ...] | None] = None
    """What a block's update waits for, of `forward`, `backward` and `update`; None: `locallearn.runtime.influence` finds it out.

    To be said only where the choreography shows more than there is: a message that is computed now and used at a later step.
    """

    @property
    def additive_over_batch(self) -> bool:
        """Whether the gradient of a batch is the mean over its parts: microbatches are refused where it is not."""
        return True

    @property
    def updates(self) -> int:
        """Optimizer steps of a block in one training step: schedules of the learning rate count these."""
        return 1

    def problems(self, blocks: Sequence[Block]) -> list[str]:
        """What speaks against this rule on these blocks, a sentence for each mistake."""
        if self.needs != "apply" and any(block.composite for block in blocks):
            return [f"needs blocks with {self.needs}; block {next(b.index for b in blocks if b.composite)} is composite"]
        return []

    def deployed(self, blocks: Sequence[Block], placement: Sequence[int]) -> tuple[Sequence[Block], tuple[int, ...]]:
        """(the blocks that it trains, the shard of each), of a model's: all of them, but for a baseline that leaves some out."""
        return blocks, tuple(placement)

    def init(self, block: Block, key: jax.Array) -> State:
        """A block's state before training."""
        return block.state(block.init(key))

    def gradients(self, chain: Chain, state: Row, batch: Batch) -> tuple[Row, Row, Info]:
        """(gradients as `state.params`, memory as `state.memory`, info) for one batch."""
        raise NotImplementedError(f"{type(self).__name__} defines neither `gradients` nor `step`")

    def step(self, chain: Chain, state: Row, batch: Batch) -> tuple[Row, Info]:
        """One training step: (new state, info)."""
        grads, memory, info = self.gradients(chain, state, batch)
        return chain.map(descend, state, grads, memory), info

    def diagnose(self, chain: Chain, state: Row, batch: Batch) -> dict[str, Row]:
        """What only this rule can tell of itself: by name, a row of one scalar for each block (energy, residual, goodness margin).

        Asked at evaluations where a run wants it, on one training batch, in one process; it changes nothing and its messages do not count.
        """
        return {}

    def predict(self, chain: Chain, state: Row, x: Any) -> Any:
        """Class scores [batch, classes], a value of the top block, from x at the bottom."""
        return chain.sweep_up("activation", forward, state, first=x)[1][-1]


def forward(block: Block, state: State, x: jax.Array) -> jax.Array:
    """The block's output."""
    return block.apply(state.params, x)


def descend(block: Block, state: State, grads: Any, memory: Any) -> State:
    """One optimizer step, and the rule's new memory."""
    return block.descend(state, grads)._replace(memory=memory) if block.learns else state


def whole_step(rule: Rule, chain: Chain, state: Row, batch: Batch, stale: Row | None = None) -> tuple[Row, Info]:
    """The rule's step; then blocks that normalise over the batch take what they saw into their running statistics.

    stale: the states that the step began with, where they are older than `state`, which it changes.
    """
    if stale is not None:
        grads, memory, info = gradients(rule, chain, stale, batch)
        return descended(rule, chain, state, stale, grads, memory, info), info
    after, info = rule.step(chain, state, batch)
    info = told(chain, info)
    return observed(rule, chain, state, instead_of_rest(after, state), info), info


def gradients(rule: Rule, chain: Chain, state: Row, batch: Batch) -> tuple[Row, Row, Info]:
    """The rule's own, in which blocks that rest have zeros and keep what they remember."""
    grads, memory, info = rule.gradients(chain, state, batch)
    if any(own is RESTING for own in grads):
        grads = instead_of_rest(grads, chain.map(zeros, state))
    return grads, instead_of_rest(memory, state.memory), told(chain, info)


def instead_of_rest(row: Row, others: Row) -> Row:
    """The row, with other entries for blocks that rest."""
    return Row(other if own is RESTING else own for own, other in zip(row, others, strict=True))


def told(chain: Chain, info: Info) -> Info:
    """What a step reports where blocks rest: they saw nothing, and a loss that hangs on one of them is not a number."""
    loss = chain.at_top(unknown) if info.loss is RESTING else info.loss
    inputs = None if info.inputs is None else Row(None if x is RESTING else x for x in info.inputs)
    return Info(loss, inputs)


def unknown(block: Block) -> jax.Array:
    """A loss that nobody knows."""
    return jnp.full((), jnp.nan)


def zeros(block: Block, state: State) -> Any:
    """As the parameters."""
    return jax.tree.map(jnp.zeros_like, state.params)


def descended(rule: Rule, chain: Chain, state: Row, begun: Row, grads: Row, memory: Row, info: Info) -> Row:
    """The second half of a step of a rule that has `gradients`: the new state. begun: the states that it began with."""
    return observed(rule, chain, begun, chain.map(descend, state, grads, memory), info)


def observed(rule: Rule, chain: Chain, before: Row, after: Row, info: Info) -> Row:
    """The state after a step, in which blocks that normalise over the batch have taken what they saw into their running statistics."""
    if not any(block.observes for block in chain.blocks):
        return after
    if info.inputs is None:
        raise RuleError(f"{type(rule).__name__} {NO_INPUTS}")
    return chain.map(observe, after, before.params, info.inputs)


NO_INPUTS = "does not tell what its blocks saw, which the statistics of batch normalisation need: take layer normalisation or none"
WHOLE_BATCH = "batch normalisation is about the whole batch, so it takes `microbatches: 1`"


def observe(block: Block, state: State, params: Any, x: Any) -> State:
    """One step of a block's running statistics, if it has some."""
    return block.observe(state, params, x)


def mean(block: Block, *parts: Any) -> Any:
    """The mean of the microbatches' gradients, summed in their order."""
    return jax.tree.map(lambda *leaves: sum(leaves[1:], start=leaves[0]) / len(leaves), *parts)


def split_batch(batch: Batch, parts: int) -> list[Batch]:
    """Equal parts of a batch, in order. Parts share the key, folded with their number."""
    if parts == 1:
        return [batch]
    size = batch.index.shape[0] // parts

    def part(value: Any, k: int) -> Any:
        return value if value is ABSENT else value[k * size : (k + 1) * size]

    return [Batch(part(batch.x, k), part(batch.y, k), part(batch.index, k), jax.random.fold_in(batch.key, k)) for k in range(parts)]


def block_keys(seed: int, count: int) -> list[jax.Array]:
    """One key for each block's initial state: a function of the seed and the block's place alone."""
    root = jax.random.PRNGKey(seed)
    return [jax.random.fold_in(root, i) for i in range(count)]


def step_keys(seed: int, start: int, stop: int) -> np.ndarray:
    """uint32[stop-start, 2]: the key of each training step, a function of (seed, step) alone."""
    root = jax.random.fold_in(jax.random.PRNGKey(seed), 0x57E9)
    return np.concatenate([_fold_many(root, first) for first in range(start, stop, _KEYS)])[: stop - start]


_KEYS = 512
"""Keys made at once: always as many, so that runs of steps of other lengths compile nothing."""


@jax.jit
def _fold_many(root: jax.Array, first: Any) -> jax.Array:
    return jax.vmap(lambda k: jax.random.fold_in(root, first + k))(jnp.arange(_KEYS))


@jax.jit
def replica_keys(keys: Any, replica: Any) -> Any:
    """A replica's own keys of steps, uint32[N, 2], from the steps'; folded as those of a microbatch are."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, replica)


def init_state(rule: Rule, blocks: Sequence[Block], seed: int) -> Row:
    """The state of every block before training."""
    return Row(rule.init(block, key) for block, key in zip(blocks, block_keys(seed, len(blocks)), strict=True))


def init_shapes(rule: Rule, blocks: Sequence[Block]) -> Row:
    """The shapes of `init_state`."""
    return jax.eval_shape(lambda: init_state(rule, blocks, 0))
