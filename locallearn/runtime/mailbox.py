"""Mailboxes: where frames wait for the shard that wants them, and how a sender is held back."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from typing import Any

from locallearn.runtime.frame import Address, FrameError, address_of

WINDOW = 24
"""The most frames of one stream (sender, receiver, microbatch) that may be on their way or waiting."""

Stream = tuple[int, int]
"""(shard at the other end, microbatch)."""


class Mailbox:
    """The frames that arrived at one shard. Calls may arrive out of order, so each frame is taken by its address.

    waiting: what the shard waits for at this moment, by microbatch; None where it computes.
    """

    def __init__(self) -> None:
        self._frames: dict[Address, bytes] = {}
        self._taken: Counter[Stream] = Counter()
        self._changed = threading.Condition()
        self.waiting: dict[int, tuple[Address, str] | None] = {}

    def put(self, data: bytes) -> int:
        """Keep a frame until it is taken; returns how many of its stream were taken so far. Raises FrameError if damaged or doubled."""
        address = address_of(data)
        with self._changed:
            if address in self._frames:
                raise FrameError(f"the frame {address} arrived twice")
            self._frames[address] = data
            self._changed.notify_all()
            return self._taken[address.src, address.micro]

    def take(self, address: Address, name: str) -> bytes:
        """Wait for exactly this frame, as long as it takes: a neighbour that compiles is slow, not dead."""
        with self._changed:
            if address not in self._frames:
                self.waiting[address.micro] = address, name
                self._changed.wait_for(lambda: address in self._frames)
                self.waiting[address.micro] = None
            self._taken[address.src, address.micro] += 1
            self._changed.notify_all()
            return self._frames.pop(address)

    def taken(self, stream: Stream, at_least: int) -> int:
        """Wait until so many frames of a stream were taken: a sender that is too far ahead asks this, and waits with us."""
        with self._changed:
            self._changed.wait_for(lambda: self._taken[stream] >= at_least)
            return self._taken[stream]


class Outbox:
    """Sends frames to neighbours, never more than WINDOW of a stream ahead of what was taken.

    It asks about the oldest third of a window once two thirds are open, so that the answers are there already and nobody waits.

    send(dst, data) -> a reference; await_all(references) -> what `Mailbox.put` returned for each; await_taken(dst, stream, at_least).
    """

    def __init__(self, me: int, send: Callable[..., Any], await_all: Callable[..., list[int]], await_taken: Callable[..., int]):
        self._me, self._send, self._await_all, self._await_taken = me, send, await_all, await_taken
        self._sent: Counter[Stream] = Counter()
        self._taken: Counter[Stream] = Counter()
        self._open: dict[Stream, deque[Any]] = defaultdict(deque)

    def post(self, address: Address, data: bytes) -> None:
        """Send; hold the sender back where the receiver is behind. Errors of earlier sends come up here."""
        stream = address.dst, address.micro
        references = self._open[stream]
        references.append(self._send(address.dst, data))
        self._sent[stream] += 1
        third = WINDOW // 3
        if len(references) < 2 * third:
            return
        oldest = [references.popleft() for _ in range(third)]
        self._taken[stream] = max(self._taken[stream], *self._await_all(oldest))
        if self._sent[stream] - self._taken[stream] >= 2 * third:
            enough = self._sent[stream] - third
            self._taken[stream] = self._await_taken(address.dst, (self._me, address.micro), enough)
