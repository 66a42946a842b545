"""Running a sweep: one run after the other, or several at a time; a run that fails is noted and the sweep goes on."""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from locallearn.config.sweep import Run, Sweep
from locallearn.errors import LocallearnError
from locallearn.experiment.files import NoRoom, finite, make_folder, write_whole
from locallearn.experiment.lock import Held
from locallearn.experiment.parallel import kept, spread
from locallearn.experiment.prepare import load_data
from locallearn.experiment.provenance import commit, relative
from locallearn.experiment.result import Result, load
from locallearn.experiment.run import FailedBefore, How, Interrupted, execute, seed_name, silent
from locallearn.experiment.store import FAILED, FINISHED, RUNNING, Store

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
    time. tell: called with a Planned, then for each run with a Begun and its Outcome. jobs: runs at a time.
    """

    folder: Path
    how: How
    tell: Callable[[Any], None]
    retry_failed: bool = False
    fail_fast: bool = False
    keep_going: bool = False
    jobs: int = 1
    outcomes: list[Outcome] = field(default_factory=list)

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
        for news in self._side_by_side(numbered) if self.jobs > 1 else self._in_turn(numbered):
            if isinstance(news, Outcome):
                self.outcomes.append(news)
            self.tell(news)
            if isinstance(news, Outcome) and news.state == FAILED:
                self._consider()
        return self.outcomes

    def _in_turn(self, runs: Sequence[tuple[int, Run]]) -> Iterator[Begun | Outcome]:
        how = replace(self.how, load=functools.lru_cache(maxsize=2)(load_data), retry=self.retry_failed)
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
        with contextlib.closing(spread(list(tasks.values()), work, self.jobs, self.how.interrupted)) as told:
            for news in told:
                finished = isinstance(news, Outcome) and news.state == FINISHED
                yield news._replace(result=load(news.directory)) if finished else news
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
    how = replace(how, interrupted=stop, load=kept(_loader), shared=kept(dict))
    with contextlib.suppress(Interrupted):
        for number, run, directory in task:
            if stop():
                return
            tell(Begun(number, run))
            tell(carried_out(number, run, directory, how)._replace(result=None))


def _loader() -> Callable[[Any], Any]:
    return functools.lru_cache(maxsize=2)(load_data)


def write_sweep(course: Course, sweep: Sweep, source: Path, data: Any, chosen: Sequence[Any] = ()) -> None:
    """sweep.yaml: the sweep as it was read, and its runs; of a tuned one its trials, and what was chosen so far (`tuning.Chosen`)."""
    folder = course.folder

    def entry(run: Run) -> dict[str, Any]:
        return {"run": course.directory(run).relative_to(folder).as_posix(), "varied": dict(run.varied)}

    import yaml

    origin = f"{relative(str(source))}{' @ ' + (commit() or '')}".rstrip(" @")
    follow = [run for found in chosen if found.trial is not None for run in found.study.follow[found.trial]]
    runs = [entry(run) for run in (*sweep.runs, *follow)]
    skipped = [{"varied": dict(entry.varied), "because": entry.because} for entry in sweep.skipped]
    content = {"sweep": data, "runs": runs, "skipped": skipped}
    if sweep.studies:
        content["trials"] = [entry(run) | (run.tuned._asdict() if run.tuned else {}) for study in sweep.studies for run in study.trials]
        content["chosen"] = [_choice(found) for found in chosen]
    text = f"# from {origin}\n" + yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=120)
    make_folder(folder)
    write_whole(folder / "sweep.yaml", lambda file: file.write(text.encode()))


def _choice(found: Any) -> dict[str, Any]:
    """Numbers that YAML does not know are left out."""
    figures = finite(dict(found.figures))
    if found.trial is None:
        return {"study": found.study.name, "trial": None, "why": found.why}
    return {"study": found.study.name, "trial": found.trial, "values": dict(found.values), **figures}
