"""A training step as a graph: what each shard computes and sends, in which order, and what waits for what.

The graph comes from the choreography itself, which is run once with tokens in place of arrays: so it has every round, every broadcast and
every message of the rule, for as many shards as one likes, and no shape is looked at. What computing and sending cost is looked up by
function, message and block in a `Prices`.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax

from locallearn.block import Block
from locallearn.chain import RESTING, Chain, Fabric, Move, Row
from locallearn.networks import Network
from locallearn.rule import Batch, Rule, descend

EVEN = 0.1
"""Every k-th message is sent where the share of those that are differs from 1/k by no more than this share of it: few steps end amid k."""


class Event(NamedTuple):
    """Shard `shard` computes for `cost` seconds, or sends `cost` bytes to the shard `to`, after the events `needs`.

    early: whether what is sent follows from the batch alone, so that it need not wait for its step. reads: whether what is computed
    uses the shard's weights. frames: how many frames are sent; on average, as `cost` then is, where not every step sends one. turn, turns:
    which of the channel's messages in a step it is, and of how many.
    """

    shard: int
    needs: tuple[int, ...]
    cost: float
    to: int | None = None
    early: bool = False
    reads: bool = False
    frames: float = 1.0
    turn: int = 0
    turns: int = 1

    @property
    def spacing(self) -> int:
        """Of how many messages of the channel one is sent, as `every` does; 1 where all are, or where nobody knows which."""
        among = round(1 / self.frames)
        return among if abs(among * self.frames - 1) <= EVEN else 1

    def sent(self, step: int) -> bool:
        """Whether a step sends it."""
        return (step * self.turns + self.turn) % self.spacing == 0

    def takes(self, network: Network) -> float:
        """Seconds of the shard's processor, or of its line out."""
        return self.cost if self.to is None else network.seconds(self.cost)

    def travels(self, network: Network) -> float:
        """Seconds that what was sent is on its way after that, in the mean over steps: those that send nothing wait for nothing."""
        return 0.0 if self.to is None else network.latency * self.frames


class Prices(Protocol):
    """What things cost, for one microbatch: seconds of a function in a block, framed bytes of a message between blocks."""

    def compute(self, name: str, block: int) -> float:
        """Seconds."""
        ...

    def message(self, name: str, src: int, dst: int) -> tuple[float, float]:
        """Framed bytes, and frames: of one message, in the mean over steps."""
        ...


class Token:
    """A value of the step: the event that it comes from (None: it was there before), and whether it follows from the batch alone."""

    __slots__ = ("_early", "_event")

    def __init__(self, event: int | None = None, early: bool = False):
        self._event, self._early = event, early

    def __getattr__(self, name: str) -> Token:
        if name.startswith("__"):
            raise AttributeError(name)
        return self


