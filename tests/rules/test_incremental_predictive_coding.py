"""Incremental predictive coding against its loop by hand, and against what schedules of the learning rate count."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from locallearn.chain import Chain, Row
from locallearn.config.run import resolve
from locallearn.experiment.prepare import prepare
from locallearn.rules.incremental_predictive_coding import IncrementalPredictiveCoding
from locallearn.rules.predictive_coding import PredictiveCoding
from locallearn.traffic import Channel


def identity(u):
    return u


def layers(params, z, x, dense):
    """(z_l, μ_l) below the top, and μ_L."""
    mu = [dense(p, below) for p, below in zip(params[:-1], [x, *z[:-1]], strict=True)]
    return mu, dense(params[-1], z[-1], f=identity)


def energy(z, params, x, y, dense, loss, precision):
    """F, summed over the batch."""
    mu, out = layers(params, z, x, dense)
    target = jnp.eye(out.shape[1])[y]
    top = 0.5 * jnp.sum((target - out) ** 2) if loss == "squared" else -jnp.sum(target * jax.nn.log_softmax(out))
    return sum(0.5 * jnp.sum((a - b) ** 2) for a, b in zip(z, mu, strict=True)) + precision * top


def begin(params, x, dense):
    """The activities of the forward pass."""
    z = [dense(params[0], x)]
    for p in params[1:-1]:
        z.append(dense(p, z[-1]))
    return z


def stepped(net, tx):
    """The state after one step with this optimizer, and the loss that the step tells."""
    blocks = [replace(block, tx=tx) for block in net.blocks]
    state = Row(block.state(s.params, s.memory) for block, s in zip(blocks, net.state, strict=True))
    after, info = jax.jit(lambda state: net.rule.step(Chain(blocks, net.chain.fabric), state, net.batch))(state)
    return [s.params for s in after], info.loss


@pytest.mark.parametrize(("loss", "tx"), [("squared", optax.sgd(0.1)), ("cross_entropy", optax.adam(0.01))])
def test_rounds_by_hand(small, dense, assert_close, loss, tx):
    net = small(IncrementalPredictiveCoding(steps=6, rate=0.3, momentum=0.4, loss=loss, precision=0.7))
    x, y, params = net.batch.x, net.batch.y, [s.params for s in net.state]
    slope = jax.jit(jax.grad(lambda z, params: energy(z, params, x, y, dense, loss, 0.7), (0, 1)))
    z, opt = begin(params, x, dense), tx.init(params)
    velocity = [jnp.zeros_like(a) for a in z]
    first = energy(z, params, x, y, dense, loss, 1.0) / 4
    for _ in range(6):
        up, grads = slope(z, params)
        velocity = [0.4 * v + s for v, s in zip(velocity, up, strict=True)]
        z = [a - 0.3 * v for a, v in zip(z, velocity, strict=True)]
        updates, opt = tx.update(jax.tree.map(lambda g: g / (0.7 * 4), grads), opt, params)
        params = optax.apply_updates(params, updates)
    ours, told = stepped(net, tx)
    assert_close(ours, params)
    assert float(told) == pytest.approx(float(first), abs=1e-13)


def test_with_one_step_only_the_top_learns_and_by_its_own_gradient(small, dense, assert_close):
    net = small(IncrementalPredictiveCoding(steps=1))
    params, _ = stepped(net, optax.sgd(1.0))
    before = [s.params for s in net.state]
    for a, b in zip(params[:-1], before[:-1], strict=True):
        assert all(jnp.all(x == y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
    z = begin(before, net.batch.x, dense)
    slope = jax.grad(lambda top: energy(z, [*before[:-1], top], net.batch.x, net.batch.y, dense, "squared", 1.0) / 4)
    assert_close(params[-1], jax.tree.map(jnp.subtract, before[-1], slope(before[-1])))


def test_weights_that_hardly_move_sum_the_gradients_of_every_relaxation(small, assert_close):
    """To first order in the learning rate a step is the sum of predictive coding's gradients after 0, 1, 2, … rounds."""
    net = small(IncrementalPredictiveCoding(steps=5, rate=0.3, momentum=0.0))
    params, _ = stepped(net, optax.sgd(1e-7))
    ours = jax.tree.map(lambda a, b: (b - a) / 1e-7, params, [s.params for s in net.state])
    parts = [small(PredictiveCoding(steps=t, rate=0.3, momentum=0.0)).gradients()[0] for t in range(1, 5)]
    still = small(PredictiveCoding(steps=1, rate=1e-300, momentum=0.0)).gradients()[0]
    assert_close(ours, jax.tree.map(lambda *g: sum(g), still, *parts), 1e-5)


