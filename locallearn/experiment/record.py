"""Records: the state of a run at an evaluation as one flat mapping, which is a line of metrics.jsonl and a row of tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from locallearn.experiment.files import finite
from locallearn.experiment.planning import varies
from locallearn.replicas import away_since, replica_steps
from locallearn.runtime.setup import Setup
from locallearn.runtime.training import Evaluated, Watched
from locallearn.traffic import ASIDE

TIMES = ("seconds", "compile_seconds")
"""What differs between two runs of the same configuration; nothing else does."""


def record_of(setup: Setup, event: Evaluated) -> dict[str, Any]:
    """One evaluation. Bytes are what the run counts, from its beginning; there is one `bytes_<kind>` for each kind.

    Diagnostics, where the run has some, are by name, a list with a number for each block. Where frames vary in size, so that no plan knows
    it, `traffic` has what each channel of training has sent, in rows as result.json has them.
    """
    traffic = event.traffic
    rows = [row for row in traffic.rows() if row["kind"] not in ASIDE] if varies(setup) else []
    told = {"diagnostics": {name: list(row) for name, row in event.diagnosis.items()}, "traffic": rows}
    return finite(
        {
            "step": event.step,
            "examples": replica_steps(event.present, event.step, setup.replicas.count) * setup.batch,
            "seconds": round(event.seconds, 6),
            "compile_seconds": round(event.compile_seconds, 6),
            **({} if setup.clock is None else {"simulated_seconds": round(setup.simulated_seconds(event.step) or 0.0, 6)}),
            # A mean of means: its last digits depend on how the steps were cut into chunks, which follows the clock.
            "train_loss": None if event.train_loss is None else float(f"{event.train_loss:.7g}"),
            "validation_accuracy": event.accuracy,
            "validation_accuracy_lossless": event.accuracy_lossless,
            "bytes": traffic.bytes,
            "payload_bytes": traffic.payload_bytes,
            "messages": traffic.message_count,
            "hops": hops_at(setup, event.step),
            "bytes_worst_link": traffic.worst_link,
            **{f"bytes_{kind}": amount for kind, amount in traffic.by_kind().items()},
        }
    ) | {name: value for name, value in told.items() if value}


def actors_of(event: Watched, shards: int) -> dict[str, Any]:
    """How the actors are, as plain data: of so many shards, one replica after the other. All of it follows the clock.

    What one waits for, and waited for, goes by the place of the other in this list. One whose replica is away has no step, but `away`, the
    step since when it is.
    """
    copied = len(event.shards) > shards

    def one(machine: int, status: Any) -> dict[str, Any]:
        waiting = dict(zip(("step", "message", "shard"), status.waiting, strict=True)) if status and status.waiting else None
        waited = {str(other): round(seconds, 3) for (shard, other), seconds in sorted(event.waited.items()) if shard == machine}
        replica, shard = divmod(machine, shards)
        own = {"shard": shard, **({"replica": replica} if copied else {})}
        own |= {"step": status.step} if status else {"step": None, "away": away_since(event.present, replica)}
        return {**own, "waiting": waiting, "waited": waited, "heartbeat_bytes": status.beats if status else 0}

    return {"shards": [one(machine, status) for machine, status in enumerate(event.shards)]}


def delays_of(setup: Setup, step: int) -> list[list[int]]:
    """By shard, how many of the first steps began with weights that were 0, 1, 2 and so on updates old, by the virtual clock."""
    if not any(setup.staleness(stage) for stage in setup.stages):
        return []
    ages = np.concatenate([setup.delays(stage, stage.start, min(step, stage.stop)) for stage in setup.stages if stage.start < step])
    firsts = [setup.stages[0].wiring.placement.index(shard) for shard in range(setup.stages[0].wiring.shards)]
    return [np.bincount(ages[:, block]).tolist() for block in firsts]


def hops_at(setup: Setup, step: int) -> int:
    """Messages on the critical path of the first `step` steps, one after the other."""
    hops = 0
    for stage in setup.stages:
        reached = max(stage.start, min(step, stage.stop))
        hops += (reached - stage.start) * setup.plan_step(stage).hops + setup.averages(stage, reached) * setup.plan_average(stage).hops
    return hops


def first_reaching(records: Sequence[Mapping[str, Any]], accuracy: float) -> Mapping[str, Any] | None:
    """The first evaluation with this validation accuracy; None if there is none."""
    return next((record for record in records if (record.get("validation_accuracy") or 0.0) >= accuracy), None)
