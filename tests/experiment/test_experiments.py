"""The experiments that come with the package can be read, and are what they say of themselves."""

import functools
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from locallearn.config.reading import read
from locallearn.config.sweep import load
from locallearn.experiment.planning import planned_traffic
from locallearn.experiment.prepare import prepare, stage_of
from locallearn.network.prices import Costing, on_shapes
from locallearn.rules.backprop import Backprop
from locallearn.rules.decoupled_greedy import DecoupledGreedy
from locallearn.rules.predictive_coding import PredictiveCoding
from locallearn.rules.solo import Solo
from locallearn.runtime.framed import EagerSession

FOLDER = Path(__file__).parents[2] / "experiments"
BASELINES = ["frontier-1d", "frontier-fashion", "frontier-cifar10", "depth", "floppy", "floppy-1d", "floppy-hierarchy"]
BASELINES += ["kilobyte", "kilobyte-1d", "kilobyte-hierarchy"]


@functools.cache
def configs(name):
    sweep = load(read(FOLDER / f"{name}.yaml"))
    return [run.config for run in (*sweep.runs, *(trial for study in sweep.studies for trial in study.trials))]


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.yaml")))
def test_every_experiment_is_without_a_mistake(name):
    assert configs(name)


@pytest.mark.parametrize("name", BASELINES)
def test_backprop_and_who_sends_nothing_are_in_every_picture(name):
    rules = [config.rule for config in configs(name)]
    assert Backprop in map(type, rules)
    assert len({rule.members for rule in rules if isinstance(rule, Solo)}) == 2


@pytest.mark.parametrize("name", sorted(p.stem for kind in ("floppy", "kilobyte", "relaxation") for p in FOLDER.glob(f"{kind}*.yaml")))
def test_no_shard_holds_much_more_than_the_others(name):
    """At most 1.6 times the mean of parameters, and of a step's operations where all shards learn, auxiliary classifiers included."""
    learner = Backprop if "backprop" in name else PredictiveCoding if "relaxation" in name else DecoupledGreedy
    config = next(config for config in configs(name) if isinstance(config.rule, learner))
    stage = stage_of(replace(config, train=replace(config.train, greedy=False)))
    costing = Costing(stage)
    on_shapes(stage, costing, config.train.batch)
    parameters, operations = np.zeros((2, stage.wiring.shards))
    for block, shard in zip(stage.blocks, stage.wiring.placement, strict=True):
        state = jax.eval_shape(lambda key, block=block: config.rule.init(block, key), jax.random.key(0))
        parameters[shard] += sum(leaf.size for leaf in jax.tree.leaves(state.params))
    for (_, block), each in costing.operations.items():
        operations[stage.wiring.placement[block]] += sum(each)
    for held in (parameters, operations):
        assert len(held) >= 4
        assert held.min() > 0
        assert held.max() <= 1.6 * held.mean()


@pytest.mark.parametrize("name", [pytest.param("kilobyte-1d", marks=pytest.mark.slow), "kilobyte-hierarchy"])
def test_a_kilobyte_is_enough_for_each_step_on_each_link(name):
    """The greedy codes, with fewer examples: until all have arrived, in each of their phases."""
    config = next(config for config in configs(name) if isinstance(config.rule, DecoupledGreedy))
    new = config.train.arrivals
    data, steps = replace(config.data, samples=40 * new + 10), 40
    config = replace(config, data=data, validation=10, train=replace(config.train, epochs=None, steps=steps))
    session = EagerSession(prepare(config))
    for stage in session.setup.stages:
        session.enter(stage)
        before = session.traffic.by_link()
        for step in range(stage.start, stage.stop):
            session.advance(step, step + 1)
            now = session.traffic.by_link()
            assert max(amount - before.get(link, 0) for link, amount in now.items()) <= 1000
            before = now
    whole = session.setup.plan_step(session.setup.stages[-1]).traffic
    once, sent = (codes_of(traffic) for traffic in (whole, session.traffic))
    assert {src: n / (steps * new) for src, n in sent.items()} == pytest.approx({src: n / 128 for src, n in once.items()}, rel=0.1)


def codes_of(traffic):
    """Bytes by sender."""
    return {channel.src: n for channel, n in traffic.payload.items() if channel.message == "activation"}


@pytest.mark.parametrize("name", [pytest.param("kilobyte-1d", marks=pytest.mark.slow), "kilobyte-hierarchy"])
def test_so_does_backpropagation_that_is_said_to_need_no_more(name):
    setups = [prepare(config) for config in configs(name) if "ternary" in str(config.codecs)]
    assert setups
    for setup in setups:
        assert max(setup.plan_step(setup.stages[-1]).traffic.by_link().values()) <= 1000


@pytest.mark.parametrize("name", [pytest.param("floppy-1d", marks=pytest.mark.slow), "floppy-hierarchy"])
def test_what_is_said_to_be_within_a_floppy_is(name):
    sweep = load(read(FOLDER / f"{name}.yaml"))
    found = [run.config for run in sweep.runs if "in a floppy" in run.varied.get("case", "")]
    assert found
    assert all(planned_traffic(prepare(config)).bytes <= 1_474_560 for config in found)
