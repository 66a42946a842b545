"""Running a sweep: one run after the other; a run that fails is noted and the sweep goes on."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from locallearn.config.sweep import Run, Sweep
from locallearn.errors import LocallearnError
from locallearn.experiment.files import make_folder, write_whole
from locallearn.experiment.prepare import load_data
from locallearn.experiment.provenance import commit, relative
from locallearn.experiment.result import Result
from locallearn.experiment.run import FailedBefore, How, Interrupted, execute, seed_name
from locallearn.experiment.store import FAILED, FINISHED, RUNNING, Store

ALIKE = 3
"""If so many runs fail at the start, all in the same way, the others would too."""


class Begun(NamedTuple):
    """A run has its turn. number: from 1."""

    number: int
    run: Run


class Outcome(NamedTuple):
    """What became of a run. before: the state that it was found in. state: `finished`, `failed`, or `running` by another process."""

    run: Run
    directory: Path
    before: str
    state: str
    result: Result | None = None
    error: Exception | None = None


class Planned(NamedTuple):
    """The runs that there are and the state that each was found in."""

    runs: Sequence[Run]
    states: Mapping[str, int]


@dataclass
class Course:
    """One pass over the runs of a sweep.

    folder: below which each run has its directory. how: for each run; its `tell` hears the run's own events. tell: called with a
    Planned, then for each run with a Begun and its Outcome.
    """

    folder: Path
    how: How
    tell: Callable[[Any], None]
    retry_failed: bool = False
    fail_fast: bool = False
    keep_going: bool = False
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
        how = replace(self.how, load=functools.lru_cache(maxsize=2)(load_data), retry=self.retry_failed)
        for number, run in enumerate(runs, start=1):
            self.tell(Begun(number, run))
            outcome = self._one(run, replace(how, varied=run.varied))
            self.outcomes.append(outcome)
            self.tell(outcome)
            if outcome.state == FAILED:
                self._consider()
        return self.outcomes

    def _one(self, run: Run, how: How) -> Outcome:
        directory = self.directory(run)
        before = Store(directory).state
        if before == RUNNING:
            return Outcome(run, directory, before, RUNNING)
        try:
            return Outcome(run, directory, before, FINISHED, execute(run.config, how, directory))
        except Interrupted:
            raise
        except Exception as error:  # whatever it is: one run's trouble is not the next one's
            return Outcome(run, directory, before, FAILED, error=error)

    def _consider(self) -> None:
        """Whether to go on after a failure."""
        if self.fail_fast:
            raise LocallearnError("stopped at the first failure (--fail-fast)")
        new = [outcome for outcome in self.outcomes if not isinstance(outcome.error, FailedBefore)]
        if len(new) == ALIKE and not self.keep_going and len({_kind(outcome.error) for outcome in new}) == 1:
            raise LocallearnError(f"the first {ALIKE} runs all failed in the same way; --keep-going runs the others all the same")


def _kind(error: Exception | None) -> str | None:
    return None if error is None else f"{type(error).__name__}: {error}"


def write_sweep(folder: Path, sweep: Sweep, source: Path, data: Any) -> None:
    """sweep.yaml: the sweep as it was read, and its runs."""
    import yaml

    origin = f"{relative(str(source))}{' @ ' + (commit() or '')}".rstrip(" @")
    runs = [{"run": f"{run.name}/seed-{run.config.seed}", "varied": dict(run.varied)} for run in sweep.runs]
    skipped = [{"varied": dict(entry.varied), "because": entry.because} for entry in sweep.skipped]
    content = {"sweep": data, "runs": runs, "skipped": skipped}
    text = f"# from {origin}\n" + yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=120)
    make_folder(folder)
    write_whole(folder / "sweep.yaml", lambda file: file.write(text.encode()))
