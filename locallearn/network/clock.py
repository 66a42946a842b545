"""Clocks for a graph of events: when every step of a training ends, on machines that compute one thing at a time over a network.

A shard computes, and sends, in the order of the choreography: so nothing has to be decided while time passes, and the time of each event
is a maximum of sums (Baccelli et al. 1992, "Synchronization and Linearity"). A machine's link is busy while it sends a message, at the
rate of the slower end; what arrives from several machines at once does not queue. What follows from the batch alone is sent as far ahead as
the runtime does, `ahead` steps.

Two ways lead there. Where messages go round between shards, steps are replayed one after the other until they repeat themselves, which
they do after a few. Where no message comes back but what is sent ahead, as many steps of one shard are found at once as that reaches, shard
after shard: the pipeline of a network of 10,000 shards takes longer to fill than most trainings last.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import numpy as np

from locallearn.network.graph import Event
from locallearn.networks import AHEAD, Network

SAME = 1e-9
"""Steps repeat themselves when they differ by no more than this share."""
SETTLED = 3
"""So many steps in a row must repeat the one before."""


def ends(events: Sequence[Event], network: Network, steps: int) -> np.ndarray:
    """When each step ends, in seconds from the start: [steps]."""
    order = upwards(events)
    if order is None:
        return _replayed(events, network, steps, AHEAD)  # shards that wait for each other come no further apart
    return _pipelined(events, network, steps, order, AHEAD * len(order))


def _replayed(events: Sequence[Event], network: Network, steps: int, ahead: int) -> np.ndarray:
    """Step by step, until steps repeat themselves. What a step does not send, it does not wait for: the receiver has the last one."""
    shards = 1 + max(max(event.shard, event.to or 0) for event in events)
    cpu, up, done = [0.0] * shards, [0.0] * shards, [0.0] * len(events)
    early = [k for k, event in enumerate(events) if event.early]
    arrivals: dict[int, deque[float]] = {k: deque() for k in early}
    takes, travels = [event.takes(network) for event in events], [event.travels(network) for event in events]
    spaced = {k for k, event in enumerate(events) if event.to is not None and event.spacing > 1}
    period = period_of(events)
    for k in spaced:
        takes[k], travels[k] = takes[k] / events[k].frames, network.latency
    found: list[float] = []
    rows, settled = deque([cpu[:]], period + 1), 0

    def send(k: int, ready: float, step: int) -> float:
        if k in spaced and not events[k].sent(step):
            return 0.0
        shard = events[k].shard
        up[shard] = max(ready, up[shard]) + takes[k]
        return up[shard] + travels[k]

    for step in range(steps):
        for sending in range(ahead + 1) if step == 0 else [step + ahead]:
            for k in early:
                arrivals[k].append(send(k, cpu[events[k].shard], sending))
        for k, event in enumerate(events):
            if event.early:
                done[k] = arrivals[k].popleft()
                continue
            ready = max([done[need] for need in event.needs], default=0.0)
            if event.to is None:
                cpu[event.shard] = done[k] = max(ready, cpu[event.shard]) + event.cost
            else:
                done[k] = send(k, ready, step)
        found.append(max(cpu))
        rows.append(cpu[:])
        moved = [now - was for now, was in zip(cpu, rows[0], strict=True)]
        even = step >= period and max(moved) - min(moved) <= SAME * max(moved) and _repeats(found[-1 : -2 - 2 * period : -period])
        settled = settled + 1 if even else 0
        if settled >= SETTLED * period and step > ahead:
            last, count = np.array(found[-period:]), -(-(steps - step - 1) // period)
            ahead_of = last + (found[-1] - found[-1 - period]) * np.arange(1, count + 1)[:, None]
            return np.concatenate([found, ahead_of.ravel()])[:steps]
    return np.array(found)


def period_of(events: Sequence[Event]) -> int:
    """After how many steps the same is sent again."""
    return math.lcm(*(event.spacing // math.gcd(event.spacing, event.turns) for event in events if event.to is not None))


def _repeats(found: Sequence[float]) -> bool:
    """Of times one period apart, the latest first."""
    if len(found) < 3:
        return False
    last, before = found[0] - found[1], found[1] - found[2]
    return abs(last - before) <= SAME * last


def _pipelined(events: Sequence[Event], network: Network, steps: int, order: Sequence[int], ahead: int) -> np.ndarray:
    """`ahead + 1` steps at a time, from the shards that nobody sends to, upwards: what is early waits for steps that are found already."""
    pipeline = _Pipeline(events, network, order)
    parts, own = [], {shard: np.zeros(1) for shard in order}
    for first in range(0, steps, ahead + 1):
        count = min(ahead + 1, steps - first)
        own = pipeline.advance(count, {shard: np.resize(times, count) for shard, times in own.items()})
        parts.append(np.maximum.reduce(list(own.values())))
    return np.concatenate(parts)


class _Pipeline:
    """The machines of a pipeline, which go on from where they were."""

    def __init__(self, events: Sequence[Event], network: Network, order: Sequence[int]):
        self.events, self.network, self.order = events, network, order
        self.tasks: dict[int, list[int]] = {shard: [] for shard in order}
        self.sends: dict[int, list[int]] = {shard: [] for shard in order}
        self.early: dict[int, list[int]] = {shard: [] for shard in order}
        for k, event in enumerate(events):
            (self.early if event.early else self.tasks if event.to is None else self.sends)[event.shard].append(k)
        self.free: dict[tuple[str, int], float] = {}

    def advance(self, steps: int, earlier: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
        """When each shard ends each of the next steps. earlier: when it ended those that lie `ahead + 1` steps before them."""
        done: dict[int, np.ndarray] = {}
        for shard in self.order:
            self._run("early", shard, self.early[shard], [earlier[shard]] * len(self.early[shard]), done)
        found = {}
        for shard in self.order:
            self._run("tasks", shard, self.tasks[shard], self._known(self.tasks[shard], done, steps), done)
            found[shard] = done[self.tasks[shard][-1]] if self.tasks[shard] else np.zeros(steps)
            self._run("sends", shard, self.sends[shard], self._known(self.sends[shard], done, steps), done)
            arrived = [need for k in self.tasks[shard] for need in self.events[k].needs if self.events[need].to == shard]
            for k in (*self.tasks[shard], *arrived):
                done.pop(k, None)  # ten thousand shards times a thousand steps are not kept
        return found

    def _known(self, some: Sequence[int], done: dict[int, np.ndarray], steps: int) -> list[np.ndarray]:
        """When what each of these events needs is there."""
        times = [[done[need] for need in self.events[k].needs if need in done] for k in some]
        return [np.maximum.reduce(each) if each else np.zeros(steps) for each in times]

    def _run(self, what: str, shard: int, some: Sequence[int], ready: Sequence[np.ndarray], done: dict[int, np.ndarray]) -> None:
        """On the shard's processor, or on its line."""
        if not some:
            return
        events = [self.events[k] for k in some]
        times = _queue(ready, [event.takes(self.network) for event in events], self.free.get((what, shard), 0.0))
        self.free[what, shard] = float(times[-1][-1])
        done.update((k, each + event.travels(self.network)) for k, event, each in zip(some, events, times, strict=True))


