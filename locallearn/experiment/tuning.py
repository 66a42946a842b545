"""Tuning a sweep: its trials are run, every study chooses one of its own, and what was chosen is run on the sweep's seeds.

A choice follows from the files of the trials alone: whoever is killed finds the same one again. Trials never see the test set.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from locallearn.config.sweep import Run, Sweep
from locallearn.config.tuning import BYTES, Study
from locallearn.experiment.record import first_reaching
from locallearn.experiment.run import Interrupted
from locallearn.experiment.store import DIVERGED, FAILED, FINISHED, RUNNING, Store
from locallearn.experiment.sweeping import Course

LOOK_SECONDS = 1.0
"""Between looks at trials that another process runs."""


class Waiting(NamedTuple):
    """Another process runs trials that a choice needs. trials: how many."""

    trials: int


class Chosen(NamedTuple):
    """What a study chose: the number of a trial, and its figures; None, and why in words, if none of them will do."""

    study: Study
    trial: int | None
    figures: Mapping[str, Any]
    why: str = ""

    @property
    def values(self) -> Mapping[str, Any]:
        """Of the chosen trial."""
        tuned = self.study.trials[self.trial or 0].tuned
        return tuned.values if tuned and self.trial is not None else {}


def choose(study: Study, directory: Callable[[Run], Path], sweep: Sweep) -> Chosen | None:
    """The best trial, the earliest of several; None while some are not over."""
    stores = [Store(directory(run)) for run in study.trials]
    if any(store.state not in (FINISHED, FAILED) for store in stores):
        return None
    figures = [_figures(store, sweep) for store in stores]
    scores = [_score(each, sweep) if each else None for each in figures]
    best = max((score for score in scores if score is not None), default=None)
    if best is None:
        counted = sum(store.state == FAILED for store in stores)
        return Chosen(study, None, {}, f"none of its {len(stores)} trials can be chosen: {counted} failed, the others diverged")
    trial = scores.index(best)
    return Chosen(study, trial, figures[trial] or {})


def _figures(store: Store, sweep: Sweep) -> dict[str, Any] | None:
    """How a trial ended; None if it failed or diverged."""
    ending, records = store.read("result.json"), store.records()
    if not records or ending.get("reason") in (None, DIVERGED):
        return None
    found = {name: records[-1][name] for name in ("validation_accuracy", "validation_accuracy_lossless", "bytes")}
    if sweep.target:
        found[BYTES] = bytes_to_target(records, sweep.target.validation_accuracy)
    return found


def bytes_to_target(records: Sequence[Mapping[str, Any]], accuracy: float) -> float:
    """Until the first evaluation with this validation accuracy; infinite if there is none."""
    reached = first_reaching(records, accuracy)
    return reached["bytes"] if reached else math.inf


def _score(figures: Mapping[str, Any], sweep: Sweep) -> tuple[float, ...]:
    assert sweep.tune is not None
    if sweep.tune.choose_by == BYTES:
        return -figures[BYTES], figures["validation_accuracy"]
    return (figures[sweep.tune.choose_by],)


def known_choices(course: Course, sweep: Sweep) -> list[Chosen]:
    """Of all studies of a sweep whose trials are over."""
    return [found for study in sweep.studies if (found := choose(study, course.directory, sweep))]


@dataclass
class Tuning:
    """One pass over a tuned sweep. written: called with the choices that are known after the trials. tell: hears them, and `Waiting`."""

    course: Course
    sweep: Sweep
    written: Callable[[Sequence[Chosen]], None]
    tell: Callable[[Any], None]

    def go(self, studies: Sequence[Study]) -> list[Chosen]:
        """The trials of these studies, then what follows. Gives their choices."""
        self._trials([run for study in studies for run in study.trials])
        known = known_choices(self.course, self.sweep)
        self.written(known)
        by_name = {found.study.name: found for found in known}
        mine = [found._replace(study=study) for study in studies if (found := by_name.get(study.name))]
        for found in mine:
            self.tell(found)
        runs = [run for found in mine if found.trial is not None for run in found.study.follow[found.trial]]
        if runs:
            self.course.go(runs)
        return mine

    def _trials(self, runs: Sequence[Run]) -> None:
        """Until all are over: also those that another process began, and may leave."""
        while runs:
            self.course.go(runs)
            told = 0
            while count := sum(self._state(run) == RUNNING for run in runs):
                if count != told:
                    self.tell(Waiting(told := count))
                if self.course.how.interrupted():
                    raise Interrupted("interrupted while another process runs trials; the same command goes on")
                time.sleep(LOOK_SECONDS)
            runs = [run for run in runs if self._state(run) not in (FINISHED, FAILED)]

    def _state(self, run: Run) -> str:
        return Store(self.course.directory(run)).state
