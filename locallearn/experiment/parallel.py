"""The runs of a sweep in several processes of this machine. All seeds of a combination go to one, which compiles them once."""

from __future__ import annotations

import functools
import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import suppress
from multiprocessing.connection import wait
from typing import Any

PATIENCE = 0.2
"""Seconds between looks at whether to stop."""

_wires: tuple[Any, Any] | None = None
"""Of a worker: the queue of its news, and the event that asks it to stop."""


def spread(
    tasks: Sequence[Sequence[Any]], work: Callable[..., Any], jobs: int, interrupted: Callable[[], bool]
) -> Generator[Any, None, None]:
    """What `work(task, tell, stop)` tells, of all tasks, as it comes. Both cross to other processes, which begin from nothing.

    work: calls `tell` with what is to come out here, and returns early when `stop()` is true. interrupted: asked all the time; once it is
    true no task begins, those under way are asked to stop, and the iterator ends when they have. Likewise where the iterator is closed.
    """
    context = multiprocessing.get_context("spawn")
    news, stop = context.Queue(), context.Event()
    with ProcessPoolExecutor(min(jobs, max(1, len(tasks))), context, _begin, (news, stop)) as pool:
        waiting = [pool.submit(_carry_out, work, task) for task in tasks]
        try:
            while waiting:
                if interrupted() and not stop.is_set():
                    _call_off(stop, waiting)
                with suppress(queue.Empty):
                    while True:
                        yield news.get(timeout=PATIENCE)
                waiting = [future for future in waiting if not _over(future)]
            with suppress(queue.Empty):
                while True:
                    yield news.get(timeout=PATIENCE)
        finally:
            _call_off(stop, waiting)


def _call_off(stop: Any, waiting: Sequence[Future[None]]) -> None:
    stop.set()
    for future in waiting:
        future.cancel()


def _over(future: Future[None]) -> bool:
    """Whether it ended; raises what went wrong, such as the death of its process."""
    if future.done() and not future.cancelled():
        future.result()
    return future.done()


def _begin(news: Any, stop: Any) -> None:
    """In a worker: Ctrl-C is the parent's to hear, and a worker does not outlive it."""
    global _wires
    _wires = news, stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _carry_out(work: Callable[..., Any], task: Any) -> None:
    assert _wires is not None
    news, stop = _wires
    work(task, news.put, stop.is_set)


@functools.cache
def kept(make: Callable[[], Any]) -> Any:
    """What a worker keeps from task to task."""
    return make()
