"""The virtual clock of a run with a `schedule`: from its steps' graph to when they end, and with how old weights they begin."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from locallearn.network.clock import ends, upwards
from locallearn.network.graph import as_ready, step_graph
from locallearn.network.prices import Prices, on_shapes
from locallearn.network.stale import staggered
from locallearn.networks import parse_network
from locallearn.rule import Rule, init_shapes
from locallearn.runtime.local import Plan
from locallearn.runtime.setup import Stage
from locallearn.runtime.stale import Timetable
from locallearn.schedule import Schedule


def timetable(schedule: Schedule, stage: Stage, steps: int, batch: int, microbatches: int) -> Timetable:
    """Of so many steps between two evaluations, after which every shard waits for the top's decision."""
    assert schedule.network is not None
    assert schedule.step is not None
    net, blocks = parse_network(schedule.network), len(stage.blocks)
    prices = Prices(stage, batch // microbatches, schedule.step, blocks, microbatches)
    events = step_graph(stage.rule, stage.blocks, stage.wiring.placement, prices, microbatches)
    events = events if microbatches == 1 else as_ready(events, net)
    if schedule.staleness and upwards(events) is None:
        times, delays = staggered(events, net, steps, schedule.staleness)
    else:
        times, delays = ends(events, net, steps), np.zeros((steps, stage.wiring.shards), np.int32)
    return Timetable(float(times[-1]) + net.latency, delays)


class _Free:
    """Prices where only the order counts."""

    def compute(self, name: str, block: int) -> float:
        """Nothing."""
        return 0.0

    def message(self, name: str, src: int, dst: int) -> tuple[float, float]:
        """A frame of nothing."""
        return 0.0, 1.0


def overlaps(stage: Stage) -> bool:
    """Whether a shard waits for what others make of a batch and send down, so that it has time for the next step."""
    return upwards(step_graph(stage.rule, stage.blocks, stage.wiring.placement, _Free())) is None


def unsuited(stage: Stage, batch: int) -> str | None:
    """Why the steps of a stage cannot overlap, if they cannot.

    Where nothing is waited for that other shards make of the batch and send down, they need not: steps follow each other in a pipeline as
    it is, and any staleness gives the same result as none.
    """
    rule, wiring = stage.rule, stage.wiring
    if not overlaps(stage):
        return None
    if type(rule).step is not Rule.step:
        return "its blocks change within a step, so that no step can keep the weights that it began with"
    if jax.tree.leaves(init_shapes(rule, stage.blocks).memory):
        return "it remembers one step in the next, which must find what the one before has left"
    plan = Plan(wiring)
    on_shapes(stage, plan, batch)
    for channel, count in plan.traffic.messages.items():
        memory = wiring.codecs[channel.message].init(plan.channels[channel], jax.random.PRNGKey(0)) if count > 1 else ()
        if any(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(memory)):
            return f"it sends `{channel.message}` {count} times in a step by a codec that remembers messages: those of steps would mix"
    return None
