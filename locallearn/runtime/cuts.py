"""Cuts: the steps after which every shard takes its part of a snapshot, each when it comes by, so that nobody waits for anybody."""

from __future__ import annotations

import math
import threading


class Cuts:
    """One shard's side. The training claims steps before it does anything of them; a cut is taken up only beyond what was claimed.

    at: the step after which the next part is due; 0 for none.
    """

    def __init__(self) -> None:
        self.at, self._claimed = 0, 0
        self._lock = threading.Lock()

    def claim(self, step: int, upto: int) -> int:
        """How far the training may go on from `step` in one piece, `upto` at most."""
        with self._lock:
            limit = min(upto, self.at) if self.at > step else upto
            self._claimed = max(self._claimed, limit)
            return limit

    def announce(self, at: int) -> bool:
        """Take a part after step `at`, if nothing of a later step was begun; whether that is so."""
        with self._lock:
            accepted = at >= self._claimed
            self.at = at if accepted else self.at
            return accepted


class Cutter:
    """The driver's side: when a snapshot is due, and at which step, a little beyond where the first shard is.

    A cut that one of the shards had passed already never becomes whole; the next one is announced further ahead.
    """

    def __init__(self, keep_seconds: float, now: float):
        self._every, self._kept, self._margin = keep_seconds, now, 2
        self._pending = 0
        self._seen: tuple[float, int] = now, 0
        self._rate = 0.0

    def due(self, steps: list[int], now: float) -> int | None:
        """The step of a new cut, if it is time for one. steps: where every shard is."""
        first = max(steps)
        if now - self._seen[0] >= 0.5:
            self._rate = max(0, first - self._seen[1]) / (now - self._seen[0])
            self._seen = now, first
        if self._pending and min(steps) > self._pending:
            self._pending, self._margin = 0, 2 * self._margin
        if self._pending or now - self._kept < self._every or min(steps) == 0:
            return None
        self._pending = first + self._margin + math.ceil(self._rate)
        return self._pending

    def unheard(self) -> None:
        """A shard was restarted, and knows of no cut: what is pending will not become whole, which is no reason to look further ahead."""
        self._pending = 0

    def whole(self, step: int, now: float) -> None:
        """Every shard's part of a snapshot has come."""
        self._kept = now
        if step >= self._pending:
            self._pending = 0
