"""Locking, found out from the choreography itself: what each block's update has to wait for.

Jaderberg et al. (2017, arXiv 1608.05343) call a network forward locked if a block must wait for the blocks below it, update locked if its
update must wait for what blocks above it make of this batch, and backward locked if that comes down through all of them, one after
the other. `locking` runs a step on shapes and follows, for each value, whose work is in it. What follows from the batch alone (labels, the
example itself) locks nothing: it can be sent before the step begins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


class Influence(Fabric):
    """A `Plan` that knows whose work is in every value."""

    def __init__(self, plan: Plan):
        self.plan, self.placement = plan, plan.placement

    def compute(self, i: int, fn: Callable[..., Any], block: Block, *args: Any, **options: Any) -> Followed:
        """Block i's work, unless it needs nothing but the batch."""
        followed = [arg for arg in args if isinstance(arg, Followed)]
        value = self.plan.compute(i, fn, block, *(arg._value if isinstance(arg, Followed) else arg for arg in args), **options)
        blocks = frozenset().union(*(arg._blocks for arg in followed)) if not value._early else frozenset()
        return Followed(value, blocks if value._early else blocks | {i}, max((arg._falls for arg in followed), default=0))

    def exchange(self, name: str, moves: Sequence[Move]) -> list[Followed]:
        """What moves takes along whose work it is."""
        arrived = self.plan.exchange(name, [move._replace(value=move.value._value) for move in moves])
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
    """What a step on shapes told. plan: what it sends, every block a shard of its own. locking: `forward`, `backward`, `update`."""

    plan: Plan
    locking: tuple[str, ...]


def study(rule: Rule, blocks: Sequence[Block], size: int) -> Study:
    """One step of a rule on these blocks, on shapes alone, with batches of `size` examples."""
    plan = Plan(lossless(rule.messages, range(len(blocks))))
    state, batch = planned(rule, blocks, blocks[0].examples(size))
    after, _ = whole_step(rule, Chain(blocks, Influence(plan)), Row(map(Followed, state)), Batch(*map(Followed, batch)))
    return Study(plan, _locks([[part for part in jax.tree.leaves(state) if isinstance(part, Followed)] for state in after]))


def _locks(updates: Sequence[Sequence[Followed]]) -> tuple[str, ...]:
    """From whose work is in each block's new state."""
    lower, higher, falls = False, False, 0
    for i, parts in enumerate(updates):
        blocks = frozenset().union(*(part._blocks for part in parts))
        lower, higher = lower or any(j < i for j in blocks), higher or any(j > i for j in blocks)
        falls = max([falls, *(part._falls for part in parts)])
    found = {"forward": lower, "backward": higher and falls > 1, "update": higher}
    return tuple(name for name, locked in found.items() if locked)
