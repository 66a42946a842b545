"""Steps that overlap as they come, where shards are apart: while one waits for what comes down, its shard begins the next ones.

It is what `stale` computes for a virtual clock, on a real one. Each step in flight has a thread. One at a time computes, of the oldest step
that is ready; it lets go while it waits for a frame. A step keeps, to its end, the weights that the shard had when it first computed;
updates are made in the order of the steps, and so is whatever codecs remember of each channel. A step begins only when all but `ahead` of
those before it have ended, so that no weights are ever more than `ahead` updates old.
"""

from __future__ import annotations

import contextlib
import heapq
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import Any

import jax

from locallearn.codec import Codec
from locallearn.errors import LocallearnError
from locallearn.runtime.endpoint import Endpoint
from locallearn.runtime.ends import QUEUE
from locallearn.runtime.frame import Address
from locallearn.runtime.local import Framed
from locallearn.traffic import Channel

Order = tuple[int, int]
"""(step, microbatch): the lowest that is ready computes next."""


class Turns:
    """One thread at a time computes. A thread that fails ends the waits of all others. error: of the first that did."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._ready: list[Order] = []
        self._busy = False
        self.error: BaseException | None = None

    def enter(self, order: Order) -> None:
        """Wait for one's turn."""
        with self._changed:
            self._enter(order)

    def leave(self) -> None:
        """Let others compute."""
        with self._changed:
            self._leave()

    @contextlib.contextmanager
    def away(self, order: Order) -> Iterator[None]:
        """Let others compute meanwhile."""
        self.leave()
        try:
            yield
        finally:
            self.enter(order)

    def until(self, order: Order, holds: Callable[[], bool]) -> None:
        """Let others compute until something holds that one of them brings about."""
        with self._changed:
            if not holds():
                self._leave()
                self._changed.wait_for(lambda: self.error or holds())
                self._enter(order)
            if self.error:
                raise LocallearnError("another step failed") from self.error

    def fail(self, error: BaseException) -> None:
        """Nothing more will be brought about."""
        with self._changed:
            self.error = self.error or error
            self._changed.notify_all()

    def _enter(self, order: Order) -> None:
        heapq.heappush(self._ready, order)
        self._changed.wait_for(lambda: not self._busy and self._ready[0] == order)
        heapq.heappop(self._ready)
        self._busy = True

    def _leave(self) -> None:
        self._busy = False
        self._changed.notify_all()


class Flight:
    """The steps of a stage that are in flight. first: the first of them all. step: a step's work, in its turn.

    ended: the step after the last that has ended here. fits: whether what all of them may have sent unread finds room on a link.
    """

    def __init__(self, first: int, ahead: int, microbatches: int, step: Callable[[int], Any]):
        self.first, self.turns, self.ended = first, Turns(), first
        self._step, self._order, self._next = step, microbatches, first
        self.fits = 2 * (ahead + 1) * microbatches <= QUEUE  # up and down by each
        self._steps = ThreadPoolExecutor(ahead + 1, "step")
        self._jobs = ThreadPoolExecutor((ahead + 1) * microbatches, "microbatch")
        self._flying: dict[int, Future[Any]] = {}

    def result(self, step: int, limit: int) -> Any:
        """What a step gives, waited for; meanwhile those before `limit` have begun."""
        while self._next < limit:
            self._flying[self._next] = self._steps.submit(self._fly, self._next)
            self._next += 1
        while not self._flying[step].done() and not self.turns.error:
            wait([future for future in self._flying.values() if not future.done()], return_when=FIRST_COMPLETED)
        if self.turns.error:
            raise self.turns.error  # also of a later one, which ends this one, too
        return self._flying.pop(step).result()

    def order(self, step: int) -> Order:
        """That of a step's own thread."""
        return step, self._order

    def in_order(self, step: int) -> None:
        """Wait until the steps before have ended."""
        self.turns.until(self.order(step), lambda: self.ended == step)

    def together(self, step: int, jobs: list[Callable[[], Any]]) -> list[Any]:
        """A step's jobs, one for each microbatch; their results in order."""
        if len(jobs) == 1:
            return [jobs[0]()]
        with self.turns.away(self.order(step)):
            futures = [self._jobs.submit(self._in_turn, (step, k), job) for k, job in enumerate(jobs)]
            wait(futures, return_when=FIRST_EXCEPTION)
            failed = [future for future in futures if future.done() and future.exception()]
            return [future.result() for future in (failed or futures)]

    def close(self) -> None:
        """Wait for the threads, of a run that was given up or is over."""
        self.turns.fail(LocallearnError("the run was given up"))
        self._steps.shutdown()
        self._jobs.shutdown()

    def _fly(self, step: int) -> Any:
        return self._in_turn(self.order(step), lambda: self._step(step))

    def _in_turn(self, order: Order, work: Callable[[], Any]) -> Any:
        self.turns.enter(order)
        try:
            return work()
        except BaseException as error:
            self.turns.fail(error)
            raise
        finally:
            self.turns.leave()


