"""Error-optimising predictive coding against backpropagation after one round, and against predictive coding at rest."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locallearn.rules.error_predictive_coding import ErrorPredictiveCoding
from locallearn.rules.predictive_coding import PredictiveCoding
from locallearn.traffic import Channel
from tests.rules.measures import distance


def identity(u):
    return u


def run(params, e, x, dense):
    """The activities with these errors, and the scores."""
    z, below = [], x
    for p, here in zip(params[:-1], e, strict=True):
        below = dense(p, below) + here
        z.append(below)
    return z, dense(params[-1], below, f=identity)


def loss_by_hand(name, scores, y):
    """Summed over the batch."""
    target = jnp.eye(scores.shape[1])[y]
    return 0.5 * jnp.sum((scores - target) ** 2) if name == "squared" else -jnp.sum(target * jax.nn.log_softmax(scores))


def silence(net):
    return [jnp.zeros((4, *block.out_shape)) for block in net.blocks[:-1]]


@pytest.mark.parametrize("loss", ["squared", "cross_entropy"])
def test_one_small_round_is_backpropagation_but_for_its_rate_below_the_top(small, dense, loss):
    rate = 1e-7
    net = small(ErrorPredictiveCoding(steps=1, rate=rate, loss=loss))
    params = [s.params for s in net.state]
    true = jax.grad(lambda p: loss_by_hand(loss, run(p, silence(net), net.batch.x, dense)[1], net.batch.y) / 4)(params)
    ours = [jax.tree.map(lambda g: g / rate, block) for block in net.gradients()[0][:-1]] + [net.gradients()[0][-1]]
    assert distance(ours, true) < 1e-6


def test_the_first_errors_are_exactly_backpropagations(small, dense):
    net = small(ErrorPredictiveCoding(steps=1, rate=1.0))
    params = [s.params for s in net.state]
    slopes = jax.grad(lambda e: loss_by_hand("squared", run(params, e, net.batch.x, dense)[1], net.batch.y))(silence(net))
    zero = small(ErrorPredictiveCoding(steps=1, rate=1e-300))  # the errors stay where they were, so that the slope is all there is
    np.testing.assert_allclose(list(zero.rule.diagnose(net.chain, net.state, net.batch)["residual"])[:-1],
                               [jnp.max(jnp.abs(s)) for s in slopes], rtol=1e-14)  # fmt: skip


@pytest.mark.parametrize("loss", ["squared", "cross_entropy"])
def test_rounds_by_hand(small, dense, assert_close, loss):
    net = small(ErrorPredictiveCoding(steps=5, rate=0.2, loss=loss))
    params, x, y = [s.params for s in net.state], net.batch.x, net.batch.y

    def energy(e):
        return sum(0.5 * jnp.sum(a**2) for a in e) + loss_by_hand(loss, run(params, e, x, dense)[1], y)

    e = silence(net)
    first = energy(e) / 4
    for _ in range(5):
        e = [a - 0.2 * g for a, g in zip(e, jax.grad(energy)(e), strict=True)]
    z, _ = run(params, e, x, dense)

    def local(params):
        mu = [dense(p, below) for p, below in zip(params[:-1], [x, *z[:-1]], strict=True)]
        out = dense(params[-1], z[-1], f=identity)
        return (sum(0.5 * jnp.sum((a - b) ** 2) for a, b in zip(z, mu, strict=True)) + loss_by_hand(loss, out, y)) / 4

    grads, _, told = net.gradients()
    assert_close(grads, jax.grad(local)(params), 1e-13)
    assert float(told) == pytest.approx(float(first), abs=1e-13)
    found = net.rule.diagnose(net.chain, net.state, net.batch)
    assert float(sum(found["energy"])) == pytest.approx(float(energy(e)) / 4, rel=1e-12)
    np.testing.assert_allclose(list(found["residual"]), [*(jnp.max(jnp.abs(g)) for g in jax.grad(energy)(e)), 0.0], atol=1e-13)


def test_at_rest_it_is_predictive_coding_at_rest(small, assert_close):
    ours = small(ErrorPredictiveCoding(steps=4000, rate=0.05)).gradients()[0]
    theirs = small(PredictiveCoding(steps=4000, rate=0.1, momentum=0.5)).gradients()[0]
    assert_close(ours, theirs, 1e-10)


def test_on_the_way_there_it_is_not(small):
    ours = small(ErrorPredictiveCoding(steps=3, rate=0.05)).gradients()[0]
    assert distance(ours, small(PredictiveCoding(steps=3, rate=0.05, momentum=0.0)).gradients()[0]) > 0.1


def test_a_boundary_carries_a_sweep_both_ways_in_every_round(make_setup):
    setup = make_setup(ErrorPredictiveCoding(steps=5), shards=3, batch=12)  # widths 12-8-7-6-3: after 7 and 6
    plan = setup.plan_step(setup.stages[0])
    assert dict(plan.traffic.payload) == {
        Channel("activation", "activation", 0, 1): 6 * 12 * 7 * 4,
        Channel("activation", "activation", 1, 2): 6 * 12 * 6 * 4,
        Channel("error", "error", 1, 0): 5 * 12 * 7 * 4,
        Channel("error", "error", 2, 1): 5 * 12 * 6 * 4,
    }
    assert plan.hops == 6 * 2 + 5 * 2, "sweeps: every message waits for the one before"
