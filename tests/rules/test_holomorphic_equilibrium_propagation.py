"""Holomorphic equilibrium propagation against the implicit gradient, inside and outside its radius, and against the centred rule."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locallearn.rule import split_batch
from locallearn.rules.equilibrium_propagation import EquilibriumPropagation
from locallearn.rules.holomorphic_equilibrium_propagation import HolomorphicEquilibriumPropagation
from locallearn.traffic import Channel
from tests.rules.measures import distance, gentle


def linear(p, s):
    return s @ p["linear"]["kernel"] + p["linear"]["bias"]


def turn(params, x, s, beta, target):
    """One round from the bottom up."""
    s = list(s)
    for i in range(len(s) - 1):
        s[i] = jnp.tanh(linear(params[i], x if i == 0 else s[i - 1]) + s[i + 1] @ params[i + 1]["linear"]["kernel"].T)
    s[-1] = (linear(params[-1], s[-2]) + beta * target) / (1 + beta)
    return s


def implicit(net, rounds=100):
    """The gradient of the cost at rest, by differentiating through all the rounds that lead there."""
    target = jnp.eye(net.classes)[net.batch.y]

    def cost(params):
        start = [jnp.zeros((len(target), *b.out_shape)) for b in net.blocks]
        s, _ = jax.lax.scan(lambda s, _: (turn(params, net.batch.x, s, 0.0, target), None), start, length=rounds)
        return 0.5 * jnp.mean(jnp.sum((s[-1] - target) ** 2, 1))

    return jax.jit(jax.grad(cost))([state.params for state in net.state])


def error(small, beta, points, factor=0.35):
    net = gentle(small(HolomorphicEquilibriumPropagation(free=100, nudged=100, beta=beta, points=points), (6, 8, 3)), factor)
    return distance(net.gradients()[0], implicit(net))


def test_inside_the_radius_the_error_is_geometric_in_the_number_of_points(small):
    errors = [error(small, 0.2, points) for points in (2, 4, 6, 8)]
    ratios = [b / a for a, b in itertools.pairwise(errors)]
    assert errors[0] > 1e-3
    assert errors[-1] < 1e-4
    assert max(ratios) < 0.2
    np.testing.assert_allclose(ratios, np.full(3, np.mean(ratios)), rtol=0.2)


def test_twice_the_nudge_is_two_to_the_number_of_points_times_the_error(small):
    for points in (2, 3, 4):
        assert error(small, 0.2, points) / error(small, 0.1, points) == pytest.approx(2**points, rel=0.25)


def test_outside_it_is_not(small):
    """Larger weights, a larger nudge: the states are not holomorphic in its disc, and more points do not help."""
    errors = [error(small, 0.8, points, factor=0.9) for points in (4, 8, 16)]
    assert errors[-1] > 0.1
    assert errors[-1] > 0.9 * errors[-2]


def test_two_points_are_the_centred_rule(small, assert_close):
    options = {"free": 6, "nudged": 5, "beta": 0.3}
    ours = gentle(small(HolomorphicEquilibriumPropagation(points=2, **options)))
    theirs = gentle(small(EquilibriumPropagation(**options)))
    assert_close(ours.gradients()[0], theirs.gradients()[0])
    assert float(ours.gradients()[2]) == float(theirs.gradients()[2])


@pytest.mark.parametrize("points", [4, 5])
def test_the_whole_circle_by_hand(small, assert_close, points):
    net = gentle(small(HolomorphicEquilibriumPropagation(free=6, nudged=5, beta=0.3, points=points)))
    params, x, target = [s.params for s in net.state], net.batch.x, jnp.eye(3)[net.batch.y]
    once = jax.jit(lambda s, beta: turn(params, x, s, beta, target))
    rest = [jnp.zeros((4, *b.out_shape)) for b in net.blocks]
    for _ in range(6):
        rest = once(rest, 0.0)
    total = jax.tree.map(jnp.zeros_like, params)
    for k in range(points):
        way = np.exp(2j * np.pi * k / points)
        s = rest
        for _ in range(5):
            s = once(s, 0.3 * way)
        below = [x, *s[:-1]]
        slopes = [{"linear": {"kernel": b.T @ a, "bias": jnp.sum(a, 0)}} for a, b in zip(s, below, strict=True)]
        total = jax.tree.map(lambda t, g, way=way: t - g / (way * points * 0.3 * 4), total, slopes)
    assert max(jnp.max(jnp.abs(jnp.imag(leaf))) for leaf in jax.tree.leaves(total)) < 1e-13
    assert_close(net.gradients()[0], jax.tree.map(jnp.real, total))


def test_convolutions_settle_too(convolutional):
    net = gentle(convolutional(HolomorphicEquilibriumPropagation(free=60, nudged=60, beta=0.02, points=6)))
    other = gentle(convolutional(EquilibriumPropagation(free=60, nudged=60, beta=0.001)))
    assert distance(net.gradients()[0], other.gradients()[0]) < 1e-5


def test_microbatches_add_up_to_the_batch(small, assert_close):
    net = gentle(small(HolomorphicEquilibriumPropagation(free=5, nudged=4, points=3)))
    parts = [net.gradients(batch=part)[0] for part in split_batch(net.batch, 2)]
    assert_close(jax.tree.map(lambda a, b: (a + b) / 2, *parts), net.gradients()[0])


def test_a_boundary_carries_real_and_complex_numbers(make_setup):
    setup = make_setup("holomorphic_equilibrium_propagation", shards=2, batch=12)  # widths 12-8-7-6-3: the lower shard ends after 7
    number = 12 * 7
    assert dict(setup.plan_step(setup.stages[0]).traffic.payload) == {
        Channel("state", "activation", 0, 1): (20 + 2 * 10) * number * 4,
        Channel("feedback", "activation", 1, 0): (19 + 2 * 10) * number * 4,
        Channel("complex_state", "activation", 0, 1): 10 * number * 8,
        Channel("complex_feedback", "activation", 1, 0): 10 * number * 8,
    }


def test_what_is_not_holomorphic_is_refused(small):
    rule = HolomorphicEquilibriumPropagation(nudged=3)
    found = rule.problems(small(rule, activation="hard_sigmoid").blocks)
    assert found[0] == "needs bounded activations (sigmoid, tanh); block 0 has hard_sigmoid"
    assert found[-1] == "needs `nudged` of at least 4 for 4 blocks: news from the top moves down one block in a round"
