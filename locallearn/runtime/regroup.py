"""When replicas leave a run and come back: from the snapshot of those that were there to what those that are there now go on with.

Whoever stays keeps all that is its own: state, optimizer, rule's memory, and what its links remember. Whoever comes takes up the state of
the first that stayed, with the parameters that these have agreed on. So its optimizer has the moments, and stands at the place of a rate's
schedule, that belong to these parameters: a fresh one would begin the schedule again, its own from before would lag behind, and a
rule's memory (weights that go back, centres, averages) would not fit. Its own links begin anew, as those of any run do: both ends know how
without being told. So do all ends of the ring, whose segments are others with another number of replicas: what `error_feedback` still
held back there, of one average, is lost.

The state crosses as one message of kind `checkpoint` for each shard, from the first that stayed. Of replicas that are all there nothing
changes, and nothing is counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from locallearn.chain import ABSENT
from locallearn.runtime.averaging import agreed_state, of
from locallearn.runtime.parts import fill, machine_part, shard_part
from locallearn.runtime.setup import Setup, Stage, begin_shared
from locallearn.runtime.stale import kept
from locallearn.runtime.training import Finished, Snapshot
from locallearn.traffic import Channel, Traffic

Kept = TypeVar("Kept", bound=Snapshot | Finished)


def regrouped(setup: Setup, event: Kept, was: Sequence[int], now: Sequence[int]) -> Kept:
    """What the replicas `was` left, each with its shards in order, as that of the replicas `now`. Nothing is counted of what that takes."""
    if tuple(was) == tuple(now):
        return event
    stage = setup.stage_at(event.step)
    wiring, rings, before = stage.wiring, setup.ring_memory(stage, len(now)), shapes(setup, stage, was)
    shards: list[list[np.ndarray]] = []
    for place, replica in enumerate(now):
        comes = replica not in was
        links = setup.memory(stage, replica) if comes else []
        for shard in range(wiring.shards):
            leaves = event.shards[(0 if comes else was.index(replica)) * wiring.shards + shard]
            state, ends, older, agreement, _ = fill(machine_part(wiring, before, shard), leaves)
            if comes:
                state, ends = agreed_state(stage.blocks, state, agreement), shard_part(wiring, state, links, older, shard)[1]
            ring = {i: of(memory, place) for i, memory in rings.items() if wiring.placement[i] == shard}
            shards.append([np.array(leaf) for leaf in jax.tree.leaves((state, ends, older, agreement, ring))])
    return event._replace(shards=shards)


def brought(setup: Setup, step: int, was: Sequence[int], now: Sequence[int]) -> Traffic:
    """What it takes to bring their states to those that come."""
    stage, traffic = setup.stage_at(step), Traffic()
    held = shapes(setup, stage, was)
    for shard in range(stage.wiring.shards):
        state, _, _, agreement, _ = machine_part(stage.wiring, held, shard)
        leaves = jax.tree.leaves((state, [own.outer for own in agreement if own is not ABSENT]))  # what is agreed on is in the state
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
        for replica in set(now) - set(was):
            traffic.count(Channel("state", "checkpoint", shard, shard, was[0], replica), size)
    return traffic


def shapes(setup: Setup, stage: Stage, present: Sequence[int] = ()) -> tuple[Any, Any, Any, Any]:
    """Of a replica's states, its channels' memories, its older weights and what it shares; nothing is computed. present: if not all are."""
    setup.plan_step(stage)  # before tracing: what it finds is kept
    depth, first = setup.staleness(stage), (present or setup.everyone)[0]

    def made() -> tuple[Any, Any, Any, Any]:
        state = setup.begin(stage)
        shared = None if setup.replicas.count == 1 else begin_shared(setup, stage, state, first, present)
        return state, setup.memory(stage), kept(state, depth), shared

    return jax.eval_shape(made)