class Skeleton(Fabric):
    """Runs a choreography with tokens and notes what happens. events: what happened so far."""

    def __init__(self, placement: Sequence[int], prices: Prices):
        self.placement, self._prices = placement, prices
        self.events: list[Event] = []
        self._sends: dict[tuple[str, int, int], list[int]] = defaultdict(list)

    def compute(self, i: int, fn: Callable[..., Any], block: Block, *args: Any, **options: Any) -> Token:
        """One event."""
        tokens = [leaf for leaf in jax.tree.leaves(args) if isinstance(leaf, Token)]
        needs = {token._event for token in tokens if token._event is not None}
        reads = any(token._event is None and not token._early for token in tokens)
        event = Event(self.placement[i], tuple(sorted(needs)), self._prices.compute(function_name(fn), i), reads=reads)
        return self._noted(event, all(token._early for token in tokens))

    def exchange(self, name: str, moves: Sequence[Move]) -> list[Token]:
        """One event for each message that crosses."""
        crossed: dict[tuple[int, int], Token] = {}
        arrived = []
        for src, dst, value in moves:
            link = self.placement[src], self.placement[dst]
            if link[0] != link[1] and link not in crossed:
                crossed[link] = self._crossed(name, src, dst, value)
            arrived.append(crossed.get(link, value))
        return arrived

    def _crossed(self, name: str, src: int, dst: int, value: Token) -> Token:
        size, frames = self._prices.message(name, src, dst)
        if not frames:
            return Token(early=True)  # what the receiver keeps was there before the step
        needs = () if value._event is None else (value._event,)
        self._sends[name, self.placement[src], self.placement[dst]].append(len(self.events))
        return self._noted(Event(self.placement[src], needs, size, self.placement[dst], value._early, frames=frames), False)

    def repeat(self, times: int, body: Callable[[Any, Any], Any], carry: Any) -> Any:
        """Every round."""
        for _ in range(times):
            carry = body(Token(), carry)
        return carry

    def numbered(self) -> list[Event]:
        """What happened, each message with its turn. Shards wait also for what they have no use for, such as labels while they rest."""
        used = {need for event in self.events for need in event.needs}
        self.events += [Event(event.to, (k,), 0.0) for k, event in enumerate(self.events) if event.to is not None and k not in used]
        for channel in self._sends.values():
            for turn, k in enumerate(channel):
                self.events[k] = self.events[k]._replace(turn=turn, turns=len(channel))
        return self.events

    def _noted(self, event: Event, early: bool) -> Token:
        self.events.append(event)
        return Token(len(self.events) - 1, early)


def step_graph(rule: Rule, blocks: Sequence[Block], placement: Sequence[int], prices: Prices, microbatches: int = 1) -> list[Event]:
    """The events of one training step, each after those that it needs.

    Microbatches (Huang et al. 2019, GPipe) each have their own; the blocks' optimizers follow once at the end. In which order they take
    turns depends on the network, too: `as_ready` finds that of the runtime, in which each has a thread.
    """
    skeleton = Skeleton(placement, prices)
    chain = Chain(blocks, skeleton)
    state = Row(Token() for _ in blocks)
    batch = Batch(*(Token(early=True) for _ in Batch._fields))
    if microbatches == 1:
        rule.step(chain, state, batch)
        return skeleton.numbered()
    grads, _, _ = rule.gradients(chain, state, batch)
    one = skeleton.numbered()
    events = [event._replace(needs=tuple(need * microbatches + m for need in event.needs)) for event in one for m in range(microbatches)]
    price = [prices.compute(function_name(descend), i) for i in range(len(blocks))]
    for i, grad in enumerate(grads):
        if grad is RESTING:
            continue
        needs = () if grad._event is None else tuple(grad._event * microbatches + m for m in range(microbatches))
        events.append(Event(placement[i], needs, price[i]))
    return events


def as_ready(events: Sequence[Event], network: Network) -> list[Event]:
    """The events in the order in which they come about where each shard computes, and sends, first what is ready first."""
    users: list[list[int]] = [[] for _ in events]
    for k, event in enumerate(events):
        for need in event.needs:
            users[need].append(k)
    missing = [len(event.needs) for event in events]
    waiting = [(0.0, k) for k, count in enumerate(missing) if not count]
    free: dict[tuple[int, bool], float] = {}
    ready = [0.0] * len(events)
    order = []
    while waiting:
        now, k = heapq.heappop(waiting)
        order.append(k)
        event, sends = events[k], events[k].to is not None
        free[event.shard, sends] = max(now, free.get((event.shard, sends), 0.0)) + event.takes(network)
        done = free[event.shard, sends] + event.travels(network)
        for user in users[k]:
            missing[user], ready[user] = missing[user] - 1, max(ready[user], done)
            if not missing[user]:
                heapq.heappush(waiting, (ready[user], user))
    place = {k: n for n, k in enumerate(order)}
    return [events[k]._replace(needs=tuple(sorted(place[need] for need in events[k].needs))) for k in order]


def function_name(fn: Callable[..., Any]) -> str:
    """Where a function is defined, and its name."""
    return f"{getattr(fn, '__module__', '')}.{getattr(fn, '__qualname__', fn)}"
