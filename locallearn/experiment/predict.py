"""From the course of a finished run to seconds on a network, on as many shards as it had or on more."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np

from locallearn.experiment.course import Course, Interval
from locallearn.network.clock import ends, period_of
from locallearn.network.graph import as_ready, step_graph
from locallearn.network.prices import Prices, resized
from locallearn.network.sent import mean_of
from locallearn.networks import Network
from locallearn.runtime.setup import Stage
from locallearn.runtime.wiring import deal


class Prediction(NamedTuple):
    """How long a training takes, without its evaluations' own messages.

    first: seconds until the first step ends. step: between the ends of later ones, in the mean, with a share of the replicas' averages.
    seconds: in all. Where messages differ from step to step, those of all steps between two evaluations count as if they were alike.
    """

    network: str
    shards: int
    steps: int
    first: float
    step: float
    seconds: float


class Clock(NamedTuple):
    """When each step of an interval ends, and the mean time between two, once what goes before has filled the pipeline."""

    ends: np.ndarray
    pace: float


def predict(course: Course, net: Network, shards: int | None = None) -> Prediction:
    """The time of a course on a network.

    shards: how many, if not those of the run; the blocks of the middle then recur, and what is sent is known in the mean over all intervals
    of a phase in which the same channels send anything.
    """
    own = course.intervals[-1].stage.wiring.shards
    course = course if shards in (None, own) else _simpler(course)
    clocks = _clocks(course, net, shards)
    steps = sum(each.steps for each in course.intervals)
    paces = [clocks[_kind(each)].pace * each.steps + each.averages.seconds(net) for each in course.intervals]
    first = float(clocks[_kind(course.intervals[0])].ends[0])
    return Prediction(net.name, shards or own, steps, first, sum(paces) / steps, _ends(course, clocks, net)[-1])


def timeline(course: Course, net: Network, steps: Sequence[int]) -> list[float]:
    """Seconds on a network until each of these evaluations, by its step, is over; of those that come after the run's end, until that."""
    over, last = _ends(course, _clocks(course, net, None), net), len(course.intervals) - 1
    return [over[min(bisect_left(course.stops, step), last)] for step in steps]


def _simpler(course: Course) -> Course:
    """The same course with fewer kinds of intervals: each takes seconds to find out for ten thousand shards."""
    alike = defaultdict(list)
    for each in course.intervals:
        alike[_sending(each)].append((each.steps, each.sent))
    means = {key: mean_of(parts) for key, parts in alike.items()}
    return course._replace(intervals=[each._replace(sent=means[_sending(each)]) for each in course.intervals])


def _sending(interval: Interval) -> Any:
    """The channels, and which of them send anything."""
    return id(interval.stage), frozenset((key, share.frames > 0) for key, share in interval.sent.items())


def _kind(interval: Interval) -> Any:
    """What the intervals have in common whose steps take as long."""
    return id(interval.stage), frozenset(interval.sent.items())


def _clocks(course: Course, net: Network, shards: int | None) -> dict[Any, Clock]:
    """Of the longest interval of each kind, counted from its beginning."""
    longest: dict[Any, Interval] = {}
    for each in course.intervals:
        longest[_kind(each)] = max(each, longest.get(_kind(each), each), key=lambda interval: interval.steps)
    return {kind: _clock(course, each, net, shards) for kind, each in longest.items()}


def _clock(course: Course, interval: Interval, net: Network, shards: int | None) -> Clock:
    stage = interval.stage
    blocks, placement = _chain(stage, shards)
    size = course.batch // course.microbatches
    prices = Prices(stage, size, course.step_seconds, len(blocks), course.microbatches, interval.sent)
    graph = step_graph(stage.rule, blocks, placement, prices, course.microbatches)
    times, period = ends(graph if course.microbatches == 1 else as_ready(graph, net), net, interval.steps), period_of(graph)
    pace = (times[-1] - times[-1 - period]) / period if len(times) > period else times[-1] / len(times)
    return Clock(times, float(pace))


def _ends(course: Course, clocks: dict[Any, Clock], net: Network) -> list[float]:
    """When each interval is over, and the decision after it known."""
    return list(
        accumulate(float(clocks[_kind(each)].ends[each.steps - 1]) + net.latency + each.averages.seconds(net) for each in course.intervals)
    )


def _chain(stage: Stage, shards: int | None) -> tuple[list[Any], Sequence[int]]:
    """Blocks and their shards."""
    own = stage.wiring.shards
    if shards is None or shards == own:
        return list(stage.blocks), stage.wiring.placement
    count = max(shards, round(shards * len(stage.blocks) / own))
    return resized(stage.blocks, count), deal(count, shards)
