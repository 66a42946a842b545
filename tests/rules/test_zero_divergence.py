"""Zero-divergence inference learning against backpropagation, and against all the rounds that it does not send."""

import jax
import jax.numpy as jnp
import pytest

from locallearn.rules.zero_divergence import ZeroDivergence
from locallearn.traffic import Channel


def forward(net, params):
    h = net.batch.x
    for block, p in zip(net.blocks, params, strict=True):
        h = block.apply(p, h)
    return h


def loss_by_hand(name, scores, y):
    """Mean over the batch."""
    target = jnp.eye(scores.shape[1])[y]
    each = 0.5 * jnp.sum((scores - target) ** 2, 1) if name == "squared" else -jnp.sum(target * jax.nn.log_softmax(scores), 1)
    return jnp.mean(each)


def backprop(net, name="squared"):
    params = [state.params for state in net.state]
    return jax.value_and_grad(lambda params: loss_by_hand(name, forward(net, params), net.batch.y))(params)


@pytest.mark.parametrize("loss", ["squared", "cross_entropy"])
def test_it_is_backpropagation(small, assert_close, loss):
    net = small(ZeroDivergence(loss=loss))
    grads, memory, value = net.gradients()
    expected_value, expected = backprop(net, loss)
    assert_close(grads, expected, 1e-14)
    assert float(value) == pytest.approx(float(expected_value), abs=1e-14)
    assert memory == [()] * 4


def test_convolutions_too(convolutional, assert_close):
    net = convolutional(ZeroDivergence())
    assert_close(net.gradients()[0], backprop(net)[1], 1e-13)


def test_another_rate_shrinks_the_gradient_from_block_to_block(small, assert_close):
    net = small(ZeroDivergence(rate=0.5))
    expected = backprop(net)[1]
    scaled = [jax.tree.map(lambda g, i=i: 0.5 ** (3 - i) * g, grads) for i, grads in enumerate(expected)]
    assert_close(net.gradients()[0], scaled, 1e-14)


@pytest.mark.parametrize("rate", [1.0, 0.5])
def test_the_rounds_that_are_not_sent_would_change_nothing(small, dense, assert_close, rate):
    """Predictive coding with all its rounds, in which block l (from 0) learns at time 3 - l."""
    net = small(ZeroDivergence(rate=rate))
    params, x = [s.params for s in net.state], net.batch.x

    def energy(z, params):
        below, total = x, 0.0
        for p, here in zip(params[:-1], z, strict=True):
            total, below = total + 0.5 * jnp.sum((here - dense(p, below)) ** 2), here
        return total + 0.5 * jnp.sum((dense(params[-1], below, f=lambda u: u) - jnp.eye(3)[net.batch.y]) ** 2)

    z = [dense(params[0], x)]
    for p in params[1:-1]:
        z.append(dense(p, z[-1]))
    learnt = [None] * 4
    for t in range(4):
        learnt[3 - t] = jax.tree.map(lambda g: g / 4, jax.grad(energy, 1)(z, params)[3 - t])
        z = [a - rate * s for a, s in zip(z, jax.grad(energy)(z, params), strict=True)]
    assert_close(net.gradients()[0], learnt, 1e-13)


def test_a_boundary_carries_one_activity_and_one_error(make_setup):
    setup = make_setup(ZeroDivergence(), shards=3, batch=12)  # widths 12-8-7-6-3: after 7 and 6
    plan = setup.plan_step(setup.stages[0])
    assert dict(plan.traffic.payload) == {
        Channel("activation", "activation", 0, 1): 12 * 7 * 4,
        Channel("activation", "activation", 1, 2): 12 * 6 * 4,
        Channel("error", "error", 1, 0): 12 * 7 * 4,
        Channel("error", "error", 2, 1): 12 * 6 * 4,
    }
    assert plan.hops == 4
