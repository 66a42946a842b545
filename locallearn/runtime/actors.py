"""The Ray actor that holds one shard. It runs the whole training by itself; the driver starts it, asks how it is, and collects."""

from __future__ import annotations

import os
import sys
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import ray


class Status(NamedTuple):
    """What an actor says when asked. events: those since it was last asked. waiting: (step, message, shard) that it waits for."""

    shard: int
    step: int
    events: list[Any]
    waiting: tuple[int, str, int] | None
    failure: tuple[str, str] | None
    peak_memory: int


@ray.remote(max_restarts=0, max_task_retries=0)
class ShardActor:
    """One shard. Ray's threads deliver frames and answer the driver; the training has a thread of its own."""

    def __init__(self, shard: int, core: int | None = None):
        if core is not None:
            os.sched_setaffinity(0, {core})
        import jax

        # Frames arrive on other threads than the one that trains: it should not wait long for its turn after each.
        sys.setswitchinterval(5e-5)
        # A shard waits for each result at once, so a hand-over to another thread costs time and hides none.
        jax.config.update("jax_cpu_enable_async_dispatch", False)
        self._shard = shard
        self._outbox: Any = None
        self._mailbox: Any = None
        self.reset(0)

    def reset(self, run: int) -> int:
        """Ready for a run, with an empty mailbox: asked of every actor before any of them starts. What went before is given up.

        run: its number; frames of another run are thrown away. Returns the process id.
        """
        from locallearn.runtime.mailbox import Mailbox

        if self._mailbox is not None:
            self._mailbox.close()
        if self._outbox is not None:
            self._outbox.closed = True
        self._run, self._mailbox = run, Mailbox()
        self._events: deque[Any] = deque()
        self._worker: Any = None
        self._session: Any = None
        return os.getpid()

    @ray.method(num_returns=0)
    def deliver(self, run: int, data: bytes) -> None:
        """A frame from a neighbour."""
        if run == self._run:
            self._mailbox.put(data)

    def taken(self, run: int, stream: tuple[int, int], at_least: int) -> int:
        """A neighbour that is far ahead waits here."""
        return self._mailbox.taken(stream, at_least) if run == self._run else at_least

    def start(self, peers: Sequence[Any], make_setup: Callable[[], Any], resume: Any, keep_seconds: float) -> None:
        """Begin to train. resume: this shard's part of a snapshot."""
        from locallearn.runtime.mailbox import Outbox
        from locallearn.runtime.peers import Worker

        run = self._run
        self._outbox = Outbox(
            self._shard,
            send=lambda dst, data: peers[dst].deliver.remote(run, data),
            ask=lambda dst, stream, at_least: peers[dst].taken.remote(run, stream, at_least),
            answer=ray.get,
        )
        mail = self._mailbox, self._outbox
        self._worker = Worker(lambda: self._train(mail, make_setup, resume, keep_seconds))
        self._worker.start()

    def status(self) -> Status:
        """How it goes."""
        import resource

        events = [self._events.popleft() for _ in range(len(self._events))]
        error = self._worker.error if self._worker else None
        failure = None if error is None else (_one_line(error), "".join(traceback.format_exception(error)))
        waits = [wait for wait in list(self._mailbox.waiting.values()) if wait is not None]
        waiting = (waits[0][0].step, waits[0][1], waits[0][0].src) if waits else None
        step = self._session.step if self._session else 0
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return Status(self._shard, step, events, waiting, failure, peak)

    def _train(self, mail: Any, make_setup: Callable[[], Any], resume: Any, keep_seconds: float) -> None:
        from locallearn.runtime.peers import PeersSession
        from locallearn.runtime.training import train

        events = self._events
        session = self._session = PeersSession(make_setup(), self._shard, mail)
        for event in train(session, resume, keep_seconds):
            events.append(event)


def _one_line(error: BaseException) -> str:
    notes = getattr(error, "__notes__", [])
    return f"{type(error).__name__}: {error}" + "".join(f" ({note})" for note in notes)
