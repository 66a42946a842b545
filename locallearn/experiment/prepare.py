"""From a configuration to a Setup: data loaded and split, blocks with their optimizers, wiring, and the phases as stages."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import numpy as np

from locallearn.block import Block
from locallearn.codec import build
from locallearn.config.run import Config
from locallearn.data.dataset import Dataset, split
from locallearn.errors import ConfigError, Problem, RuleError
from locallearn.rule import Rule
from locallearn.runtime.ring import AVERAGE, MESSAGES
from locallearn.runtime.setup import Setup, Split, Stage
from locallearn.runtime.stale import Timetable
from locallearn.runtime.wiring import Wiring, choose_codecs
from locallearn.train import Phase
from locallearn.words import size


def load_data(source: Any) -> Dataset:
    """The data set that a configuration names; one that is in memory already as it is."""
    return source.load() if hasattr(source, "load") else source


def prepare(config: Config, load: Callable[[Any], Dataset] = load_data, tested: bool = True) -> Setup:
    """Everything that the run needs.

    load: how its data gets into memory, such as a function that remembers it for the next run. tested: without, there is no test set.
    """
    dataset = load(config.data)
    parts = split(dataset, config.validation)
    examples = len(parts.train.y)
    together = config.train.batch * config.replicas.count
    blocks = config.model.blocks(dataset.example_shape, dataset.classes)
    count = len(config.placement.held(blocks, config.rule)[0])
    phases, lengths = config.train.parts(count), config.train.lengths(examples, count, config.replicas.count)
    stages = tuple(
        _stage(config, blocks, phase, (stop - length, stop))
        for phase, length, stop in zip(phases, lengths, accumulate(lengths), strict=True)
    )
    setup = Setup(
        stages=stages,
        split=Split(parts.train, parts.validation, parts.test if tested else parts.test.take(np.arange(0))),
        batch=config.train.batch,
        evaluate_every=config.train.evaluate_every or max(1, examples // together),
        seed=config.seed,
        microbatches=config.train.microbatches,
        stop_accuracy=config.stop.accuracy,
        stop_bytes=config.stop.bytes,
        intake=dataclasses.replace(dataset.intake, augment=config.augment),
        diagnostics=config.diagnostics,
        clock=_clock(config),
        count=config.count,
        replicas=config.replicas,
    )
    _afford(setup)
    return setup


def _clock(config: Config) -> Callable[[Stage, int], Timetable] | None:
    """The virtual clock that a run trains under, if it does."""
    if config.schedule is None:
        return None
    from locallearn.network.timetable import timetable

    schedule, train = config.schedule, config.train
    return lambda stage, steps: timetable(schedule, stage, steps, train.batch, train.microbatches)


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


def network(config: Config, phase: int = 0) -> Stage:
    """The blocks and the rule of one phase without the data: for what was learnt, not for learning."""
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
    return Stage(rule, ready, wiring, start, stop, average)
