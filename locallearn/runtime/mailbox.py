"""Frames as calls of Ray: where they wait for the shard that wants them, and how a sender is held back.

Calls may overtake each other. Each frame has a number, and once a second a sender says how many it has sent: so frames that came twice are
dropped, and one that never comes is an error of the shard that should have had it.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from queue import SimpleQueue
from types import MappingProxyType
from typing import Any

from locallearn.runtime.frame import Address, FrameError, address_of

WINDOW = 24
"""The most frames of one stream (sender, receiver, microbatch) that may be on their way or waiting."""

BEAT_SECONDS = 1.0
MISSING_SECONDS = 10.0
"""A frame that was said to have been sent so long ago is lost."""

Stream = tuple[int, int]
"""(shard at the other end, microbatch)."""


class Mailbox:
    """The frames that arrived at one shard. Calls may arrive out of order, so each frame is taken by its address.

    Each microbatch has a thread that takes its frames, and a queue, so that a frame wakes just the thread that it is for.
    waiting: what the shard waits for at this moment, by microbatch; None where it computes. waited: seconds so far, by shard.
    """

    def __init__(self) -> None:
        self._queues: dict[int, SimpleQueue[tuple[Address, bytes] | FrameError]] = {}
        self._numbers: dict[int, _Numbers] = defaultdict(_Numbers)
        self._early: dict[Address, bytes] = {}
        self._taken: Counter[Stream] = Counter()
        self._askers, self._closed = 0, False
        self._failure: FrameError | None = None
        self._changed = threading.Condition()
        self.waiting: dict[int, tuple[Address, str] | None] = {}
        self.waited: Counter[int] = Counter()

    def put(self, number: int, data: bytes) -> None:
        """Keep a frame until it is taken. number: of those from its sender. A damaged one is an error, which the next `take` raises."""
        try:
            address = address_of(data)
        except FrameError as error:
            return self._fail(error)
        with self._changed:
            fresh = self._numbers[address.src].come(number)
        if fresh:
            self._queue(address.micro).put((address, data))

    def promised(self, src: int, count: int, now: float) -> None:
        """A shard has sent so many frames. One that is still missing long after that is an error, which the next `take` raises."""
        with self._changed:
            missing = self._numbers[src].missing(count, now)
        if missing:
            self._fail(FrameError(f"{missing} frames from shard {src} were lost on their way"))

    def take(self, address: Address, name: str) -> bytes:
        """Wait for exactly this frame, as long as it takes: a neighbour that compiles is slow, not dead.

        Raises FrameError for a frame that was damaged or came twice.
        """
        queue = self._queue(address.micro)
        if address not in self._early:
            begun = time.perf_counter()
            self.waiting[address.micro] = address, name
            if self._failure is not None:  # it may have come before this queue was there
                raise self._failure
            while address not in self._early:
                arrived = queue.get()
                if isinstance(arrived, FrameError):
                    raise arrived
                if arrived[0] in self._early:
                    raise FrameError(f"the frame {arrived[0]} arrived twice")
                self._early[arrived[0]] = arrived[1]
            self.waiting[address.micro] = None
            self.waited[address.src] += time.perf_counter() - begun  # type: ignore[assignment]
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
        self._failure = error
        for queue in tuple(self._queues.values()):
            queue.put(error)

    def _queue(self, micro: int) -> SimpleQueue[tuple[Address, bytes] | FrameError]:
        return self._queues.setdefault(micro, SimpleQueue())


class _Numbers:
    """Which of a sender's frames have come."""

    def __init__(self) -> None:
        self._next, self._beyond = 0, set[int]()
        self._since: tuple[int, float] | None = None

    def come(self, number: int) -> bool:
        """Note one; whether it is the first time."""
        if number < self._next or number in self._beyond:
            return False
        self._beyond.add(number)
        while self._next in self._beyond:
            self._beyond.remove(self._next)
            self._next += 1
        return True

    def missing(self, count: int, now: float) -> int:
        """How many of the first `count` have been missing for MISSING_SECONDS. Asked again and again."""
        if self._since is not None and self._next >= self._since[0]:
            self._since = None
        if self._since is None and self._next < count:
            self._since = count, now
        if self._since is None or now - self._since[1] < MISSING_SECONDS:
            return 0
        return self._since[0] - self._next - sum(number < self._since[0] for number in self._beyond)


class Outbox:
    """Sends frames to neighbours, never more than WINDOW of a stream ahead of what was taken.

    send(dst, number, data): one way, no answer; the frames from one shard to another are numbered. ask(dst, stream, at_least): a reference
    to the answer of `Mailbox.taken`; answer(reference) waits for it. Every third of a window it asks to be told when all before were taken,
    and only then waits for the answer before.
    """

    def __init__(
        self, me: int, send: Callable[[int, int, bytes], Any], ask: Callable[[int, Stream, int], Any], answer: Callable[[Any], Any]
    ):
        self._me, self._send, self._ask, self._answer = me, send, ask, answer
        self._sent: Counter[Stream] = Counter()
        self.counts: Counter[int] = Counter()
        self._lock = threading.Lock()
        self._asked: dict[Stream, Any] = {}
        self.closed = False

    def post(self, address: Address, data: bytes) -> None:
        """Send; hold the sender back where the receiver is behind."""
        if self.closed:
            raise FrameError("the run was given up")
        stream = address.dst, address.micro
        with self._lock:
            number = self.counts[address.dst]
            self.counts[address.dst] += 1
        self._send(address.dst, number, data)
        self._sent[stream] += 1
        if self._sent[stream] % (WINDOW // 3):
            return
        if stream in self._asked:
            self._answer(self._asked[stream])
        self._asked[stream] = self._ask(address.dst, (self._me, address.micro), self._sent[stream] - WINDOW // 3)


class Calls:
    """One shard's way to send and to wait for frames, each a call of its own. The contract is that of `links.Links`.

    beat(dst, count): a call that says how many frames have been sent.
    """

    lost: Mapping[int, str] = MappingProxyType({})
    """Ray knows who is gone."""
    fatal = None
    beat_bytes = 0
    """What a call takes is Ray's affair."""
    buffered = False

    def __init__(self, mailbox: Mailbox, outbox: Outbox, beat: Callable[[int, int], Any]):
        self.mailbox, self.outbox, self._say = mailbox, outbox, beat
        self.post, self.take, self.waiting, self.waited = outbox.post, mailbox.take, mailbox.waiting, mailbox.waited
        self._closed = threading.Event()
        threading.Thread(target=self._beat, daemon=True, name="heartbeats").start()

    def _beat(self) -> None:
        while not self._closed.wait(BEAT_SECONDS):
            for dst, count in list(self.outbox.counts.items()):
                self._say(dst, count)

    def forget(self, before: Any) -> None:
        """Nothing is kept here anyway."""

    def promised(self, src: int, count: int) -> None:
        """A neighbour has sent so many frames."""
        self.mailbox.promised(src, count, time.monotonic())

    def close(self) -> None:
        """End every wait, now and later: the run is over."""
        self._closed.set()
        self.mailbox.close()
        self.outbox.closed = True
