"""A run in one compiled program, in one process: the fastest way to train, and the way that needs nothing else."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from locallearn.chain import Chain, Row
from locallearn.codec import Context, Spec
from locallearn.data.intake import PLAIN, Intake
from locallearn.replicas import ALONE, Replicas
from locallearn.rule import Batch, step_keys
from locallearn.runtime.averaging import Shared, begin_agreement, evaluated, of, stack, stacked
from locallearn.runtime.diagnostics import Diagnosis, Diagnostics
from locallearn.runtime.intake import seen, seen_in_training
from locallearn.runtime.local import Fused
from locallearn.runtime.parts import carried, carried_ring, fill, machine_part, merge_parts
from locallearn.runtime.ring import Deal, ring_channels
from locallearn.runtime.session import Session, count_correct, padded
from locallearn.runtime.setup import Setup, Stage
from locallearn.runtime.stale import kept
from locallearn.runtime.steps import Copies, chain_step, replicas_step
from locallearn.traffic import Channel, Traffic

CHUNK = 512
"""Steps whose indices are handed to the compiled loop at once; the loop runs as many of them as it is told."""


class Orders(NamedTuple):
    """What the compiled loop is told of the next CHUNK steps, of which it does as many as `steps`, from `start`.

    index, keys: of each step's batch. delays: [CHUNK, blocks], how old the weights are to be. due: after which steps replicas average.
    """

    index: Any
    keys: Any
    delays: Any
    due: Any
    start: Any
    steps: Any


class Programs(NamedTuple):
    """What one stage compiles to. Seeds are arguments, so every seed of a configuration can use the same programs."""

    loop: Callable[..., Any]
    score: Mapping[bool, Callable[..., Any]]
    diagnose: Callable[..., Diagnosis]


class FusedSession(Session):
    """One compiled program for training, one for evaluation; data and state stay on the device. Replicas are a first axis of all arrays.

    programs: by number of the stage, those of a session of the same configuration with another seed; what is missing is added.
    """

    def __init__(self, setup: Setup, programs: dict[int, Programs] | None = None):
        self.setup, self.traffic = setup, Traffic()
        self.programs = {} if programs is None else programs
        self._state: Any = None
        self._memory: list[Any] = []
        self._ring = Row(())
        self._shared: Shared | None = None
        self._x, self._y = jnp.asarray(setup.split.train.x), jnp.asarray(setup.split.train.y)

    def enter(self, stage: Stage) -> None:
        """Compile all that the stage needs; nothing compiles after that."""
        begun = time.perf_counter()
        setup, number = self.setup, self.setup.stages.index(stage)
        before = self.stage if self._state is not None else None
        self.stage = stage
        step, deployed = setup.plan_step(stage), setup.plan_evaluation(stage)
        self._step, self._evaluation = step.traffic, {False: deployed.traffic, True: setup.plan_evaluation(stage.lossless).traffic}
        self._metered, self._aside = (stage.wiring.metered(footprint.channels) for footprint in (step, deployed))
        self._decision, self._average = setup.plan_decision(stage).traffic, setup.plan_average(stage).traffic
        # Not compiled as one: JAX finds its few kernels again for every rule and seed, and the bits are those of the other fabrics.
        self._begin(before)
        if number not in self.programs:
            self.programs[number] = self._compiled()
        self._loop, self._score = self.programs[number].loop, self.programs[number].score
        self.compile_seconds += time.perf_counter() - begun

    def _begin(self, before: Stage | None) -> None:
        """State and memories at the start of the stage, of replicas stacked. What ends begin with alike is copied: it is given up twice."""
        stage, setup, count = self.stage, self.setup, self.setup.replicas.count

        def begun(replica: int, state: Any, memory: list[Any]) -> tuple[Row, list[Any]]:
            blank = jax.tree.map(jnp.array, setup.memory(stage, replica))
            known = [carried(old, new, before and before.wiring, stage.wiring) for old, new in zip(memory or blank, blank, strict=True)]
            return setup.begin(stage, state), known

        if count == 1:
            state, self._memory = begun(0, self._state, self._memory)
            self._state, self._ring = state, kept(state, setup.staleness(stage))
            return
        parts = [begun(r, *((of(self._state, r), of(self._memory, r)) if before else (None, []))) for r in range(count)]
        self._state, self._memory = stacked(parts)
        self._ring = Row(() for _ in stage.blocks)
        agreement = Row(begin_agreement(b, s, replicas=setup.replicas) for b, s in zip(stage.blocks, parts[0][0], strict=True))
        ring = jax.tree.map(jnp.array, setup.ring_memory(stage))
        known = carried_ring(self._shared.ring, ring, before.average == stage.average) if before and self._shared else ring
        self._shared = Shared(stack(agreement, count), known)

    def _compiled(self) -> Programs:
        stage, setup = self.stage, self.setup
        steps = functools.partial(_steps, stage, intake=setup.intake, metered=self._metered, replicas=setup.replicas)
        loop = jax.jit(steps, donate_argnums=0).lower(self._carry, self._x, self._y, self._orders(stage.start, stage.start + 1)).compile()
        deployed = self._scorer(stage, self._evaluated[1], self._aside)
        lossless = self._scorer(stage.lossless, {}, ()) if stage.lossy else deployed
        return Programs(loop, {False: deployed, True: lossless}, Diagnostics(setup, stage))

    def _scorer(self, stage: Stage, memory: Any, metered: tuple[Channel, ...]) -> Callable[..., Any]:
        size = self.setup.evaluation_batch
        x, y = Spec((size, *self._x.shape[1:]), self._x.dtype), Spec((size,), jnp.int32)
        scored = functools.partial(_scored, stage, intake=self.setup.intake, metered=metered)
        program = jax.jit(scored).lower(self._evaluated[0], memory, x, y, y).compile()
        return lambda state, known, *batch: program(state, known if memory else {}, *batch)

    def advance(self, start: int, stop: int) -> float:
        """At most CHUNK steps for each call of the program."""
        losses = []
        for first in range(start, stop, CHUNK):
            losses.append(self._advance(first, min(stop, first + CHUNK)))
        return float(np.mean(np.concatenate(losses), dtype=np.float64))

    def correct(self, part: Any, lossless: bool) -> int:
        """Through the deployed codecs, or lossless."""
        total, (state, memory) = 0, self._evaluated
        for x, y, index in padded(part, self.setup.evaluation_batch):
            right, sizes = self._score[lossless](state, memory, x, y, index)
            total += right
            channels = () if lossless else tuple(channel.counted(False) for channel in self._aside)
            self.traffic += _measured(self._evaluation[lossless], channels, sizes)
        return int(total)

    def diagnose(self, step: int) -> Diagnosis:
        """From programs that compile when they are first needed."""
        return self.programs[self.setup.stages.index(self.stage)].diagnose(self.setup, self._evaluated[0], step)

    def conclude(self) -> None:
        """Each replica goes on with what all agreed on."""
        if self._shared is not None:
            self._state = jax.vmap(self._agreed)(self._state, self._shared.agreement)

    def _agreed(self, state: Row, agreement: Row) -> Row:
        return Row(map(evaluated, self.stage.blocks, state, agreement))

    @property
    def _carry(self) -> Any:
        if self._shared is None:
            return self._state, self._memory, self._ring
        return Copies(self._state, self._memory, self._shared)

    @property
    def _evaluated(self) -> tuple[Row, Any]:
        """What evaluations see: the state and the channel memories of the first replica, with the parameters that all agreed on."""
        if self._shared is None:
            return self._state, self._memory[0]
        return self._agreed(*of((self._state, self._shared.agreement), 0)), of(self._memory[0], 0)

    def decide(self, choice: int) -> int:
        """Nobody else to tell, but what telling them costs is counted."""
        self.traffic += self._decision
        return choice

    def snapshot(self) -> list[list[np.ndarray]]:
        """States and channel memories, each with its shard; one replica after the other."""
        return [
            [np.array(leaf) for leaf in jax.tree.leaves(machine_part(self.stage.wiring, self._replica(r), shard))]
            for r in range(self.setup.replicas.count)
            for shard in range(self.stage.wiring.shards)
        ]

    def restore(self, shards: Sequence[Sequence[np.ndarray]]) -> None:
        """The inverse of `snapshot`."""
        count = self.stage.wiring.shards
        parts = [self._filled(r, shards[r * count : (r + 1) * count]) for r in range(self.setup.replicas.count)]
        self._state, self._memory, self._ring, self._shared = parts[0] if self._shared is None else stacked(parts)

    def _replica(self, number: int) -> tuple[Any, Any, Any, Any]:
        everything = self._state, self._memory, self._ring, self._shared
        return everything if self._shared is None else of(everything, number)

    def _filled(self, replica: int, shards: Sequence[Sequence[np.ndarray]]) -> tuple[Any, Any, Any, Any]:
        """One replica's arrays, from those of its shards."""
        wiring, own = self.stage.wiring, self._replica(replica)
        parts = {shard: fill(machine_part(wiring, own, shard), leaves) for shard, leaves in enumerate(shards)}
        memory = [
            {channel: (parts[channel.src][1][k][0][channel], parts[channel.dst][1][k][1][channel]) for channel in slot}
            for k, slot in enumerate(own[1])
        ]
        state, older, shared = merge_parts(wiring.placement, parts)
        return state, memory, older, shared

    def _advance(self, start: int, stop: int) -> np.ndarray:
        orders = self._orders(start, stop)
        carry, losses, sizes = self._loop(self._carry, self._x, self._y, orders)
        if self._shared is None:
            self._state, self._memory, self._ring = carry
        else:
            self._state, self._memory, self._shared = carry
        planned = self._step * (stop - start) + self._average * int(orders.due.sum())
        self.traffic += _measured(planned, *self._each(sizes))
        return np.asarray(losses)[: stop - start]

    def _orders(self, start: int, stop: int) -> Orders:
        setup, stage, n = self.setup, self.stage, stop - start
        index = np.zeros((CHUNK, setup.batch * setup.replicas.count), np.int32)
        index[:n] = setup.indices(start, stop)
        delays, due = np.zeros((CHUNK, len(stage.blocks)), np.int32), np.zeros(CHUNK, bool)
        delays[:n] = setup.delays(stage, start, stop)
        due[:n] = [setup.due(stage, step) for step in range(start, stop)]
        return Orders(index, step_keys(setup.seed, start, start + CHUNK), delays, due, np.int32(start), np.int32(n))

    def _each(self, sizes: Sequence[Any]) -> tuple[list[Channel], list[Any]]:
        """The metered channels of training and the sizes on each. sizes: of replicas [..., R, 2]."""
        if self._shared is None:
            return list(self._metered), list(sizes)
        count, own = self.setup.replicas.count, len(self._metered)
        rings = ring_channels(self.stage.wiring, self.setup.deal(self.stage), self._shared.ring)
        channels = [channel.of(r) for channel in self._metered for r in range(count)] + [c for ring in rings.values() for c in ring]
        assert len(sizes) == own + len(rings)
        return channels, [size[..., r, :] for size in sizes for r in range(count)]


