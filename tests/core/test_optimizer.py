"""The optimizer of a block against closed forms and hand-written optax."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from locallearn.train import Optimizer, Phase, Train

PARAMS = {"w": jnp.full((2, 3), 2.0), "b": jnp.full((3,), 2.0)}
GRADS = {"w": jnp.full((2, 3), 0.5), "b": jnp.full((3,), -0.5)}


def updates(optimizer: Optimizer, steps: int = 10, block: int = 0, count: int = 1, grads=GRADS):
    tx = optimizer.build(steps, block)
    state, params = tx.init(PARAMS), PARAMS
    for _ in range(count):
        update, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, update)
    return update


def by_hand(tx: optax.GradientTransformation, count: int = 1):
    state, params = tx.init(PARAMS), PARAMS
    for _ in range(count):
        update, state = tx.update(GRADS, state, params)
        params = optax.apply_updates(params, update)
    return update


def assert_same(a, b) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), a, b)


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        (Optimizer("sgd", 0.1), optax.sgd(0.1)),
        (Optimizer("momentum", 0.1, momentum=0.8), optax.sgd(0.1, momentum=0.8)),
        (Optimizer("momentum", 0.1, nesterov=True), optax.sgd(0.1, momentum=0.9, nesterov=True)),
        (Optimizer("adam", 0.1, beta1=0.8, beta2=0.9, epsilon=1e-3), optax.adam(0.1, b1=0.8, b2=0.9, eps=1e-3)),
        (Optimizer("adamw", 0.1, weight_decay=0.3), optax.adamw(0.1, weight_decay=0.3, mask={"w": True, "b": False})),
        (Optimizer("adam", 0.1, schedule="cosine"), optax.adam(optax.cosine_decay_schedule(0.1, 10))),
    ],
)
def test_each_optimizer_is_the_one_of_optax(optimizer, expected):
    assert_same(updates(optimizer, count=3), by_hand(expected, count=3))


@pytest.mark.parametrize(
    ("optimizer", "rate"),
    [
        (Optimizer(rate=0.2), lambda k: 0.2),
        (Optimizer(rate=0.2, schedule="linear", final=0.5), lambda k: 0.2 * (1 - 0.5 * k / 100)),
        (Optimizer(rate=0.2, schedule="cosine", final=0.1), lambda k: 0.2 * (0.1 + 0.9 * (1 + math.cos(math.pi * k / 100)) / 2)),
        (Optimizer(rate=0.2, warmup=0.1), lambda k: 0.2 * min(1, k / 10)),
        (
            Optimizer(rate=0.2, schedule="cosine", warmup=0.2),
            lambda k: 0.2 * k / 20 if k < 20 else 0.1 * (1 + math.cos(math.pi * (k - 20) / 80)),
        ),
        (
            Optimizer(rate=0.2, schedule="step", milestones=(0.5, 0.75), decay=0.5),
            lambda k: 0.2 * (1 if k < 50 else 0.5 if k < 75 else 0.25),
        ),
        (
            Optimizer(rate=0.2, schedule="step", milestones=(0.5,), warmup=0.1),
            lambda k: 0.2 * min(1, k / 10) * (1 if k < 50 else 0.1),
        ),
        (
            Optimizer(rate=0.2, schedule="warmup_cosine", warmup=0.1, peak=1.1, final=0.1),
            lambda k: 0.2 * (1 + 0.1 * k / 10) if k < 10 else 0.22 * (0.1 + 0.9 * (1 + math.cos(math.pi * (k - 10) / 90)) / 2),
        ),
        (Optimizer(rate=0.2, schedule="linear", hold=0.5), lambda k: 0.2 * min(1, 2 * (1 - k / 100))),
        (
            Optimizer(rate=0.2, schedule="cosine", warmup=0.1, hold=0.4),
            lambda k: 0.2 * min(1, k / 10) if k < 50 else 0.1 * (1 + math.cos(math.pi * (k - 50) / 50)),
        ),
    ],
)
@pytest.mark.parametrize("step", [0, 1, 9, 10, 11, 49, 51, 80, 99, 100])
def test_rates_in_closed_form(optimizer, rate, step):
    assert float(optimizer.learning_rate(100)(step)) == pytest.approx(rate(step), rel=1e-5, abs=1e-8)


def test_warmup_cosine_is_the_schedule_of_optax():
    ours = Optimizer(rate=0.01, schedule="warmup_cosine", warmup=0.1, peak=1.1, final=0.1).learning_rate(200)
    theirs = optax.warmup_cosine_decay_schedule(0.01, 0.011, 20, 200, 0.0011)
    np.testing.assert_allclose([ours(k) for k in range(201)], [theirs(k) for k in range(201)], rtol=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("warmup", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear", "warmup_cosine"])
def test_very_short_runs_have_finite_rates(steps, warmup, schedule):
    rate = Optimizer(schedule=schedule, warmup=warmup).learning_rate(steps)
    assert all(0 <= float(rate(k)) <= 1e-3 * (1 + 1e-6) for k in range(steps + 1))


def test_weight_decay_is_added_to_the_gradient_of_matrices_alone():
    decayed = updates(Optimizer("sgd", 0.1, weight_decay=0.3))
    np.testing.assert_allclose(decayed["w"], -0.1 * (0.5 + 0.3 * 2), rtol=1e-6)
    np.testing.assert_allclose(decayed["b"], 0.1 * 0.5, rtol=1e-6)


def test_decoupled_weight_decay_does_not_pass_through_adam():
    plain, decayed = updates(Optimizer("adamw", 0.1)), updates(Optimizer("adamw", 0.1, weight_decay=0.3))
    np.testing.assert_allclose(decayed["w"] - plain["w"], -0.1 * 0.3 * 2, rtol=1e-5)
    np.testing.assert_array_equal(decayed["b"], plain["b"])
    coupled = updates(Optimizer("adam", 0.1, weight_decay=0.3))
    np.testing.assert_allclose(coupled["w"], -0.1, rtol=1e-5)  # Adam's first step is the sign of the gradient


def test_clipping_is_by_the_global_norm_of_the_block():
    clipped = updates(Optimizer("sgd", 1.0, clip=0.3))
    norm = math.sqrt(sum(float(jnp.sum(u**2)) for u in clipped.values()))
    assert norm == pytest.approx(0.3, rel=1e-5)
    assert_same(updates(Optimizer("sgd", 1.0, clip=100.0)), updates(Optimizer("sgd", 1.0)))


def test_block_rates_multiply_the_rate_of_their_block():
    optimizer = Optimizer("sgd", 0.1, block_rates=(1.0, 0.5), schedule="linear")
    assert_same(updates(optimizer, block=1), jax.tree.map(lambda u: u / 2, updates(optimizer, block=0)))


@pytest.mark.parametrize(
    ("optimizer", "field", "text"),
    [
        (Optimizer(milestones=(0.5,)), "milestones", "has no effect without `schedule: step`"),
        (Optimizer(decay=0.5), "decay", "has no effect without `schedule: step`"),
        (Optimizer(schedule="step"), "milestones", "is missing, which `schedule: step` needs"),
        (Optimizer(schedule="step", milestones=(0.5, 0.5)), "milestones", "must rise"),
        (Optimizer(final=0.1), "final", "has no effect without `schedule: cosine` or `schedule: linear` or "),
        (Optimizer(hold=0.5), "hold", "has no effect without `schedule: cosine` or `schedule: linear` or "),
        (Optimizer(schedule="linear", warmup=0.5, hold=0.6), "hold", "and `warmup`, 0.6 and 0.5, are more than the whole run"),
        (Optimizer(peak=1.1), "peak", "has no effect without `schedule: warmup_cosine`"),
        (Optimizer(schedule="warmup_cosine"), "warmup", "is missing, which `schedule: warmup_cosine` needs"),
        (Optimizer(nesterov=True), "nesterov", "has no effect without `name: momentum`"),
        (Optimizer("sgd", momentum=0.5), "momentum", "has no effect without `name: momentum`"),
        (Optimizer("momentum", beta1=0.5), "beta1", "has no effect without `name: adam` or `name: adamw`"),
    ],
)
def test_combinations_that_make_no_sense(optimizer, field, text):
    ((where, what),) = optimizer.problems()
    assert (where, what[: len(text)]) == (field, text)


def test_sensible_optimizers_have_no_problems():
    assert Optimizer().problems() == []
    assert Optimizer("momentum", momentum=0.5, nesterov=True, schedule="cosine", final=0.1, warmup=0.1).problems() == []


def test_length_of_a_run():
    assert Train(epochs=3, batch=100).lengths(950) == (27,)
    assert Train(steps=7).lengths(950) == (7,)
    assert Train(batch=100, phases=(Phase(epochs=1), Phase(steps=5))).lengths(950) == (9, 5)
    assert Train(epochs=2, batch=100, greedy=True).lengths(950, 3) == (18, 18, 18)
    assert [part.learn for part in Train(steps=4, greedy=True).parts(3)] == [(0,), (1,), (2,)]
    assert [part.learn for part in Train(steps=4).parts(3)] == ["all"]
    assert Phase(learn=(), steps=1).problems()
    assert Phase(learn=(1, 1), steps=1).problems()
    assert Phase(learn=(-1,), steps=1).problems()
    assert Phase().problems() == [("epochs", "is missing (or give `steps`)")]
