"""The course of a finished run: what its time on a network depends on, from one evaluation to the next."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import accumulate
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from locallearn.errors import LocallearnError
from locallearn.experiment.prepare import stage_of
from locallearn.experiment.record import first_reaching
from locallearn.experiment.result import Result, load
from locallearn.experiment.store import Store
from locallearn.network.sent import Amounts, Sent, share_of, shares
from locallearn.networks import Network
from locallearn.replicas import replica_steps
from locallearn.runtime.ring import AVERAGE
from locallearn.runtime.setup import Stage


class Averages(NamedTuple):
    """Averages of replicas. bytes: of one, on the busiest link of a ring. hops: of one. Nobody computes until it is over."""

    times: int = 0
    bytes: float = 0.0
    hops: int = 0

    def seconds(self, net: Network) -> float:
        """Of all."""
        return self.times * (net.seconds(self.bytes) + self.hops * net.latency)


class Interval(NamedTuple):
    """Steps from one evaluation to the next, after which all shards wait for the top's decision.

    sent: what they sent of what a step of the stage may send. averages: those of the replicas among them.
    """

    stage: Stage
    steps: int
    sent: Sent = MappingProxyType({})
    averages: Averages = Averages()


class Course(NamedTuple):
    """What of a run its time depends on. step_seconds: of computing, all shards of one replica together."""

    intervals: Sequence[Interval]
    batch: int
    microbatches: int
    step_seconds: float

    @property
    def stops(self) -> list[int]:
        """After how many steps each interval is over."""
        return list(accumulate(each.steps for each in self.intervals))


def course_of(folder: Path, accuracy: float | None = None, step_seconds: float | None = None) -> Course:
    """The course of a finished run, to its end or to the evaluation at which it had this accuracy. LocallearnError if it never had.

    step_seconds: of computing in one step, in place of what the run itself took (which has its evaluations in it). Bytes are those that
    each channel sent from one evaluation to the next; what a run of an earlier version sent that did not note them, in the mean over all
    steps in which the channel had something to send.
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
    plan = Store(folder).read("plan.json")
    if plan.get("stages") is None:
        raise LocallearnError(f"{folder}: plan.json is missing, or knows no stages")
    train = result.config.train
    step_seconds = step_seconds or result.seconds / max(1, result.step) / result.config.replicas.count
    return Course(_intervals(result, plan, steps), train.batch, train.microbatches, step_seconds)


def _intervals(result: Result, plan: Mapping[str, Any], steps: int) -> list[Interval]:
    """Up to a step."""
    stops = [record["step"] for record in result.curve if record["step"] <= steps] or [steps]
    stage_at = cache(lambda number: stage_of(result.config, number))
    sent_in = _sent(result, plan)
    found, start = [], 0
    for stop in stops:
        number = next(number for number, stage in enumerate(plan["stages"]) if stop <= stage["stop"])
        sent = sent_in(stop)
        averages = _averages(result, plan["stages"][number], start, stop, sent)
        found.append(Interval(stage_at(number), stop - start, sent, averages))
        start = stop
    return found


def _sent(result: Result, plan: Mapping[str, Any]) -> Callable[[int], Sent]:
    """What was sent of the plan in the steps before an evaluation, as far back as that is known."""
    if not plan.get("at_most"):
        return lambda stop: {}
    marks = [(record["step"], record["traffic"]) for record in result.curve if "traffic" in record]
    if not marks or marks[-1][0] < result.step:
        marks.append((result.step, result.traffic.rows()))
    steps = [0, *(step for step, _ in marks)]
    counts = [Amounts.of([]), *(Amounts.of([(1, rows)]) for _, rows in marks)]

    @cache
    def between(number: int) -> Sent:
        planned = _planned(result, plan["stages"], steps[number - 1], steps[number])
        return shares(planned, counts[number - 1], counts[number])

    return lambda stop: between(bisect_left(steps, stop))


def _planned(result: Result, stages: Sequence[Mapping[str, Any]], start: int, stop: int) -> Amounts:
    """What steps [start, stop) were to send, of the replicas that were there."""
    replicas, parts = result.config.replicas, []
    present = tuple((since, tuple(who)) for since, who in result.present)
    for stage in stages:
        first, last = max(start, stage["start"]), min(stop, stage["stop"])
        if first < last:
            done = [replica_steps(present, step, replicas.count) / replicas.count for step in (first, last)]
            parts.append((done[1] - done[0], stage["channels"]))
            parts.append((_times(result, stage, first, last), stage.get("average_channels", ())))
    return Amounts.of(parts)


def _averages(result: Result, stage: Mapping[str, Any], start: int, stop: int, sent: Sent) -> Averages:
    """Of steps [start, stop) of a stage of plan.json."""
    links: Counter[tuple[int, ...]] = Counter()
    for row in stage.get("average_channels", ()):
        links[row["src"], row["src_replica"]] += row["framed"]
    busiest = max((size * share_of(sent, AVERAGE, shard, shard).bytes for (shard, _), size in links.items()), default=0.0)
    return Averages(_times(result, stage, start, stop), busiest, stage.get("hops_per_average", 0))


def _times(result: Result, stage: Mapping[str, Any], start: int, stop: int) -> int:
    """How often replicas averaged in steps [start, stop) of a stage."""
    replicas, length = result.config.replicas, stage["stop"] - stage["start"]
    if replicas.count == 1:
        return 0
    before, after = (replicas.averages(step - stage["start"], length) for step in (start, stop))
    return after - before
