"""The Ray actor that holds one shard. It runs the whole training by itself; the driver starts it, asks how it is, and collects."""

from __future__ import annotations

import os
import sys
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import ray

from locallearn.runtime.placement import Seat, Share, seat, sit

LEAVE_SECONDS = 30.0
"""For a training to notice that its run was given up: it may be compiling."""


class Status(NamedTuple):
    """What an actor says when asked. machine: its number, as others are in what follows. events: those since it was last asked for them.

    waiting: (step, message, machine) that it waits for. waited: seconds for which it waited for each machine so far, those of microbatches
    that wait at the same time together. beats: bytes of heartbeats. failure: what ended the training, in a line and in full. fault: whether
    that was on the way between shards, so that going back to the last snapshot mends it; lost: those whose links are broken, and why.
    """

    machine: int
    step: int
    events: list[Any]
    waiting: tuple[int, str, int] | None
    failure: tuple[str, str] | None
    fault: bool
    lost: dict[int, str]
    waited: dict[int, float]
    beats: int
    peak_memory: int


@ray.remote(max_restarts=0, max_task_retries=0)
class ShardActor:
    """One shard, of one replica. Ray's threads deliver frames and answer the driver; the training has a thread of its own."""

    def __init__(self, shard: int, replica: int | None, machine: int):
        # Frames arrive on other threads than the one that trains: it should not wait long for its turn after each.
        sys.setswitchinterval(5e-5)
        self._shard, self._replica, self._machine = shard, replica, machine
        self._transport: Any = None
        self._worker: Any = None
        self._session: Any = None
        self._work, self._life = -1, -1
        self._leave()

    def hired(self) -> int:
        """That the actor is there: its process id."""
        return os.getpid()

    def seat(self) -> Seat:
        """Where this shard came to sit."""
        return seat()

    def sit(self, share: Share, environment: Mapping[str, str]) -> None:
        """What it may compute on, and what it is to know of its surroundings; JAX comes after this."""
        os.environ.update(environment)
        sit(share)
        import jax

        # A shard waits for each result at once, so a hand-over to another thread costs time and hides none.
        jax.config.update("jax_cpu_enable_async_dispatch", False)

    def listen(self, life: int, host: str | None, secret: bytes, ports: tuple[int, int] | None) -> tuple[str, int]:
        """Ready for a life whose frames cross sockets: where this shard listens.

        Every actor is asked this, or `receive`, before any of them starts. What went before is given up. life: its number; a run has one
        for its beginning and one for each roll-back, and what belongs to another is refused. host: the address to listen at, by default
        the node's own.
        """
        from locallearn.runtime.links import Links

        self._leave()
        self._life, self._transport = life, Links(self._machine, host or ray.util.get_node_ip_address(), life, secret, ports)
        return self._transport.place

    def moved(self, life: int, shard: int, place: tuple[str, int]) -> None:
        """Another shard was lost, and listens elsewhere now."""
        if life == self._life:
            self._transport.moved(shard, place)

    def receive(self, life: int, peers: Sequence[Any]) -> None:
        """Ready for a life whose frames are calls."""
        from locallearn.runtime.mailbox import Calls, Mailbox, Outbox

        outbox = Outbox(
            self._machine,
            send=lambda dst, number, data: peers[dst].deliver.remote(life, number, data),
            ask=lambda dst, stream, at_least: peers[dst].taken.remote(life, stream, at_least),
            answer=ray.get,
        )
        self._leave()
        beat = lambda dst, count: peers[dst].beat.remote(life, self._machine, count)  # noqa: E731
        self._life, self._transport = life, Calls(Mailbox(), outbox, beat)

    @ray.method(num_returns=0)
    def deliver(self, life: int, number: int, data: bytes) -> None:
        """A frame from a neighbour, as a call."""
        if life == self._life:
            self._transport.mailbox.put(number, data)

    @ray.method(num_returns=0)
    def beat(self, life: int, src: int, count: int) -> None:
        """How many frames a neighbour has sent."""
        if life == self._life:
            self._transport.promised(src, count)

    def taken(self, life: int, stream: tuple[int, int], at_least: int) -> int:
        """A neighbour that is far ahead waits here."""
        return self._transport.mailbox.taken(stream, at_least) if life == self._life else at_least

    def start(
        self,
        places: Sequence[Any],
        work: int,
        make_setup: Callable[[], Any],
        resume: Any,
        keep_seconds: float,
        network: Any = None,
        present: Sequence[int] = (),
    ) -> None:
        """Begin to train, or go back: a shard that has done the same work before keeps what it compiled.

        places: where the shards listen, if they do. work: the number of the run. resume: this shard's part of a snapshot. network: to
        emulate. present: the replicas that are there, if not all are.
        """
        from locallearn.runtime.cuts import Cuts
        from locallearn.runtime.handshake import Position
        from locallearn.runtime.pacing import Paced
        from locallearn.runtime.peers import Worker

        if places:
            self._transport.connect(places, Position(resume.step, resume.asides + 1) if resume else Position())
        transport = self._transport = self._transport if network is None else Paced(self._transport, network)
        if work != self._work:
            self._work, self._session = work, None
        cuts = self._cuts = Cuts()
        self._worker = Worker(lambda: self._train(transport, cuts, make_setup, resume, keep_seconds, present))
        self._worker.start()

    def cut(self, life: int, step: int) -> bool:
        """Take a part of a snapshot after a step; whether that is still possible."""
        return life == self._life and self._cuts.announce(step)

    def whole(self, life: int, step: int, asides: int) -> None:
        """Every shard has given its part of a snapshot after this step: nobody will go back further."""
        if life == self._life:
            from locallearn.runtime.handshake import Position

            self._transport.forget(Position(step, asides + 1))

    def status(self, life: int | None = None) -> Status:
        """How it goes. life: whose events are wanted, which are told once: only who waits for the answer however long may ask for them."""
        import resource

        from locallearn.runtime.frame import FrameError
        from locallearn.runtime.links import LinkLost

        events = [self._events.popleft() for _ in range(len(self._events))] if life == self._life else []
        error = (self._worker.error if self._worker else None) or (self._transport.fatal if self._transport else None)
        failure = None if error is None else (_one_line(error), "".join(traceback.format_exception(error)))
        waits = [wait for wait in list(self._transport.waiting.values()) if wait is not None] if self._transport else []
        waiting = (waits[0][0].step, waits[0][1], waits[0][0].src) if waits else None
        step = self._session.step if self._session else 0
        fault = isinstance(error, FrameError | LinkLost)
        lost, waited, beats = (dict(own.lost), dict(own.waited), own.beat_bytes) if (own := self._transport) else ({}, {}, 0)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return Status(self._machine, step, events, waiting, failure, fault, lost, waited, beats, peak)

    def _leave(self) -> None:
        """End what is going on. A training that is slow to notice is left behind, with what it compiled."""
        if self._transport is not None:
            self._transport.close()
        if self._worker is not None:
            self._worker.join(LEAVE_SECONDS)
            if self._worker.is_alive():
                self._session = None
        self._events: deque[Any] = deque()
        self._cuts: Any = None
        self._worker = None

    def _train(
        self, transport: Any, cuts: Any, make_setup: Callable[[], Any], resume: Any, keep_seconds: float, present: Sequence[int]
    ) -> None:
        from locallearn.runtime.peers import PeersSession
        from locallearn.runtime.telling import Diary, Numbers
        from locallearn.runtime.training import Compiled, train

        run = (ray.get_runtime_context().get_actor_name() or "").split(":")[1:2] or ["run"]
        diary, numbers = Diary(self._shard, self._replica), Numbers(run[0], self._shard, self._replica)
        waited = lambda: sum(dict(transport.waited).values())  # noqa: E731
        events, session, asides = self._events, self._session, resume.asides if resume else 0
        if session is None:
            setup = _made(make_setup, self._shard)
            session = PeersSession(setup, self._shard, transport, cuts, asides, self._replica or 0, present)
            if cuts is self._cuts:  # else it was given up meanwhile, and left behind: another one trains here
                self._session = session
        else:
            session.rewind(transport, cuts, asides, present)
        try:
            for event in train(session, resume, keep_seconds, cuts=cuts):
                events.append(event)
                diary.event(event)
                if isinstance(event, Compiled):
                    numbers.begin(session.traffic, event.step, waited())
                else:
                    numbers.tell(session.traffic, event.step, waited())
        except BaseException as error:
            diary.write(session.step, _one_line(error))
            raise


def _made(make_setup: Any, shard: int) -> Any:
    """A shard's own setup, where one is made for each: it reads only the data that the shard uses."""
    return make_setup.of_shard(shard) if hasattr(make_setup, "of_shard") else make_setup()


def _one_line(error: BaseException) -> str:
    notes = getattr(error, "__notes__", [])
    return f"{type(error).__name__}: {error}" + "".join(f" ({note})" for note in notes)
