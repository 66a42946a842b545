"""A run step by step, with real frames: in one process (`EagerSession`), and what the actors have in common with that."""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from locallearn.chain import ABSENT, Chain, Row
from locallearn.codec import Context, Spec
from locallearn.data.dataset import batches
from locallearn.rule import Batch, step_keys
from locallearn.runtime.diagnostics import Diagnosis, Diagnostics
from locallearn.runtime.endpoint import Endpoint
from locallearn.runtime.frame import CONTROL, EVALUATE, TRAIN
from locallearn.runtime.intake import evaluation_program, training_program
from locallearn.runtime.local import Eager, Framed
from locallearn.runtime.parts import carried, fill, merge_rows, settle_all, shard_part
from locallearn.runtime.segments import Segments
from locallearn.runtime.session import Session, count_correct, padded, training_step
from locallearn.runtime.setup import Setup, Stage
from locallearn.runtime.stale import begun_with, kept, renewed
from locallearn.runtime.wiring import Wiring
from locallearn.traffic import Channel, Traffic

DRAW = 64
"""Steps whose examples are drawn at once where steps run one by one."""


class FramedSession(Session):
    """A session that trains step by step with real frames; what differs is who carries them.

    shards: those that this process holds.
    """

    def __init__(self, setup: Setup, shards: Sequence[int]):
        self.setup, self.shards, self.traffic = setup, tuple(shards), Traffic()
        self._state: Any = None
        self._ring = Row(())
        self._ends: list[dict[int, Endpoint]] = []
        self._segments: dict[int, Segments] = {}
        self._entered: Stage | None = None
        self.asides = 0
        self._drawn = functools.lru_cache(maxsize=2)(self._draw)

    @abc.abstractmethod
    def fabric(self, wiring: Wiring, slot: int, specs: Mapping[Channel, Spec], context: Context, stream: tuple[int, int]) -> Framed:
        """The fabric of one choreography. slot: of the microbatch. stream: (which numbering of frames, step)."""

    def enter(self, stage: Stage) -> None:
        """Programs compile when they are first needed."""
        before = self.stage.wiring if self._state is not None else None
        self.stage = stage
        self._specs = self.setup.plan_step(stage).channels
        self._state = self.setup.begin(stage, self._state, self._mine)
        self._ring = kept(self._state, self.setup.staleness(stage))
        if stage is not self._entered:  # a session that is rewound within a stage keeps its programs
            self._segments, self._entered = {shard: Segments() for shard in self.shards}, stage
        ends = [
            {shard: Endpoint.of(segments, shard, memory) for shard, segments in self._segments.items()}
            for memory in self.setup.memory(stage)
        ]
        for old, new in zip(self._ends, ends, strict=True) if before else ():
            for shard, end in new.items():
                end.senders = carried(old[shard].senders, end.senders, before, stage.wiring)
                end.receivers = carried(old[shard].receivers, end.receivers, before, stage.wiring)
        self._ends = ends

    @property
    def compiled(self) -> int:
        """Programs compiled in this stage so far."""
        return sum(segments.compiled for segments in self._segments.values())

    def advance(self, start: int, stop: int) -> float | None:
        """Step by step."""
        losses = [self.one(step) for step in range(start, stop)]
        return float(np.mean(np.asarray(losses), dtype=np.float64)) if self._top else None

    def correct(self, part: Any, lossless: bool) -> int | None:
        """Frame by frame."""
        stage = self.stage
        wiring = stage.lossless if lossless else stage.wiring
        specs = self.setup.plan_evaluation(stage).channels
        total = 0
        for x, y, index in padded(part, self.setup.evaluation_batch):
            fabric = self._aside(wiring, specs, Context(index, training=False), EVALUATE)
            chain = Chain(stage.evaluating, fabric)
            scores = stage.rule.predict(chain, self._state, self._seen(x) if self._bottom else ABSENT)
            count = chain.at_top(count_correct, scores, y if self._top else ABSENT)
            total += int(self._force(count)) if self._top else 0
            self.traffic += fabric.traffic
        return total if self._top else None

    def decide(self, choice: int) -> int:
        """The top's choice, broadcast in frames of their own kind."""
        stage = self.stage
        fabric = self._aside(stage.control, self.setup.plan_decision(stage).channels, Context(np.zeros(1, np.int32)), CONTROL)
        value = np.array([choice], np.uint8) if self._top else ABSENT
        row = Chain(stage.blocks, fabric).broadcast("decision", value)
        self.traffic += fabric.traffic
        here = next(i for i, shard in enumerate(stage.wiring.placement) if shard == self.shards[-1])
        return int(np.asarray(self._force(row[here]))[0])

    def snapshot(self) -> list[list[np.ndarray]]:
        """As FusedSession's, leaf for leaf, of the shards that are here."""
        return [
            [np.array(leaf) for leaf in jax.tree.leaves(shard_part(self.stage.wiring, self._state, self._memories(), self._ring, shard))]
            for shard in self.shards
        ]

    def restore(self, shards: Sequence[Sequence[np.ndarray]]) -> None:
        """The inverse of `snapshot`."""
        states, rings = {}, {}
        for shard, leaves in zip(self.shards, shards, strict=True):
            like = shard_part(self.stage.wiring, self._state, self._memories(), self._ring, shard)
            states[shard], memories, rings[shard] = fill(like, leaves)
            for slot, (senders, receivers) in zip(self._ends, memories, strict=True):
                slot[shard].senders.update(senders)
                slot[shard].receivers.update(receivers)
        self._state, self._ring = (merge_rows(self.stage.wiring.placement, rows) for rows in (states, rings))

    def together(self, jobs: list[Callable[[], Any]]) -> list[Any]:
        """The microbatches' jobs, one after the other; each is computed to its end."""
        return [job() for job in jobs]

    @property
    def _bottom(self) -> bool:
        return self.shards[0] == 0

    @property
    def _top(self) -> bool:
        return self.shards[-1] == self.stage.wiring.shards - 1

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
        batch, stage, placement = self.batch(step), self.stage, self.stage.wiring.placement
        fabrics = [self.fabric(stage.wiring, k, self._specs, c, (TRAIN, step)) for k, c in enumerate(self.contexts(batch))]
        chains = [Chain(stage.blocks, fabric) for fabric in fabrics]

        def settled(jobs: list[Callable[[], Any]]) -> list[Any]:
            pairs = zip(self._ends, jobs, strict=True)
            return self.together([lambda ends=ends, job=job: settle_all(placement, ends, job()) for ends, job in pairs])

        stale = begun_with(self._state, self._ring, step, self.setup.delays(stage, step, step + 1)[0])
        state, info = training_step(stage, chains, self._state, batch, settled, stale)
        self._state, loss = settle_all(placement, self._ends[0], (state, info.loss))
        self._ring = renewed(self._ring, self._state, step)
        for fabric in fabrics:
            self.traffic += fabric.traffic
        return loss

    def batch(self, step: int) -> Batch:
        """The batch of a step, as far as it is here."""
        indices, keys = self._drawn(step // DRAW)
        index, train = indices[step % DRAW], self.setup.split.train
        key = keys[step % DRAW]
        x = self._seen(train.x[index], key, index) if self._bottom else ABSENT
        y = train.y[index] if self._top else ABSENT
        return Batch(x, y, index, key)

    def _seen(self, x: np.ndarray, *training: Any) -> Any:
        """Stored examples as the bottom block sees them. training: the step's key and the examples' places in the training set."""
        intake = self.setup.intake
        if training and intake.augment:
            return training_program(intake)(x, *training)
        return evaluation_program(intake)(x) if intake.converts else x

    def contexts(self, batch: Batch) -> list[Context]:
        """What the channels know of each microbatch."""
        return [Context(part) for part in np.split(batch.index, self.setup.microbatches)]

    def _draw(self, part: int) -> tuple[np.ndarray, np.ndarray]:
        setup, start, stop = self.setup, part * DRAW, (part + 1) * DRAW
        index = batches(setup.seed, len(setup.split.train.y), setup.batch, start, stop)
        return index, np.asarray(step_keys(setup.seed, start, stop))


class EagerSession(FramedSession):
    """Message by message, with real frames, in one process: what actors do, for debugging and as their oracle."""

    def __init__(self, setup: Setup):
        super().__init__(setup, range(setup.stages[0].wiring.shards))
        self._diagnostics = functools.lru_cache(maxsize=1)(functools.partial(Diagnostics, setup))

    def fabric(self, wiring: Wiring, slot: int, specs: Mapping[Channel, Spec], context: Context, stream: tuple[int, int]) -> Framed:
        """Every shard is here."""
        return Eager(wiring, self._ends[slot], specs, context, (*stream, slot))

    def diagnose(self, step: int) -> Diagnosis:
        """As FusedSession's: nothing of it is sent."""
        return self._diagnostics(self.stage)(self.setup, self._state, step)
