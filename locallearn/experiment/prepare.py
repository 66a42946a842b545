"""From a configuration to a Setup: data loaded and split, blocks with their optimizers, wiring, and the phases as stages."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np

from locallearn.block import Block
from locallearn.codec import build
from locallearn.config.run import Config
from locallearn.data.dataset import Arrays, Dataset, Split, split
from locallearn.data.intake import Intake
from locallearn.errors import ConfigError, DataError, Problem, RuleError
from locallearn.replicas import AVERAGE
from locallearn.rule import Rule
from locallearn.runtime.influence import at_work
from locallearn.runtime.ring import MESSAGES
from locallearn.runtime.setup import Setup, Stage
from locallearn.runtime.stale import Timetable
from locallearn.runtime.wiring import Wiring, choose_codecs
from locallearn.train import Phase
from locallearn.words import size


def load_data(source: Any) -> Dataset:
    """The data set that a configuration names; one that is in memory already as it is."""
    return source.load() if hasattr(source, "load") else source


def cached_loader() -> Callable[[Any], Dataset]:
    """Reads data, and remembers the last."""
    return functools.lru_cache(maxsize=2)(load_data)


class Found(NamedTuple):
    """Data as a run uses it: of what shape, and its parts."""

    example_shape: tuple[int, ...]
    classes: int
    intake: Intake
    parts: Split


def find(config: Config, load: Callable[[Any], Dataset] = load_data, tested: bool = True) -> Found:
    """Read and split the data. The arguments are those of `prepare`."""
    dataset = load(config.data)
    parts = split(dataset, config.validation)
    test = parts.test if tested else parts.test.take(np.arange(0))
    return Found(dataset.example_shape, dataset.classes, dataset.intake, parts._replace(test=test))


def prepare(
    config: Config,
    load: Callable[[Any], Dataset] = load_data,
    tested: bool = True,
    known: dict[Any, Any] | None = None,
    apart: bool = False,
) -> Setup:
    """Everything that the run needs.

    load: how its data gets into memory, such as a function that remembers it for the next run. tested: without, there is no test set.
    known: what was found out about a run of the same structure, which is added to. apart: whether shards are actors, whose steps overlap as
    they come, where those of one process go by a virtual clock.
    """
    return arrange(config, find(config, load, tested), known, apart)


def arrange(config: Config, found: Found, known: dict[Any, Any] | None = None, apart: bool = False) -> Setup:
    """The same, with data that was found already."""
    examples = len(found.parts.train.y)
    together = config.train.batch * config.replicas.count
    blocks = config.model.blocks(found.example_shape, found.classes)
    count = len(config.placement.held(blocks, config.rule)[0])
    phases, lengths = config.train.parts(count), config.train.lengths(examples, count, config.replicas.count)
    stages = tuple(
        _stage(config, blocks, phase, (stop - length, stop))
        for phase, length, stop in zip(phases, lengths, accumulate(lengths), strict=True)
    )
    real = apart and stale(config)
    if real:
        stages = tuple(dataclasses.replace(stage, ahead=_ahead(config, stage)) for stage in stages)
    setup = Setup(
        stages=stages,
        split=found.parts,
        batch=config.train.batch,
        evaluate_every=config.train.evaluate_every or max(1, examples // together),
        seed=config.seed,
        microbatches=config.train.microbatches,
        stop_accuracy=config.stop.accuracy,
        stop_bytes=config.stop.bytes,
        intake=dataclasses.replace(found.intake, augment=config.augment),
        diagnostics=config.diagnostics,
        clock=None if real else _clock(config),
        count=config.count,
        replicas=config.replicas,
        arrivals=config.train.arrivals,
    )
    if known is not None:
        setup.sharing(known)
    _afford(setup)
    return setup


@dataclasses.dataclass(frozen=True)
class Making:
    """How each process of a run makes its Setup. Data is read where it is used: examples at the bottom, labels at the top.

    shapes: of x in the three parts of the data, with their dtype; what is not here has these shapes and takes no memory. given: the parts
    from whoever began the run, for machines that do not have the files.
    """

    config: Config
    tested: bool
    shards: int
    intake: Intake
    shapes: tuple[tuple[tuple[int, ...], str], ...]
    given: Callable[[], Split] | None = None

    @classmethod
    def of(cls, config: Config, setup: Setup, tested: bool = True) -> Making:
        """From the Setup of a process that has read everything."""
        shapes = tuple((part.x.shape, part.x.dtype.str) for part in setup.split)
        return cls(config, tested, setup.stages[0].wiring.shards, setup.intake, shapes)

    @property
    def replicas(self) -> int:
        """How many of the chain there are."""
        return self.config.replicas.count

    @property
    def overlaps(self) -> bool:
        """Whether its steps may overlap as they come, so that none is ever done again as it was."""
        return stale(self.config)

    def __call__(self) -> Setup:
        """With all data."""
        return prepare(self.config, tested=self.tested, apart=True)

    def outline(self) -> Setup:
        """Without data."""
        return arrange(self.config, self._blank(), apart=True)

    def _blank(self) -> Found:
        absent = Split(*(Arrays(_absent(shape, dtype), _absent(shape[:1], "<i4")) for shape, dtype in self.shapes))
        return Found(tuple(self.config.data.example_shape), self.config.data.classes, self.intake, absent)

    def of_shard(self, shard: int) -> Setup:
        """With the data that one shard uses. Top and bottom need the labels to split by, and so read the whole set."""
        bottom, top = shard == 0, shard == self.shards - 1
        if not bottom and not top:
            return self.outline()
        blank = self._blank()
        try:
            found = find(self.config, tested=self.tested)
        except DataError:
            if self.given is None:
                raise
            found = blank._replace(parts=self.given())
        pairs = zip(found.parts, blank.parts, strict=True)
        parts = Split(*(Arrays(part.x if bottom else none.x, part.y if top else none.y) for part, none in pairs))
        return arrange(self.config, found._replace(parts=parts), apart=True)


def _absent(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Zeros of a shape that share one place in memory."""
    return np.broadcast_to(np.zeros((), dtype), shape)


