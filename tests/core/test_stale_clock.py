"""Steps that overlap on a clock: against closed forms, and where nothing overlaps, against the clocks of synchronous steps."""

import re

import numpy as np
import pytest

from locallearn.cli import code_of
from locallearn.config.run import resolve
from locallearn.errors import ConfigError, LocallearnError
from locallearn.experiment.course import course_of
from locallearn.experiment.how import How
from locallearn.experiment.predict import predict
from locallearn.experiment.prepare import Making, prepare, stage_of
from locallearn.experiment.result import load
from locallearn.experiment.run import execute
from locallearn.network.clock import _replayed
from locallearn.network.graph import Event, step_graph
from locallearn.network.stale import staggered
from locallearn.networks import NETWORKS, Network
from locallearn.runtime.frame import MICROS
from locallearn.runtime.wiring import deal

SLOW = Network("slow", 1000.0, 1000.0, 0.5)
FREE = Network("free", 1e30, 1e30, 0.0)
THERE_AND_BACK = [
    Event(0, (), 1.0, reads=True),
    Event(0, (0,), 1000.0, 1),
    Event(1, (1,), 1.0, reads=True),
    Event(1, (2,), 1000.0, 0),
    Event(0, (3,), 0.0, reads=True),
]


class Flat:
    """Every function takes a second, every message a kilobyte."""

    def compute(self, name, block):
        return 1.0

    def message(self, name, src, dst):
        return 1000.0, 1.0


class Passes:
    """A forward pass of a block takes a second, a backward one two, and all else nothing."""

    def compute(self, name, block):
        return {"forward": 1.0, "backward": 2.0}.get(name.split(".")[-1], 0.0)

    def message(self, name, src, dst):
        return 0.0, 1.0


def config(rule="backprop", shards=4, staleness=2, **more):
    data, model = {"name": "fashion14"}, {"name": "mlp", "widths": [196, 20, 16, 12, 10], "shards": shards}
    schedule = {"network": "1mbit", "step": 0.01, "staleness": staleness}
    train = {"steps": 20, "batch": 50, "evaluate_every": 8}
    return {"rule": {"name": rule}, "model": model, "data": data, "train": train, "schedule": schedule, **more}


def graph(rule, prices, shards=4):
    found = stage_of(resolve(config(rule, staleness=0)))
    return step_graph(found.rule, found.blocks, deal(4, shards), prices)


@pytest.mark.parametrize("rule", ["backprop", "direct_feedback", "predictive_coding", "mono_forward", "forward_forward"])
@pytest.mark.parametrize("net", [SLOW, FREE, Network("far", 1e6, 1e6, 30.0)], ids=lambda net: net.name)
def test_without_staleness_steps_end_as_they_do_anyway(rule, net):
    events = graph(rule, Flat())
    found = staggered(events, net, 12, staleness=0, ahead=2)
    np.testing.assert_allclose(found.ends, _replayed(events, net, 12, 2), rtol=1e-9)
    assert not found.delays.any()


def test_two_shards_by_hand():
    """A step takes five seconds, four of which are the other shard's and the line's: one more step begins meanwhile, a second later."""
    found = staggered(THERE_AND_BACK, SLOW, 6, staleness=1)
    np.testing.assert_allclose(found.ends, [5, 6, 10, 11, 15, 16])
    np.testing.assert_array_equal(found.delays, [[0, 0], [1, 0], [1, 0], [1, 0], [1, 0], [1, 0]])


def test_far_ahead_the_narrowest_part_sets_the_pace():
    """A second for each step on the line, whatever the latency, once enough steps are under way."""
    for latency in (0.5, 3.0):
        found = staggered(THERE_AND_BACK, Network("", 1000.0, 1000.0, latency), 60, staleness=20)
        np.testing.assert_allclose(np.diff(found.ends)[-20:], 1.0)


@pytest.mark.parametrize("staleness", [1, 2, 3])
def test_a_pipeline_of_backpropagation(staleness):
    """PipeDream (Narayanan et al. 2019): with as many steps under way as shards, shard k begins with weights K-1-k updates old, and a step
    takes the time of one shard; never are they older than `staleness`, nor is a step faster than its share of a round trip."""
    found = staggered(graph("backprop", Passes()), FREE, 40, staleness)
    assert found.delays.max() == staleness
    pace = np.diff(found.ends)[-10:].mean()
    assert pace == pytest.approx(max(3.0, 4 * 3.0 / (staleness + 1)), rel=0.15)
    if staleness == 3:
        np.testing.assert_array_equal(found.delays[20:], [[3, 2, 1, 0]] * 20)