class Memories:
    """A shard's ends of the channels that remember, of one microbatch: steps use them one after the other.

    uses: of each channel by a step, at its sending and at its receiving end.
    """

    def __init__(self, end: Endpoint, uses: tuple[Mapping[Channel, int], Mapping[Channel, int]], flight: Flight):
        self._end, self._flight = end, flight
        self._uses = [
            {c: count for c, count in each.items() if count and jax.tree.leaves(side.get(c))}
            for each, side in zip(uses, (end.senders, end.receivers), strict=True)
        ]
        self._done: list[Counter[Channel]] = [Counter(), Counter()]

    def copy(self) -> Endpoint:
        """The ends as a step has them to itself."""
        return Endpoint(self._end.segments, dict(self._end.senders), dict(self._end.receivers))

    @contextlib.contextmanager
    def used(self, own: Endpoint, channel: Channel, receiving: bool, order: Order) -> Iterator[None]:
        """Once by a step, after all uses by the steps before: what it finds there, and leaves."""
        uses, done = self._uses[receiving], self._done[receiving]
        if channel not in uses:
            yield
            return
        before = (order[0] - self._flight.first) * uses[channel]
        self._flight.turns.until(order, lambda: done[channel] >= before)
        shared, copy = (self._end.receivers, own.receivers) if receiving else (self._end.senders, own.senders)
        copy[channel] = shared[channel]
        yield
        (shared[channel],) = own.segments.force((copy[channel],))
        done[channel] += 1


class Overlapped(Framed):
    """One shard's part of a step of which there are several in flight. early: messages that have been sent already."""

    def __init__(self, framed: tuple[Any, ...], transport: Any, early: Any, memories: Memories, flight: Flight, order: Order):
        super().__init__(*framed)
        self._transport, self._early, self._memories, self._flight, self._order = transport, early, memories, flight, order
        self._turns = flight.turns

    def post(self, address: Address, data: bytes) -> None:
        """To the neighbour. Where so many steps are in flight that links might fill up in both directions, others compute meanwhile."""
        with contextlib.nullcontext() if self._flight.fits else self._turns.away(self._order):
            self._transport.post(address, data)

    def take(self, address: Address, channel: Channel) -> bytes | bytearray:
        """From the neighbour."""
        with self._turns.away(self._order):
            return self._transport.take(address, channel.message)

    def send(self, codec: Codec, end: Endpoint, leaving: Mapping[Channel, Any]) -> None:
        """What has not left yet."""
        leaving = {c: value for c, value in leaving.items() if (self.place, c) not in self._early}
        with contextlib.ExitStack() as stack:
            for channel in leaving:
                stack.enter_context(self._memories.used(end, channel, False, self._order))
            super().send(codec, end, leaving)

    def receive(self, codec: Codec, channel: Channel) -> Any:
        """The value of a message from another shard."""
        with self._memories.used(self.ends[channel.dst], channel, True, self._order):
            return super().receive(codec, channel)