def _clock(config: Config) -> Callable[[Stage, int], Timetable] | None:
    """The virtual clock that a run trains under, if it does."""
    if config.schedule is None or config.schedule.network is None:
        return None
    from locallearn.network.timetable import timetable

    schedule, train = config.schedule, config.train
    return lambda stage, steps: timetable(schedule, stage, steps, train.batch, train.microbatches)


def stale(config: Config) -> bool:
    """Whether shards are to run ahead."""
    return config.schedule is not None and config.schedule.staleness > 0


def _ahead(config: Config, stage: Stage) -> int:
    """How far the shards of a stage run ahead; where nothing is waited for that comes down, steps follow each other as it is."""
    from locallearn.network.timetable import overlaps

    return config.schedule.staleness if config.schedule and overlaps(stage) else 0


def _afford(setup: Setup) -> None:
    """ConfigError for a budget of bytes that ends before the first evaluation: a run stops at evaluations only."""
    if setup.stop_bytes is None:
        return
    first = setup.evaluation_after(0)
    needed, each = setup.planned_bytes(first), setup.plan_step(setup.stages[0]).traffic.bytes
    if needed > setup.stop_bytes:
        steps = max(1, setup.stop_bytes // max(1, each) - 1)
        what = f"{size(setup.stop_bytes)} are spent before the first evaluation, at step {first} and {size(needed)}"
        raise ConfigError([Problem("stop.bytes", f"{what}; set `train.evaluate_every` to {steps} or less, or allow more")])


def stage_of(config: Config, phase: int = 0) -> Stage:
    """One phase without the data: for what was learnt, not for learning."""
    blocks = config.model.blocks(config.data.example_shape, config.data.classes)
    count = len(config.placement.held(blocks, config.rule)[0])
    return _stage(config, blocks, config.train.parts(count)[phase], (0, 1))


def _stage(config: Config, blocks: list[Block], phase: Phase, steps: tuple[int, int]) -> Stage:
    """One phase: every block with an optimizer for just these steps."""
    start, stop = steps
    if stop <= start:
        raise RuleError("a phase has no steps: the training set is smaller than one batch")
    rule: Rule = phase.rule or config.rule
    held, placement = config.placement.held(blocks, rule)
    optimizer, updates = config.train.optimizer, (stop - start) * rule.updates
    ready = tuple(
        dataclasses.replace(
            block,
            tx=optimizer.build(updates, block.index),
            learns=phase.learn == "all" or block.index in phase.learn,
            batch=config.train.batch,
        )
        for block in held
    )
    codecs = {key: build(spec) for key, spec in config.codecs.items() if key != "default"}
    default = build(config.codecs["default"])
    wiring = Wiring(placement, rule.messages, choose_codecs(rule.messages, codecs, default))
    average = choose_codecs(MESSAGES, codecs, default)[AVERAGE]
    return Stage(rule, at_work(rule, ready), wiring, start, stop, average)
