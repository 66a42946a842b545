"""Runs of a sweep on Ray, as many at a time as there is room for. Each is followed, and written down, by a thread of this process."""

from __future__ import annotations

import contextlib
import functools
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from locallearn.config.run import Config
from locallearn.experiment.parallel import PATIENCE
from locallearn.experiment.prepare import stage_of
from locallearn.runtime.placement import Wanted, fits, nodes

LOOK_SECONDS = 2.0
"""Between looks at what nodes there are: they come and go."""


class Unseated(NamedTuple):
    """A task found no place. It has another turn if others have theirs; else `told` is what becomes of it."""

    again: Any
    told: Any


def wanted(config: Config, on: str) -> Wanted:
    """What a run reserves: a bundle for each shard of each replica, or one where it is a task."""
    shards, replicas, cluster = stage_of(config).wiring.shards, config.replicas.count, config.cluster
    if on == "ray":
        all_ = cluster.copied(replicas)
        return Wanted(tuple(all_.bundle(k) for k in range(shards * replicas)), cluster.spread)
    return Wanted((cluster.of_task(shards).bundle(0),), cluster.spread)


@contextlib.contextmanager
def on_ray(address: str | None, runs: Iterable[Wanted], jobs: int) -> Iterator[None]:
    """One Ray for all runs; where it is a private one, with enough for the largest of them, so many times."""
    from locallearn.runtime.joining import joined

    needed: Counter[str] = Counter()
    for run in set(map(_total, runs)):
        needed |= Counter(dict(run))
    with joined(address, {name: amount * jobs for name, amount in needed.items()}):
        yield


def _total(run: Wanted) -> frozenset[tuple[str, float]]:
    return frozenset(functools.reduce(Counter.__add__, map(Counter, run.bundles), Counter()).items())


class Room:
    """Whether there is room for another run beside others, on the nodes that there are. jobs: the most at a time, None for any number."""

    def __init__(self, jobs: int | None):
        self._jobs, self._nodes, self._looked = jobs, nodes(), time.monotonic()

    def __call__(self, present: Sequence[Wanted], another: Wanted) -> bool:
        """By what each reserves."""
        if self._jobs is not None and len(present) >= self._jobs:
            return False
        if time.monotonic() - self._looked > LOOK_SECONDS:
            self._nodes, self._looked = nodes(), time.monotonic()
        return fits([*present, another], self._nodes)


class Abreast:
    """Tasks, each in a thread, as many at a time as there is room for.

    work: called with a task, what hears its news, and what tells whether to stop. reserves: what a task does. room: whether another may
    begin beside those under way, by what they reserve; where there are none it begins. interrupted: asked all the time.
    """

    def __init__(
        self,
        work: Callable[[Any, Callable[[Any], None], Callable[[], bool]], None],
        reserves: Callable[[Any], Wanted],
        room: Callable[[Sequence[Wanted], Wanted], bool],
        interrupted: Callable[[], bool],
    ):
        self._work, self._reserves, self._room, self._interrupted = work, reserves, room, interrupted
        self._waiting, self._active = deque[Any](), dict[threading.Thread, Wanted]()
        self._news: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._raised: list[BaseException] = []
        self._stop = threading.Event()

    def go(self, tasks: Iterable[Any]) -> Generator[Any, None, None]:
        """What all tasks tell, as it comes. Once it is interrupted none begins, those under way are asked to stop, and this ends when they
        have. Likewise where one of them raises, which is raised here, or where this generator is closed.
        """
        self._waiting.extend(tasks)
        try:
            looked = self._begin()
            while self._active:
                if self._interrupted():
                    self._stop.set()
                with contextlib.suppress(queue.Empty):
                    told = self._news.get(timeout=PATIENCE)
                    if isinstance(told, threading.Thread):
                        del self._active[told]
                        looked = self._begin()
                    elif isinstance(told, Unseated) and len(self._active) > 1:
                        self._waiting.append(told.again)
                    else:
                        yield told.told if isinstance(told, Unseated) else told
                if time.monotonic() - looked > LOOK_SECONDS:
                    looked = self._begin()
        finally:
            self._stop.set()
            for thread in self._active:
                thread.join()
        if self._raised:
            raise self._raised[0]

    def _begin(self) -> float:
        """What there is room for; and when that was."""
        while self._waiting and not self._stop.is_set():
            reserved = self._reserves(self._waiting[0])
            if self._active and not self._room(list(self._active.values()), reserved):
                break
            thread = threading.Thread(target=self._carry_out, args=(self._waiting.popleft(),), daemon=True)
            self._active[thread] = reserved
            thread.start()
        return time.monotonic()

    def _carry_out(self, task: Any) -> None:
        try:
            self._work(task, self._news.put, self._stop.is_set)
        except BaseException as error:
            self._raised.append(error)
            self._stop.set()
        self._news.put(threading.current_thread())
