"""Everything that a training needs, resolved: blocks with their optimizers, wiring, data, schedule. No fabric is chosen here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from locallearn.block import Block
from locallearn.chain import ABSENT, Chain, Row
from locallearn.codec import Codec, Spec, exact, spec_of
from locallearn.data.dataset import Split, batches, trickle
from locallearn.data.intake import PLAIN, Intake
from locallearn.replicas import ALONE, Replicas
from locallearn.rule import Message, Rule, block_keys, init_shapes, whole_step
from locallearn.runtime.averaging import Shared, averaged, begin_agreement, of, plan_average, ring_memory
from locallearn.runtime.intake import seen
from locallearn.runtime.local import Plan, Planned, planned
from locallearn.runtime.ring import Deal, Memory, packet_specs
from locallearn.runtime.stale import Timetable
from locallearn.runtime.wiring import Wiring, initial_memory, lossless
from locallearn.traffic import Channel, Level, Traffic

EVALUATION_BATCH = 500

CONTROL = {"decision": Message("control", "broadcast", "after each evaluation: go on, keep a snapshot, or stop")}


@dataclass(frozen=True, eq=False)
class Stage:
    """One phase of a run: steps [start, stop) by one rule, in which some of the blocks learn.

    average: the codec of what replicas average. ahead: how many further steps a shard begins while it waits for what comes down, where
    shards are apart (`overlap`); in one process the run's clock says what comes of that.
    """

    rule: Rule
    blocks: tuple[Block, ...]
    wiring: Wiring
    start: int
    stop: int
    average: Codec = field(default_factory=exact)
    ahead: int = 0

    @cached_property
    def evaluating(self) -> tuple[Block, ...]:
        """The blocks as evaluations use them."""
        return tuple(block.evaluating for block in self.blocks)

    @property
    def control(self) -> Wiring:
        """The wiring of the decisions of a run."""
        return Wiring(self.wiring.placement, CONTROL, {"decision": exact()})

    def decision(self, replica: int, to: int) -> Channel:
        """The channel on which a replica's top tells another one's what was decided."""
        top = self.wiring.placement[-1]
        return Channel("decision", CONTROL["decision"].kind, top, top, replica, to)

    @cached_property
    def lossless(self) -> Stage:
        """The same with every codec `exact`, if any but that is in use."""
        return replace(self, wiring=lossless(self.wiring.messages, self.wiring.placement)) if self.lossy else self

    @property
    def lossy(self) -> bool:
        """Whether any codec but `exact` is in use across shards."""
        return self.wiring.shards > 1 and any(codec != exact() for codec in self.wiring.codecs.values())


class Footprint(NamedTuple):
    """What one choreography sends: traffic, shapes by channel, the messages on its critical path, and those that may leave early.

    tells: whether the loss of a step is known, which hangs on more than the batch: not where the top rests.
    """

    traffic: Traffic
    channels: dict[Channel, Spec]
    hops: int
    early: frozenset[tuple[int, Channel]] = frozenset()
    tells: bool = True


@dataclass(frozen=True, eq=False)
class Setup:
    """A run before it starts.

    stop_accuracy, stop_bytes: end early at this validation accuracy, or before these bytes are passed. intake: how the examples of the
    split become what the bottom block sees. diagnostics: what is found out at evaluations besides (`locallearn.runtime.diagnostics`).
    known: what `once` found out, which setups of one structure may share: it depends on no seed and no rate.
    clock: the timetable of so many steps of a stage between two evaluations, for runs that have a virtual clock. count: what bytes are
    counted. batch: examples of one replica's step. arrivals: new ones at each step of a stage, until all are there.
    """

    stages: tuple[Stage, ...]
    split: Split
    batch: int
    evaluate_every: int
    seed: int
    microbatches: int = 1
    stop_accuracy: float | None = None
    stop_bytes: int | None = None
    intake: Intake = PLAIN
    diagnostics: tuple[str, ...] = ()
    clock: Callable[[Stage, int], Timetable] | None = None
    count: Level = "framed"
    replicas: Replicas = ALONE
    arrivals: int | None = None
    known: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)
    _timetables: dict[tuple[int, int], Timetable] = field(default_factory=dict, init=False, repr=False)

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.stages[-1].stop

    @property
    def everyone(self) -> tuple[int, ...]:
        """All replicas."""
        return tuple(range(self.replicas.count))

    def stage_at(self, step: int) -> Stage:
        """The stage that a run is in after `step` steps, the first that reaches it."""
        return next((stage for stage in self.stages if step <= stage.stop), self.stages[-1])

    @cached_property
    def evaluation_batch(self) -> int:
        """Examples in each message of an evaluation; the last one is padded."""
        return max(1, min(EVALUATION_BATCH, max(len(self.split.validation.y), len(self.split.test.y))))

    def begin(self, stage: Stage, before: Row | None = None, mine: Callable[[int], bool] = lambda block: True) -> Row:
        """The state at the start of a stage, of the blocks that are `mine`: fresh, or with the parameters that `before` ends with."""
        keys = block_keys(self.seed, len(stage.blocks))

        def start(i: int, block: Block) -> Any:
            if not mine(i):
                return ABSENT
            fresh = stage.rule.init(block, keys[i])
            return fresh if before is None else block.state(inherit(fresh.params, before[i].params), fresh.memory)

        return Row(start(i, block) for i, block in enumerate(stage.blocks))

    def indices(self, start: int, stop: int) -> np.ndarray:
        """The examples of steps start to stop - 1, int32 [stop - start, replicas * batch]: each replica has its part, in order."""
        n, together = len(self.split.train.y), self.batch * self.replicas.count
        if self.arrivals is None:
            return batches(self.seed, n, together, start, stop)
        parts = [np.empty((0, together), np.int32)]
        for stage, end in zip(self.stages, [*(s.stop for s in self.stages[:-1]), stop], strict=True):
            first, last = max(start, stage.start), min(stop, end)
            full = min(max(first, stage.start - (-n // self.arrivals)), last)  # from here on all have arrived
            if first < last:
                parts.append(trickle(self.seed, n, together, self.arrivals, first - stage.start, full - stage.start))
                parts.append(batches(self.seed, n, together, full, last))
        return np.concatenate(parts)

    def averages(self, stage: Stage, step: int) -> int:
        """How many averages there are in a stage up to a step of it."""
        length = stage.stop - stage.start
        return 0 if self.replicas.count == 1 else self.replicas.averages(step - stage.start, length)

    def due(self, stage: Stage, step: int) -> bool:
        """Whether an average follows this step, or belongs to it."""
        return self.replicas.count > 1 and self.replicas.due(step + 1 - stage.start, stage.stop - stage.start)

    def plan_step(self, stage: Stage) -> Footprint:
        """What a training step sends: of all its microbatches and replicas together, but for the critical path and channels, which are
        those of one."""

        def make() -> Footprint:
            part = self._plan(stage, stage.blocks, partial(whole_step, stage.rule), self.batch // self.microbatches)
            traffic = part.traffic * self.microbatches
            return part._replace(traffic=traffic.copied(self.replicas.count) if self.replicas.count > 1 else traffic)

        return self.once("step", stage, make)

    def plan_average(self, stage: Stage) -> Footprint:
        """What an average of the replicas sends."""

        def make() -> Footprint:
            state = init_shapes(stage.rule, stage.blocks)
            plan = plan_average(self.deal(stage), stage.blocks, stage.wiring, self.replicas, state)
            return Footprint(plan.traffic.at(self.count), {}, plan.hops)

        return self.once("average", stage, make) if self.replicas.count > 1 else Footprint(Traffic().at(self.count), {}, 0)

    def plan_evaluation(self, stage: Stage) -> Footprint:
        """What the evaluation of one batch sends."""
        predict = lambda chain, state, batch: stage.rule.predict(chain, state, batch.x)  # noqa: E731
        plan = partial(self._plan, stage, stage.evaluating, predict, self.evaluation_batch, training=False)
        return self.once("evaluation", stage, plan)

    def plan_decision(self, stage: Stage) -> Footprint:
        """What the decision after an evaluation sends: to each replica's top from the one before it, and down in each."""

        def make() -> Footprint:
            plan = Plan(stage.control)
            Chain(stage.blocks, plan).broadcast("decision", Planned(Spec((1,), jnp.uint8), len(stage.blocks) - 1))
            traffic = plan.traffic.copied(self.replicas.count)
            for replica in range(self.replicas.count - 1):
                traffic.count(stage.decision(replica, replica + 1), 1)
            return Footprint(traffic.at(self.count), plan.channels, plan.hops + self.replicas.count - 1)

        return self.once("decision", stage, make)

    def evaluation_after(self, step: int) -> int:
        """The next evaluation: they are at the multiples of `evaluate_every` and at the end of each stage."""
        every = self.evaluate_every
        return min([(step // every + 1) * every, *(stage.stop for stage in self.stages if stage.stop > step)])

    def _intervals(self, step: int) -> Iterator[tuple[Stage, int, int]]:
        """(stage, first step, the step after the last) from evaluation to evaluation, to the one after `step - 1`."""
        first = 0
        while first < step:
            stop = self.evaluation_after(first)
            yield next(stage for stage in self.stages if first < stage.stop), first, stop
            first = stop

    def _timetable(self, stage: Stage, steps: int) -> Timetable:
        assert self.clock is not None
        key = stage.start, steps
        if key not in self._timetables:
            self._timetables[key] = self.clock(stage, steps)
        return self._timetables[key]

    def simulated_seconds(self, step: int) -> float | None:
        """On the virtual clock, when the evaluation after `step` steps is over; None without one. Its own messages take no time."""
        if self.clock is None:
            return None
        return sum(self._timetable(stage, stop - first).seconds for stage, first, stop in self._intervals(step))

    def staleness(self, stage: Stage) -> int:
        """How many updates old the weights are at most that a step of the stage begins with."""
        if self.clock is None:
            return 0
        return max(self._timetable(each, stop - first).depth for each, first, stop in self._intervals(stage.stop) if each is stage)

    def delays(self, stage: Stage, start: int, stop: int) -> np.ndarray:
        """How many updates old the weights are that steps [start, stop) of a stage begin with: int32[steps, blocks]."""
        if self.clock is None:
            return np.zeros((stop - start, len(stage.blocks)), np.int32)
        found = [
            self._timetable(each, last - first).delays[max(start - first, 0) : stop - first]
            for each, first, last in self._intervals(stop)
            if last > start
        ]
        return np.concatenate(found)[:, list(stage.wiring.placement)]

    def evaluations(self, stage: Stage, stop: int) -> int:
        """How many there are in a stage that ends at `stop`: after every `evaluate_every` steps of the run, and at the end."""
        every = self.evaluate_every
        return stop // every - stage.start // every + (stop % every > 0)

    def planned_bytes(self, step: int) -> int:
        """Bytes of training up to an evaluation: an upper bound where codecs have variable sizes, exact where they have not."""
        total = 0
        for stage in self.stages:
            stop = min(step, stage.stop)
            if stop > stage.start:
                total += (stop - stage.start) * self.plan_step(stage).traffic.bytes
                total += self.evaluations(stage, stop) * self.plan_decision(stage).traffic.bytes
                total += self.averages(stage, stop) * self.plan_average(stage).traffic.bytes
        return total

    def memory(self, stage: Stage, replica: int = 0) -> list[dict[Channel, tuple[Any, Any]]]:
        """(sender, receiver) of each channel of a replica before the stage, for each microbatch."""
        channels = self.plan_step(stage).channels
        return [initial_memory(stage.wiring, channels, self.seed + k, replica) for k in range(self.microbatches)]

    def deal(self, stage: Stage, present: int | None = None) -> Deal:
        """How what replicas average is dealt out to them. present: how many are there, if not all are."""
        return Deal(stage.average, present or self.replicas.count)

    def ring_packets(self, stage: Stage, present: int) -> dict[int, tuple[Spec, ...]]:
        """Shapes of what goes round the rings of so many replicas, by block, of those that take part."""
        state = init_shapes(stage.rule, stage.blocks)
        return {i: packet_specs(self.deal(stage, present), tree) for i, tree in averaged(stage.blocks, state).items()}

    def ring_memory(self, stage: Stage, present: int | None = None) -> dict[int, Memory]:
        """What the ends of the replicas' rings remember before the stage, by block, stacked over the replicas; one alone has no ring."""
        if present == 1:
            return {}
        return ring_memory(self.deal(stage, present), stage.blocks, init_shapes(stage.rule, stage.blocks), self.seed)

    def sharing(self, known: dict[Any, Any]) -> Setup:
        """Itself, with what is known of other setups of its structure; what it finds out is added to that."""
        object.__setattr__(self, "known", known)
        return self

    def once(self, what: str, stage: Stage, make: Callable[[], Any]) -> Any:
        """What a stage, with its codecs, is known to have; made when it is first asked for."""
        key = what, stage.start, tuple(stage.wiring.codecs.items())
        if key not in self.known:
            self.known[key] = make()
        return self.known[key]

    def _plan(self, stage: Stage, blocks: Sequence[Block], choreography: Any, size: int, training: bool = True) -> Footprint:
        plan = Plan(stage.wiring, training)
        stored = spec_of(self.split.train.x)
        x = jax.eval_shape(partial(seen, self.intake), Spec((size, *stored.shape[1:]), stored.dtype))
        result = choreography(Chain(blocks, plan), *planned(stage.rule, stage.blocks, x))
        top, tells = len(stage.blocks) - 1, True
        if training:
            state, info = result
            for i, value in enumerate(state):
                plan.require("the new state", value, i)
            plan.require("the loss", info.loss, top)
            tells = not info.loss._early
        else:
            plan.require("the scores", result, top)
        return Footprint(plan.traffic.at(self.count), plan.channels, plan.hops, frozenset(plan.early), tells)


def begin_shared(setup: Setup, stage: Stage, state: Row, replica: int = 0, present: Sequence[int] = ()) -> Shared:
    """What a replica shares at the start of a stage, of the blocks of its state that are here. present: who is there, if not all are."""
    present = present or setup.everyone
    pairs = zip(stage.blocks, state, strict=True)
    agreement = Row(s if s is ABSENT else begin_agreement(b, s, replicas=setup.replicas) for b, s in pairs)
    place, memories = present.index(replica), setup.ring_memory(stage, len(present))
    return Shared(agreement, {i: of(memory, place) for i, memory in memories.items() if state[i] is not ABSENT})


def rehearse(rule: Rule, blocks: Sequence[Block]) -> None:
    """One training step of two examples on shapes alone, in one shard. RuleError where the rule cannot train such blocks."""
    plan = Plan(lossless(rule.messages, (0,) * len(blocks)))
    whole_step(rule, Chain(blocks, plan), *planned(rule, blocks, blocks[0].examples(2)))


def inherit(new: Any, old: Any) -> Any:
    """`new`, with every array of `old` that has the same name and shape; another rule's heads stay fresh."""

    def name(path: Any) -> str:
        return jax.tree_util.keystr(path).removeprefix(".block")

    known = {name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(old)}

    def pick(path: Any, leaf: Any) -> Any:
        found = known.get(name(path))
        return found if found is not None and np.shape(found) == np.shape(leaf) else leaf

    return jax.tree_util.tree_map_with_path(pick, new)
