"""Bytes and seconds to a target accuracy on the validation set, over seeds; a run that misses it counts as one that never gets there."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import yaml

from locallearn.experiment.record import first_reaching
from locallearn.report.material import Material
from locallearn.report.summary import Group

SLACK = 0.01
"""Without a target of the sweep's own: so far below what backprop ends with."""


class Target(NamedTuple):
    """A validation accuracy, and where it comes from, in words."""

    accuracy: float
    why: str


class Reached(NamedTuple):
    """What it took a group's runs to get there: (median, least, most), infinite for a miss. missed: how many did not."""

    bytes: tuple[float, float, float]
    seconds: tuple[float, float, float]
    missed: int
    n: int


def target_of(material: Material, panel: str) -> Target | None:
    """The sweep's own target, or one near backprop's end; None where nothing was validated."""
    if material.measure(material.panels[panel]) != "validation_accuracy":
        return None
    told = _declared(material, panel)
    if told is not None:
        return Target(told, "as the sweep says")
    against = material.reference(panel)
    ends = {g.name: _end(material, g) for g in ([against] if against else material.panels[panel])}
    known = {name: end for name, end in ends.items() if end is not None}
    if not known:
        return None
    best = max(known, key=lambda name: known[name])
    return Target(known[best] - SLACK, f"one point below what {best.replace('_', ' ')} ends with")


def _declared(material: Material, panel: str) -> float | None:
    """By a sweep that has runs of this task."""
    runs = [run for group in material.panels[panel] for run in group.runs]
    for name in dict.fromkeys(material.sweep_of[run] for run in runs if run in material.sweep_of):
        target = (yaml.safe_load(material.sweeps[name]).get("sweep") or {}).get("target") or {}
        if "validation_accuracy" in target:
            return float(target["validation_accuracy"])
    return None


def _end(material: Material, group: Group) -> float | None:
    ends = [material.courses[run][-1].get("validation_accuracy") for run in group.runs if run in material.courses]
    known = [end for end in ends if end is not None]
    return statistics.fmean(known) if known else None


def reached(material: Material, group: Group, accuracy: float) -> Reached:
    """By the first evaluation of each run that has this accuracy."""
    costs = [costs_to(material.courses.get(run, ()), accuracy) for run in group.runs]
    missed = sum(math.isinf(sent) for sent, _ in costs)
    sent, seconds = ((statistics.median(some), min(some), max(some)) for some in zip(*costs, strict=True))
    return Reached(sent, seconds, missed, len(costs))


def costs_to(rows: Sequence[dict[str, Any]], accuracy: float) -> tuple[float, float]:
    """Bytes and seconds until a run's first evaluation with this accuracy; infinite if there is none."""
    row = first_reaching(rows, accuracy)
    return (float(row.get("bytes") or 0), float(row.get("seconds") or 0)) if row else (math.inf, math.inf)
