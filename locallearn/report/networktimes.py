"""How long runs would take on networks, for the report: computed from the dependencies of a step, not measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from locallearn.errors import LocallearnError
from locallearn.networks import NETWORKS
from locallearn.report.material import Material
from locallearn.report.summary import Group, foremost
from locallearn.report.targets import first_reaching

TOLD = 8
"""Groups in all: each costs most of a second."""


class Times(NamedTuple):
    """Seconds on each network, by its name, of one run of a group; why there are none, if so."""

    group: Group
    seconds: Mapping[str, float]
    why: str = ""


def network_times(material: Material, targets: Mapping[str, float]) -> dict[str, list[Times]]:
    """By panel: the time to the target of each group that is worth telling, to the end of its training where there is no target."""
    each = max(3, TOLD // max(1, len(material.panels)))
    found = {}
    for panel, groups in material.panels.items():
        runs = {id(group): _median_run(material, group, targets.get(panel)) for group in groups}
        there = foremost([group for group in groups if runs[id(group)]], each)
        absent = [group for group in foremost(groups, each) if not runs[id(group)]]
        found[panel] = [_times(material, group, runs[id(group)], targets.get(panel)) for group in there] + [
            Times(group, {}, "most seeds never reach the target") for group in absent
        ]
    return found


def _median_run(material: Material, group: Group, accuracy: float | None) -> str:
    """The run in the middle, by bytes to the accuracy; none if it does not get there."""
    if accuracy is None:
        return group.runs[0]
    costs = sorted((first_reaching(material.courses.get(run, ()), accuracy)[0], run) for run in group.runs)
    sent, run = costs[len(costs) // 2]
    return run if math.isfinite(sent) else ""


def _times(material: Material, group: Group, run: str, accuracy: float | None) -> Times:
    from locallearn.network.predict import course_of, predict

    try:
        course = course_of(material.root / run, accuracy)
        return Times(group, {name: predict(course, network).seconds for name, network in NETWORKS.items()})
    except LocallearnError as error:
        return Times(group, {}, str(error).removeprefix(f"{material.root / run}: "))


def time_rows(times: Mapping[str, Sequence[Times]]) -> list[dict[str, Any]]:
    """The table as plain data."""
    return [
        {**g.facts, "network": name, "seconds": seconds} for own in times.values() for g, found, _ in own for name, seconds in found.items()
    ]
