"""Boltzmann machines against the enumeration of all their states."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locallearn.block import WithHead
from locallearn.models import MLP
from locallearn.rules.boltzmann import Boltzmann, flip, free_energy, gibbs, hidden, keys, rise, unpacked, visible
from locallearn.rules.mono_forward import MonoForward
from tests.rules.measures import flat

STATES_V = np.array(list(itertools.product([0.0, 1.0], repeat=4)))
STATES_H = np.array(list(itertools.product([0.0, 1.0], repeat=3)))


@pytest.fixture
def net(small):
    """`net(rule)`: 4 visible units, 3 hidden ones, 2 classes; the examples are bits."""

    def make(rule=None, **options):
        one = small(rule or Boltzmann(), (4, 3, 2), "sigmoid", **options)
        one.batch = one.batch._replace(x=jnp.asarray(STATES_V[np.arange(len(one.batch.y)) * 5 % 16]))
        return one

    return make


def energy(params, v, h):
    """E of every pair: [v, h]."""
    w, b, a = np.asarray(params.block["linear"]["kernel"]), np.asarray(params.block["linear"]["bias"]), np.asarray(params.head)
    return -(v @ a)[:, None] - (h @ b)[None, :] - v @ w @ h.T


def joint(params):
    """p(v, h): [16, 8]."""
    weights = np.exp(-energy(params, STATES_V, STATES_H))
    return weights / weights.sum()


def nll_gradient(params, data):
    """The exact gradient of -mean ln p(v), by automatic differentiation of the enumerated partition function."""

    def nll(params):
        w, b = params.block["linear"]["kernel"], params.block["linear"]["bias"]

        def minus_free(v):
            return v @ params.head + jnp.sum(jnp.log1p(jnp.exp(v @ w + b)), 1)

        return jax.nn.logsumexp(minus_free(STATES_V)) - jnp.mean(minus_free(data))

    return jax.grad(nll)(params)


def transition(block, params):
    """p(v' | v) of one Gibbs step, [16, 16], from the rule's own conditionals."""
    p_h, p_v = np.asarray(hidden(block, params, jnp.asarray(STATES_V))), np.asarray(visible(block, params, jnp.asarray(STATES_H), "binary"))
    to_h = np.prod(np.where(STATES_H[None] == 1, p_h[:, None], 1 - p_h[:, None]), 2)
    to_v = np.prod(np.where(STATES_V[None] == 1, p_v[:, None], 1 - p_v[:, None]), 2)
    return to_h @ to_v


def free_energy_gradients(block, params):
    """∂F/∂θ of every visible state: [16, parameters]."""
    return np.stack([flat(jax.grad(lambda p, v=v: free_energy(block, p, jnp.asarray(v[None]), "binary")[0])(params)) for v in STATES_V])


def expected_cd(block, params, data, k):
    """E of CD-k over all chains from these data."""
    slopes, walk = free_energy_gradients(block, params), np.linalg.matrix_power(transition(block, params), k)
    start = np.array([np.flatnonzero((v == STATES_V).all(1))[0] for v in np.asarray(data)])
    return slopes[start].mean(0) - (walk[start] @ slopes).mean(0)


def test_conditionals_and_free_energy_are_those_of_the_energy(net):
    one = net()
    block, params = one.blocks[0], one.state[0].params
    p = joint(params)
    np.testing.assert_allclose(hidden(block, params, jnp.asarray(STATES_V)), p @ STATES_H / p.sum(1, keepdims=True), atol=1e-14)
    np.testing.assert_allclose(visible(block, params, jnp.asarray(STATES_H), "binary"), p.T @ STATES_V / p.sum(0)[:, None], atol=1e-14)
    by_hand = -np.log(np.exp(-energy(params, STATES_V, STATES_H)).sum(1))
    np.testing.assert_allclose(free_energy(block, params, jnp.asarray(STATES_V), "binary"), by_hand, atol=1e-13)


def test_expected_contrastive_divergence_tends_to_the_likelihood_gradient(net):
    one = net()
    block, params, data = one.blocks[0], one.state[0].params, one.batch.x
    exact = flat(nll_gradient(params, data))
    errors = [np.linalg.norm(expected_cd(block, params, data, k) - exact) / np.linalg.norm(exact) for k in (1, 5, 20, 80)]
    assert errors[0] > 1e-3, "CD-1 is biased"
    assert errors[0] < 0.5
    assert errors[1] < 0.1 * errors[0]
    assert errors[2] < 1e-2 * errors[1]
    assert errors[3] < 1e-12


def test_the_data_s_own_distribution_is_a_fixed_point(net):
    """Where the data are the model's own states, expected CD-k is zero for every k."""
    one = net()
    block, params = one.blocks[0], one.state[0].params
    p, slopes = joint(params).sum(1), free_energy_gradients(block, params)
    for k in (1, 3):
        change = p @ slopes - p @ np.linalg.matrix_power(transition(block, params), k) @ slopes
        np.testing.assert_allclose(change, 0, atol=1e-13)


@pytest.mark.parametrize("steps", [1, 3])
def test_the_rule_draws_what_is_expected(net, steps):
    """The gradient of a batch that shows four examples many times, against the mean over all chains."""
    copies = 20_000
    one = net(Boltzmann(steps=steps))
    params, data = one.state[0].params, one.batch.x
    many = one.batch._replace(x=jnp.tile(data, (copies, 1)), y=jnp.tile(one.batch.y, copies), index=jnp.arange(4 * copies, dtype=jnp.int32))
    found = flat(one.rule.gradients(one.chain, one.state, many)[0][0])
    expected = expected_cd(one.blocks[0], params, data, steps)
    np.testing.assert_allclose(found, expected, atol=5 * 0.5 / np.sqrt(4 * copies))
    assert np.linalg.norm(expected) > 0.05


def test_zero_temperature_never_raises_the_energy(net):
    """Each layer in turn takes its likelier states, given the other: E(v, h) falls or stays."""
    one = net()
    block, params = one.blocks[0], one.state[0].params
    v, h, falls = STATES_V, np.tile(STATES_H, (2, 1)), 0
    before = np.diag(energy(params, v, h))
    for _ in range(4):
        h = (np.asarray(hidden(block, params, jnp.asarray(v))) > 0.5).astype(float)
        middle = np.diag(energy(params, v, h))
        v = (np.asarray(visible(block, params, jnp.asarray(h), "binary")) > 0.5).astype(float)
        after = np.diag(energy(params, v, h))
        assert np.all(middle <= before + 1e-14)
        assert np.all(after <= middle + 1e-14)
        falls, before = falls + np.sum(after < before), after
    assert falls > 10


def test_a_dream_begins_at_the_states_that_went_up(net):
    """h_0 that crosses is h_0 that dreams; eight bits of it make a byte."""
    one = net()
    block, state, v = one.blocks[0], one.state[0], one.batch.x
    crossing = rise(block, state, one.batch.key, v, up="bits")
    assert (crossing.dtype, crossing.shape) == (jnp.uint8, (4, 1))
    first, dream = keys(block, one.batch.key)
    h = flip(first, hidden(block, state.params, v))
    np.testing.assert_array_equal(unpacked(one.blocks[1], crossing), h)
    v_k = gibbs(block, state.params, h, dream, steps=1, kind="binary")
    expected = jax.grad(lambda p: jnp.mean(free_energy(block, p, v, "binary") - free_energy(block, p, v_k, "binary")))(state.params)
    np.testing.assert_allclose(flat(one.gradients()[0][0]), flat(expected), atol=1e-14)


@pytest.mark.parametrize("up", ["bits", "probabilities"])
def test_the_top_is_a_softmax_classifier_of_the_states_below(net, up):
    one = net(Boltzmann(up=up))
    p = hidden(one.blocks[0], one.state[0].params, one.batch.x)
    h = flip(keys(one.blocks[0], one.batch.key)[0], p) if up == "bits" else p
    params = one.state[1].params["linear"]
    scores = h @ params["kernel"] + params["bias"]
    e = (jax.nn.softmax(scores) - jnp.eye(2)[one.batch.y]) / 4
    grads, _, loss = one.gradients()
    np.testing.assert_allclose(grads[1]["linear"]["kernel"], h.T @ e, atol=1e-14)
    assert float(loss) == pytest.approx(float(-jnp.mean(jax.nn.log_softmax(scores)[jnp.arange(4), one.batch.y])), rel=1e-12)
    np.testing.assert_allclose(one.rule.predict(one.chain, one.state, one.batch.x), p @ params["kernel"] + params["bias"], atol=1e-14)


def test_gaussian_visible_units(net):
    """E = ½‖v - a‖² - b·h - v·W h: v given h is N(a + W h, I), and the free energy is its integral over h."""
    one = net(Boltzmann(visible="gaussian"))
    block, params = one.blocks[0], one.state[0].params
    w, b = params.block["linear"]["kernel"], params.block["linear"]["bias"]
    np.testing.assert_allclose(visible(block, params, jnp.asarray(STATES_H), "gaussian"), params.head + STATES_H @ w.T, atol=1e-14)
    v = jnp.asarray(np.random.default_rng(0).normal(size=(5, 4)))
    pairs = 0.5 * jnp.sum((v - params.head) ** 2, 1)[:, None] - STATES_H @ b - v @ w @ STATES_H.T
    np.testing.assert_allclose(free_energy(block, params, v, "gaussian"), -jax.nn.logsumexp(-pairs, axis=1), atol=1e-13)
    h = jnp.tile(jnp.asarray(STATES_H[5]), (40_000, 1))
    dreams = gibbs(block, params, h, one.batch.key, steps=1, kind="gaussian")
    np.testing.assert_allclose(dreams.mean(0), (params.head + STATES_H @ w.T)[5], atol=0.03)
    np.testing.assert_allclose(np.cov(dreams.T), np.eye(4), atol=0.04)


def test_convolutions_dream_through_their_transpose(convolutional):
    """p(v | h) of a convolution, from the energy by automatic differentiation."""
    one = convolutional(MonoForward())
    block, body = one.blocks[0], one.state[0].params.block
    params, h = WithHead(body, jnp.zeros(block.in_shape)), jax.random.normal(one.batch.key, (4, *block.out_shape), jnp.float64)
    drive = jax.grad(lambda v: jnp.sum(h * block.pre(body, v)))(one.batch.x)
    np.testing.assert_allclose(visible(block, params, h, "binary"), jax.nn.sigmoid(drive), atol=1e-14)


def test_its_diagnosis(net):
    one = net()
    found = one.rule.diagnose(one.chain, one.state, one.batch)
    block, params, v = one.blocks[0], one.state[0].params, one.batch.x
    first, dream = keys(block, one.batch.key)
    v_k = gibbs(block, params, flip(first, hidden(block, params, v)), dream, steps=1, kind="binary")
    gap = jnp.mean(free_energy(block, params, v_k, "binary") - free_energy(block, params, v, "binary"))
    assert float(found["free_energy_gap"][0]) == pytest.approx(float(gap), abs=1e-13)
    assert float(found["reconstruction"][0]) == pytest.approx(float(jnp.mean((v_k - v) ** 2)), abs=1e-13)


def test_other_units_are_refused():
    assert "block 1 is none" in Boltzmann().problems(MLP(widths=(4, 3, 3, 2), activation="tanh").blocks((4,)))[1]
    assert not Boltzmann().problems(MLP(widths=(4, 3, 3, 2), activation="sigmoid").blocks((4,)))
    assert Boltzmann().problems(MLP(widths=(4, 3, 2), activation="sigmoid", norm="layer").blocks((4,)))
