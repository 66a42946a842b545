"""What a run will send, known before it runs: by message and link for each step, and in all."""

from __future__ import annotations

from typing import Any

from locallearn.runtime.setup import Setup, Stage
from locallearn.traffic import Traffic


def plan(setup: Setup) -> dict[str, Any]:
    """The whole plan as plain data: for plan.json and `locallearn plan`.

    Bytes are what the run counts (`count`, framed by default) unless they are called payload or framed.

    Totals assume that the run takes all its steps; where the frames of a codec vary in size they are `at_most` so many.
    """
    total = planned_traffic(setup)
    return {
        "at_most": varies(setup),
        "count": setup.count,
        "steps": setup.steps,
        "bytes": total.bytes,
        "payload_bytes": total.payload_bytes,
        "messages": total.message_count,
        "bytes_worst_link": total.worst_link,
        "bytes_by_kind": total.by_kind(),
        "stages": [_stage(setup, stage) for stage in setup.stages],
    }


def varies(setup: Setup) -> bool:
    """Whether some frames vary in size, so that what is planned is an upper bound."""
    averaged = setup.replicas.count > 1 and any(stage.average.wire is not None for stage in setup.stages)
    return averaged or any(stage.wiring.metered(setup.plan_step(stage).channels) for stage in setup.stages)


def planned_traffic(setup: Setup) -> Traffic:
    """Everything that the run will send: training, evaluations and decisions."""
    total = Traffic(level=setup.count)
    for stage in setup.stages:
        evaluations = setup.evaluations(stage, stage.stop)
        total += setup.plan_step(stage).traffic * (stage.stop - stage.start)
        total += setup.plan_average(stage).traffic * setup.averages(stage, stage.stop)
        total += setup.plan_decision(stage).traffic * evaluations
        total += _evaluation(setup, stage, setup.split.validation) * evaluations
    return total + _evaluation(setup, setup.stages[-1], setup.split.test)


def _evaluation(setup: Setup, stage: Stage, part: Any) -> Traffic:
    batches = -(-len(part.y) // setup.evaluation_batch)
    deployed = setup.plan_evaluation(stage).traffic
    if not stage.lossy:
        return deployed * batches
    return (deployed + setup.plan_evaluation(stage.lossless).traffic) * batches


def _stage(setup: Setup, stage: Stage) -> dict[str, Any]:
    step, average = setup.plan_step(stage), setup.plan_average(stage)
    averaging = {
        "average_every": setup.replicas.average_every,
        "bytes_per_average": average.traffic.bytes,
        "hops_per_average": average.hops,
        "average_channels": _counted_rows(average.traffic),
    }
    return {
        "start": stage.start,
        "stop": stage.stop,
        "bytes_per_step": step.traffic.bytes,
        "payload_bytes_per_step": step.traffic.payload_bytes,
        "messages_per_step": step.traffic.message_count,
        "hops_per_step": step.hops,
        "bytes_per_decision": setup.plan_decision(stage).traffic.bytes,
        "channels": _counted_rows(step.traffic),
    } | (averaging if setup.replicas.count > 1 else {})


def _counted_rows(traffic: Traffic) -> list[dict[str, Any]]:
    """The rows of a table, with the bytes that count."""
    return [{**row, "bytes": traffic.counted(channel)} for row, channel in zip(traffic.rows(), sorted(traffic.messages), strict=True)]
