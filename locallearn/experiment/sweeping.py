"""Running a sweep: one run after the other, or several at a time; a run that fails is noted and the sweep goes on."""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from locallearn.config.run import as_yaml
from locallearn.config.sweep import Run, Sweep
from locallearn.errors import LocallearnError
from locallearn.experiment.abreast import Abreast, Room, Unseated, on_ray, wanted
from locallearn.experiment.files import NoRoom, finite, make_folder, write_whole
from locallearn.experiment.how import How, silent
from locallearn.experiment.lock import Held
from locallearn.experiment.parallel import kept, spread
from locallearn.experiment.prepare import cached_loader, load_data
from locallearn.experiment.provenance import commit, relative
from locallearn.experiment.result import Result, load
from locallearn.experiment.run import FailedBefore, Interrupted, execute, seed_name
from locallearn.experiment.store import FAILED, FINISHED, RUNNING, Store
from locallearn.runtime.placement import Unplaced, Wanted

ALIKE = 3
"""If so many runs fail at the start, all in the same way, the others would too."""


class Begun(NamedTuple):
    """A run has its turn. number: from 1."""

    number: int
    run: Run


class Failure(NamedTuple):
    """Why a run failed. kind: of error, by its name. earlier: in an earlier pass, and it was not tried again."""

    kind: str
    text: str
    earlier: bool

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """In words, which cross from one process to another."""
        return cls(type(error).__name__, str(error), isinstance(error, FailedBefore))


class Outcome(NamedTuple):
    """What became of a run. before: the state that it was found in. state: `finished`, `failed`, or `running` by another process."""

    number: int
    run: Run
    directory: Path
    before: str
    state: str
    result: Result | None = None
    failure: Failure | None = None

    @property
    def reason(self) -> str | None:
        """Why it failed, in words that are the same wherever the run lies; None if it did not."""
        return self.failure and f"{self.failure.kind}: {self.failure.text.replace(str(self.directory), '')}"


class Planned(NamedTuple):
    """The runs that there are and the state that each was found in."""

    runs: Sequence[Run]
    states: Mapping[str, int]


@dataclass
class Course:
    """One pass over the runs of a sweep.

    folder: below which each run has its directory. how: for each run; its `tell` hears the run's own events, if there is one run at a
    time. tell: called with a Planned, then for each run with a Begun and its Outcome. jobs: runs at a time; by default one, or on a Ray
    that runs already as many as it has room for.
    """

    folder: Path
    how: How
    tell: Callable[[Any], None]
    retry_failed: bool = False
    fail_fast: bool = False
    keep_going: bool = False
    jobs: int | None = None
    outcomes: list[Outcome] = field(default_factory=list)
    _reserved: dict[str, Wanted] = field(default_factory=dict)

    def directory(self, run: Run) -> Path:
        """Where a run lives: all seeds of a combination together."""
        return self.folder / run.name / seed_name(run.config, self.how.on)

    def states(self, runs: Sequence[Run]) -> Planned:
        """How far each run is."""
        return Planned(runs, Counter(Store(self.directory(run)).state for run in runs))

    def go(self, runs: Sequence[Run]) -> list[Outcome]:
        """Run them all, in order. Interrupted when it is asked to stop."""
        self.tell(self.states(runs))
        numbered = list(enumerate(runs, start=1))
        for news in self._turns(numbered):
            if isinstance(news, Outcome):
                self.outcomes.append(news)
            self.tell(news)
            if isinstance(news, Outcome) and news.state == FAILED:
                self._consider()
        return self.outcomes

    def on_ray(self, runs: Iterable[Run]) -> AbstractContextManager[None]:
        """One Ray for all these runs, for as long as the block lasts, if some of them need one."""
        left = self._left(runs) if self.how.elsewhere else []
        return on_ray(self.how.address, map(self._wanted, left), self.jobs or 1) if left else contextlib.nullcontext()

    def _left(self, runs: Iterable[Run]) -> list[Run]:
        return [run for run in runs if Store(self.directory(run)).state != FINISHED]

    def _wanted(self, run: Run) -> Wanted:
        key = run.config.structure()
        if key not in self._reserved:
            self._reserved[key] = wanted(run.config, self.how.on)
        return self._reserved[key]

    def _turns(self, runs: Sequence[tuple[int, Run]]) -> Iterator[Begun | Outcome]:
        if self.jobs == 1 or (self.jobs is None and self.how.address is None):
            return self._in_turn(runs)
        if not self.how.elsewhere:
            return self._side_by_side(runs)
        return self._abreast(runs) if self._left(run for _, run in runs) else self._in_turn(runs)

    def _in_turn(self, runs: Sequence[tuple[int, Run]]) -> Iterator[Begun | Outcome]:
        how = replace(self.how, load=cached_loader(), retry=self.retry_failed)
        for number, run in runs:
            yield Begun(number, run)
            yield carried_out(number, run, self.directory(run), how)

    def _side_by_side(self, runs: Sequence[tuple[int, Run]]) -> Iterator[Begun | Outcome]:
        """Seeds of a combination in one process."""
        here = replace(self.how, tell=silent, interrupted=never, load=load_data, shared={}, retry=self.retry_failed)
        tasks: dict[str, list[Any]] = {}
        for number, run in runs:
            tasks.setdefault(run.name, []).append((number, run, self.directory(run)))
        work = functools.partial(_work, here)
        with contextlib.closing(spread(list(tasks.values()), work, self.jobs or 1, self.how.interrupted)) as told:
            for news in told:
                finished = isinstance(news, Outcome) and news.state == FINISHED
                yield news._replace(result=load(news.directory)) if finished else news
        self._leave()

    def _abreast(self, runs: Sequence[tuple[int, Run]]) -> Iterator[Begun | Outcome]:
        """Each run by itself."""
        here = replace(self.how, tell=silent, load=cached_loader(), retry=self.retry_failed)
        tasks = [_Turn(number, run, self.directory(run), here) for number, run in runs]
        with self.on_ray(run for _, run in runs):
            threads = Abreast(_take, lambda turn: self._wanted(turn.run), Room(self.jobs), self.how.interrupted)
            with contextlib.closing(threads.go(tasks)) as told:
                yield from told
        self._leave()

    def _leave(self) -> None:
        if self.how.interrupted():
            raise Interrupted("interrupted; the same command goes on")

    def _consider(self) -> None:
        """Whether to go on after a failure."""
        if self.fail_fast:
            raise LocallearnError("stopped at the first failure (--fail-fast)")
        new = [outcome.reason for outcome in self.outcomes if not (outcome.failure and outcome.failure.earlier)]
        if len(new) == ALIKE and not self.keep_going and None not in new and len(set(new)) == 1:
            raise LocallearnError(f"the first {ALIKE} runs all failed in the same way; --keep-going runs the others all the same")


