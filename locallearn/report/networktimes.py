"""How long runs would take on networks, for the report: computed from the dependencies of a step, not measured."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from locallearn.errors import LocallearnError
from locallearn.networks import NETWORKS, Network
from locallearn.report.material import Material, Point
from locallearn.report.summary import Group, foremost
from locallearn.report.targets import costs_to

if TYPE_CHECKING:
    from locallearn.experiment.course import Course

TOLD = 8
"""Groups in all: each costs most of a second."""


SHARDS = (16, 128, 1024)
WIDE = "1mbit"
"""The network on which more shards are looked at."""


class Times(NamedTuple):
    """Seconds on each network, by its name, of one run of a group; why there are none, if so. shards: seconds on WIDE by their number."""

    group: Group
    seconds: Mapping[str, float]
    why: str = ""
    course: Course | None = None
    shards: Mapping[int, float] = MappingProxyType({})


def network_times(material: Material, targets: Mapping[str, float]) -> dict[str, list[Times]]:
    """By panel: the time to the target of each group that is worth telling, to the end of its training where there is no target."""
    each = max(3, TOLD // max(1, len(material.panels)))
    found = {}
    for panel, groups in material.panels.items():
        runs = {id(group): _median_run(material, group, targets.get(panel)) for group in groups}
        there = foremost([group for group in groups if runs[id(group)]], each)
        absent = [group for group in foremost(groups, each) if not runs[id(group)]]
        told = [_times(material, group, runs[id(group)], targets.get(panel)) for group in there]
        missed = [Times(group, {}, "most seeds never reach the target") for group in absent]
        found[panel] = [*_wider(material, told), *missed]
    return found


def _wider(material: Material, told: Sequence[Times]) -> Iterator[Times]:
    """The reference, and the fastest of the rules that are no baselines, on more shards than they had, too."""
    from locallearn.experiment.predict import predict

    known = [times for times in told if times.seconds]
    others = [times for times in known if not material.baseline(times.group.rule)]
    shown = [times.course for times in known if times.group is material.reference(times.group.panel)]
    shown += [min(others, key=lambda times: times.seconds[WIDE]).course] if others else []
    for times in told:
        if times.course and any(times.course is course for course in shown):
            own = times.course.intervals[0].stage.wiring.shards
            wider = {count: predict(times.course, NETWORKS[WIDE], count).seconds for count in SHARDS if count > own}
            yield times._replace(shards={own: times.seconds[WIDE], **wider})
        else:
            yield times


def _median_run(material: Material, group: Group, accuracy: float | None) -> str:
    """The run in the middle, by bytes to the accuracy; none if it does not get there."""
    if accuracy is None:
        return group.runs[0]
    costs = sorted((costs_to(material.courses.get(run, ()), accuracy)[0], run) for run in group.runs)
    sent, run = costs[len(costs) // 2]
    return run if math.isfinite(sent) else ""


def _times(material: Material, group: Group, run: str, accuracy: float | None) -> Times:
    from locallearn.experiment.course import course_of
    from locallearn.experiment.predict import predict

    try:
        course = course_of(material.root / run, accuracy)
        return Times(group, {name: predict(course, network).seconds for name, network in NETWORKS.items()}, course=course)
    except LocallearnError as error:
        return Times(group, {}, str(error).removeprefix(f"{material.root / run}: "))


def races(material: Material, network: Network) -> dict[str, list[tuple[Group, list[Point]]]]:
    """By panel: the best validation accuracy that groups had reached, by the seconds that it would take them on a network.

    Of each group the run whose computing took the middling time says how long a step takes. What has no course there is left out.
    """
    each = max(3, TOLD // max(1, len(material.panels)))
    found = {}
    for panel, groups in material.panels.items():
        told = [group for group in foremost(groups, each) if material.measure([group]) == "validation_accuracy"]
        lines = [(group, _race(material, group, network)) for group in told]
        found[panel] = [(group, points) for group, points in lines if len(points) > 1]
    return found


def _race(material: Material, group: Group, network: Network) -> list[Point]:
    from locallearn.experiment.course import course_of
    from locallearn.experiment.predict import timeline

    points = material.curve(group, "validation_accuracy", best=True)
    timed = sorted(group.runs, key=lambda run: material.courses[run][-1].get("seconds") or 0.0)
    try:
        seconds = timeline(course_of(material.root / timed[len(timed) // 2]), network, [point.step for point in points])
    except LocallearnError:
        return []
    return [point._replace(seconds=after) for point, after in zip(points, seconds, strict=True)]


def time_rows(times: Mapping[str, Sequence[Times]]) -> list[dict[str, Any]]:
    """The tables as plain data. shards: empty for as many as the run had."""
    rows = []
    for each in (one for own in times.values() for one in own):
        rows += [{**each.group.facts, "network": name, "shards": None, "seconds": seconds} for name, seconds in each.seconds.items()]
        rows += [{**each.group.facts, "network": WIDE, "shards": count, "seconds": seconds} for count, seconds in each.shards.items()]
    return rows
