"""Sessions: a run in progress on one fabric. `training.train` drives any of them in the same way."""

from __future__ import annotations

import abc
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from locallearn.block import Block
from locallearn.chain import ABSENT, Chain, Row
from locallearn.codec import Context, Spec
from locallearn.data.dataset import batches
from locallearn.rule import Batch, Info, descend, mean, split_batch, step_keys
from locallearn.runtime.endpoint import Endpoint
from locallearn.runtime.frame import CONTROL, EVALUATE, TRAIN
from locallearn.runtime.local import Eager, Framed, Fused
from locallearn.runtime.parts import fill, merge_rows, settle_all, shard_part
from locallearn.runtime.segments import Segments
from locallearn.runtime.setup import Setup, Stage
from locallearn.runtime.wiring import Wiring
from locallearn.traffic import Channel, Traffic

DRAW = 64
"""Steps whose examples are drawn at once where steps run one by one."""

CHUNK = 512
"""Steps whose indices are handed to the compiled loop at once; the loop runs as many of them as it is told."""


class Session(abc.ABC):
    """A run in progress. Sessions are abstract or final.

    traffic: what was sent so far. compile_seconds: time spent on compiling before the first step of each stage.
    """

    setup: Setup
    stage: Stage
    traffic: Traffic
    compile_seconds: float = 0.0

    @abc.abstractmethod
    def enter(self, stage: Stage) -> None:
        """Begin a stage, with the parameters that the one before it left; compile what it needs."""

    @abc.abstractmethod
    def advance(self, start: int, stop: int) -> float | None:
        """Train steps [start, stop) of the stage; the mean loss, where the top block is."""

    @abc.abstractmethod
    def correct(self, part: Any, lossless: bool) -> int | None:
        """How many examples of a part of the data are classified right, where the top block is."""

    @abc.abstractmethod
    def decide(self, choice: int) -> int:
        """The top's choice, known to every shard."""

    @abc.abstractmethod
    def snapshot(self) -> list[list[np.ndarray]]:
        """All arrays of the run, by shard: copies on the host."""

    @abc.abstractmethod
    def restore(self, shards: Sequence[Sequence[np.ndarray]]) -> None:
        """Take up the arrays of a snapshot, within the stage that it was taken in."""


def training_step(
    stage: Stage, chains: Sequence[Chain], state: Row, batch: Batch, together: Callable[[list[Any]], list[Any]]
) -> tuple[Row, Info]:
    """One step: the rule's own on one chain, or the mean of the gradients of equal microbatches, each on a chain of its own.

    together: runs the microbatches' jobs and returns what they give, in order.
    """
    if len(chains) == 1:
        return stage.rule.step(chains[0], state, batch)
    parts = split_batch(batch, len(chains))
    grads, memory, info = zip(
        *together([functools.partial(stage.rule.gradients, c, state, p) for c, p in zip(chains, parts, strict=True)]),
        strict=True,
    )
    loss = chains[0].at_top(mean, *(part.loss for part in info))
    return chains[0].map(descend, state, chains[0].map(mean, *grads), memory[-1]), Info(loss)


