"""Frames as calls of Ray: where they wait for the shard that wants them, and how a sender is held back."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from locallearn.runtime.frame import Address, FrameError, address_of

WINDOW = 24
"""The most frames of one stream (sender, receiver, microbatch) that may be on their way or waiting."""

Stream = tuple[int, int]
"""(shard at the other end, microbatch)."""


class Mailbox:
    """The frames that arrived at one shard. Calls may arrive out of order, so each frame is taken by its address.

    Each microbatch has a thread that takes its frames, and a queue, so that a frame wakes just the thread that it is for.
    waiting: what the shard waits for at this moment, by microbatch; None where it computes.
    """

    def __init__(self) -> None:
        self._queues: dict[int, SimpleQueue[tuple[Address, bytes] | FrameError]] = {}
        self._early: dict[Address, bytes] = {}
        self._taken: Counter[Stream] = Counter()
        self._askers, self._closed = 0, False
        self._changed = threading.Condition()
        self.waiting: dict[int, tuple[Address, str] | None] = {}

    def put(self, data: bytes) -> None:
        """Keep a frame until it is taken. A damaged one is an error of this shard, which the next `take` raises."""
        try:
            address = address_of(data)
        except FrameError as error:
            return self._fail(error)
        self._queue(address.micro).put((address, data))

    def take(self, address: Address, name: str) -> bytes:
        """Wait for exactly this frame, as long as it takes: a neighbour that compiles is slow, not dead.

        Raises FrameError for a frame that was damaged or came twice.
        """
        queue = self._queue(address.micro)
        if address not in self._early:
            self.waiting[address.micro] = address, name
            while address not in self._early:
                arrived = queue.get()
                if isinstance(arrived, FrameError):
                    raise arrived
                if arrived[0] in self._early:
                    raise FrameError(f"the frame {arrived[0]} arrived twice")
                self._early[arrived[0]] = arrived[1]
            self.waiting[address.micro] = None
        self._taken[address.src, address.micro] += 1
        if self._askers:
            with self._changed:
                self._changed.notify_all()
        return self._early.pop(address)

    def taken(self, stream: Stream, at_least: int) -> int:
        """Wait until so many frames of a stream were taken: a sender that is too far ahead asks this, and waits with us."""
        with self._changed:
            self._askers += 1
            self._changed.wait_for(lambda: self._closed or self._taken[stream] >= at_least)
            self._askers -= 1
            return self._taken[stream]

    def close(self) -> None:
        """End every wait, now and later: the run is over."""
        self._fail(FrameError("the run was given up"))
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _fail(self, error: FrameError) -> None:
        for queue in (self._queue(0), *self._queues.values()):
            queue.put(error)

    def _queue(self, micro: int) -> SimpleQueue[tuple[Address, bytes] | FrameError]:
        return self._queues.setdefault(micro, SimpleQueue())


class Outbox:
    """Sends frames to neighbours, never more than WINDOW of a stream ahead of what was taken.

    send(dst, data): one way, no answer. ask(dst, stream, at_least): a reference to the answer of `Mailbox.taken`; answer(reference) waits
    for it. Every third of a window it asks to be told when all before were taken, and only then waits for the answer before.
    """

    def __init__(self, me: int, send: Callable[[int, bytes], Any], ask: Callable[[int, Stream, int], Any], answer: Callable[[Any], Any]):
        self._me, self._send, self._ask, self._answer = me, send, ask, answer
        self._sent: Counter[Stream] = Counter()
        self._asked: dict[Stream, Any] = {}
        self.closed = False

    def post(self, address: Address, data: bytes) -> None:
        """Send; hold the sender back where the receiver is behind."""
        if self.closed:
            raise FrameError("the run was given up")
        stream = address.dst, address.micro
        self._send(address.dst, data)
        self._sent[stream] += 1
        if self._sent[stream] % (WINDOW // 3):
            return
        if stream in self._asked:
            self._answer(self._asked[stream])
        self._asked[stream] = self._ask(address.dst, (self._me, address.micro), self._sent[stream] - WINDOW // 3)


class Calls:
    """One shard's way to send and to wait for frames, each a call of its own. The contract is that of `links.Links`."""

    def __init__(self, mailbox: Mailbox, outbox: Outbox):
        self.mailbox, self.outbox = mailbox, outbox
        self.post, self.take, self.waiting = outbox.post, mailbox.take, mailbox.waiting

    def close(self) -> None:
        """End every wait, now and later: the run is over."""
        self.mailbox.close()
        self.outbox.closed = True