@pytest.mark.parametrize("rule", ["backprop", "direct_feedback", "predictive_coding"])
def test_weights_are_no_older_than_allowed_and_time_only_falls(rule):
    events = graph(rule, Flat())
    runs = [staggered(events, SLOW, 20, staleness) for staleness in (0, 1, 4)]
    assert [run.delays.max() for run in runs] == [0, 1, 4]
    assert runs[0].ends[-1] > runs[1].ends[-1] > runs[2].ends[-1]
    again = staggered(events, SLOW, 20, 4)
    np.testing.assert_array_equal(again.ends, runs[2].ends)
    np.testing.assert_array_equal(again.delays, runs[2].delays)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Finished runs of 20 steps, by staleness."""
    folder = tmp_path_factory.mktemp("runs")
    return {staleness: execute(resolve(config(staleness=staleness)), How(), folder / str(staleness)) for staleness in (0, 3)}


def test_a_run_tells_its_seconds(runs):
    """Without staleness they are those that `locallearn time` finds; with it, the same bytes take less time."""
    prompt, tardy = ([record["simulated_seconds"] for record in runs[s].curve] for s in (0, 3))
    assert prompt[-1] == pytest.approx(predict(course_of(runs[0].directory, step_seconds=0.01), NETWORKS["1mbit"]).seconds, abs=1e-5)
    assert len(prompt) == 3
    assert all(late < early for late, early in zip(tardy, prompt, strict=True))
    assert runs[0].traffic == runs[3].traffic
    with pytest.raises(LocallearnError, match="on any other network its weights would have been of another age"):
        course_of(runs[3].directory)


def test_without_staleness_the_clock_changes_no_bit(runs):
    written = config()
    del written["schedule"]
    plain = execute(resolve(written), How())
    assert {name: array.tobytes() for name, array in plain.arrays.items()} == {
        name: array.tobytes() for name, array in runs[0].arrays.items()
    }


@pytest.mark.parametrize("rule", ["mono_forward", "softhebb", "cascaded_forward"])
def test_what_sends_nothing_down_is_a_pipeline_anyway(rule):
    setup = prepare(resolve(config(rule, staleness=5)))
    assert setup.staleness(setup.stages[0]) == 0


def test_what_cannot_overlap_is_refused_at_its_line():
    for rule, why in (("incremental_predictive_coding", "change within a step"), ("features_replay", "remembers one step in the next")):
        with pytest.raises(ConfigError, match=f"schedule.staleness: `2`: the steps of this rule cannot overlap.*{why}"):
            resolve(config(rule))
        resolve(config(rule, staleness=0))
    parts = {"steps": 20, "batch": 128, "microbatches": 64}
    resolve(config(staleness=MICROS // 64 - 1, train=parts))
    with pytest.raises(ConfigError, match=r"schedule\.staleness: `1024`: 1025 steps of 64 microbatches would be in flight; 65536"):
        resolve(config(staleness=MICROS // 64, train=parts))
    with pytest.raises(ConfigError, match="of steps would mix"):
        resolve(config("predictive_coding", codecs={"activation": ["difference", "int4"]}))
    resolve(config("backprop", codecs={"activation": ["difference(none, 5000)", "int4"]}))
    with pytest.raises(ConfigError, match="`fast` is no network"):
        resolve(config(schedule={"network": "fast", "step": 0.01}))
    with pytest.raises(ConfigError, match=r"schedule\.step: is missing"):
        resolve(config(schedule={"network": "1mbit"}))


def test_actors_keep_no_virtual_time_and_one_process_needs_some():
    real = resolve(config(schedule={"staleness": 2}))
    with pytest.raises(ConfigError, match=r"schedule\.network: is missing: in one process a virtual clock says"):
        execute(real, How(on="eager"))
    for settings in (real, resolve(config())):
        setup = prepare(settings, apart=True)
        assert [stage.ahead for stage in setup.stages] == [2]
        assert setup.simulated_seconds(10) is None
        assert Making.of(settings, setup).overlaps
    assert [stage.ahead for stage in prepare(resolve(config("mono_forward")), apart=True).stages] == [0], "a pipeline as it is"
    prompt = prepare(resolve(config(staleness=0)), apart=True)
    assert prompt.stages[0].ahead == 0
    assert prompt.simulated_seconds(10) > 0, "actors that wait for each other keep its time"


def test_a_result_says_how_old_the_weights_were(runs):
    assert runs[0].delays == []
    (bottom, *_, top) = runs[3].delays
    assert [sum(own) for own in runs[3].delays] == [20] * 4
    assert len(bottom) == 4
    assert top == [20], "the top one never waits"
    assert load(runs[3].directory).delays == runs[3].delays


def test_show_tells_simulated_seconds(runs, capsys):
    assert code_of(["show", str(runs[3].directory)]) == 0
    shown = capsys.readouterr().out
    assert "simulated" in shown
    assert re.search(r"age of weights by shard, in updates: mean \(most\)  \d\.\d\d \(3\), .*, 0\.00 \(0\)\n", shown)
