"""A run on a crew of actors: watch them, merge what they report, and when one is lost go back to the last snapshot with all of them."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import ray
from ray import exceptions

from locallearn.errors import LocallearnError, ShardLost
from locallearn.networks import Network
from locallearn.runtime.cuts import Cutter
from locallearn.runtime.setup import Setup
from locallearn.runtime.training import Compiled, Evaluated, Event, Finished, Progress, Recovered, RolledBack, Snapshot
from locallearn.traffic import Traffic

if TYPE_CHECKING:
    from locallearn.runtime.cluster import Crew

POLL_SECONDS = 0.2
ROLLBACKS = 3
"""How often a run goes back to the same snapshot before it gives up: whoever dies again and again has a reason."""


class Supervisor:
    """One run, whatever becomes of the actors."""

    def __init__(self, crew: Crew, make_setup: Callable[[], Setup], resume: Snapshot | None, keep_seconds: float, network: Network | None):
        self._crew, self._keep_seconds, self._network = crew, keep_seconds, network
        self._setup, self._kept = ray.put(make_setup), resume
        self._work = crew.next_number()
        self._told = -1  # the step of the last evaluation that was told
        self._failures = 0
        self._progress = 0, time.monotonic()
        self._lost: tuple[int, float] | None = None

    def events(self) -> Iterator[Event]:
        """The events of the run, each evaluation once. Raises ShardLost when it cannot go on, LocallearnError when a shard fails."""
        while True:
            try:
                yield from self._life()
                return
            except ShardLost as lost:
                back = self._go_back(lost)
            yield back

    def _go_back(self, lost: ShardLost) -> RolledBack:
        """Have every shard manned again."""
        self._lost = self._lost or self._progress
        manned = False
        while not manned:
            self._failures += 1
            if self._failures > ROLLBACKS:
                raise ShardLost(f"{lost}\nGiven up after {ROLLBACKS} returns to the same snapshot; the same command tries again.") from lost
            try:
                self._crew.mend()
                manned = True
            except ShardLost as another:
                lost = another
            except LocallearnError as error:
                raise ShardLost(f"{lost}\nIt was not replaced: {error}\nThe same command resumes from the last snapshot.") from error
        return RolledBack(self._kept.step if self._kept else 0, self._lost[0], str(lost))

    def _life(self) -> Iterator[Event]:
        """All events until a shard is lost. They are merged first, and a snapshot counts when every shard's part of it is there."""
        shards = self._crew.shards
        self._queues: list[deque[Event]] = [deque() for _ in range(shards)]
        self._parts: dict[int, dict[int, Snapshot]] = {}
        self._last: list[Any] = [None] * shards
        self._cutter = Cutter(self._keep_seconds, time.monotonic())
        life = self._crew.start(self._work, self._setup, [_own(self._kept, k) for k in range(shards)], self._keep_seconds, self._network)
        for event in self._watch(life):
            if isinstance(event, Evaluated):
                if event.step <= self._told:
                    continue
                self._told = event.step
            elif isinstance(event, Progress):
                self._progress = event.step, time.monotonic()
                if self._lost and event.step >= self._lost[0]:
                    (_, since), self._lost = self._lost, None
                    yield Recovered(event.step, time.monotonic() - since)
            elif isinstance(event, Snapshot):
                self._failures, self._kept = 0, event
            yield event

    def _watch(self, life: int) -> Iterator[Event]:
        """Everything the shards report together, until all have finished."""
        actors = self._crew.actors
        asked: dict[Any, int] = {actor.status.remote(): k for k, actor in enumerate(actors)}
        while asked:
            ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=POLL_SECONDS)
            for reference in ready:
                yield from self._heard(asked.pop(reference), reference)
            for event in self._merged():
                if isinstance(event, Finished):
                    yield from self._whole()
                    yield event
                    return
                yield event
            yield from self._whole()
            self._cut(life)
            time.sleep(POLL_SECONDS if ready else 0)
            asked.update({actors[k].status.remote(): k for k in range(len(actors)) if k not in asked.values()})

    def _heard(self, shard: int, reference: Any) -> Iterator[Event]:
        try:
            status: Any = ray.get(reference)
        except exceptions.RayError as error:
            raise self._died(shard, error) from error
        self._last[shard], self._crew.peak_memory[shard] = status, status.peak_memory
        if status.failure:
            self._check_others(shard, status.lost)
            raise self._failed(status)
        for event in status.events:
            if isinstance(event, Snapshot):
                self._parts.setdefault(event.step, {})[shard] = event
            elif not isinstance(event, Progress):
                self._queues[shard].append(event)
            elif event.loss is not None:
                yield event

    def _merged(self) -> Iterator[Event]:
        """Events that every shard has reported, each as one."""
        while all(self._queues):
            yield _merge([queue.popleft() for queue in self._queues])

    def _whole(self) -> Iterator[Event]:
        """The last snapshot of which every shard has reported its part. Evaluations before it have been told by then."""
        whole = [step for step, parts in self._parts.items() if len(parts) == len(self._queues)]
        if whole:
            parts = self._parts[max(whole)]
            self._parts = {step: other for step, other in self._parts.items() if step > max(whole)}
            self._cutter.whole(max(whole), time.monotonic())
            yield _merge([parts[k] for k in range(len(parts))])

    def _cut(self, life: int) -> None:
        """Announce a snapshot between evaluations, if it is time for one."""
        if all(self._last):
            step = self._cutter.due([status.step for status in self._last], time.monotonic())
            if step is not None:
                for actor in self._crew.actors:
                    actor.cut.remote(life, step)

    def _check_others(self, shard: int, lost: int | None) -> None:
        """A shard that fails because its neighbour died is not the cause; Ray may learn of a death later than the neighbour."""
        for k, actor in enumerate(self._crew.actors):
            if k != shard:
                try:
                    ray.get(actor.status.remote(), timeout=10.0 if k == lost else 1.0)
                except exceptions.GetTimeoutError as error:
                    if k == lost:
                        raise self._died(k, error) from error
                except exceptions.RayError as error:
                    raise self._died(k, error) from error

    def _failed(self, status: Any) -> LocallearnError:
        """Of a shard that ended by itself, whose neighbours live."""
        line, trace = status.failure
        kind = ShardLost if status.fault else LocallearnError
        failure = kind(f"shard {status.shard} failed at step {status.step}: {line}")
        failure.add_note(trace)
        return failure

    def _died(self, shard: int, error: Exception) -> ShardLost:
        """Which shard, at which step, and who waited for what from it."""
        time.sleep(POLL_SECONDS)
        for k, actor in enumerate(self._crew.actors):
            with contextlib.suppress(Exception):
                self._last[k] = ray.get(actor.status.remote(), timeout=1.0) if k != shard else self._last[k]
        known = [status for status in self._last if status is not None]
        waits = [(s.shard, *s.waiting) for s in known if s.waiting]
        on_it = [w for w in waits if w[3] == shard] or waits
        step = max([w[1] for w in on_it if w[3] == shard] + [s.step for s in known if s.shard == shard], default=0)
        waited = "; ".join(f"shard {k} was waiting for `{message}` of step {at} from shard {src}" for k, at, message, src in on_it)
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return ShardLost(f"shard {shard} died at step {step}" + (f" ({waited})" if waited else "") + f": {reason[:200]}")


def _own(resume: Snapshot | None, shard: int) -> Snapshot | None:
    """One shard's part of a snapshot; the lowest keeps the count of what was sent before."""
    if resume is None:
        return None
    traffic = resume.traffic if shard == 0 else Traffic()
    return resume._replace(shards=[resume.shards[shard]], traffic=traffic)


def _merge(events: list[Any]) -> Event:
    """The same event of every shard: the top's findings, everyone's traffic and arrays."""
    top = events[-1]
    if isinstance(top, Compiled):
        return top._replace(seconds=max(event.seconds for event in events))
    traffic = sum((event.traffic for event in events), start=Traffic())
    if isinstance(top, Evaluated):
        return top._replace(traffic=traffic)
    assert isinstance(top, Snapshot | Finished)
    return top._replace(traffic=traffic, shards=[shard for event in events for shard in event.shards])
