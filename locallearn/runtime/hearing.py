"""What the shards of a run report, each for itself, and what that comes to for the run."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from locallearn.runtime.training import Compiled, Evaluated, Event, Finished, Snapshot
from locallearn.traffic import Traffic


class Heard:
    """One shard's reports in one life. When it alone was restarted it says again what it had said before, which is dropped.

    part: its last part of a snapshot, from which it can be restarted. queue: reports that wait for those of the others. finished: whether
    it has come to the end.
    """

    def __init__(self, part: Snapshot | None):
        self.part = part
        self.queue: deque[Event] = deque()
        self._stages = self._entered = self._entered_at_part = 0
        self._evaluated, self.finished = -1, False

    def hear(self, event: Event) -> None:
        """In the order in which it was reported."""
        match event:
            case Snapshot():
                self.part, self._entered_at_part = event, self._entered
            case Compiled():
                self._entered += 1
                if self._entered > self._stages:
                    self._stages = self._entered
                    self.queue.append(event)
            case Evaluated():
                if event.step > self._evaluated:
                    self._evaluated = event.step
                    self.queue.append(event)
            case Finished():
                if not self.finished:
                    self.finished = True
                    self.queue.append(event)

    def restarted(self) -> None:
        """It goes on from its part, and enters the stage of that once more."""
        self._entered = max(0, self._entered_at_part - 1)


class Hearing:
    """The reports of all machines of a life, merged. parts: of the snapshot that it began from, by machine. top: the machine whose findings
    count, the top shard of the first replica."""

    def __init__(self, parts: Mapping[int, Snapshot | None], top: int):
        self.shards = {machine: Heard(part) for machine, part in parts.items()}
        self._top = list(parts).index(top)
        self._parts: dict[int, dict[int, Snapshot]] = {}

    def hear(self, shard: int, event: Event) -> None:
        """From one shard."""
        self.shards[shard].hear(event)
        if isinstance(event, Snapshot):
            self._parts.setdefault(event.step, {})[shard] = event

    @property
    def ending(self) -> bool:
        """Whether any machine has come to the end."""
        return any(one.finished for one in self.shards.values())

    def merged(self) -> Iterator[Event]:
        """Events that every shard has reported, each as one, the last snapshot before the end."""
        while all(one.queue for one in self.shards.values()):
            event = merge([one.queue.popleft() for one in self.shards.values()], self._top)
            if isinstance(event, Finished):
                yield from self.whole()
            yield event
        yield from self.whole()

    def whole(self) -> Iterator[Snapshot]:
        """The last snapshot of which every shard has reported its part. Evaluations before it have been told by then."""
        whole = [step for step, parts in self._parts.items() if len(parts) == len(self.shards)]
        if whole:
            parts = self._parts[max(whole)]
            self._parts = {step: other for step, other in self._parts.items() if step > max(whole)}
            yield merge([parts[machine] for machine in self.shards], self._top)


def own_part(resume: Snapshot | None, place: int) -> Snapshot | None:
    """The part of the machine at a place in a snapshot; the first keeps the count of what was sent before. A life counts evaluations from
    its beginning."""
    if resume is None:
        return None
    traffic = resume.traffic if place == 0 else Traffic()
    return resume._replace(shards=[resume.shards[place]], traffic=traffic, asides=0, delays=resume.delays[place : place + 1])


def merge(events: list[Any], found: int = -1) -> Any:
    """The same event of every machine: what one of them, the top, has found, everyone's traffic and arrays."""
    top = events[found]
    if isinstance(top, Compiled):
        return top._replace(seconds=max(event.seconds for event in events))
    traffic = sum((event.traffic for event in events), start=Traffic())
    if isinstance(top, Evaluated):
        return top._replace(traffic=traffic)
    assert isinstance(top, Snapshot | Finished)
    shards, delays = [shard for event in events for shard in event.shards], tuple(own for event in events for own in event.delays)
    return top._replace(traffic=traffic, shards=shards, delays=delays)
