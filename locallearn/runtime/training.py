"""The course of a run, the same in every fabric: chunks of steps, evaluations, decisions, snapshots, one event after the other."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from locallearn.replicas import Presence
from locallearn.runtime.cuts import Cuts
from locallearn.runtime.session import Delays, Session
from locallearn.runtime.setup import Stage
from locallearn.traffic import Traffic

GO_ON, KEEP, STOP = range(3)
"""What the top may decide after an evaluation: go on, keep a snapshot and go on, keep a snapshot and stop."""

PACE_SECONDS = 0.3


class Placed(NamedTuple):
    """A run trains elsewhere. host: which machine. devices: their kinds."""

    host: str
    devices: tuple[str, ...]


class Compiled(NamedTuple):
    """A stage is ready to run."""

    step: int
    seconds: float


class Progress(NamedTuple):
    """Some steps were trained. loss: their mean, None where the top block is elsewhere."""

    step: int
    loss: float | None


class Evaluated(NamedTuple):
    """The state of a run after `step` steps. Losses and accuracies are None where the top block is elsewhere.

    seconds: of training and evaluation since the run began, without compiling. traffic: all that was sent so far. diagnosis: by name, a
    number for each block, where the run has diagnostics. present: which replicas there were.
    """

    step: int
    seconds: float
    compile_seconds: float
    train_loss: float | None
    accuracy: float | None
    accuracy_lossless: float | None
    traffic: Traffic
    diagnosis: Mapping[str, Sequence[float | None]] = MappingProxyType({})
    present: Presence = ()


class Snapshot(NamedTuple):
    """Everything that a run needs to go on from `step`, by shard.

    losses: sum over the steps since the last evaluation, and how many. asides: of a shard's own part, how many evaluations' batches and
    decisions came before it, in messages' numbers. delays: the session's. present: which replicas there were.
    """

    step: int
    seconds: float
    traffic: Traffic
    shards: list[list[np.ndarray]]
    losses: tuple[float, int] = (0.0, 0)
    asides: int = 0
    delays: Delays = ()
    present: Presence = ()


class Finished(NamedTuple):
    """The run is over. reason: `steps` (all of them), `accuracy`, `bytes` or `diverged`; `stopped` where the top block is elsewhere.

    delays: the session's. present: which replicas there were.
    """

    step: int
    reason: str
    test_accuracy: float | None
    test_accuracy_lossless: float | None
    shards: list[list[np.ndarray]]
    traffic: Traffic
    delays: Delays = ()
    present: Presence = ()


class RolledBack(NamedTuple):
    """A shard was lost after `lost` steps, and is gone back to step `step`, that of a snapshot.

    reason: which was lost, and why. shard: the one that goes back, where the others need not; None for all. dropped: the replicas that the
    run goes on without; evaluations after `step` are then told again, as they are without them.
    """

    step: int
    lost: int
    reason: str
    shard: int | None = None
    dropped: tuple[int, ...] = ()


class Joined(NamedTuple):
    """Replicas that were dropped are there again from step `step` on, that of a snapshot, to which all go back."""

    step: int
    replicas: tuple[int, ...]


class Recovered(NamedTuple):
    """What was lost has been done again. seconds: since the last progress before the loss."""

    step: int
    seconds: float


class Watched(NamedTuple):
    """How the actors of a run are: what each last said (`actors.Status`), and for how many seconds each has waited for each other one.

    step: of the one that is behind. shards: None for one whose replica is not there. present: which replicas there were.
    """

    step: int
    shards: tuple[Any, ...]
    waited: Mapping[tuple[int, int], float]
    present: Presence = ()


Event = Compiled | Progress | Evaluated | Snapshot | Finished | RolledBack | Joined | Recovered | Watched


def train(
    session: Session,
    resume: Snapshot | None = None,
    keep_seconds: float = 5.0,
    leaving: Callable[[], bool] = lambda: False,
    cuts: Cuts | None = None,
) -> Iterator[Event]:
    """Run a session to its end, from the beginning or from a snapshot; whoever stops asking for events interrupts it.

    keep_seconds: least time between snapshots. leaving: whether one is wanted now, because the run is about to be interrupted. A session
    that holds all shards can take one after any step; another does after evaluations, when all shards are known to be at the same step,
    and at cuts, which are announced to all shards.
    """
    return _Course(session, keep_seconds, leaving, cuts or Cuts()).run(resume)


class _Course:
    """One run's clock and counters."""

    def __init__(self, session: Session, keep_seconds: float, leaving: Callable[[], bool], cuts: Cuts):
        self.session, self.setup, self.keep_seconds, self.leaving, self.cuts = session, session.setup, keep_seconds, leaving, cuts
        self.losses = 0.0, 0
        self.seconds, self.kept, self.pace = 0.0, time.perf_counter(), 1
        self.reason = "steps"

    def run(self, resume: Snapshot | None) -> Iterator[Event]:
        """Stage after stage."""
        step = resume.step if resume else 0
        for stage in self.setup.stages:
            if resume and step > stage.stop:
                continue  # over before the snapshot, which was taken in the first stage that reaches its step
            self.session.enter(stage)
            if resume:
                self.session.restore(resume.shards)
                self.session.traffic, self.session.delays = resume.traffic, resume.delays
                self.seconds, self.losses, resume = resume.seconds, resume.losses, None
            yield Compiled(step, self.session.compile_seconds)
            while step < stage.stop and self.reason == "steps":
                step = yield from self._interval(stage, step)
            if self.reason != "steps":
                break
        yield self._finish(step)

    def _interval(self, stage: Stage, step: int) -> Generator[Event, None, int]:
        """Up to the next evaluation, and what is decided there."""
        step, loss = yield from self._chunks(step, self.setup.evaluation_after(step))
        loss = loss if self.setup.plan_step(stage).tells else None
        started = time.perf_counter()
        accuracy, lossless = self._accuracies(self.setup.split.validation)
        decision = self.session.decide(self._choose(step, loss, accuracy))
        self.seconds += time.perf_counter() - started
        diagnosis = self.session.diagnose(step) if self.setup.diagnostics else {}
        yield Evaluated(step, self.seconds, self.session.compile_seconds, loss, accuracy, lossless, self.session.traffic, diagnosis)
        leaving = self.session.whole and step < self.setup.steps and self.leaving()  # asked for while the evaluation was told
        if decision == KEEP or (decision == GO_ON and (step == self.cuts.at or leaving)):
            yield self._snapshot(step)
        if decision != STOP:
            self.reason = "steps"  # of several replicas' tops the first decides
        elif self.reason == "steps":
            self.reason = "stopped"
        return step

    def _chunks(self, step: int, goal: int) -> Generator[Event, None, tuple[int, float | None]]:
        """Chunks of about PACE_SECONDS, so that progress shows and an interruption waits for no more than one."""
        loss: float | None = None
        while step < goal:
            started = time.perf_counter()
            stop = self.cuts.claim(step, min(goal, step + self.pace))
            loss = self.session.advance(step, stop)
            elapsed = time.perf_counter() - started
            self.seconds += elapsed
            self.losses = self.losses[0] + (loss or 0.0) * (stop - step), self.losses[1] + stop - step
            self.pace = max(1, min(4 * self.pace, int((stop - step) * PACE_SECONDS / max(elapsed, 1e-6))))
            step = stop
            yield Progress(step, loss)
            if self._wanted(step, goal):
                yield self._snapshot(step)
        (total, count), self.losses = self.losses, (0.0, 0)
        return step, None if loss is None else total / count

    def _accuracies(self, part: Any) -> tuple[float | None, float | None]:
        """Through the deployed codecs, and losslessly."""
        if not len(part.y):
            return None, None
        deployed = self.session.correct(part, lossless=False)
        lossless = self.session.correct(part, lossless=True) if self.session.stage.lossy else deployed
        return _share(deployed, part), _share(lossless, part)

    def _choose(self, step: int, loss: float | None, accuracy: float | None) -> int:
        """What the top decides; what the others would is never asked for."""
        setup = self.setup
        if loss is not None and not math.isfinite(loss):
            self.reason = "diverged"
        elif setup.stop_accuracy is not None and accuracy is not None and accuracy >= setup.stop_accuracy:
            self.reason = "accuracy"
        elif setup.stop_bytes is not None and setup.planned_bytes(setup.evaluation_after(step)) > setup.stop_bytes:
            self.reason = "bytes"
        if self.reason != "steps":
            return STOP
        return KEEP if self._due() and step < setup.steps else GO_ON

    def _wanted(self, step: int, goal: int) -> bool:
        """Whether a snapshot is to be taken here, between evaluations."""
        if step == goal:  # whoever goes on from a snapshot goes on after the evaluation
            return False
        return self.leaving() or self._due() if self.session.whole else step == self.cuts.at

    def _due(self) -> bool:
        return time.perf_counter() - self.kept >= self.keep_seconds

    def _snapshot(self, step: int) -> Snapshot:
        self.kept = time.perf_counter()
        session = self.session
        return Snapshot(step, self.seconds, session.traffic, session.snapshot(), self.losses, session.asides, session.delays)

    def _finish(self, step: int) -> Finished:
        self.session.conclude()
        test, lossless = self._accuracies(self.setup.split.test)
        return Finished(step, self.reason, test, lossless, self.session.snapshot(), self.session.traffic, self.session.delays)


def _share(count: int | None, part: Any) -> float | None:
    return None if count is None else count / len(part.y)
