"""Equilibrium propagation against the implicit gradient of its equilibrium, and against its phases by hand."""

import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locallearn.rule import split_batch
from locallearn.rules._settling import onehot, phase
from locallearn.rules.equilibrium_propagation import EquilibriumPropagation
from locallearn.traffic import Channel
from tests.rules.measures import distance, gentle

HIDDEN = {"tanh": jnp.tanh, "hard_sigmoid": lambda u: jnp.clip(u, 0, 1)}


def linear(p, s):
    return s @ p["linear"]["kernel"] + p["linear"]["bias"]


def phi(params, x, s):
    """The primitive function, summed over the batch."""
    return sum(jnp.sum(here * linear(p, below)) for p, below, here in zip(params, [x, *s[:-1]], s, strict=True))


def settle(params, x, s, rounds, beta, target, f):
    """Rounds of updates from the bottom up, each the derivative of Φ."""

    def turn(_, s):
        s = list(s)
        for i in range(len(s)):
            if i < len(s) - 1:
                s[i] = f(jax.grad(lambda here, i=i, s=s: phi(params, x, [*s[:i], here, *s[i + 1 :]]))(s[i]))
            else:
                s[i] = (linear(params[i], s[i - 1]) + beta * target) / (1 + beta)
        return s

    return jax.lax.fori_loop(0, rounds, turn, s) if rounds > 20 else _unrolled(turn, rounds, s)


def _unrolled(turn, rounds, s):
    for k in range(rounds):
        s = turn(k, s)
    return s


def by_hand(net, free, nudged, plus, minus, f):
    """The gradient from the contrast of two nudges, plus > minus, and the cost at rest."""
    params, x = [state.params for state in net.state], net.batch.x
    target = jnp.eye(net.classes)[net.batch.y]
    rest = settle(params, x, [jnp.zeros((len(x), *b.out_shape)) for b in net.blocks], free, 0.0, target, f)
    at = [settle(params, x, rest, nudged, beta, target, f) if beta else rest for beta in (plus, minus)]
    up, down = (jax.grad(phi)(params, x, s) for s in at)
    cost = 0.5 * jnp.mean(jnp.sum((rest[-1] - target) ** 2, 1))
    return jax.tree.map(lambda a, b: -(a - b) / ((plus - minus) * len(x)), up, down), cost


def implicit(net, f, rounds=150):
    """The gradient of the cost at rest, by differentiating through all the rounds that lead there."""
    target = jnp.eye(net.classes)[net.batch.y]

    def cost(params):
        def turn(s, _):
            return settle(params, net.batch.x, s, 1, 0.0, target, f), None

        s, _ = jax.lax.scan(turn, [jnp.zeros((len(target), *b.out_shape)) for b in net.blocks], length=rounds)
        return 0.5 * jnp.mean(jnp.sum((s[-1] - target) ** 2, 1))

    return jax.grad(cost)([state.params for state in net.state])


@pytest.mark.parametrize(
    ("activation", "nudge", "plus", "minus"),
    [
        ("tanh", "centred", 0.3, -0.3),
        ("hard_sigmoid", "centred", 0.3, -0.3),
        ("tanh", "positive", 0.3, 0.0),
        ("tanh", "negative", 0.0, -0.3),
    ],
)
def test_phases_and_contrast_by_hand(small, assert_close, activation, nudge, plus, minus):
    net = gentle(small(EquilibriumPropagation(free=6, nudged=5, beta=0.3, nudge=nudge), activation=activation))
    grads, memory, cost = net.gradients()
    expected, expected_cost = by_hand(net, 6, 5, plus, minus, HIDDEN[activation])
    np.testing.assert_allclose(*(np.concatenate([np.ravel(g) for g in jax.tree.leaves(t)]) for t in (grads, expected)), atol=1e-13)
    if activation == "tanh":
        assert_close(grads, expected, 1e-13)
    assert float(cost) == pytest.approx(float(expected_cost), abs=1e-13)
    assert memory == [()] * 4


