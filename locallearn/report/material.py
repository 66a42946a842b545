"""What a report is made of: the rows of all runs, and what their directories say of them."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from locallearn.experiment.store import DIVERGED, FAILED, Store
from locallearn.report.ink import Palette, colors_of, markers_of
from locallearn.report.spread import Estimate, estimate
from locallearn.report.summary import Group, groups_of, reference
from locallearn.report.table import Row, is_trial, last_rows
from locallearn.traffic import Traffic

BASELINES = ("backprop", "baseline")
"""Families of rules that others are held against."""


class Point(NamedTuple):
    """A group's mean over seeds at one evaluation. value: validation accuracy, or where there is none the training loss.

    seconds: on a network, where that is looked at.
    """

    step: int
    examples: float
    bytes: float
    value: Estimate
    lowest: float
    highest: float
    seconds: float = 0.0


@dataclass(frozen=True)
class Material:
    """The rows of `table.rows_below`, and the folder that their runs are below."""

    root: Path
    rows: Sequence[Row]

    @cached_property
    def last(self) -> list[Row]:
        """The last row of every run."""
        return last_rows(self.rows)

    @cached_property
    def groups(self) -> list[Group]:
        """Every combination, finished or not."""
        return groups_of(self.rows)

    @cached_property
    def panels(self) -> dict[str, list[Group]]:
        """The combinations of each task that have a tested run."""
        tested = [group for group in self.groups if group.accuracies]
        return {panel: [g for g in tested if g.panel == panel] for panel in dict.fromkeys(group.panel for group in tested)}

    @cached_property
    def colors(self) -> Palette:
        """By rule, the same in all figures."""
        return colors_of([group.rule for group in self.groups])

    @cached_property
    def markers(self) -> Palette:
        """By codec, the same in all figures."""
        return markers_of([group.codecs for group in self.groups])

    @cached_property
    def courses(self) -> dict[str, list[Row]]:
        """The evaluations of each run."""
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            if "step" in row:
                found.setdefault(str(row["run"]), []).append(row)
        return found

    def measure(self, groups: Sequence[Group]) -> str:
        """The column that curves of these groups show."""
        told = any(row.get("validation_accuracy") is not None for g in groups for run in g.runs for row in self.courses.get(run, ()))
        return "validation_accuracy" if told else "train_loss"

    def curve(self, group: Group, measure: str, best: bool = False) -> list[Point]:
        """Means over those evaluations that all of its seeds have. best: of the highest value so far, in place of the last."""
        runs = [{row["step"]: row for row in self.courses.get(run, ()) if row.get(measure) is not None} for run in group.runs]
        if best:
            runs = [_highest(rows, measure) for rows in runs]
        points = []
        for step in sorted(set.intersection(*map(set, runs))) if runs else ():
            at = [run[step] for run in runs]
            examples, sent = (sum(row.get(name) or 0 for row in at) / len(at) for name in ("examples", "bytes"))
            values = [row[measure] for row in at]
            points.append(Point(step, examples or step, sent, estimate(values), min(values), max(values)))
        return points

    def baseline(self, rule: str) -> bool:
        """Whether a rule is one that others are held against."""
        return family(rule) in BASELINES

    def reference(self, panel: str) -> Group | None:
        """Backprop, every bit sent."""
        return reference(self.panels.get(panel, ()), panel)

    def read(self, run: str, name: str) -> Mapping[str, Any]:
        """One of the JSON files of a run; empty if it is not there."""
        return Store(self.root / run).read(name)

    def traffic(self, run: str) -> Traffic:
        """All that a run sent, counted as the run counts."""
        return Store(self.root / run).traffic()

    @cached_property
    def metas(self) -> dict[str, Mapping[str, Any]]:
        """Where each run comes from."""
        return {str(row["run"]): self.read(str(row["run"]), "meta.json") for row in self.last}

    @cached_property
    def failures(self) -> dict[str, Mapping[str, Any]]:
        """How runs failed."""
        return {str(row["run"]): self.read(str(row["run"]), "failure.json") for row in self.last if row["state"] == FAILED}

    @cached_property
    def diverged(self) -> list[Row]:
        """The runs whose loss was not finite any more."""
        return [row for row in self.last if row.get("reason") == DIVERGED]

    @cached_property
    def sweep_of(self) -> dict[str, str]:
        """Where the sweep.yaml is to which each run belongs, from the root; of those runs that belong to one."""
        found = {}
        for row in self.last:
            run, depth = str(row["run"]), 3 if is_trial(row) else 2 if row.get("study") is not None else 1
            path = (self.root / run).absolute().parents[depth] / "sweep.yaml"
            if path.exists():
                found[run] = os.path.relpath(path, self.root)
        return found

    @cached_property
    def sweeps(self) -> dict[str, str]:
        """What was asked for, from every sweep.yaml; without the list of runs that follows."""
        return {name: (self.root / name).read_text().partition("\nruns:")[0] + "\n" for name in sorted(set(self.sweep_of.values()))}


def _highest(rows: Mapping[int, Row], measure: str) -> dict[int, Row]:
    """Each evaluation with the highest value up to it."""
    steps = sorted(rows)
    values = itertools.accumulate((rows[step][measure] for step in steps), max)
    return {step: {**rows[step], measure: value} for step, value in zip(steps, values, strict=True)}


@functools.cache
def family(rule: str) -> str:
    """The family of a rule; empty if it is another package's and that is not here."""
    from locallearn.rules import RULES

    return RULES[rule].family if rule in RULES else ""