def padded(part: Any, size: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(x, y, index) in batches of one size; what pads the last one has label -1."""
    for start in range(0, len(part.y), size):
        index = np.arange(start, start + size, dtype=np.int32)
        where = np.minimum(index, len(part.y) - 1)
        yield part.x[where], np.where(index < len(part.y), part.y[where], -1).astype(np.int32), index


def count_correct(block: Block, scores: jax.Array, y: jax.Array) -> jax.Array:
    """How many examples have their label's score highest. scores: [batch, classes]; a label of -1 is padding."""
    return jnp.sum(jnp.argmax(scores, -1) == y)


class Programs(NamedTuple):
    """What one stage compiles to. Seeds are arguments, so every seed of a configuration can use the same programs."""

    loop: Callable[..., Any]
    score: Mapping[bool, Callable[..., Any]]


class FusedSession(Session):
    """One compiled program for training, one for evaluation; data and state stay on the device.

    programs: by number of the stage, those of a session of the same configuration with another seed; what is missing is added.
    """

    def __init__(self, setup: Setup, programs: dict[int, Programs] | None = None):
        self.setup, self.traffic = setup, Traffic()
        self.programs = {} if programs is None else programs
        self._state: Any = None
        self._x, self._y = jnp.asarray(setup.split.train.x), jnp.asarray(setup.split.train.y)

    def enter(self, stage: Stage) -> None:
        """Compile all that the stage needs; nothing compiles after that."""
        begun = time.perf_counter()
        setup, number = self.setup, self.setup.stages.index(stage)
        self.stage = stage
        self._step = setup.plan_step(stage).traffic
        exactly = replace(stage, wiring=stage.lossless)
        self._evaluation = {False: setup.plan_evaluation(stage).traffic, True: setup.plan_evaluation(exactly).traffic}
        self._decision = setup.plan_decision(stage).traffic
        # Not compiled as one: JAX finds its few kernels again for every rule and seed, and the bits are those of the other fabrics.
        self._state = setup.begin(stage, self._state)
        self._memory = setup.memory(stage)
        if number not in self.programs:
            self.programs[number] = self._compiled()
        self._loop, self._score = self.programs[number].loop, self.programs[number].score
        self.compile_seconds += time.perf_counter() - begun

    def _compiled(self) -> Programs:
        stage, setup = self.stage, self.setup
        index, keys = np.zeros((CHUNK, setup.batch), np.int32), np.zeros((CHUNK, 2), np.uint32)
        args = (self._state, self._memory), self._x, self._y, index, keys, np.int32(0)
        loop = jax.jit(functools.partial(_steps, stage), donate_argnums=0).lower(*args).compile()
        deployed = self._scorer(stage, self._memory[0])
        lossless = self._scorer(replace(stage, wiring=stage.lossless), {}) if stage.lossy else deployed
        return Programs(loop, {False: deployed, True: lossless})

    def _scorer(self, stage: Stage, memory: Any) -> Callable[..., Any]:
        size = self.setup.evaluation_batch
        x, y = Spec((size, *self._x.shape[1:]), self._x.dtype), Spec((size,), jnp.int32)
        program = jax.jit(functools.partial(_scored, stage)).lower(self._state, memory, x, y, y).compile()
        return lambda state, known, *batch: program(state, known if memory else {}, *batch)

    def advance(self, start: int, stop: int) -> float:
        """At most CHUNK steps for each call of the program."""
        losses = []
        for first in range(start, stop, CHUNK):
            losses.append(self._advance(first, min(stop, first + CHUNK)))
        return float(np.mean(np.concatenate(losses), dtype=np.float64))

    def correct(self, part: Any, lossless: bool) -> int:
        """Through the deployed codecs, or lossless."""
        total = 0
        for x, y, index in padded(part, self.setup.evaluation_batch):
            total += self._score[lossless](self._state, self._memory[0], x, y, index)
            self.traffic += self._evaluation[lossless]
        return int(total)

    def decide(self, choice: int) -> int:
        """Nobody else to tell, but what telling them costs is counted."""
        self.traffic += self._decision
        return choice

    def snapshot(self) -> list[list[np.ndarray]]:
        """States and channel memories, each with its shard."""
        return [
            [np.array(leaf) for leaf in jax.tree.leaves(shard_part(self.stage.wiring, self._state, self._memory, shard))]
            for shard in range(self.stage.wiring.shards)
        ]

    def restore(self, shards: Sequence[Sequence[np.ndarray]]) -> None:
        """The inverse of `snapshot`."""
        states, memories = {}, {}
        for shard, leaves in enumerate(shards):
            like = shard_part(self.stage.wiring, self._state, self._memory, shard)
            states[shard], memories[shard] = fill(like, leaves)
        self._state = merge_rows(self.stage.wiring.placement, states)
        self._memory = [
            {channel: (memories[channel.src][k][0][channel], memories[channel.dst][k][1][channel]) for channel in slot}
            for k, slot in enumerate(self._memory)
        ]

    def _advance(self, start: int, stop: int) -> np.ndarray:
        setup, n = self.setup, stop - start
        index = np.zeros((CHUNK, setup.batch), np.int32)
        index[:n] = batches(setup.seed, len(setup.split.train.y), setup.batch, start, stop)
        keys = step_keys(setup.seed, start, start + CHUNK)
        carry = self._state, self._memory
        (self._state, self._memory), losses = self._loop(carry, self._x, self._y, index, keys, np.int32(n))
        self.traffic += self._step * n
        return np.asarray(losses)[:n]


def _steps(stage: Stage, carry: Any, x: Any, y: Any, index: Any, keys: Any, n: Any) -> Any:
    """The first n of CHUNK steps: (state and channel memories, losses)."""

    def one(k: Any, both: Any) -> Any:
        (state, memory), losses = both
        i = index[k]
        fabrics = [Fused(stage.wiring, m, Context(p)) for m, p in zip(memory, jnp.split(i, len(memory)), strict=True)]
        chains = [Chain(stage.blocks, fabric) for fabric in fabrics]
        batch = Batch(x[i], y[i], i, keys[k])
        state, info = training_step(stage, chains, state, batch, lambda jobs: [job() for job in jobs])
        memory = [fabric.memory for fabric in fabrics]
        return (state, memory), losses.at[k].set(info.loss.astype(losses.dtype))

    return jax.lax.fori_loop(0, n, one, (carry, jnp.zeros(CHUNK, jnp.float32)))


def _scored(stage: Stage, state: Row, memory: Any, x: Any, y: Any, index: Any) -> Any:
    """How many of one evaluation batch are right."""
    chain = Chain(stage.blocks, Fused(stage.wiring, memory, Context(index, training=False)))
    return chain.at_top(count_correct, stage.rule.predict(chain, state, x), y)


class FramedSession(Session):
    """A session that trains step by step with real frames; what differs is who carries them.

    shards: those that this process holds.
    """

    def __init__(self, setup: Setup, shards: Sequence[int]):
        self.setup, self.shards, self.traffic = setup, tuple(shards), Traffic()
        self._state: Any = None
        self._segments: dict[int, Segments] = {}
        self._asides = 0
        self._drawn = functools.lru_cache(maxsize=2)(self._draw)

    @abc.abstractmethod
    def fabric(self, wiring: Wiring, slot: int, specs: Mapping[Channel, Spec], context: Context, stream: tuple[int, int]) -> Framed:
        """The fabric of one choreography. slot: of the microbatch. stream: (which numbering of frames, step)."""

    def enter(self, stage: Stage) -> None:
        """Programs compile when they are first needed."""
        self.stage = stage
        self._specs = self.setup.plan_step(stage).channels
        self._state = self.setup.begin(stage, self._state, self._mine)
        self._segments = {shard: Segments() for shard in self.shards}
        self._ends = [
            {shard: Endpoint.of(segments, shard, memory) for shard, segments in self._segments.items()}
            for memory in self.setup.memory(stage)
        ]

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
            chain = Chain(stage.blocks, fabric)
            scores = stage.rule.predict(chain, self._state, x if self._bottom else ABSENT)
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
            [np.array(leaf) for leaf in jax.tree.leaves(shard_part(self.stage.wiring, self._state, self._memories(), shard))]
            for shard in self.shards
        ]

    def restore(self, shards: Sequence[Sequence[np.ndarray]]) -> None:
        """The inverse of `snapshot`."""
        states = {}
        for shard, leaves in zip(self.shards, shards, strict=True):
            like = shard_part(self.stage.wiring, self._state, self._memories(), shard)
            states[shard], memories = fill(like, leaves)
            for slot, (senders, receivers) in zip(self._ends, memories, strict=True):
                slot[shard].senders.update(senders)
                slot[shard].receivers.update(receivers)
        self._state = merge_rows(self.stage.wiring.placement, states)

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
        self._asides += 1
        return self.fabric(wiring, 0, specs, context, (stream, self._asides))

    def one(self, step: int) -> Any:
        """One training step; the loss, where the top block is."""
        batch, stage, placement = self.batch(step), self.stage, self.stage.wiring.placement
        fabrics = [self.fabric(stage.wiring, k, self._specs, c, (TRAIN, step)) for k, c in enumerate(self.contexts(batch))]
        chains = [Chain(stage.blocks, fabric) for fabric in fabrics]

        def settled(jobs: list[Callable[[], Any]]) -> list[Any]:
            pairs = zip(self._ends, jobs, strict=True)
            return self.together([lambda ends=ends, job=job: settle_all(placement, ends, job()) for ends, job in pairs])

        state, info = training_step(stage, chains, self._state, batch, settled)
        self._state, loss = settle_all(placement, self._ends[0], (state, info.loss))
        for fabric in fabrics:
            self.traffic += fabric.traffic
        return loss

    def batch(self, step: int) -> Batch:
        """The batch of a step, as far as it is here."""
        indices, keys = self._drawn(step // DRAW)
        index, train = indices[step % DRAW], self.setup.split.train
        x = train.x[index] if self._bottom else ABSENT
        y = train.y[index] if self._top else ABSENT
        return Batch(x, y, index, keys[step % DRAW])

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

    def fabric(self, wiring: Wiring, slot: int, specs: Mapping[Channel, Spec], context: Context, stream: tuple[int, int]) -> Framed:
        """Every shard is here."""
        return Eager(wiring, self._ends[slot], specs, context, (*stream, slot))