def _queue(ready: Sequence[np.ndarray], costs: Sequence[float], free: float = 0.0) -> list[np.ndarray]:
    """When each of a list of tasks ends, in every step, on something that does one task at a time in this order, step after step.

    ready: [steps] for each task. free: when it can begin. The end of a step's last task is e(s) = max(latest start of what remains(s),
    e(s-1) + all costs), a running maximum once s times all costs is taken away.
    """
    total = float(np.sum(costs))
    rest = np.cumsum(np.asarray(costs)[::-1])[::-1]
    latest = np.maximum.reduce([r + tail for r, tail in zip(ready, rest, strict=True)])
    latest[0] = max(latest[0], free + total)
    ramp = total * np.arange(len(latest))
    last = np.maximum.accumulate(latest - ramp) + ramp
    now = np.concatenate([[free], last[:-1]])
    done = []
    for r, cost in zip(ready, costs, strict=True):
        now = np.maximum(r, now) + cost
        done.append(now)
    return done


def upwards(events: Sequence[Event]) -> list[int] | None:
    """The shards in an order in which each comes after those that send to it, not counting what is early; None if there is none."""
    above: dict[int, set[int]] = {}
    waits: dict[int, int] = {event.shard: 0 for event in events}
    for event in events:
        if event.to is not None:
            waits.setdefault(event.to, 0)
            if not event.early and event.to not in above.setdefault(event.shard, set()):
                above[event.shard].add(event.to)
                waits[event.to] += 1
    free = deque(sorted(shard for shard, count in waits.items() if not count))
    order = []
    while free:
        order.append(free.popleft())
        for shard in sorted(above.get(order[-1], ())):
            waits[shard] -= 1
            if not waits[shard]:
                free.append(shard)
    return order if len(order) == len(waits) else None
