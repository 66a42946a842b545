"""Which replicas of a run on actors are in it: some leave with an actor that is lost, and come back when there are others in its place.

Nothing changes but between two lives of a run, at a snapshot, so that the result depends on no clock: only on who was there from which step
on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import TYPE_CHECKING

from locallearn.replicas import Presence, came_or_went
from locallearn.runtime.regroup import Kept, brought, regrouped
from locallearn.runtime.setup import Setup
from locallearn.runtime.training import Snapshot
from locallearn.words import those

if TYPE_CHECKING:
    from locallearn.runtime.cluster import Crew

RETURNS = 3
"""How often a replica may come back and be lost again before the next snapshot: after that nobody is hired for it any more."""


class Membership:
    """The replicas of one run. present: who is in it. course: from which step on who was. machines: of those who are, in order. notes: what
    there is to say of the last loss.

    make_setup: what the run is; it is looked at where a shard is lost.
    """

    def __init__(self, crew: Crew, make_setup: Callable[[], Setup], resume: Snapshot | None):
        self._crew, self._make_setup = crew, make_setup
        self._everyone = self.present = tuple(range(crew.replicas))
        self.course: Presence = came_or_went(resume.present, resume.step, self.present, self.present) if resume else ()
        self._lost: Counter[int] = Counter()
        self.notes: list[str] = []

    @property
    def machines(self) -> list[int]:
        """Of the replicas that are present."""
        return self._machines(self.present)

    @property
    def top(self) -> int:
        """The machine whose findings count."""
        return self.machines[self._crew.shards - 1]

    def drop(self, kept: Snapshot | None) -> tuple[tuple[int, ...], Snapshot | None]:
        """Go on without the replicas of which an actor does not answer, for which others are hired: (which, the snapshot of the others).

        None, if nobody would be left (of who was there, or has come since), or the run is not to do that: they are to be replaced.
        """
        if self._crew.replicas == 1 or self._setup.replicas.on_loss == "replace":
            return (), kept
        lost = {machine // self._crew.shards for machine in self._crew.missing(self.machines)}
        stay = tuple(r for r in self.present if r not in lost)
        come = self._arrived() if lost and not stay else ()
        if not lost or not (stay or come):
            return (), kept
        self._lost.update(lost)
        hopeless = [r for r in sorted(lost) if self._lost[r] > RETURNS]
        for replica in lost:
            self._crew.vacate(self._machines([replica]), hire=replica not in hopeless)
        self.notes = [f"{those(come)} had come back and goes on"] if come else []
        self.notes += [f"it was lost {RETURNS + 1} times in a row, nobody is hired for {those(hopeless)} any more"] if hopeless else []
        return tuple(sorted(lost)), self._changed(kept, stay or come)

    def join(self, kept: Snapshot) -> tuple[tuple[int, ...], Snapshot | None]:
        """Take up again those for whom all actors have come: (which, the snapshot that all go on from)."""
        came = self._arrived()
        return came, self._changed(kept, tuple(sorted((*self.present, *came)))) if came else kept

    def whole(self, event: Kept) -> Kept:
        """A snapshot or an end as that of all replicas: those that are away would begin with what it has of them."""
        return regrouped(self._setup, event, self.present, self._everyone) if self.present != self._everyone else event

    def proven(self) -> None:
        """Those that are present were until a snapshot: what became of them before does not count any more."""
        for replica in self.present:
            del self._lost[replica]

    def _arrived(self) -> tuple[int, ...]:
        return tuple(r for r in self._everyone if r not in self.present and self._crew.came(self._machines([r])))

    def _changed(self, kept: Snapshot | None, now: tuple[int, ...]) -> Snapshot | None:
        was, self.present = self.present, now
        self.course = came_or_went(self.course, kept.step if kept else 0, now, self._everyone)
        if kept is None:
            return kept
        return regrouped(self._setup, kept, was, now)._replace(traffic=kept.traffic + brought(self._setup, kept.step, was, now))

    def _machines(self, replicas: Iterable[int]) -> list[int]:
        return [replica * self._crew.shards + shard for replica in replicas for shard in range(self._crew.shards)]

    @cached_property
    def _setup(self) -> Setup:
        """Without data, if it can be made so."""
        return getattr(self._make_setup, "outline", self._make_setup)()