def test_the_error_to_the_implicit_gradient_is_of_second_order_in_beta_and_with_one_nudge_of_first_order(small):
    errors = {nudge: [] for nudge in ("centred", "positive", "negative")}
    for nudge, found in errors.items():
        for beta in (0.1, 0.025):
            net = gentle(small(EquilibriumPropagation(free=150, nudged=150, beta=beta, nudge=nudge)))
            found.append(distance(net.gradients()[0], implicit(net, jnp.tanh)))
    assert errors["centred"][1] < 2e-3
    assert errors["centred"][0] / errors["centred"][1] == pytest.approx(16, rel=0.1)
    for nudge in ("positive", "negative"):
        assert errors[nudge][0] / errors[nudge][1] == pytest.approx(4, rel=0.2)
        assert errors[nudge][1] > 10 * errors["centred"][1]


def test_what_the_nudge_adds_in_each_round_is_the_gradient_through_time_of_one_round(small):
    """Ernoult et al. (2019), https://arxiv.org/abs/1905.13633, for rounds from the bottom up: news comes down one block in a round, and a
    gradient through time crosses all of them in one; so block l of L is looked at L - l rounds later."""
    net, beta, depth = gentle(small(EquilibriumPropagation(free=200))), 1e-4, 4
    params, rest = [state.params for state in net.state], net.rule.rest(net.chain, net.state, net.batch.x)
    target, times = net.chain.at_top(onehot, net.batch.y, rest.s), 4

    def states(rounds, nudge):
        return list(phase(net.chain, net.state, rest, rounds, nudge, target).s) if rounds else list(rest.s)

    moved = [[(a - b) / (2 * beta) for a, b in zip(states(r, beta), states(r, -beta), strict=True)] for r in range(times + depth)]
    added = [[a - b for a, b in zip(later, now, strict=True)] for now, later in itertools.pairwise(moved)]

    def cost(copies):
        s = list(rest.s)
        for own in copies:
            s = settle(own, net.batch.x, s, 1, 0.0, target, jnp.tanh)
        return 0.5 * jnp.sum((s[-1] - target) ** 2)

    through_time = jax.grad(cost)([params] * times)
    for back in range(times):
        news = [added[depth - 1 - block + back][block] for block in range(depth)]
        _, contrast = jax.jvp(lambda s: jax.grad(phi)(params, net.batch.x, s), (list(rest.s),), (news,))
        for own, wanted in zip(contrast, through_time[times - 1 - back], strict=True):
            assert distance(jax.tree.map(jnp.negative, own), wanted) < 1e-6


def test_the_diagnosis_tells_the_energy_that_settling_lowers_and_what_still_moves(small):
    for activation, inner in (("hard_sigmoid", lambda a: a**2 / 2), ("sigmoid", lambda a: a * jnp.log(a) + (1 - a) * jnp.log(1 - a))):
        net = gentle(small(EquilibriumPropagation(free=3), activation=activation))
        params = [state.params for state in net.state]
        s = list(net.rule.rest(net.chain, net.state, net.batch.x).s)
        found = net.rule.diagnose(net.chain, net.state, net.batch)
        expected = sum(jnp.sum(inner(a)) for a in s[:-1]) + 0.5 * jnp.sum(s[-1] ** 2) - phi(params, net.batch.x, s)
        assert float(sum(found["energy"])) == pytest.approx(float(expected) / 4, abs=1e-12)
        slopes = jax.grad(lambda s, p=params, x=net.batch.x: phi(p, x, s))(s)
        f = {"sigmoid": jax.nn.sigmoid, **HIDDEN}[activation]
        moved = [*(f(u) for u in slopes[:-1]), slopes[-1]]
        np.testing.assert_allclose(list(found["residual"]), [jnp.max(jnp.abs(a - b)) for a, b in zip(s, moved, strict=True)], atol=1e-13)


def test_a_free_phase_too_short_to_come_to_rest_gives_another_gradient(small):
    net = gentle(small(EquilibriumPropagation(free=2, nudged=4, beta=0.025)))
    assert distance(net.gradients()[0], implicit(net, jnp.tanh)) > 0.01