def test_a_block_that_does_not_learn_stays(small):
    net = small(IncrementalPredictiveCoding())
    net.blocks = [replace(block, learns=block.index != 1) for block in net.blocks]
    params, _ = stepped(net, optax.sgd(0.1))
    same = [all(jnp.all(a == b) for a, b in zip(jax.tree.leaves(p), jax.tree.leaves(s.params), strict=True))
            for p, s in zip(params, net.state, strict=True)]  # fmt: skip
    assert same == [False, True, False, False]


@pytest.mark.parametrize(("rule", "updates"), [({"name": "incremental_predictive_coding", "steps": 4}, 20), ({"name": "backprop"}, 5)])
def test_a_schedule_counts_optimizer_steps(rule, updates):
    """Five batches: the cosine is down after the updates of the last of them, neither before nor much later."""
    config = resolve(
        {
            "rule": rule,
            "model": {"name": "mlp", "widths": [196, 12, 10], "shards": 2},
            "data": {"name": "fashion14", "limit": 100, "validation": 20},
            "train": {"steps": 5, "batch": 16, "optimizer": {"name": "sgd", "rate": 1.0, "schedule": "cosine"}},
        }
    )
    tx = prepare(config).stages[0].blocks[0].tx
    state, rates = tx.init(jnp.zeros(1)), []
    for _ in range(updates):
        update, state = tx.update(jnp.ones(1), state)
        rates.append(-float(update[0]))
    np.testing.assert_allclose(rates, [0.5 * (1 + math.cos(math.pi * k / updates)) for k in range(updates)], atol=1e-6)


def test_the_diagnosis_is_the_energy_before_the_last_round(small, dense):
    net = small(IncrementalPredictiveCoding(steps=4, rate=0.3, momentum=0.0))
    blocks = [replace(block, tx=optax.sgd(0.0)) for block in net.blocks]
    state = Row(block.state(s.params) for block, s in zip(blocks, net.state, strict=True))
    found = net.rule.diagnose(Chain(blocks, net.chain.fabric), state, net.batch)
    x, y, params = net.batch.x, net.batch.y, [s.params for s in net.state]
    z = begin(params, x, dense)
    slope = jax.grad(lambda z: energy(z, params, x, y, dense, "squared", 1.0))
    for _ in range(3):
        z = [a - 0.3 * g for a, g in zip(z, slope(z), strict=True)]
    assert float(sum(found["energy"])) == pytest.approx(float(energy(z, params, x, y, dense, "squared", 1.0) / 4), rel=1e-12)
    np.testing.assert_allclose(list(found["residual"]), [*(jnp.max(jnp.abs(g)) for g in slope(z)), 0.0], atol=1e-13)


def test_a_boundary_carries_one_round_less_than_there_are_updates(make_setup):
    setup = make_setup(IncrementalPredictiveCoding(steps=5), shards=3, batch=12)  # widths 12-8-7-6-3: after 7 and 6
    assert dict(setup.plan_step(setup.stages[0]).traffic.payload) == {
        Channel("activation", "activation", 0, 1): 5 * 12 * 7 * 4,
        Channel("activation", "activation", 1, 2): 5 * 12 * 6 * 4,
        Channel("error", "error", 1, 0): 4 * 12 * 7 * 4,
        Channel("error", "error", 2, 1): 4 * 12 * 6 * 4,
    }


def test_too_few_rounds_are_refused(small):
    net = small(IncrementalPredictiveCoding(steps=3))
    assert net.rule.problems(net.blocks) == ["needs `steps` of at least 4 for 4 blocks: news from the top moves down one block in a round"]
    assert IncrementalPredictiveCoding(steps=4).problems(net.blocks) == []
    bottom = jax.tree.leaves(stepped(net, optax.sgd(0.1))[0][0])
    assert all(jnp.all(a == b) for a, b in zip(bottom, jax.tree.leaves(net.state[0].params), strict=True))
