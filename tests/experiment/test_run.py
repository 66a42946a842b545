"""`locallearn.run`: files, dictionaries and objects to a result; the result against the data itself."""

import dataclasses
import subprocess
import sys
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
from flax import nnx

import locallearn
from locallearn.block import Block
from locallearn.config.own import Blocks
from locallearn.config.run import resolve
from locallearn.errors import RuleError, ShardLost
from locallearn.experiment import run
from locallearn.experiment.api import configuration
from locallearn.experiment.events import Ended, Started
from locallearn.experiment.how import How
from locallearn.experiment.planning import plan, planned_traffic
from locallearn.experiment.prepare import prepare
from locallearn.experiment.run import FailedBefore, execute
from locallearn.experiment.store import Store
from locallearn.rules.backprop import Backprop
from locallearn.runtime.placement import Unplaced
from locallearn.runtime.training import Progress

MODEL = {"name": "mlp", "widths": [40, 8, 10], "shards": 2}
TRAIN = {"steps": 6, "batch": 8, "evaluate_every": 4, "optimizer": {"name": "sgd", "rate": 0.1}}


def corners(count=40, seed=0):
    """Four classes at the corners of a square: two numbers for each example."""
    rng = np.random.default_rng(seed)
    y = np.arange(count) % 4
    x = np.stack([y // 2, y % 2], 1) * 2.0 - 1 + rng.normal(0, 0.1, (count, 2))
    return x.astype(np.float32), y.astype(np.int32)


@pytest.fixture(scope="module")
def dataset():
    return locallearn.Dataset.of("corners", corners(48), corners(20, 1))


@pytest.fixture(scope="module")
def settings(dataset):
    return {
        "rule": {"name": "backprop"},
        "model": {"name": "mlp", "widths": [2, 8, 6, 4], "shards": 2},
        "data": {"name": dataset, "validation": 8},
        "train": TRAIN,
        "codecs": {"activation": "float16"},
    }


@pytest.fixture(scope="module")
def result(settings):
    return locallearn.run(settings)


@pytest.mark.parametrize("error", [RuleError("no"), Unplaced("no room"), ShardLost("a node is gone")])
def test_what_failed_is_not_tried_again_unasked_but_for_a_cluster_that_had_no_room_or_fell_apart(settings, tmp_path, monkeypatch, error):
    """So a sweep that is killed while a run waits for its second turn is gone on with by the same command."""
    config = resolve(settings | {"data": {"name": "strokes1d", "samples": 60, "test_samples": 20}, "model": MODEL})

    def failing(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(run, "training", failing)
        with pytest.raises(type(error)):
            execute(config, How(), tmp_path)
    assert Store(tmp_path).read("failure.json")["type"] == type(error).__name__
    if isinstance(error, RuleError):
        with pytest.raises(FailedBefore):
            execute(config, How(retry=False), tmp_path)
    else:
        assert execute(config, How(retry=False), tmp_path).reason == "steps"


def test_a_training_ends_where_its_run_does_whoever_still_holds_the_error(settings, monkeypatch):
    """Actors and tasks are held by its events: they are not to live for as long as an error is being told."""
    closed = []

    def endless(*_):
        try:
            while True:
                yield Progress(1, None)
        finally:
            closed.append(True)

    def tell(event):
        if isinstance(event, Progress):
            raise RuntimeError("the terminal is gone")

    monkeypatch.setattr(run, "training", endless)
    with pytest.raises(RuntimeError, match="terminal") as held:
        execute(configuration(settings), How(tell=tell))
    assert held.tb is not None
    assert closed


def test_a_run_leaves_its_curve_traffic_and_accuracy(result, settings):
    assert [record["step"] for record in result.curve] == [4, 6]
    assert [record["examples"] for record in result.curve] == [32, 48]
    assert result.reason == "steps"
    assert result.accuracy == result.curve[-1]["validation_accuracy"]
    assert result.curve[-1]["bytes"] == sum(result.curve[-1][f"bytes_{kind}"] for kind in ("activation", "error", "control"))
    assert result.directory is None
    assert result.settings["train"]["steps"] == 6
    assert repr(result).startswith("<Result backprop: test ")


def test_the_plan_is_what_was_sent(result, settings):
    setup = prepare(configuration(settings))
    assert planned_traffic(setup) == result.traffic
    found = plan(setup)
    assert found["bytes"] == result.traffic.bytes
    stage = found["stages"][0]
    # Two float16 numbers of 6 wide up, float32 down, for 8 examples; 20 bytes of header each.
    assert {c["message"]: c["framed"] for c in stage["channels"]} == {"activation": 8 * 6 * 2 + 20, "error": 8 * 6 * 4 + 20}
    assert (stage["messages_per_step"], stage["hops_per_step"]) == (2, 2)


def test_predictions_are_the_networks(result, dataset):
    def forward(h):
        for i, block in enumerate(result.weights):
            h = h @ block["linear"]["kernel"] + block["linear"]["bias"]
            h = np.maximum(h, 0) if i < 2 else h
        return h

    scores = result.scores(dataset.test.x)
    np.testing.assert_allclose(scores, forward(dataset.test.x), rtol=1e-4, atol=1e-5)
    assert np.mean(result.predict(dataset.test.x) == dataset.test.y) == result.test_accuracy_lossless
    assert [state.params.keys() for state in result.states] == [{"linear": 0}.keys()] * 3
    assert result.scores(dataset.test.x[:0]).shape == (0, 4)
    with pytest.raises(ValueError, match=r"x has shape \[5, 3\], but the network takes \[N, 2\]"):
        result.predict(np.zeros((5, 3)))


def test_stored_and_loaded_is_the_same(result, settings, tmp_path):
    stored = locallearn.run(settings, runs=tmp_path)
    assert stored.directory == tmp_path / f"{configuration(settings).label()}-{configuration(settings).identity()}" / "seed-0"
    again = locallearn.load(stored.directory)
    assert again.traffic == result.traffic
    assert all(np.array_equal(a["linear"]["kernel"], b["linear"]["kernel"]) for a, b in zip(again.weights, result.weights, strict=True))
    with pytest.raises(locallearn.LocallearnError, match="from objects of Python"):
        _ = again.config  # a data set in memory is known by its fingerprint alone

    events = []
    locallearn.run(settings, runs=tmp_path, progress=events.append)
    assert [type(event) for event in events] == [Ended]
    assert events[0].skipped
    locallearn.run(settings, runs=tmp_path, fresh=True, progress=events.append)
    assert isinstance(events[1], Started)
    assert (stored.directory.parent / "seed-0~1" / "result.json").exists()


def test_eager_has_a_directory_of_its_own_and_the_same_bytes(result, settings, tmp_path):
    eager = locallearn.run(settings, on="eager", runs=tmp_path)
    assert eager.directory.name == "seed-0@eager"
    assert eager.traffic == result.traffic
    np.testing.assert_allclose(eager.weights[0]["linear"]["kernel"], result.weights[0]["linear"]["kernel"], rtol=1e-4, atol=1e-6)
    with pytest.raises(locallearn.LocallearnError, match="`cluster` is no way to run"):
        locallearn.run(settings, on="cluster")


class Line(nnx.Module):
    def __init__(self, n_in, n_out, rngs):
        self.linear = nnx.Linear(n_in, n_out, rngs=rngs)

    def __call__(self, x):
        return self.linear(x)


def line(n_in, n_out):
    return Block(lambda rngs: Line(n_in, n_out, rngs), (n_in,))


@dataclass(frozen=True)
class Scaled(Backprop):
    """A rule of one's own: backprop with its gradients scaled."""

    by: float = 1.0

    def gradients(self, chain: Any, state: Any, batch: Any) -> Any:
        grads, memory, info = super().gradients(chain, state, batch)
        return chain.map(times, grads, by=self.by), memory, info

    family: ClassVar = "own"


def times(block: Any, grads: Any, *, by: float) -> Any:
    import jax

    return jax.tree.map(lambda g: by * g, grads)


def test_own_rule_blocks_and_data(dataset):
    objects = {"rule": Scaled(0.0), "model": [line(2, 5), line(5, 4)], "data": dataset, "train": TRAIN}
    still = locallearn.run(objects, on="eager")
    assert still.curve[0]["validation_accuracy"] == still.curve[-1]["validation_accuracy"]  # nothing was learnt
    assert still.settings["rule"]["by"] == 0.0
    assert still.settings["model"]["name"] == "blocks"
    assert still.traffic.bytes == 0  # one shard, unless said otherwise
    sharded = configuration({**objects, "model": {"name": [line(2, 5), line(5, 4)], "shards": 2}})
    assert prepare(sharded).stages[0].wiring.shards == 2


def test_own_blocks_are_checked_and_told_apart(dataset):
    with pytest.raises(locallearn.ConfigError, match=r"block 1 takes shape \[6\], but block 0 gives \[5\]"):
        configuration({"rule": Backprop(), "model": [line(2, 5), line(6, 4)], "data": dataset, "train": TRAIN})
    with pytest.raises(locallearn.ConfigError, match=r"gives shape \[3\], but the data has 4 classes"):
        configuration({"rule": Backprop(), "model": [line(2, 3)], "data": dataset, "train": TRAIN})
    assert Blocks([line(2, 4)]).fingerprint == Blocks([line(2, 4)]).fingerprint
    assert Blocks([line(2, 4)]).fingerprint != Blocks([line(2, 5)]).fingerprint


def test_phases_learn_what_they_name(settings):
    phases = [{"learn": [0], "steps": 2}, {"learn": [1, 2], "steps": 3, "rule": {"name": "backprop"}}]
    train = {"batch": 8, "evaluate_every": 5, "phases": phases}
    setup = prepare(configuration({**settings, "train": train}))
    assert [(stage.start, stage.stop) for stage in setup.stages] == [(0, 2), (2, 5)]
    assert [[block.learns for block in stage.blocks] for stage in setup.stages] == [[True, False, False], [False, True, True]]
    assert dataclasses.is_dataclass(setup.stages[1].rule)


def test_greedy_training_is_one_phase_for_each_block(settings):
    setup = prepare(configuration({**settings, "train": {"batch": 8, "steps": 2, "greedy": True}}))
    assert [(stage.start, stage.stop) for stage in setup.stages] == [(0, 2), (2, 4), (4, 6)]
    assert [[block.learns for block in stage.blocks] for stage in setup.stages] == np.eye(3, dtype=bool).tolist()


def test_what_fails_is_noted_and_tried_again(settings, tmp_path):
    class Broken(Exception):
        pass

    def break_at(event):
        if type(event).__name__ == "Evaluated":
            raise Broken("as planned")

    config = configuration(settings)
    with pytest.raises(Broken):
        execute(config, How("eager", tell=break_at), tmp_path)
    failure = (tmp_path / "failure.json").read_text()
    assert '"type": "Broken"' in failure
    assert '"step": 4' in failure
    with pytest.raises(locallearn.LocallearnError, match=r"failed before \(Broken: as planned\)"):
        execute(config, How("eager", retry=False), tmp_path)
    assert execute(config, How("eager"), tmp_path).step == 6
    assert not (tmp_path / "failure.json").exists()


def test_a_diverged_run_is_a_result(settings, tmp_path):
    train = {**TRAIN, "optimizer": {"name": "sgd", "rate": 1e30}}
    diverged = locallearn.run({**settings, "train": train, "codecs": {}}, on="eager", runs=tmp_path)
    assert diverged.reason == "diverged"
    assert diverged.curve[-1]["train_loss"] is None  # JSON has no NaN
    assert "diverged" in repr(diverged)


def test_import_costs_nothing():
    code = "import sys, locallearn; print({'jax', 'ray', 'matplotlib', 'yaml'} & set(sys.modules)); locallearn.Dataset; dir(locallearn)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
    with pytest.raises(AttributeError, match="no attribute `nothing`"):
        _ = locallearn.nothing
    for name in locallearn.__all__:
        assert getattr(locallearn, name) is not None
