"""A run step by step, with real frames: in one process (`EagerSession`), and what the actors have in common with that."""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from locallearn.chain import ABSENT, Chain, Row
from locallearn.codec import Context, Spec
from locallearn.rule import Batch, descended, replica_keys, step_keys
from locallearn.runtime.averaging import Shared, agreed_state
from locallearn.runtime.diagnostics import Diagnosis, Diagnostics
from locallearn.runtime.endpoint import Endpoint
from locallearn.runtime.frame import CONTROL, EVALUATE, TRAIN, Address, address_of, frame, machines, unframe
from locallearn.runtime.intake import evaluation_program, training_program
from locallearn.runtime.local import Eager, Framed
from locallearn.runtime.parts import carried, carried_ring, fill, machine_part, merge_parts, settle_all
from locallearn.runtime.segments import Segments
from locallearn.runtime.session import Session, Together, batch_gradients, count_correct, padded, training_step
from locallearn.runtime.setup import Setup, Stage, begin_shared
from locallearn.runtime.stale import begun_with, kept, renewed
from locallearn.runtime.wiring import Wiring
from locallearn.traffic import HEADER_BYTES, Channel, Traffic

DRAW = 64
"""Steps whose examples are drawn at once where steps run one by one."""


class FramedSession(Session):
    """A session that trains step by step with real frames; what differs is who carries them.

    shards: those that this process holds, of one replica. present: the replicas that are there, of which the first evaluates and decides.
    What they average goes between several sessions (`replicated`).
    """

    def __init__(self, setup: Setup, shards: Sequence[int], replica: int = 0, present: Sequence[int] = ()):
        self.setup, self.shards, self.replica, self.traffic = setup, tuple(shards), replica, Traffic()
        self.present = tuple(present) or setup.everyone
        self.shared: Shared | None = None
        self._state: Any = None
        self._ring = Row(())
        self._ends: list[dict[int, Endpoint]] = []
        self._segments: dict[int, Segments] = {}
        self._entered: Stage | None = None
        self.asides, self._decisions = 0, 0
        self._drawn = functools.lru_cache(maxsize=2)(self._draw)

    @abc.abstractmethod
    def fabric(self, wiring: Wiring, slot: int, specs: Mapping[Channel, Spec], context: Context, stream: tuple[int, int]) -> Framed:
        """The fabric of one choreography. slot: of the microbatch. stream: (which numbering of frames, step)."""

    @abc.abstractmethod
    def post(self, address: Address, data: bytes) -> None:
        """Send a frame to another replica."""

    @abc.abstractmethod
    def take(self, address: Address, name: str) -> bytes | bytearray:
        """Wait for exactly this frame of another replica. name: of the message."""

    def enter(self, stage: Stage) -> None:
        """Programs compile when they are first needed."""
        before = self.stage if self._state is not None else None
        self.stage = stage
        self._specs = self.setup.plan_step(stage).channels
        self._state = self.setup.begin(stage, self._state, self._mine)
        self._ring = kept(self._state, self.setup.staleness(stage))
        if stage is not self._entered:  # a session that is rewound within a stage keeps its programs
            self._segments, self._entered = {shard: Segments() for shard in self.shards}, stage
        ends = [
            {shard: Endpoint.of(segments, shard, memory) for shard, segments in self._segments.items()}
            for memory in self.setup.memory(stage, self.replica)
        ]
        wired = before and before.wiring
        for old, new in zip(self._ends, ends, strict=True) if before else ():
            for shard, end in new.items():
                end.senders = carried(old[shard].senders, end.senders, wired, stage.wiring)
                end.receivers = carried(old[shard].receivers, end.receivers, wired, stage.wiring)
        self._ends = ends
        if self.setup.replicas.count > 1:
            self.shared = self._begin_shared(before)

    def _begin_shared(self, before: Stage | None) -> Shared:
        """What this replica shares with the others, as far as it is here."""
        shared = begin_shared(self.setup, self.stage, self._state, self.replica, self.present)
        if before is None or self.shared is None:
            return shared
        return shared._replace(ring=carried_ring(self.shared.ring, shared.ring, before.average == self.stage.average))

    @property
    def state(self) -> Row:
        """The states of the blocks that are here."""
        return self._state

    @state.setter
    def state(self, state: Row) -> None:
        self._state = state

    @property
    def segments(self) -> Mapping[int, Segments]:
        """The programs of each shard that is here."""
        return self._segments

    @property
    def compiled(self) -> int:
        """Programs compiled in this stage so far."""
        return sum(segments.compiled for segments in self._segments.values())

    def advance(self, start: int, stop: int) -> float | None:
        """Step by step."""
        losses = [self.one(step) for step in range(start, stop)]
        return float(np.mean(np.asarray(losses), dtype=np.float64)) if self._top else None

    def correct(self, part: Any, lossless: bool) -> int | None:
        """Frame by frame, in the first replica."""
        if self.replica != self.present[0]:
            return None
        stage, state = self.stage, self._evaluated
        wiring = (stage.lossless if lossless else stage).wiring
        specs = self.setup.plan_evaluation(stage).channels
        total = 0
        for x, y, index in padded(part, self.setup.evaluation_batch):
            fabric = self._aside(wiring, specs, Context(index, training=False), EVALUATE)
            chain = Chain(stage.evaluating, fabric)
            scores = stage.rule.predict(chain, state, self._seen(x) if self._bottom else ABSENT)
            count = chain.at_top(count_correct, scores, y if self._top else ABSENT)
            total += int(self._force(count)) if self._top else 0
            self.traffic += fabric.traffic
        return total if self._top else None

    def decide(self, choice: int) -> int:
        """The top's choice, from replica to replica and down in each, in frames of their own kind."""
        stage = self.stage
        choice = self._passed_on(choice) if self._top else choice
        fabric = self._aside(stage.control, self.setup.plan_decision(stage).channels, Context(np.zeros(1, np.int32)), CONTROL)
        value = np.array([choice], np.uint8) if self._top else ABSENT
        row = Chain(stage.blocks, fabric).broadcast("decision", value)
        self.traffic += fabric.traffic
        here = next(i for i, shard in enumerate(stage.wiring.placement) if shard == self.shards[-1])
        return int(np.asarray(self._force(row[here]))[0])

    def _passed_on(self, choice: int) -> int:
        """From the first replica's top to all others', one after the other."""
        self._decisions += 1
        place = self.present.index(self.replica)
        if place > 0:
            data = self.take(self._decided(self.stage.decision(self.present[place - 1], self.replica)), "decision")
            choice = int(unframe(data, [Spec((1,), np.uint8)])[0][0])
        if place + 1 < len(self.present):
            channel = self.stage.decision(self.replica, self.present[place + 1])
            data = frame(self._decided(channel), (np.array([choice], np.uint8),))
            self.traffic += Traffic.of(channel, len(data) - HEADER_BYTES)
            self.post(self._decided(channel), data)
        return choice

    def _decided(self, channel: Channel) -> Address:
        return Address(CONTROL, *machines(channel, self.stage.wiring.shards), 0, self._decisions, 0)

    def conclude(self) -> None:
        """Each replica goes on with what all agreed on."""
        self._state = self._evaluated

    def snapshot(self) -> list[list[np.ndarray]]:
        """As FusedSession's, leaf for leaf, of the shards that are here."""
        return [[np.array(leaf) for leaf in jax.tree.leaves(machine_part(self.stage.wiring, self._held, shard))] for shard in self.shards]

    def restore(self, shards: Sequence[Sequence[np.ndarray]]) -> None:
        """The inverse of `snapshot`."""
        wiring, parts = self.stage.wiring, {}
        for shard, leaves in zip(self.shards, shards, strict=True):
            parts[shard] = fill(machine_part(wiring, self._held, shard), leaves)
            for slot, (senders, receivers) in zip(self._ends, parts[shard][1], strict=True):
                slot[shard].senders.update(senders)
                slot[shard].receivers.update(receivers)
        self._state, self._ring, self.shared = merge_parts(wiring.placement, parts)

    def together(self, jobs: list[Callable[[], Any]]) -> list[Any]:
        """The microbatches' jobs, one after the other; each is computed to its end."""
        return [job() for job in jobs]

    @property
    def _bottom(self) -> bool:
        return self.shards[0] == 0

    @property
    def _top(self) -> bool:
        return self.shards[-1] == self.stage.wiring.shards - 1

    @property
    def _held(self) -> tuple[Any, ...]:
        return self._state, self._memories(), self._ring, self.shared

    @property
    def _evaluated(self) -> Row:
        """The state as evaluations see it: with the parameters that all replicas agreed on."""
        if self.shared is None:
            return self._state
        return agreed_state(self.stage.blocks, self._state, self.shared.agreement)

    def _mine(self, block: int) -> bool:
        return self.stage.wiring.placement[block] in self.shards

    def _force(self, value: Any) -> Any:
        return self._ends[0][self.shards[-1]].segments.force(value)

    def _memories(self) -> list[dict[Channel, tuple[Any, Any]]]:
        def ends(slot: dict[int, Endpoint], channel: Channel) -> tuple[Any, Any]:
            src, dst = slot.get(channel.src), slot.get(channel.dst)
            return src.senders[channel] if src else None, dst.receivers[channel] if dst else None

        return [{channel: ends(slot, channel) for channel in self._specs} for slot in self._ends]

    def _aside(self, wiring: Wiring, specs: Mapping[Channel, Spec], context: Context, stream: int) -> Framed:
        """The fabric of a choreography beside training; each has a number, the same in every process."""
        self.asides += 1
        return self.fabric(wiring, 0, specs, context, (stream, self.asides))

    def one(self, step: int) -> Any:
        """One training step; the loss, where the top block is."""
        batch, fabrics, chains, settled = self.begin(step)
        stale = begun_with(self._state, self._ring, step, self.setup.delays(self.stage, step, step + 1)[0])
        state, info = training_step(self.stage, chains, self._state, batch, settled, stale)
        loss = self._end(fabrics, state, info.loss)
        self._ring = renewed(self._ring, self._state, step)
        return loss

    def halves(self, step: int) -> Generator[Row, Row, Any]:
        """One training step whose gradients are averaged between its halves: yields this replica's, gets the mean, returns the loss."""
        batch, fabrics, chains, settled = self.begin(step)
        grads, memory, info = batch_gradients(self.stage, chains, self._state, batch, settled)
        mean = yield grads
        state = descended(self.stage.rule, chains[0], self._state, self._state, mean, memory, info)
        return self._end(fabrics, state, info.loss)

    def begin(self, step: int) -> tuple[Batch, list[Framed], list[Chain], Together]:
        """What a step needs: its batch, for each microbatch a fabric and a chain on it, and what runs the jobs of these."""
        batch, stage, placement = self.batch(step), self.stage, self.stage.wiring.placement
        fabrics = [self.fabric(stage.wiring, k, self._specs, c, (TRAIN, step)) for k, c in enumerate(self.contexts(batch))]

        def settled(jobs: list[Callable[[], Any]]) -> list[Any]:
            pairs = zip(self._ends, jobs, strict=True)
            return self.together([lambda ends=ends, job=job: settle_all(placement, ends, job()) for ends, job in pairs])

        return batch, fabrics, [Chain(stage.blocks, fabric) for fabric in fabrics], settled

    def _end(self, fabrics: list[Framed], state: Row, loss: Any) -> Any:
        self._state, loss = self.settle((state, loss))
        for fabric in fabrics:
            self.traffic += fabric.traffic
        return loss

    def settle(self, values: Any) -> Any:
        """Compute rows, and values of the top block."""
        return settle_all(self.stage.wiring.placement, self._ends[0], values)

    def batch(self, step: int) -> Batch:
        """The batch of a step, as far as it is here."""
        indices, keys = self._drawn(step // DRAW)
        index, train = indices[step % DRAW], self.setup.split.train
        key, own = keys[0][step % DRAW], keys[1][step % DRAW]
        x = self._seen(train.x[index], key, index) if self._bottom else ABSENT
        y = train.y[index] if self._top else ABSENT
        return Batch(x, y, index, own)

    def _seen(self, x: np.ndarray, *training: Any) -> Any:
        """Stored examples as the bottom block sees them. training: the step's key and the examples' places in the training set."""
        intake = self.setup.intake
        if training and intake.augment:
            return training_program(intake)(x, *training)
        return evaluation_program(intake)(x) if intake.converts else x

    def contexts(self, batch: Batch) -> list[Context]:
        """What the channels know of each microbatch."""
        return [Context(part) for part in np.split(batch.index, self.setup.microbatches)]

    def _draw(self, part: int) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
        """(this replica's examples of each step, the keys of the steps and of this replica's part of them)."""
        setup, start, stop = self.setup, part * DRAW, (part + 1) * DRAW
        index = setup.indices(start, stop)[:, self.replica * setup.batch :][:, : setup.batch]
        keys = step_keys(setup.seed, start, stop)
        return index, (keys, keys if setup.replicas.count == 1 else replica_keys(keys, self.replica))


class EagerSession(FramedSession):
    """Message by message, with real frames, in one process: what actors do, for debugging and as their oracle."""

    def __init__(self, setup: Setup, replica: int = 0, drawer: dict[Address, bytes] | None = None, present: Sequence[int] = ()):
        super().__init__(setup, range(setup.stages[0].wiring.shards), replica, present)
        self._diagnostics = functools.lru_cache(maxsize=1)(functools.partial(Diagnostics, setup))
        self._drawer = {} if drawer is None else drawer

    def fabric(self, wiring: Wiring, slot: int, specs: Mapping[Channel, Spec], context: Context, stream: tuple[int, int]) -> Framed:
        """Every shard is here."""
        return Eager(wiring, self._ends[slot], specs, context, (*stream, slot), self.replica)

    def post(self, address: Address, data: bytes) -> None:
        """Into the drawer that all replicas share."""
        self._drawer[address_of(data)] = data

    def take(self, address: Address, name: str) -> bytes:
        """Out of the drawer."""
        return self._drawer.pop(address)

    def diagnose(self, step: int) -> Diagnosis:
        """As FusedSession's: nothing of it is sent."""
        return self._diagnostics(self.stage)(self.setup, self._evaluated, step)