def _measured(planned: Traffic, metered: Sequence[Channel], sizes: Sequence[Any]) -> Traffic:
    """What was planned, with the bytes that were sent on the metered channels. sizes: int32[..., 2], one for each channel."""
    if not metered:
        return planned
    sums = [np.asarray(size).reshape(-1, 2).sum(0, dtype=np.int64).tolist() for size in sizes]
    return planned.measured({channel: (size, count) for channel, (size, count) in zip(metered, sums, strict=True)})


def _steps(
    stage: Stage,
    carry: Any,
    x: Any,
    y: Any,
    orders: Orders,
    *,
    intake: Intake = PLAIN,
    metered: tuple[Channel, ...] = (),
    replicas: Replicas = ALONE,
) -> Any:
    """The steps that are ordered: (carry, losses, bytes and frames of each step on each metered channel).

    carry: state, channel memories, older weights; or those of all replicas.
    """

    def step(now: Any, batch: Batch, k: Any) -> Any:
        if replicas.count == 1:
            return chain_step(stage, metered, now, batch, orders.start + k, orders.delays[k])
        return replicas_step(stage, replicas, metered, now, batch, orders.due[k])

    def one(k: Any, now: Any) -> Any:
        carry, losses, sizes = now
        i, key = orders.index[k], orders.keys[k]
        carry, loss, sent = step(carry, Batch(seen_in_training(intake, x[i], key, i), y[i], i, key), k)
        sizes = tuple(all_.at[k].set(own) for own, all_ in zip(sent, sizes, strict=True))
        return carry, losses.at[k].set(loss.astype(losses.dtype)), sizes

    unknown = tuple(jnp.zeros((CHUNK, 2), jnp.int32) for _ in metered)
    if replicas.count > 1:
        rings = ring_channels(stage.wiring, Deal(stage.average, replicas.count), carry.shared.ring)
        unknown = tuple(jnp.zeros((CHUNK, replicas.count, 2), jnp.int32) for _ in (*metered, *rings))
    return jax.lax.fori_loop(0, orders.steps, one, (carry, jnp.zeros(CHUNK, jnp.float32), unknown))


def _scored(
    stage: Stage,
    state: Row,
    memory: Any,
    x: Any,
    y: Any,
    index: Any,
    *,
    intake: Intake = PLAIN,
    metered: tuple[Channel, ...] = (),
) -> Any:
    """How many of one evaluation batch are right, and bytes and frames on each metered channel."""
    fabric = Fused(stage.wiring, memory, Context(index, training=False), metered)
    chain = Chain(stage.evaluating, fabric)
    right = chain.at_top(count_correct, stage.rule.predict(chain, state, seen(intake, x)), y)
    return right, tuple(fabric.sizes[channel] for channel in metered)
