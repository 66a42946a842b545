"""Locking, found out from the choreography itself: what each block's update has to wait for.

Jaderberg et al. (2017, arXiv 1608.05343) call a network forward locked if a block must wait for the blocks below it, update locked if its
update must wait for what blocks above it make of this batch, and backward locked if that comes down through all of them, one after
the other. `locking` runs a step on shapes and follows, for each value, whose work is in it. What follows from the batch alone (labels, the
example itself) locks nothing: it can be sent before the step begins.

The same tells which blocks of a phase rest, `at_work`: all above the highest whose work is in what a block learns that does learn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from locallearn.block import Block
from locallearn.chain import Chain, Fabric, Move, Row
from locallearn.codec import Spec
from locallearn.rule import Batch, Rule, whole_step
from locallearn.runtime.local import Plan, Planned, planned
from locallearn.runtime.wiring import lossless


class Followed:
    """A planned value, the blocks whose work on this batch is in it, and how many blocks in a row it has come down through."""

    __slots__ = ("_blocks", "_falls", "_value")

    def __init__(self, value: Planned, blocks: frozenset[int] = frozenset(), falls: int = 0):
        self._value, self._blocks, self._falls = value, blocks, falls

    def __getattr__(self, name: str) -> Followed:
        if name.startswith("__"):
            raise AttributeError(name)
        return Followed(getattr(self._value, name), self._blocks, self._falls)


class Sent(NamedTuple):
    """A message between two blocks: the blocks whose work on the batch is in it, and its shape."""

    blocks: frozenset[int]
    spec: Any


class Influence(Fabric):
    """A `Plan` that knows whose work is in every value. sent: by message and blocks, from and to, what they told each other."""

    def __init__(self, plan: Plan):
        self.plan, self.placement = plan, plan.placement
        self.sent: dict[tuple[str, int, int], Sent] = {}

    def compute(self, i: int, fn: Callable[..., Any], block: Block, *args: Any, **options: Any) -> Followed:
        """Block i's work, unless it needs nothing but the batch."""
        followed = [arg for arg in args if isinstance(arg, Followed)]
        value = self.plan.compute(i, fn, block, *(arg._value if isinstance(arg, Followed) else arg for arg in args), **options)
        blocks = frozenset().union(*(arg._blocks for arg in followed)) if not value._early else frozenset()
        return Followed(value, blocks if value._early else blocks | {i}, max((arg._falls for arg in followed), default=0))

    def exchange(self, name: str, moves: Sequence[Move]) -> list[Followed]:
        """What moves takes along whose work it is."""
        arrived = self.plan.exchange(name, [move._replace(value=move.value._value) for move in moves])
        for src, dst, value in moves:
            before = self.sent.get((name, src, dst), Sent(frozenset(), value._value._spec))
            self.sent[name, src, dst] = before._replace(blocks=before.blocks | value._blocks)
        return [
            Followed(value, move.value._blocks, move.value._falls + (move.dst < move.src) if move.value._blocks else 0)
            for value, move in zip(arrived, moves, strict=True)
        ]

    def repeat(self, times: int, body: Callable[[Any, Any], Any], carry: Any) -> Any:
        """Every round."""
        for _ in range(times):
            carry = body(Followed(Planned(Spec((), jnp.int32), None)), carry)
        return carry


class Study(NamedTuple):
    """What a step on shapes told.

    plan: what it sends, every block a shard of its own. locking: `forward`, `backward`, `update`. learnt: of each block, whose work is
    in what it learns. sent: by message and blocks, from and to.
    """

    plan: Plan
    locking: tuple[str, ...]
    learnt: tuple[frozenset[int], ...]
    sent: dict[tuple[str, int, int], Sent]

    def highest(self, learners: Sequence[int]) -> int:
        """The highest block whose work is in what one of these learns, or one of these."""
        return max(max(i, *self.learnt[i]) if self.learnt[i] else i for i in learners)


def study(rule: Rule, blocks: Sequence[Block], size: int) -> Study:
    """One step of a rule on these blocks, on shapes alone, with batches of `size` examples."""
    plan = Plan(lossless(rule.messages, range(len(blocks))))
    state, batch = planned(rule, blocks, blocks[0].examples(size))
    fabric = Influence(plan)
    after, _ = whole_step(rule, Chain(blocks, fabric), Row(map(Followed, state)), Batch(*map(Followed, batch)))
    updates = [[part for part in jax.tree.leaves(state) if isinstance(part, Followed)] for state in after]
    learnt = tuple(frozenset().union(*(part._blocks for part in parts)) for parts in updates)
    return Study(plan, _locks(updates, learnt), learnt, fabric.sent)


def at_work(rule: Rule, blocks: Sequence[Block]) -> tuple[Block, ...]:
    """The blocks of a phase, of which those rest whose work no block that learns has a use for."""
    learners = [block.index for block in blocks if block.learns]
    if len(blocks) - 1 in learners or not learners:
        return tuple(blocks)
    highest = study(rule, blocks, blocks[0].batch or 2).highest(learners)
    return tuple(replace(block, rests=True) if block.index > highest else block for block in blocks)


def _locks(updates: Sequence[Sequence[Followed]], learnt: Sequence[frozenset[int]]) -> tuple[str, ...]:
    """From whose work is in each block's new state."""
    lower, higher, falls = False, False, 0
    for i, (parts, blocks) in enumerate(zip(updates, learnt, strict=True)):
        lower, higher = lower or any(j < i for j in blocks), higher or any(j > i for j in blocks)
        falls = max([falls, *(part._falls for part in parts)])
    found = {"forward": lower, "backward": higher and falls > 1, "update": higher}
    return tuple(name for name, locked in found.items() if locked)
