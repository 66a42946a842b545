"""NoProp against Gaussian algebra, and against losses and predictions by hand."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locallearn.models import MLP
from locallearn.models.denoiser import Denoiser
from locallearn.rules.noprop import NoProp, alpha_bar, posterior, snr

DEPTH = 4


@pytest.fixture
def net(small):
    """`net(rule)`: four blocks 6-5-3, each a network [x, z, level] -> 3 classes."""

    def make(rule, **options):
        return small(rule, widths=(6, 3), blocks=Denoiser(widths=(6, 5, 3), depth=DEPTH, activation="tanh").blocks((6,), 3), **options)

    return make


def network(params, x, z, level):
    """A block's class scores by hand."""
    s = jnp.concatenate([x, z, jnp.full((len(x), 1), level)], 1)
    first, second = params["layers"][0], params["layers"][1]
    return jnp.tanh(s @ first["kernel"] + first["bias"]) @ second["kernel"] + second["bias"]


@pytest.mark.parametrize("steps", [1, 4, 10])
def test_a_step_is_bayes_rule(steps):
    """q(z_t | z_{t-1}, u) from q(z_{t-1} | z_t) = N(√α z_t, 1 - α) and q(z_t | u) = N(√ᾱ_t u, 1 - ᾱ_t): precisions add."""
    for t in range(1, steps + 1):
        now, alpha = alpha_bar(t, steps), alpha_bar(t - 1, steps) / alpha_bar(t, steps)
        precision = 1 / (1 - now) + alpha / (1 - alpha)
        a, b, c = posterior(t, steps)
        assert c == pytest.approx(1 / precision, rel=1e-12)
        assert a == pytest.approx(c * math.sqrt(now) / (1 - now), rel=1e-11)
        assert b == pytest.approx(c * math.sqrt(alpha) / (1 - alpha), rel=1e-11)


@pytest.mark.parametrize("steps", [1, 4, 10])
def test_with_the_label_for_a_guess_the_marginals_are_those_of_training(steps):
    """z_t = a_t u + b_t z_{t-1} + √c_t ε from z_0 ~ N(0, 1) has mean √ᾱ_t u and variance 1 - ᾱ_t at every step: by algebra and by draws."""
    rng, mean, variance = np.random.default_rng(0), 0.0, 1.0
    z = rng.normal(size=200_000)
    for t in range(1, steps + 1):
        a, b, c = posterior(t, steps)
        mean, variance, z = a + b * mean, b**2 * variance + c, a + b * z + math.sqrt(c) * rng.normal(size=z.shape)
        assert mean == pytest.approx(math.sqrt(alpha_bar(t, steps)), abs=1e-12)
        assert variance == pytest.approx(1 - alpha_bar(t, steps), abs=1e-12)
        assert z.mean() == pytest.approx(mean, abs=0.01)
        assert z.var() == pytest.approx(variance, abs=0.01)


def test_noise_falls_and_the_weights_are_positive():
    shares = [alpha_bar(t, 10) for t in range(11)]
    assert shares[0] == 0
    assert all(a < b < 1 for a, b in itertools.pairwise(shares))
    assert shares[10] == pytest.approx(math.cos(math.pi / 2 * 0.008 / 1.008) ** 2, abs=1e-15)
    assert all(snr(t, 10) > snr(t - 1, 10) for t in range(1, 11))


@pytest.mark.parametrize(("eta", "kappa", "independent"), [(0.1, 1.0, False), (0.0, 1.0, False), (0.3, 0.0, False), (0.0, 1.0, True)])
def test_every_block_descends_its_own_loss(net, assert_close, eta, kappa, independent):
    one = net(NoProp(eta, kappa, independent))
    grads, memory, loss = one.gradients()
    u = jnp.eye(3)[one.batch.y]
    for i in range(DEPTH):
        share = alpha_bar(i, DEPTH)
        eps = jax.random.normal(jax.random.fold_in(one.batch.key, i), (4, 3), jnp.float64)
        z = 0 * u if independent else jnp.sqrt(share) * u + jnp.sqrt(1 - share) * eps

        def by_hand(params, z=z, i=i):
            p = jax.nn.softmax(network(params, one.batch.x, z, i / DEPTH))
            weight = DEPTH / 2 * eta * (snr(i + 1, DEPTH) - snr(i, DEPTH))
            return jnp.mean(weight * jnp.sum((p - u) ** 2, 1) - kappa * jnp.sum(u * jnp.log(p), 1))

        value, expected = jax.value_and_grad(by_hand)(one.state[i].params)
        assert_close(grads[i], expected, 1e-9)
    assert float(loss) == pytest.approx(float(value), rel=1e-12)
    assert memory == [()] * DEPTH


def test_nothing_passes_between_blocks(net):
    assert net(NoProp()).influences() == [{i} for i in range(DEPTH)]


def test_predictions_follow_the_means(net):
    one = net(NoProp())
    z = jnp.zeros((4, 3))
    for i in range(DEPTH):
        a, b, _ = posterior(i + 1, DEPTH)
        z = a * jax.nn.softmax(network(one.state[i].params, one.batch.x, z, i / DEPTH)) + b * z
    np.testing.assert_allclose(one.rule.predict(one.chain, one.state, one.batch.x), z, atol=1e-14)


def test_independent_classifiers_are_averaged(net):
    one = net(NoProp(eta=0.0, independent=True))
    zero = jnp.zeros((4, 3))
    each = [jax.nn.softmax(network(s.params, one.batch.x, zero, i / DEPTH)) for i, s in enumerate(one.state)]
    np.testing.assert_allclose(one.rule.predict(one.chain, one.state, one.batch.x) / DEPTH, sum(each) / DEPTH, atol=1e-14)


def test_its_diagnosis_is_the_distance_from_the_label(net):
    one = net(NoProp())
    (found,) = one.rule.diagnose(one.chain, one.state, one.batch).values()
    z = jax.random.normal(jax.random.fold_in(one.batch.key, 0), (4, 3), jnp.float64)
    p = jax.nn.softmax(network(one.state[0].params, one.batch.x, z, 0.0))
    assert float(found[0]) == pytest.approx(float(jnp.mean(jnp.sum((p - jnp.eye(3)[one.batch.y]) ** 2, 1))), rel=1e-12)


def test_other_models_are_refused():
    assert "denoiser" in NoProp().problems(MLP(widths=(6, 5, 3)).blocks((6,)))[0]
    assert "denoiser" in NoProp().problems(MLP(widths=(6, 3)).blocks((6,)))[0]
    blocks = Denoiser(widths=(6, 5, 3)).blocks((6,), 3)
    assert not NoProp().problems(blocks)
    assert "nothing to learn" in NoProp(0.0, 0.0).problems(blocks)[0]
