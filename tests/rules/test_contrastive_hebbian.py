"""Contrastive Hebbian learning against backpropagation as the feedback vanishes, and against its phases by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locallearn.rule import split_batch
from locallearn.rules.contrastive_hebbian import ContrastiveHebbian
from locallearn.traffic import Channel
from tests.rules.measures import distance, gentle


def linear(p, s):
    return s @ p["linear"]["kernel"] + p["linear"]["bias"]


def backprop(net):
    """The gradient of the squared error of a forward pass."""

    def loss(params):
        h = net.batch.x
        for p in params[:-1]:
            h = jnp.tanh(linear(p, h))
        return 0.5 * jnp.mean(jnp.sum((linear(params[-1], h) - jnp.eye(3)[net.batch.y]) ** 2, 1))

    return jax.grad(loss)([state.params for state in net.state])


def settled(params, x, s, rounds, gain, top=None):
    """Rounds from the bottom up; the top held at `top`, or free."""
    s = list(s)
    for _ in range(rounds):
        for i in range(3):
            s[i] = jnp.tanh(linear(params[i], x if i == 0 else s[i - 1]) + gain * s[i + 1] @ params[i + 1]["linear"]["kernel"].T)
        s[3] = linear(params[3], s[2]) if top is None else top
    return s


def by_hand(net, free, clamped, gain):
    params, x, target = [s.params for s in net.state], net.batch.x, jnp.eye(3)[net.batch.y]
    first = settled(params, x, [jnp.zeros((4, *b.out_shape)) for b in net.blocks], free, gain)
    second = settled(params, x, [*first[:-1], target], clamped, gain, target)

    def hebb(s, i):
        below = x if i == 0 else s[i - 1]
        return {"linear": {"kernel": below.T @ s[i] / 4, "bias": jnp.mean(s[i], 0)}}

    return [jax.tree.map(lambda a, b, i=i: gain ** (i - 3) * (a - b), hebb(first, i), hebb(second, i)) for i in range(4)], first


def test_phases_and_hebbs_rule_by_hand(small, assert_close):
    net = gentle(small(ContrastiveHebbian(free=5, clamped=4, gain=0.3)))
    grads, memory, cost = net.gradients()
    expected, first = by_hand(net, 5, 4, 0.3)
    assert_close(grads, expected)
    assert float(cost) == pytest.approx(float(0.5 * jnp.mean(jnp.sum((first[-1] - jnp.eye(3)[net.batch.y]) ** 2, 1))), abs=1e-13)
    assert memory == [()] * 4
    np.testing.assert_allclose(net.rule.predict(net.chain, net.state, net.batch.x), first[-1], atol=1e-14)


def test_it_tends_to_backpropagation_in_proportion_to_the_gain(small):
    errors = []
    for gain in (0.1, 0.01, 0.001):
        net = gentle(small(ContrastiveHebbian(free=30, clamped=30, gain=gain)))
        errors.append(distance(net.gradients()[0], backprop(net)))
    assert errors[0] > 0.01
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.3)
    assert errors[1] / errors[2] == pytest.approx(10, rel=0.05)


def test_with_the_full_gain_it_does_not(small):
    net = gentle(small(ContrastiveHebbian(free=100, clamped=100, gain=1.0)))
    assert distance(net.gradients()[0], backprop(net)) > 0.2


def test_the_diagnosis_tells_the_energy_and_what_still_moves(small):
    net = gentle(small(ContrastiveHebbian(free=3, gain=0.5)))
    found = net.rule.diagnose(net.chain, net.state, net.batch)
    params, x = [s.params for s in net.state], net.batch.x
    s = by_hand(net, 3, 1, 0.5)[1]
    inner = [jnp.sum(a * jnp.arctanh(a) + 0.5 * jnp.log(1 - a**2)) for a in s[:-1]] + [0.5 * jnp.sum(s[-1] ** 2)]
    expected = [(g - jnp.sum(a * linear(p, below))) / 4 for g, a, p, below in zip(inner, s, params, [x, *s[:-1]], strict=True)]
    np.testing.assert_allclose(list(found["energy"]), expected, atol=1e-13)
    inputs = [linear(p, below) for p, below in zip(params, [x, *s[:-1]], strict=True)]
    moved = [jnp.tanh(u + 0.5 * a @ p["linear"]["kernel"].T) for u, a, p in zip(inputs[:-1], s[1:], params[1:], strict=True)]
    expected = [jnp.max(jnp.abs(a - b)) for a, b in zip(s, [*moved, inputs[-1]], strict=True)]
    np.testing.assert_allclose(list(found["residual"]), expected, atol=1e-13)
    long = gentle(small(ContrastiveHebbian(free=200, gain=0.5)))
    assert max(long.rule.diagnose(long.chain, long.state, long.batch)["residual"]) < 1e-12


def test_microbatches_add_up_to_the_batch(small, assert_close):
    net = gentle(small(ContrastiveHebbian(free=5, clamped=4, gain=0.1)))
    parts = [net.gradients(batch=part)[0] for part in split_batch(net.batch, 2)]
    assert_close(jax.tree.map(lambda a, b: (a + b) / 2, *parts), net.gradients()[0])


def test_a_boundary_carries_a_state_up_and_a_feedback_down_in_every_round(make_setup):
    setup = make_setup("contrastive_hebbian", shards=3, batch=12)  # widths 12-8-7-6-3: shards end after 7 and 6
    ups = 15 + 8
    assert dict(setup.plan_step(setup.stages[0]).traffic.payload) == {
        Channel("state", "activation", 0, 1): ups * 12 * 7 * 4,
        Channel("state", "activation", 1, 2): ups * 12 * 6 * 4,
        Channel("feedback", "activation", 1, 0): (ups - 1) * 12 * 7 * 4,
        Channel("feedback", "activation", 2, 1): (ups - 1) * 12 * 6 * 4,
    }


def test_with_too_few_clamped_rounds_the_bottom_learns_nothing_and_the_rule_says_so(small):
    for clamped, learns in ((2, False), (3, True)):
        net = gentle(small(ContrastiveHebbian(free=300, clamped=clamped, gain=0.5)))
        assert (float(jnp.max(jnp.abs(net.gradients()[0][0]["linear"]["kernel"]))) > 1e-6) == learns
        assert bool(net.rule.problems(net.blocks)) != learns
    sentence = "needs `clamped` of at least 3 for 4 blocks: news from the top moves down one block in a round"
    assert ContrastiveHebbian(clamped=2).problems(net.blocks) == [sentence]
