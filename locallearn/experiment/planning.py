"""What a run will send, known before it runs: by message and link for each step, and in all."""

from __future__ import annotations

import dataclasses
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
    return any(stage.wiring.metered(setup.plan_step(stage).channels) for stage in setup.stages)


def planned_traffic(setup: Setup) -> Traffic:
    """Everything that the run will send: training, evaluations and decisions."""
    total = Traffic(level=setup.count)
    for stage in setup.stages:
        evaluations = _evaluations(setup, stage)
        total += setup.plan_step(stage).traffic * (stage.stop - stage.start)
        total += setup.plan_decision(stage).traffic * evaluations
        total += _evaluation(setup, stage, setup.split.validation) * evaluations
    return total + _evaluation(setup, setup.stages[-1], setup.split.test)


def _evaluations(setup: Setup, stage: Stage) -> int:
    """After every `evaluate_every` steps of the run, and at the end of the stage."""
    every = setup.evaluate_every
    return stage.stop // every - stage.start // every + (stage.stop % every > 0)


def _evaluation(setup: Setup, stage: Stage, part: Any) -> Traffic:
    batches = -(-len(part.y) // setup.evaluation_batch)
    deployed = setup.plan_evaluation(stage).traffic
    if not stage.lossy:
        return deployed * batches
    exactly = dataclasses.replace(stage, wiring=stage.lossless)
    return (deployed + setup.plan_evaluation(exactly).traffic) * batches


def _stage(setup: Setup, stage: Stage) -> dict[str, Any]:
    step = setup.plan_step(stage)
    return {
        "start": stage.start,
        "stop": stage.stop,
        "bytes_per_step": step.traffic.bytes,
        "payload_bytes_per_step": step.traffic.payload_bytes,
        "messages_per_step": step.traffic.message_count,
        "hops_per_step": step.hops,
        "bytes_per_decision": setup.plan_decision(stage).traffic.bytes,
        "channels": [
            {**row, "bytes": step.traffic.counted(channel)}
            for row, channel in zip(step.traffic.rows(), sorted(step.traffic.messages), strict=True)
        ],
    }
