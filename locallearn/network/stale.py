"""Steps that overlap: an event heap for machines that begin the next steps while they wait for what comes down.

Each shard has up to `staleness + 1` steps in flight. It computes whatever is ready, of the oldest step first (the order of PipeDream's
1F1B: what comes down goes before what goes up), and each step keeps the weights that it began with. So how old these are follows from
the clock alone, and a training needs to know no more than that: `delays`.

A step's computations, and its sends, keep the order of the choreography, and what one shard sends shares one line, as in
`locallearn.network.clock`; with no staleness both find the same times.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from locallearn.network.graph import Event
from locallearn.networks import AHEAD, Network


class Staggered(NamedTuple):
    """ends: when each step ends, in seconds [steps]. delays: updates that a shard had yet to make when it began a step [steps, shards]."""

    ends: np.ndarray
    delays: np.ndarray


def staggered(events: Sequence[Event], network: Network, steps: int, staleness: int, ahead: int = AHEAD) -> Staggered:
    """So many steps from an empty pipeline to an empty pipeline."""
    machines = _Machines(events, network, steps, staleness, ahead)
    machines.run()
    return Staggered(np.maximum.accumulate(machines.ends), np.maximum(machines.delays, 0))


class _Machines:
    """The shards, each with a processor and a line out."""

    def __init__(self, events: Sequence[Event], network: Network, steps: int, staleness: int, ahead: int):
        self.events, self.network, self.steps, self.staleness, self.ahead = events, network, steps, staleness, ahead
        shards = range(1 + max(max(event.shard, event.to or 0) for event in events))
        self.tasks = [[k for k, e in enumerate(events) if e.shard == s and e.to is None] for s in shards]
        self.sends = [[k for k, e in enumerate(events) if e.shard == s and e.to is not None and not e.early] for s in shards]
        self.early = [[k for k, e in enumerate(events) if e.shard == s and e.early] for s in shards]
        self.users: list[list[int]] = [[] for _ in events]
        for k, event in enumerate(events):
            for need in event.needs:
                self.users[need].append(k)
        self.missing = {}  # by step: how many of its needs each event still waits for
        self.computed = [dict.fromkeys(range(min(steps, staleness + 1)), 0) for _ in shards]  # by step in flight: tasks begun
        self.sent = [[0] * steps for _ in shards]
        self.finished = [0 for _ in shards]
        self.busy = [False for _ in shards]
        self.free = [0.0 for _ in shards]  # when the line out is
        self.heap: list[tuple[float, int, int, int]] = []
        self.pushed = 0
        self.ends, self.delays = np.zeros(steps), np.full((steps, len(shards)), -1, np.int32)

    def run(self) -> None:
        """To the last event."""
        for shard in range(len(self.tasks)):
            for step in range(min(self.steps, self.ahead + 1)):
                self._send_early(shard, step, 0.0)
        for shard in range(len(self.tasks)):
            self._compute(shard, 0.0)
        while self.heap:
            now, _, step, k = heapq.heappop(self.heap)
            event = self.events[k]
            if event.to is None:
                self._computed(event.shard, step, k, now)
            else:
                self._arrived(k, step, now)
                self._compute(event.to, now)

    def _compute(self, shard: int, now: float) -> None:
        """Begin the first task of the oldest step that has one ready."""
        if self.busy[shard]:
            return
        tasks = self.tasks[shard]
        for step, begun in self.computed[shard].items():
            if begun < len(tasks) and not self._missing(step)[tasks[begun]]:
                if self.delays[step, shard] < 0 and self.events[tasks[begun]].reads:
                    self.delays[step, shard] = step - self.finished[shard]
                self.computed[shard][step], self.busy[shard] = begun + 1, True
                self._push(now + self.events[tasks[begun]].cost, step, tasks[begun])
                return

    def _computed(self, shard: int, step: int, k: int, now: float) -> None:
        self.busy[shard] = False
        self._arrived(k, step, now)
        if k == self.tasks[shard][-1]:
            self.finished[shard] += 1
            self.ends[step] = max(self.ends[step], now)
            del self.computed[shard][step]
            if step + self.staleness + 1 < self.steps:
                self.computed[shard][step + self.staleness + 1] = 0
            if step + self.ahead + 1 < self.steps:
                self._send_early(shard, step + self.ahead + 1, now)
        self._compute(shard, now)

    def _arrived(self, k: int, step: int, now: float) -> None:
        """What waits for this no longer does; if it is to be sent, it is."""
        missing = self._missing(step)
        for user in self.users[k]:
            missing[user] -= 1
        event = self.events[k]
        shard = event.shard if event.to is None else event.to
        sends = self.sends[shard]
        while self.sent[shard][step] < len(sends) and not missing[sends[self.sent[shard][step]]]:
            self._send(sends[self.sent[shard][step]], step, now)
            self.sent[shard][step] += 1

    def _send_early(self, shard: int, step: int, now: float) -> None:
        for k in self.early[shard]:
            self._send(k, step, now)

    def _send(self, k: int, step: int, now: float) -> None:
        shard = self.events[k].shard
        self.free[shard] = max(self.free[shard], now) + self.events[k].takes(self.network)
        self._push(self.free[shard] + self.events[k].travels(self.network), step, k)

    def _missing(self, step: int) -> list[int]:
        if step not in self.missing:
            self.missing[step] = [len(event.needs) for event in self.events]
        return self.missing[step]

    def _push(self, when: float, step: int, k: int) -> None:
        self.pushed += 1
        heapq.heappush(self.heap, (when, self.pushed, step, k))