def never() -> bool:
    """Nobody asks to stop."""
    return False


def carried_out(number: int, run: Run, directory: Path, how: How) -> Outcome:
    """One run, whatever comes of it: its trouble is not the next one's. Interrupted passes, and NoRoom, which is."""
    before = Store(directory).state
    if before == RUNNING:
        return Outcome(number, run, directory, before, RUNNING)
    try:
        result = execute(run.config, replace(how, varied=run.varied, tuned=run.tuned), directory)
        return Outcome(number, run, directory, before, FINISHED, result)
    except (Interrupted, NoRoom):
        raise
    except Held:  # by a process that was as quick
        return Outcome(number, run, directory, before, RUNNING)
    except Exception as error:
        return Outcome(number, run, directory, before, FAILED, failure=Failure.of(error))


def _work(how: How, task: Sequence[tuple[int, Run, Path]], tell: Callable[[Any], None], stop: Callable[[], bool]) -> None:
    """Some runs, one after the other, in a process of their own."""
    how = replace(how, interrupted=stop, load=kept(cached_loader), shared=kept(dict))
    with contextlib.suppress(Interrupted):
        for number, run, directory in task:
            if stop():
                return
            tell(Begun(number, run))
            tell(carried_out(number, run, directory, how)._replace(result=None))


class _Turn(NamedTuple):
    """What a thread does."""

    number: int
    run: Run
    directory: Path
    how: How


def _take(turn: _Turn, tell: Callable[[Any], None], stop: Callable[[], bool]) -> None:
    """One run, which other processes train. What found no place while others had theirs is tried again when one of them has left."""
    how = replace(turn.how, interrupted=stop)
    tell(Begun(turn.number, turn.run))
    with contextlib.suppress(Interrupted):
        outcome = carried_out(turn.number, turn.run, turn.directory, how)
        unseated = outcome.failure and outcome.failure.kind == Unplaced.__name__ and not outcome.failure.earlier
        tell(Unseated(turn._replace(how=replace(turn.how, retry=True)), outcome) if unseated else outcome)


def write_sweep(course: Course, sweep: Sweep, source: Path, data: Any, chosen: Sequence[Any] = ()) -> None:
    """sweep.yaml: the sweep as it was read, and its runs; of a tuned one its trials, and what was chosen so far (`tuning.Chosen`)."""
    folder = course.folder

    def entry(run: Run) -> dict[str, Any]:
        return {"run": course.directory(run).relative_to(folder).as_posix(), "varied": dict(run.varied)}

    origin = f"{relative(str(source))}{' @ ' + (commit() or '')}".rstrip(" @")
    follow = [run for found in chosen if found.trial is not None for run in found.study.follow[found.trial]]
    runs = [entry(run) for run in (*sweep.runs, *follow)]
    skipped = [{"varied": dict(entry.varied), "because": entry.because} for entry in sweep.skipped]
    content = {"sweep": data, "runs": runs, "skipped": skipped}
    if sweep.studies:
        content["trials"] = [entry(run) | (run.tuned._asdict() if run.tuned else {}) for study in sweep.studies for run in study.trials]
        content["chosen"] = [_choice(found) for found in chosen]
    text = f"# from {origin}\n{as_yaml(content)}"
    make_folder(folder)
    write_whole(folder / "sweep.yaml", lambda file: file.write(text.encode()))


def _choice(found: Any) -> dict[str, Any]:
    """Numbers that YAML does not know are left out."""
    figures = finite(dict(found.figures))
    if found.trial is None:
        return {"study": found.study.name, "trial": None, "why": found.why}
    return {"study": found.study.name, "trial": found.trial, "values": dict(found.values), **figures}