def test_convolutions_settle_too(convolutional):
    net = gentle(convolutional(EquilibriumPropagation(free=100, nudged=100, beta=0.01)))
    target = jnp.eye(3)[net.batch.y]

    def cost(params):
        def energy_slope(i, s):
            below = net.batch.x if i == 0 else s[i - 1]
            inner = net.blocks[i].pre(params[i], below)
            if i == 2:
                return inner
            return jnp.tanh(inner + jax.grad(lambda here: jnp.sum(s[i + 1] * net.blocks[i + 1].pre(params[i + 1], here)))(s[i]))

        def turn(s, _):
            for i in range(3):
                s = [*s[:i], energy_slope(i, s), *s[i + 1 :]]
            return s, None

        s, _ = jax.lax.scan(turn, [jnp.zeros((4, *b.out_shape)) for b in net.blocks], length=100)
        return 0.5 * jnp.mean(jnp.sum((s[-1] - target) ** 2, 1))

    expected = jax.grad(cost)([state.params for state in net.state])
    assert distance(net.gradients()[0], expected) < 1e-3


def test_no_round_raises_the_energy_with_the_hard_sigmoid(small):
    net = small(EquilibriumPropagation(), activation="hard_sigmoid")
    params = [state.params for state in net.state]
    energies = []
    for free in range(1, 9):
        rest = EquilibriumPropagation(free=free).rest(net.chain, net.state, net.batch.x)
        s = list(rest.s)
        assert all(jnp.all((a >= 0) & (a <= 1)) for a in s[:-1])
        energies.append(float(0.5 * sum(jnp.sum(a**2) for a in s) - phi(params, net.batch.x, s)))
    assert energies[1] < energies[0]
    assert all(b <= a + 1e-12 for a, b in itertools.pairwise(energies))


def test_a_prediction_is_the_top_at_rest(small):
    net = gentle(small(EquilibriumPropagation(free=7)))
    params, start = [s.params for s in net.state], [jnp.zeros((4, *b.out_shape)) for b in net.blocks]
    expected = settle(params, net.batch.x, start, 7, 0.0, 0.0, jnp.tanh)[-1]
    np.testing.assert_allclose(net.rule.predict(net.chain, net.state, net.batch.x), expected, atol=1e-14)


def test_microbatches_add_up_to_the_batch(small, assert_close):
    net = gentle(small(EquilibriumPropagation(free=5, nudged=4)))
    parts = [net.gradients(batch=part)[0] for part in split_batch(net.batch, 2)]
    assert_close(jax.tree.map(lambda a, b: (a + b) / 2, *parts), net.gradients()[0])


@pytest.mark.parametrize(("nudge", "phases"), [("centred", 2), ("positive", 1)])
def test_a_boundary_carries_a_state_up_and_a_feedback_down_in_every_round(make_setup, nudge, phases):
    setup = make_setup("equilibrium_propagation", shards=3, batch=12)  # widths 12-8-7-6-3: shards end after 7 and 6
    stage = replace(setup.stages[0], rule=EquilibriumPropagation(nudge=nudge))
    ups = 20 + phases * 8
    assert dict(setup.plan_step(stage).traffic.payload) == {
        Channel("state", "activation", 0, 1): ups * 12 * 7 * 4,
        Channel("state", "activation", 1, 2): ups * 12 * 6 * 4,
        Channel("feedback", "activation", 1, 0): (ups - 1) * 12 * 7 * 4,
        Channel("feedback", "activation", 2, 1): (ups - 1) * 12 * 6 * 4,
    }


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"activation": "relu"}, "needs bounded activations (hard_sigmoid, sigmoid, tanh); block 0 has relu"),
        ({"norm": True}, "needs blocks without normalisation and pooling after the linear part: there is no energy for them"),
        ({}, "needs `nudged` of at least 4 for 4 blocks: news from the top moves down one block in a round"),
    ],
)
def test_models_that_cannot_settle_are_refused(small, options, sentence):
    assert sentence in EquilibriumPropagation(nudged=3).problems(small(EquilibriumPropagation(), **options).blocks)
    assert EquilibriumPropagation(nudged=4).problems(small(EquilibriumPropagation()).blocks) == []


def test_with_too_few_nudged_rounds_the_bottom_learns_nothing(small):
    for nudged, learns in ((3, False), (4, True)):
        net = gentle(small(EquilibriumPropagation(free=400, nudged=nudged)))
        assert (float(jnp.max(jnp.abs(net.gradients()[0][0]["linear"]["kernel"]))) > 1e-6) == learns
