"""A run on a crew of actors: watch them, and when one is lost have it replaced and go back, alone if the others can tell it again what it
was told since its last snapshot, else with all of them."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import ray
from ray import exceptions

from locallearn.errors import LocallearnError, ShardLost
from locallearn.networks import Network
from locallearn.runtime.cuts import Cutter
from locallearn.runtime.hearing import Hearing, own_part
from locallearn.runtime.membership import Membership
from locallearn.runtime.placement import Unplaced
from locallearn.runtime.setup import Setup
from locallearn.runtime.training import Evaluated, Event, Finished, Joined, Progress, Recovered, RolledBack, Snapshot, Watched
from locallearn.words import first_line

if TYPE_CHECKING:
    from locallearn.runtime.cluster import Crew

POLL_SECONDS = 0.2
ASKED_A_SECOND = 1000
"""So many actors at most say how they are: above two hundred, each less often, or this process would do nothing else."""
ROLLBACKS = 3
"""How often a run goes back to the same snapshot before it gives up: whoever dies again and again has a reason."""
MUTE_SECONDS = 20.0
"""Who does not say how it is for so long, nor answers anything else, is gone, though its process may be there."""
LINK_SECONDS = 20.0
"""A link that stays broken for so long ends a life, or, if one of the two does not answer either, that one."""
WATCH_SECONDS = 2.0
LOOK_SECONDS = 10.0
"""Between looks for nodes that have joined."""


class _Gone(Exception):
    """An actor that no longer answers."""

    def __init__(self, shard: int, error: object):
        super().__init__(str(error))
        self.shard = shard


class Supervisor:
    """One run, whatever becomes of the actors. alone: whether a lost shard may be restarted alone."""

    def __init__(
        self,
        crew: Crew,
        make_setup: Callable[[], Setup],
        resume: Snapshot | None,
        keep_seconds: float,
        network: Network | None,
        alone: bool = True,
    ):
        self._crew, self._keep_seconds, self._network = crew, keep_seconds, network
        self._alone = alone and crew.transport == "socket"
        self._setup, self._kept = ray.put(make_setup), resume
        self._members = Membership(crew, make_setup, resume)
        self._work = crew.next_number()
        self._told = -1  # the step of the last evaluation that was told
        self._failures = 0
        self._progress = 0, time.monotonic()
        self._lost: tuple[int, float] | None = None
        self._waited: Counter[tuple[int, int]] = Counter()  # by those whose place others have taken, or in lives before this one
        self._last: dict[int, Any] = {}
        self._watched = self._looked = time.monotonic()

    def events(self) -> Iterator[Event]:
        """The events of the run, each evaluation once. Raises ShardLost when it cannot go on, LocallearnError when a shard fails."""
        while True:
            back = None
            try:
                if not (yield from self._life()):
                    return
            except ShardLost as lost:
                back = self._go_back(lost)
            if back is not None:
                yield back

    def _go_back(self, lost: ShardLost) -> RolledBack:
        """Go on without the replicas that are lost, or have every shard manned again."""
        self._lost = self._lost or self._progress
        dropped, self._kept = self._members.drop(self._kept)
        if dropped:
            self._told = self._kept.step if self._kept else -1
            return RolledBack(max(0, self._told), self._lost[0], "; ".join([str(lost), *self._members.notes]), None, dropped)
        manned = False
        while not manned:
            self._failures += 1
            if self._failures > ROLLBACKS:
                raise ShardLost(f"{lost}\nGiven up after {ROLLBACKS} returns to the same snapshot; the same command tries again.") from lost
            try:
                if isinstance(lost.__cause__, Unplaced):
                    raise lost.__cause__  # a place was waited for already
                self._crew.mend(self._members.machines)
                manned = True
            except ShardLost as another:
                lost = another
            except LocallearnError as error:
                raise ShardLost(f"{lost}\nIt was not replaced: {error}\nThe same command resumes from the last snapshot.") from error
        return RolledBack(self._kept.step if self._kept else 0, self._lost[0], self._told_of(lost))

    def _life(self) -> Generator[Event, None, bool]:
        """All events until a shard is lost that cannot be restarted alone, or replicas are there again: whether there is more to do."""
        members = self._members
        parts = {machine: own_part(self._kept, place) for place, machine in enumerate(members.machines)}
        self._hearing = Hearing(parts, members.top)
        self._waited = self._waits()
        self._last = {}
        self._broken: dict[tuple[int, int], float] = {}
        self._restarted: set[int] = set()
        self._fresh = False
        self._cutter = Cutter(self._keep_seconds, time.monotonic())
        life = self._crew.start(self._work, self._setup, parts, self._keep_seconds, self._network, members.present)
        for heard in self._watch(life):
            event = heard._replace(present=members.course) if isinstance(heard, Evaluated | Snapshot | Finished) else heard
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
                self._restarted.clear()
                self._fresh = True
                self._cutter.whole(event.step, time.monotonic())
                members.proven()
                for machine in parts:
                    self._crew.actors[machine].whole.remote(life, event.step, event.asides)
            yield members.whole(event) if isinstance(event, Snapshot | Finished) else event
            if isinstance(event, Snapshot) and not self._hearing.ending:
                joined, self._kept = members.join(event)
                if joined:
                    self._told = event.step
                    yield Joined(event.step, joined)
                    return True
        return False

    def _watch(self, life: int) -> Iterator[Event]:
        """Everything the shards report together, until all have finished."""
        members, asked_at = self._members.machines, dict[int, float]()

        def ask(machine: int) -> Any:
            asked_at[machine] = time.monotonic()
            return self._crew.actors[machine].status.remote(life)

        asked: dict[Any, int] = {ask(k): k for k in members}
        while asked:
            ready, waiting = ray.wait(list(asked), num_returns=len(asked), timeout=POLL_SECONDS)
            mute = [reference for reference in waiting if self._is_mute(asked[reference], asked_at[asked[reference]])]
            for reference in [*ready, *mute]:
                shard = asked.pop(reference, None)
                try:
                    yield from self._heard(shard, reference) if shard is not None else ()
                except _Gone as gone:
                    yield self._restart(gone, life)
                    asked = {reference: k for reference, k in asked.items() if k != gone.shard}
            for event in self._hearing.merged():
                if isinstance(event, Finished):
                    yield from self._report(at_once=True)
                    yield event
                    return
                yield event
            yield from self._report()
            self._cut(life)
            moved = self._spread_out(life)
            if moved is not None:
                yield moved
                asked = {reference: k for reference, k in asked.items() if k != moved.shard}
            time.sleep(max(POLL_SECONDS, len(members) / ASKED_A_SECOND) if ready else 0)
            asked.update({ask(k): k for k in sorted(set(members).difference(asked.values()))})

    def _is_mute(self, machine: int, asked_at: float) -> bool:
        """Whether an actor has not answered for long, nor does now: it is frozen, or its node is, of which Ray may say nothing."""
        return time.monotonic() - asked_at > MUTE_SECONDS and self._crew.lives(machine) is None

    def _heard(self, shard: int, reference: Any) -> Iterator[Event]:
        """What one shard reports. _Gone where it, or one that it is linked with, does not answer."""
        try:
            status: Any = ray.get(reference, timeout=1.0)
        except exceptions.GetTimeoutError as error:
            raise _Gone(shard, f"it has not answered for {MUTE_SECONDS:.0f} s") from error
        except exceptions.RayError as error:
            raise _Gone(shard, error) from error
        self._last[shard], self._crew.peak_memory[shard] = status, status.peak_memory
        if status.failure:
            self._check_others(shard)
            raise self._failed(status)
        for event in status.events:
            if not isinstance(event, Progress):
                self._hearing.hear(shard, event)
            elif event.loss is not None and shard == self._members.top:
                yield event
        self._check_links(status)

    def _check_others(self, shard: int) -> None:
        """A shard that fails because another died is not the cause."""
        for k in self._members.machines:
            if k != shard and self._crew.lives(k) is False:
                raise _Gone(k, "it does not answer")

    def _check_links(self, status: Any) -> None:
        """Ray may learn of a death, above all of a machine's, later than the neighbours do."""
        now = time.monotonic()
        mended = [link for link in self._broken if link[0] == status.machine and link[1] not in status.lost]
        for link in mended:
            del self._broken[link]
        for other, reason in status.lost.items():
            since, lives = self._broken.setdefault((status.machine, other), now), self._crew.lives(other)
            late = now - since > LINK_SECONDS
            if lives is False or (late and lives is None):
                raise _Gone(other, reason)
            if late:
                raise ShardLost(
                    f"{self._crew.called(status.machine)} and {self._crew.called(other)} live, but their link stays broken: {reason}"
                )

    def _restart(self, gone: _Gone, life: int) -> RolledBack:
        """Have a shard that is gone replaced while the others wait. ShardLost where that was done since the last snapshot already."""
        lost, shard = self._died(gone), gone.shard
        if not self._alone or shard in self._restarted:
            raise lost
        self._restarted.add(shard)
        return self._again(shard, life, lost)

    def _spread_out(self, life: int) -> RolledBack | None:
        """From time to time, after a snapshot: where a node has joined, one of the shards that share another leaves for it."""
        if not self._alone or not self._fresh or time.monotonic() - self._looked < LOOK_SECONDS:
            return None
        self._fresh, self._looked = False, time.monotonic()
        shard = self._crew.spread_out()
        return None if shard is None else self._again(shard, life, ShardLost(f"{self._crew.called(shard)} leaves for a node that joined"))

    def _again(self, shard: int, life: int, lost: ShardLost) -> RolledBack:
        """Have another actor go on from this one's part of the last snapshot."""
        self._lost = self._lost or self._progress
        heard = self._hearing.shards[shard]
        heard.restarted()
        self._cutter.unheard()
        try:
            self._crew.restart(shard, life, self._work, self._setup, heard.part, self._keep_seconds, self._network)
        except LocallearnError as error:
            raise lost from error
        self._waited = self._waits([shard])
        self._last.pop(shard, None)
        self._broken = {link: since for link, since in self._broken.items() if shard not in link}
        return RolledBack(heard.part.step if heard.part else 0, self._lost[0], self._told_of(lost), shard)

    def _told_of(self, lost: ShardLost) -> str:
        """A loss, and what has become of it."""
        return "; ".join([str(lost), *self._crew.moves])

    def _cut(self, life: int) -> None:
        """Announce a snapshot between evaluations, if it is time for one."""
        if self._all_heard:
            step = self._cutter.due([status.step for status in self._last.values()], time.monotonic())
            if step is not None:
                for machine in self._last:
                    self._crew.actors[machine].cut.remote(life, step)

    def _report(self, at_once: bool = False) -> Iterator[Watched]:
        """From time to time, how every shard is."""
        if (at_once or time.monotonic() - self._watched > WATCH_SECONDS) and self._all_heard:
            self._watched = time.monotonic()
            shards = tuple(self._last.get(machine) for machine in range(self._crew.count))
            yield Watched(min(status.step for status in self._last.values()), shards, self._waits(), self._members.course)

    @property
    def _all_heard(self) -> bool:
        """Whether all have said how they are, since this life began or they were restarted in it."""
        return len(self._last) == len(self._members.machines)

    def _waits(self, of: Sequence[int] | None = None) -> Counter[tuple[int, int]]:
        """Seconds for which each shard has waited for each other one, in all lives; of some of them in this one."""
        total = Counter(self._waited)
        for status in self._last.values():
            if of is None or status.machine in of:
                total.update({(status.machine, other): seconds for other, seconds in status.waited.items()})
        return total

    def _failed(self, status: Any) -> LocallearnError:
        """Of a shard that ended by itself, whose neighbours live."""
        line, trace = status.failure
        kind = ShardLost if status.fault else LocallearnError
        failure = kind(f"{self._crew.called(status.machine)} failed at step {status.step}: {line}")
        failure.add_note(trace)
        return failure

    def _died(self, gone: _Gone) -> ShardLost:
        """Which shard, at which step, and who waited for what from it."""
        shard = gone.shard
        time.sleep(POLL_SECONDS)
        for k in self._members.machines:
            with contextlib.suppress(Exception):
                self._last[k] = ray.get(self._crew.actors[k].status.remote(), timeout=1.0) if k != shard else self._last[k]
        known = list(self._last.values())
        waits = [(s.machine, *s.waiting) for s in known if s.waiting]
        on_it = [w for w in waits if w[3] == shard] or waits
        step = max([w[1] for w in on_it if w[3] == shard] + [s.step for s in known if s.machine == shard], default=0)
        name = self._crew.called
        waited = "; ".join(f"{name(k)} was waiting for `{message}` of step {at} from {name(src)}" for k, at, message, src in on_it)
        reason = first_line(gone)
        return ShardLost(f"{name(shard)} died at step {step}" + (f" ({waited})" if waited else "") + f": {reason[:200]}")
