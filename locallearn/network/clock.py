"""Clocks for a graph of events: when every step of a training ends, on machines that compute one thing at a time over a network.

A shard computes, and sends, in the order of the choreography: so nothing has to be decided while time passes, and the time of each event
is a maximum of sums (Baccelli et al. 1992, "Synchronization and Linearity"). A machine's link is busy while it sends a message, at the
rate of the slower end; what arrives from several machines at once does not queue. What follows from the batch alone is sent as far ahead as
the runtime does, `ahead` steps.

Two ways lead there. Where messages go round between shards, steps are replayed one after the other until they repeat themselves, which
they do after a few. Where no message comes back, all steps of one shard are found at once, shard after shard: the pipeline of a network
of 10,000 shards takes longer to fill than most trainings last.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

from locallearn.network.graph import Event
from locallearn.networks import Network

SAME = 1e-9
"""Steps repeat themselves when they differ by no more than this share."""
SETTLED = 3
"""So many steps in a row must repeat the one before."""


def ends(events: Sequence[Event], network: Network, steps: int, ahead: int = 8) -> np.ndarray:
    """When each step ends, in seconds from the start: [steps]."""
    order = upwards(events)
    return _replayed(events, network, steps, ahead) if order is None else _pipelined(events, network, steps, order)


def _replayed(events: Sequence[Event], network: Network, steps: int, ahead: int) -> np.ndarray:
    """Step by step, until steps repeat themselves."""
    shards = 1 + max(max(event.shard, event.to or 0) for event in events)
    cpu, up, done = [0.0] * shards, [0.0] * shards, [0.0] * len(events)
    early = [k for k, event in enumerate(events) if event.early]
    sent: dict[int, deque[float]] = {k: deque() for k in early}
    transfer = [network.seconds(event.cost) for event in events]
    found: list[float] = []
    settled = 0

    def send(k: int, ready: float) -> float:
        shard = events[k].shard
        up[shard] = max(ready, up[shard]) + transfer[k]
        return up[shard] + network.latency

    for step in range(steps):
        before = cpu[:]
        for _ in range(ahead + 1 if step == 0 else 1):
            for k in early:
                sent[k].append(send(k, cpu[events[k].shard]))
        for k, event in enumerate(events):
            if event.early:
                done[k] = sent[k].popleft()
                continue
            ready = max([done[need] for need in event.needs], default=0.0)
            if event.to is None:
                cpu[event.shard] = done[k] = max(ready, cpu[event.shard]) + event.cost
            else:
                done[k] = send(k, ready)
        found.append(max(cpu))
        moved = [now - was for now, was in zip(cpu, before, strict=True)]
        settled = settled + 1 if step and max(moved) - min(moved) <= SAME * max(moved) and _repeats(found) else 0
        if settled >= SETTLED and step > ahead:
            period = found[-1] - found[-2]
            return np.concatenate([found, found[-1] + period * np.arange(1, steps - step)])
    return np.array(found)


def _repeats(found: Sequence[float]) -> bool:
    if len(found) < 3:
        return False
    last, before = found[-1] - found[-2], found[-2] - found[-3]
    return abs(last - before) <= SAME * last


def _pipelined(events: Sequence[Event], network: Network, steps: int, order: Sequence[int]) -> np.ndarray:
    """All steps of a shard at once, from the shards that nobody sends to, upwards. What is early waits for nothing but its link."""
    own: dict[int, list[int]] = {shard: [] for shard in order}
    for k, event in enumerate(events):
        own[event.shard].append(k)
    done: dict[int, np.ndarray] = {}
    end = np.zeros(steps)

    def run(some: Sequence[int], costs: Sequence[float], delay: float = 0.0) -> None:
        known = [[done[need] for need in events[k].needs if need in done and not events[k].early] for k in some]
        ready = [np.maximum.reduce(times) if times else np.zeros(steps) for times in known]
        for k, times in zip(some, _queue(ready, costs), strict=True):
            done[k] = times + delay

    for shard in order:
        early = [k for k in own[shard] if events[k].early]
        run(early, [network.seconds(events[k].cost) for k in early], network.latency)
    for shard in order:
        tasks = [k for k in own[shard] if events[k].to is None]
        run(tasks, [events[k].cost for k in tasks])
        end = np.maximum.reduce([end, *(done[k] for k in tasks)])
        sends = [k for k in own[shard] if events[k].to is not None and not events[k].early]
        run(sends, [network.seconds(events[k].cost) for k in sends], network.latency)
        arrived = [need for k in tasks for need in events[k].needs if events[need].to == shard]
        for k in (*tasks, *arrived):
            done.pop(k, None)  # ten thousand shards times a thousand steps are not kept
    return end


def _queue(ready: Sequence[np.ndarray], costs: Sequence[float]) -> list[np.ndarray]:
    """When each of a list of tasks ends, in every step, on something that does one task at a time in this order, step after step.

    ready: [steps] for each task. The end of a step's last task is e(s) = max(latest start of what remains(s), e(s-1) + all costs), a
    running maximum once s times all costs is taken away.
    """
    if not costs:
        return []
    total = float(np.sum(costs))
    rest = np.cumsum(np.asarray(costs)[::-1])[::-1]
    latest = np.maximum.reduce([r + tail for r, tail in zip(ready, rest, strict=True)])
    ramp = total * np.arange(len(latest))
    last = np.maximum.accumulate(latest - ramp) + ramp
    now = np.concatenate([[0.0], last[:-1]])
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
