"""From a finished run to seconds on a network, on as many shards as it had or on more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from locallearn.errors import LocallearnError
from locallearn.experiment.prepare import network
from locallearn.experiment.record import first_reaching
from locallearn.experiment.result import load
from locallearn.experiment.store import Store
from locallearn.network.clock import ends
from locallearn.network.graph import as_ready, step_graph
from locallearn.network.prices import Prices, resized
from locallearn.networks import Network
from locallearn.replicas import Replicas
from locallearn.runtime.setup import Stage
from locallearn.runtime.wiring import deal


class Prediction(NamedTuple):
    """How long a training takes, without its evaluations' own messages.

    first: seconds until the first step ends. step: between the ends of later ones, with a share of the replicas' averages. seconds: in all.
    """

    network: str
    shards: int
    steps: int
    first: float
    step: float
    seconds: float


class Course(NamedTuple):
    """What of a run its time depends on.

    phases: (stage, steps in it). every: steps between evaluations, after which all shards wait for the top's decision. step_seconds: of
    computing, all shards of one replica together. averages: what replicas average in each phase.
    """

    phases: Sequence[tuple[Stage, int]]
    every: int
    batch: int
    microbatches: int
    step_seconds: float
    averages: Sequence[Averages] = ()


class Averages(NamedTuple):
    """The averages of replicas in a phase. bytes: of one, on the busiest link of a ring. hops: of one. Nobody computes until it is over."""

    every: int
    times: int
    bytes: int
    hops: int

    def seconds(self, net: Network) -> float:
        """Of one."""
        return net.seconds(self.bytes) + self.hops * net.latency


def course_of(folder: Path, accuracy: float | None = None, step_seconds: float | None = None) -> Course:
    """The course of a finished run, to its end or to the evaluation at which it had this accuracy. LocallearnError if it never had.

    step_seconds: of computing in one step, in place of what the run itself took (which has its evaluations in it).
    """
    result = load(folder)
    steps, schedule = result.step, result.config.schedule
    if schedule and schedule.staleness:
        what = "on any other network its weights would have been of another age; its own is told by `locallearn show`"
        raise LocallearnError(f"{folder}: trained with a staleness of {schedule.staleness} on {schedule.network or 'actors'}; {what}")
    if accuracy is not None:
        reached = first_reaching(result.curve, accuracy)
        if reached is None:
            best = max((record["validation_accuracy"] or 0 for record in result.curve), default=0)
            raise LocallearnError(f"{folder}: never had a validation accuracy of {accuracy:g}; its best was {best:.4f}")
        steps = reached["step"]
    stages = Store(folder).read("plan.json").get("stages")
    if stages is None:
        raise LocallearnError(f"{folder}: plan.json is missing, or knows no stages")
    phases = [
        (network(result.config, number), min(stage["stop"], steps) - stage["start"])
        for number, stage in enumerate(stages)
        if stage["start"] < steps
    ]
    train, replicas = result.config.train, result.config.replicas
    averages = [_averages(replicas, stage, steps) for stage, (_, steps) in zip(stages, phases, strict=False)]
    step_seconds = step_seconds or result.seconds / max(1, result.step) / replicas.count
    every = min(record["step"] for record in result.curve) if result.curve else steps
    return Course(phases, every, train.batch, train.microbatches, step_seconds, averages if replicas.count > 1 else ())


def _averages(replicas: Replicas, stage: Mapping[str, Any], steps: int) -> Averages:
    """From a stage of plan.json."""
    links: Counter[tuple[int, ...]] = Counter()
    for row in stage.get("average_channels", ()):
        links[row["src"], row["src_replica"]] += row["bytes"]
    times = replicas.averages(steps, stage["stop"] - stage["start"])
    return Averages(replicas.average_every, times, max(links.values(), default=0), stage.get("hops_per_average", 0))


class _Pace(NamedTuple):
    """Of a phase on a network. ends: when each step is over, from one evaluation to the next. pause: while all wait for the decision."""

    ends: Any
    pause: float
    every: int
    shards: int

    def seconds(self, steps: int) -> float:
        """Of so many steps, with the evaluations after them."""
        full, rest = divmod(steps, self.every)
        return full * float(self.ends[-1] + self.pause) + (float(self.ends[rest - 1]) + self.pause if rest else 0.0)


def _paces(course: Course, net: Network, shards: int | None) -> list[_Pace]:
    """Of each phase."""
    found = []
    for stage, steps in course.phases:
        blocks, placement = _chain(stage, shards)
        prices = Prices(stage, course.batch // course.microbatches, course.step_seconds, len(blocks), course.microbatches)
        graph = step_graph(stage.rule, blocks, placement, prices, course.microbatches)
        graph = graph if course.microbatches == 1 else as_ready(graph, net)
        found.append(_Pace(ends(graph, net, min(steps, course.every)), net.latency, course.every, max(placement) + 1))
    return found


def predict(course: Course, net: Network, shards: int | None = None) -> Prediction:
    """The time of a course on a network. shards: how many, if not those of the run; the blocks of the middle then recur."""
    paces = _paces(course, net, shards)
    first, times = float(paces[0].ends[0]), paces[-1].ends
    step = float(times[-1] - times[-2]) if len(times) > 1 else float(times[-1])
    for each in course.averages:
        step += each.seconds(net) / each.every / len(course.averages)
    steps = sum(steps for _, steps in course.phases)
    (seconds,) = _times(course, paces, net, [steps])
    return Prediction(net.name, paces[-1].shards, steps, first, step, seconds)


def timeline(course: Course, net: Network, steps: Sequence[int]) -> list[float]:
    """Seconds on a network until each of these steps of the run is over."""
    return _times(course, _paces(course, net, None), net, steps)


def _times(course: Course, paces: Sequence[_Pace], net: Network, steps: Sequence[int]) -> list[float]:
    averages = course.averages or [None] * len(paces)
    found = []
    for step in steps:
        seconds, left = 0.0, step
        for pace, (_, length), each in zip(paces, course.phases, averages, strict=True):
            here = min(left, length)
            left -= here
            seconds += pace.seconds(here)
            if each is not None:
                seconds += (each.times if here == length else min(each.times, here // each.every)) * each.seconds(net)
        found.append(seconds)
    return found


def _chain(stage: Stage, shards: int | None) -> tuple[list[Any], Sequence[int]]:
    """Blocks and their shards."""
    own = stage.wiring.shards
    if shards is None or shards == own:
        return list(stage.blocks), stage.wiring.placement
    count = max(shards, round(shards * len(stage.blocks) / own))
    return resized(stage.blocks, count), deal(count, shards)
