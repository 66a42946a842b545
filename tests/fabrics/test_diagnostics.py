"""Diagnostics: angles, norms and probes against what must come out, the same in both fabrics, and free when they are off."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locallearn.config.run import resolve
from locallearn.data.dataset import Arrays, Split, batches
from locallearn.errors import ConfigError
from locallearn.experiment.api import run
from locallearn.rule import Rule, descend
from locallearn.rules.backprop import Backprop
from locallearn.rules.feedback_alignment import FeedbackAlignment
from locallearn.runtime.diagnostics import angle, ridge_accuracy
from locallearn.runtime.framed import EagerSession
from locallearn.runtime.fused import FusedSession
from locallearn.runtime.training import Evaluated, Finished, train

ALL = ("angle", "norms", "probe", "rule")


@dataclass(frozen=True)
class Mirrored(FeedbackAlignment):
    """Feedback alignment with B = W^T."""

    def gradients(self, chain, state, batch):
        return super().gradients(chain, chain.map(mirrored, state), batch)


def mirrored(block, state):
    """The forward weights in the place of the random ones."""
    return state if block.bottom else state._replace(memory=state.params)


@dataclass(frozen=True)
class Telling(Backprop):
    """Backprop that tells the number of each block and whether it is the top."""

    def diagnose(self, chain, state, batch):
        return {
            "number": chain.map(lambda block, one: jnp.asarray(block.index), state),
            "nothing": chain.map(lambda block, one: jnp.nan, state),
        }


def diagnosed(make_setup, session, rule, steps=0, names=ALL, **options):
    running = session(make_setup(rule, diagnostics=names, **options))
    running.enter(running.setup.stages[0])
    if steps:
        running.advance(0, steps)
    return running.diagnose(steps)


# Parts.


@pytest.mark.parametrize(("degrees", "tolerance"), [(0, 1e-5), (1e-3, 1e-5), (30, 1e-4), (90, 1e-4), (179.99, 1e-3), (180, 1e-4)])
def test_angles(degrees, tolerance):
    turn = np.radians(degrees)
    a, b = {"w": jnp.array([2.0, 0.0])}, {"w": jnp.array([5 * np.cos(turn), 5 * np.sin(turn)])}
    assert float(angle(a, b)) == pytest.approx(degrees, abs=tolerance)


def test_an_angle_is_over_all_arrays_of_a_block():
    a, b = {"w": jnp.ones(3), "b": jnp.zeros(1)}, {"w": jnp.ones(3), "b": jnp.full(1, 3**0.5)}
    assert float(angle(a, b)) == pytest.approx(45, abs=1e-4)
    assert np.isnan(float(angle(a, jax.tree.map(jnp.zeros_like, b))))


@pytest.mark.parametrize("width", [3, 500])
def test_a_probe_reads_out_separable_features_without_a_mistake(width):
    """Wider than there are examples, too."""
    rng = np.random.default_rng(0)
    directions = np.linalg.qr(rng.normal(size=(width, 3)))[0].T
    y, other = rng.integers(0, 3, 200), rng.integers(0, 3, 100)
    x, other_x = (5 * directions[labels] + 0.1 * rng.normal(size=(len(labels), width)) + 7 for labels in (y, other))
    assert ridge_accuracy(x, y, other_x, other) == 1
    assert 0.15 < ridge_accuracy(rng.normal(size=x.shape), y, rng.normal(size=other_x.shape), other) < 0.55


def test_a_probe_is_ridge_regression():
    """The primal solution, with the mean taken out of features and targets."""
    rng = np.random.default_rng(1)
    x, y, other, labels = rng.normal(size=(40, 5)), rng.integers(0, 4, 40), rng.normal(size=(30, 5)), rng.integers(0, 4, 30)
    centred, targets = x - x.mean(0), np.eye(4)[y]
    ridge = 0.01 * np.trace(centred @ centred.T) / 40
    weights = np.linalg.solve(centred.T @ centred + ridge * np.eye(5), centred.T @ (targets - targets.mean(0)))
    by_hand = ((other - x.mean(0)) @ weights + targets.mean(0)).argmax(1)
    assert ridge_accuracy(x, y, other, labels) == (by_hand == labels).mean()


def test_a_probe_of_silent_or_broken_features():
    y = np.array([0, 1, 1])
    assert ridge_accuracy(np.zeros((3, 2)), y, np.zeros((3, 2)), y) == pytest.approx(2 / 3)
    assert np.isnan(ridge_accuracy(np.full((3, 2), np.nan), y, np.zeros((3, 2)), y))


# Runs.


@pytest.mark.parametrize("session", [FusedSession, EagerSession])
@pytest.mark.parametrize("rule", [Backprop(), Mirrored()], ids=["backprop", "mirrored"])
def test_backprop_and_mirrored_feedback_have_no_angle(make_setup, session, rule):
    found = diagnosed(make_setup, session, rule, names=("angle",))
    assert len(found["angle"]) == 4
    assert max(found["angle"]) < 0.02


def test_random_feedback_is_off_and_comes_nearer(make_setup):
    """The top block's gradient is backprop's; those below align, which is what the rule is named after."""
    running = FusedSession(make_setup(FeedbackAlignment(), diagnostics=("angle",), split=separable(), steps=300, widths=(12, 30, 30, 3)))
    running.enter(running.setup.stages[0])
    before = running.diagnose(0)["angle"]
    running.advance(0, 300)
    after = running.diagnose(300)["angle"]
    assert before[-1] < 0.02
    assert all(20 < degrees < 160 for degrees in before[:-1])
    assert all(0 < later < earlier for earlier, later in zip(before[:-1], after[:-1], strict=True))
    assert max(after) < 90


def separable():
    rng = np.random.default_rng(3)

    def part(count):
        y = rng.integers(0, 3, count).astype(np.int32)
        return Arrays((rng.normal(size=(count, 12)) + 3 * np.repeat(np.eye(3), 4, axis=1)[y]).astype(np.float32), y)

    return Split(part(120), part(60), part(20))


def test_norms_by_hand(make_setup):
    setup = make_setup("backprop", diagnostics=("norms",))
    running = FusedSession(setup)
    running.enter(setup.stages[0])
    before = [jax.tree.map(np.array, one.params) for one in running._state]
    found = running.diagnose(0)
    x = setup.split.train.x[running_index(setup)]
    for i, params in enumerate(before):
        kernel, bias = params["linear"]["kernel"], params["linear"]["bias"]
        assert found["parameter_norm"][i] == pytest.approx(np.sqrt((kernel**2).sum() + (bias**2).sum()), rel=1e-5)
        x = x @ kernel + bias
        x = x if i == 3 else np.maximum(x, 0)
        assert found["silent_units"][i] == (x == 0).all(0).sum()
    running.advance(0, 1)
    for i, (old, new) in enumerate(zip(before, running._state, strict=True)):
        step = jax.tree.map(lambda a, b: np.asarray(b) - a, old, new.params)
        assert found["update_norm"][i] == pytest.approx(np.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(step))), rel=1e-3)


def running_index(setup):
    return batches(setup.seed, len(setup.split.train.y), setup.batch, 0, 1)[0]


def test_local_heads_are_left_out(make_setup):
    found = diagnosed(make_setup, FusedSession, "local_classifier", names=("angle", "norms"))
    plain = diagnosed(make_setup, FusedSession, "backprop", names=("norms",))
    assert found["parameter_norm"] == plain["parameter_norm"]
    assert found["angle"][-1] < 0.02  # the top block's own loss is backprop's
    assert all(0 < degrees < 180 for degrees in found["angle"][:-1])


def test_a_rule_without_gradients_has_no_angle(make_setup):
    @dataclass(frozen=True)
    class Own(Backprop):
        gradients = Rule.gradients

        def step(self, chain, state, batch):
            grads, memory, info = Backprop().gradients(chain, state, batch)
            return chain.map(descend, state, grads, memory), info

    assert diagnosed(make_setup, FusedSession, Own(), names=("angle",)) == {}


def test_what_a_rule_tells(make_setup):
    found = diagnosed(make_setup, FusedSession, Telling(), names=("rule",))
    assert found == {"number": [0, 1, 2, 3], "nothing": [None] * 4}


def test_fabrics_tell_the_same(make_setup):
    fused, eager = (diagnosed(make_setup, session, "direct_feedback", 3) for session in (FusedSession, EagerSession))
    assert fused.keys() == eager.keys() >= {"angle", "parameter_norm", "update_norm", "silent_units", "probe"}
    for name in fused:
        np.testing.assert_allclose(fused[name], eager[name], rtol=1e-2, atol=0.1 if name == "probe" else 1e-3)


def test_a_probe_of_the_classes_themselves(make_setup):
    found = diagnosed(make_setup, FusedSession, "backprop", names=("probe",), split=separable())
    assert found["probe"][0] > 0.9


def test_off_is_free_and_on_changes_nothing(make_setup, assert_same):
    """The same bits, the same bytes; nothing more is compiled for training."""
    ends = []
    for names in ((), ALL):
        events = list(train(FusedSession(make_setup("feedback_alignment", diagnostics=names))))
        ends.append(next(event for event in events if isinstance(event, Finished)))
        told = [dict(event.diagnosis) for event in events if isinstance(event, Evaluated)]
        assert all(bool(one) is bool(names) for one in told)
    assert_same(ends[0].shards, ends[1].shards)
    assert ends[0].traffic == ends[1].traffic


def test_off_compiles_nothing(make_setup, compilations):
    counts = []
    for names in (("norms",), ()):
        session = FusedSession(make_setup("backprop", diagnostics=names))
        session.enter(session.setup.stages[0])
        session.advance(0, 5)
        before = compilations()
        _ = session.diagnose(5) if names else None
        counts.append(compilations() - before)
    assert counts[0] > 0 == counts[1]


# Configuration and records.

RUN = {
    "rule": {"name": "feedback_alignment"},
    "model": {"name": "mlp", "widths": [40, 8, 10], "shards": 2},
    "data": {"name": "strokes1d", "samples": 120, "test_samples": 40},
    "train": {"steps": 4, "batch": 16, "evaluate_every": 2},
}


def test_records_keep_them_by_name_and_depth():
    result = run({**RUN, "diagnostics": ["angle", "probe"]})
    for record in result.curve:
        assert {name: len(row) for name, row in record["diagnostics"].items()} == {"angle": 2, "probe": 2}
    assert "diagnostics" not in run(RUN).curve[0]


def test_they_are_part_of_a_run_only_where_they_are_on():
    plain, with_angle = resolve(RUN), resolve({**RUN, "diagnostics": ["angle"]})
    assert "diagnostics" not in plain.canonical()
    assert plain.digest() != with_angle.digest()
    assert resolve(with_angle.canonical()).diagnostics == ("angle",)
    assert replace(with_angle, diagnostics=()).digest() == plain.digest()


def test_mistakes():
    with pytest.raises(ConfigError, match="angel"):
        resolve({**RUN, "diagnostics": ["angel"]})
    with pytest.raises(ConfigError, match=r"give `data.validation`"):
        resolve({**RUN, "data": {**RUN["data"], "validation": 0}, "diagnostics": ["probe"]})
    with pytest.raises(ConfigError, match=r"need the whole network in one process: leave them out, or take --on local") as caught:
        run({**RUN, "diagnostics": ["angle"]}, on="ray")
    assert len(str(caught.value).splitlines()) == 2
