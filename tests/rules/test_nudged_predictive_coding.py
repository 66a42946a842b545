"""Nudged predictive coding against predictive coding, where they must agree, and against its dynamics by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locallearn.chain import Row
from locallearn.rule import split_batch
from locallearn.rules.nudged_predictive_coding import NudgedPredictiveCoding
from locallearn.rules.predictive_coding import PredictiveCoding
from locallearn.traffic import Channel
from tests.rules.measures import distance


def identity(u):
    return u


def after(net, steps):
    """The state after so many training steps, as far as the rule counts them."""
    return Row(state._replace(memory=jnp.asarray(steps)) for state in net.state)


def gradients(net, steps=0):
    return net.gradients(after(net, steps))


def without_nudge(net, activation="tanh"):
    """What predictive coding does with the same weights."""
    rule = PredictiveCoding(steps=net.rule.steps, rate=net.rule.rate, momentum=net.rule.momentum)
    other = type(net)(rule, activation=activation)
    return other.gradients(Row(state._replace(memory=()) for state in net.state))


def test_a_full_positive_nudge_is_predictive_coding(small, assert_close):
    net = small(NudgedPredictiveCoding(nudge="positive", beta=1.0, steps=6, rate=0.1))
    grads, memory, loss = gradients(net)
    expected, _, expected_loss = without_nudge(net)
    assert_close(grads, expected)
    assert float(loss) == float(expected_loss)
    assert [int(m) for m in memory] == [1] * 4


@pytest.mark.parametrize(("nudge", "beta"), [("positive", 0.3), ("negative", 1.0), ("centred", 0.01)])
def test_in_a_linear_network_errors_are_in_proportion_to_the_nudge(small, nudge, beta):
    """There a bias's gradient is -ε_l/β; that of the weights also knows how far z moved."""
    net = small(NudgedPredictiveCoding(nudge=nudge, beta=beta, steps=6, rate=0.1), activation="identity")
    ours, theirs = gradients(net, 1)[0], without_nudge(net, "identity")[0]
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a["linear"]["bias"], b["linear"]["bias"], atol=1e-11)
    assert np.max(np.abs(ours[-1]["linear"]["kernel"] - theirs[-1]["linear"]["kernel"])) > 1e-3


def test_it_tends_to_a_limit_in_proportion_to_the_nudge_and_the_mean_of_both_signs_to_second_order(small):
    def at(nudge, beta):
        return gradients(small(NudgedPredictiveCoding(nudge=nudge, beta=beta, steps=20, rate=0.2)))[0]

    def centred(beta):
        return jax.tree.map(lambda a, b: (a + b) / 2, at("positive", beta), at("negative", beta))

    limit = centred(1e-4)
    one = [distance(at("negative", beta), limit) for beta in (0.2, 0.02)]
    both = [distance(centred(beta), limit) for beta in (0.2, 0.02)]
    assert one[0] / one[1] == pytest.approx(10, rel=0.3)
    assert both[0] / both[1] == pytest.approx(100, rel=0.3)


@pytest.mark.parametrize(
    ("nudge", "steps", "beta"),
    [("positive", 7, 0.34), ("negative", 7, -0.34), ("centred", 8, 0.36), ("centred", 7, -0.34), ("negative", 1000, -1.0)],
)
def test_dynamics_nudge_and_ramp_by_hand(small, dense, assert_close, nudge, steps, beta):
    net = small(NudgedPredictiveCoding(nudge=nudge, beta=0.2, ramp=0.02, steps=5, rate=0.1, momentum=0.6))
    params, x = [s.params for s in net.state], net.batch.x
    z = [dense(params[0], x)]
    for p in params[1:-1]:
        z.append(dense(p, z[-1]))
    out = dense(params[-1], z[-1], f=identity)
    target = out - beta * (out - jnp.eye(3)[net.batch.y])

    def energy(z, params):
        mu = [dense(p, below) for p, below in zip(params[:-1], [x, *z[:-1]], strict=True)]
        top = target - dense(params[-1], z[-1], f=identity)
        return sum(0.5 * jnp.sum((a - b) ** 2) for a, b in zip([*z, top], [*mu, jnp.zeros_like(top)], strict=True))

    velocity = [jnp.zeros_like(a) for a in z]
    slope = jax.jit(jax.grad(energy))
    for _ in range(5):
        velocity = [0.6 * v + s for v, s in zip(velocity, slope(z, params), strict=True)]
        z = [a - 0.1 * v for a, v in zip(z, velocity, strict=True)]
    assert_close(gradients(net, steps)[0], jax.tree.map(lambda g: g / (beta * 4), jax.grad(energy, 1)(z, params)))
    found = net.rule.diagnose(net.chain, after(net, steps), net.batch)
    assert float(sum(found["energy"])) == pytest.approx(float(energy(z, params)) / 4, rel=1e-12)
    np.testing.assert_allclose(list(found["residual"])[:-1], [jnp.max(jnp.abs(g)) for g in jax.grad(energy)(z, params)], atol=1e-13)


def test_parts_of_a_batch_are_nudged_alike(small, assert_close):
    net = small(NudgedPredictiveCoding(nudge="centred"))
    parts = [net.gradients(after(net, 3), part)[0] for part in split_batch(net.batch, 2)]
    assert_close(jax.tree.map(lambda a, b: (a + b) / 2, *parts), gradients(net, 3)[0])


def test_a_boundary_carries_what_predictive_coding_carries(make_setup):
    setup = make_setup(NudgedPredictiveCoding(steps=5), shards=3, batch=12)  # widths 12-8-7-6-3: after 7 and 6
    assert dict(setup.plan_step(setup.stages[0]).traffic.payload) == {
        Channel("activation", "activation", 0, 1): 6 * 12 * 7 * 4,
        Channel("activation", "activation", 1, 2): 6 * 12 * 6 * 4,
        Channel("error", "error", 1, 0): 5 * 12 * 7 * 4,
        Channel("error", "error", 2, 1): 5 * 12 * 6 * 4,
    }


def test_too_few_rounds_are_refused(small):
    net = small(NudgedPredictiveCoding(steps=2))
    assert net.rule.problems(net.blocks) == ["needs `steps` of at least 3 for 4 blocks: news from the top moves down one block in a round"]
    assert NudgedPredictiveCoding(steps=3).problems(net.blocks) == []
