"""What a run's computing and sending cost: bytes by its codecs and what it sent, seconds as measured, shared out by operations."""

from __future__ import annotations

import dataclasses
import functools
from collections import defaultdict
from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Any

import jax

from locallearn.block import Block
from locallearn.chain import Chain, Move
from locallearn.network.graph import function_name
from locallearn.network.sent import Sent, share_of
from locallearn.runtime.local import Plan, Planned, planned
from locallearn.runtime.setup import Stage
from locallearn.traffic import HEADER_BYTES


class Costing(Plan):
    """A plan in which every block is a shard, that notes operations by (function, block) and framed bytes by (message, block)."""

    def __init__(self, stage: Stage):
        super().__init__(stage.wiring._replace(placement=tuple(range(len(stage.blocks)))))
        self.operations: dict[tuple[str, int], list[float]] = defaultdict(list)
        self.bytes: dict[tuple[str, int], float] = {}

    def compute(self, i: int, fn: Callable[..., Any], block: Block, *args: Any, **options: Any) -> Planned:
        """The shape of what `fn` returns, and what it takes."""
        specs = [arg._spec if isinstance(arg, Planned) else arg for arg in args]
        leaves, tree = jax.tree.flatten(specs)
        likeness = block.in_shape, block.out_shape, block.bottom, block.top  # blocks of the middle that look alike cost the same
        key = ("operations", fn, likeness, tuple(options.items()), tree, tuple(map(jax.api_util.shaped_abstractify, leaves)))
        self.operations[function_name(fn), i].append(self._cached(key, lambda: _operations(fn, block, specs, options)))
        return super().compute(i, fn, block, *args, **options)

    def exchange(self, name: str, moves: Sequence[Move]) -> list[Planned]:
        """Count each message once."""
        before = self.traffic.payload.copy()
        arrived = super().exchange(name, moves)
        for channel, payload in (self.traffic.payload - before).items():
            self.bytes[name, channel.src] = max(self.bytes.get((name, channel.src), 0), payload + HEADER_BYTES)
        return arrived


class Prices:
    """The prices of a chain of `count` blocks between whose ends those of the run's middle recur, one after the other.

    seconds: of one training step of the run. size: examples in one microbatch. sent: what of the plan was sent; by default all of it, so
    that frames of variable size count at their largest.
    """

    def __init__(self, stage: Stage, size: int, seconds: float, count: int, microbatches: int = 1, sent: Sent = MappingProxyType({})):
        costing = _costed(stage, size)
        total = sum(sum(each) for each in costing.operations.values()) * microbatches
        self._rate = seconds / total if total else 0.0
        self._operations = {key: sum(each) / len(each) for key, each in costing.operations.items()}
        self._bytes, self._sent, self._placement = costing.bytes, sent, stage.wiring.placement
        self._like = likenesses(len(stage.blocks), count)
        self._message = functools.cache(self._of_likenesses)

    def compute(self, name: str, block: int) -> float:
        """Seconds."""
        return self._operations.get((name, self._like[block]), 0.0) * self._rate

    def message(self, name: str, src: int, dst: int) -> tuple[float, float]:
        """Framed bytes, and frames: of one message, in the mean over the steps of which it is known what they sent."""
        return self._message(name, self._like[src], self._like[dst])

    def _of_likenesses(self, name: str, src: int, dst: int) -> tuple[float, float]:
        """Near its ends the run's chain may leave out what those of a longer one's middle send: the nearest block's, then."""
        size = min((abs(sender - src), size) for (message, sender), size in self._bytes.items() if message == name)[1]
        share = share_of(self._sent, name, self._placement[src], self._placement[dst])
        return size * share.bytes, share.frames


def likenesses(blocks: int, count: int) -> list[int]:
    """Which of the run's blocks each block of a longer (or shorter) chain is like."""
    middle = range(1, blocks - 1) or range(max(1, blocks - 1))
    return [0, *(middle[k % len(middle)] for k in range(count - 2)), blocks - 1][:count] if count > 1 else [blocks - 1]


def resized(blocks: Sequence[Block], count: int) -> list[Block]:
    """The blocks of such a longer (or shorter) chain, each with its number there: rules ask which one is the highest that learns.

    Where blocks rest, they do from as far above that one on as in the run.
    """
    like = [blocks[k] for k in likenesses(len(blocks), count)]
    highest, own = (max((i for i, block in enumerate(chain) if block.learns), default=len(chain) - 1) for chain in (like, blocks))
    first = next((i for i, block in enumerate(blocks) if block.rests), None)
    resting = count if first is None else highest + first - own
    return [dataclasses.replace(block, index=i, count=count, rests=i >= resting) for i, block in enumerate(like)]


@functools.lru_cache(maxsize=8)
def _costed(stage: Stage, size: int) -> Costing:
    costing = Costing(stage)
    on_shapes(stage, costing, size)
    return costing


def on_shapes(stage: Stage, plan: Plan, size: int) -> None:
    """One training step of `size` examples, which the plan takes note of."""
    blocks = stage.blocks
    stage.rule.step(Chain(blocks, plan), *planned(stage.rule, blocks, blocks[0].examples(size)))


def _operations(fn: Callable[..., Any], block: Block, specs: Sequence[Any], options: dict[str, Any]) -> float:
    """Floating-point operations, as XLA counts them before it optimises."""
    cost = jax.jit(functools.partial(fn, block, **options)).lower(*specs).cost_analysis()
    return float((cost or {}).get("flops", 0.0))
