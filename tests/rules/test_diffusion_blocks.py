"""DiffusionBlocks against the noise distribution, the preconditioning of its source, and predictions by hand."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from locallearn.models import MLP
from locallearn.models.denoiser import Denoiser
from locallearn.rules.diffusion_blocks import DiffusionBlocks, edges, guess, quantiles

DEPTH = 3


@pytest.fixture
def net(small):
    """A net of three blocks 6-5-3."""
    return small(DiffusionBlocks(0.1), widths=(6, 3), blocks=Denoiser(widths=(6, 5, 3), depth=DEPTH, activation="tanh").blocks((6,), 3))


def denoised(params, x, z, sigma):
    """R(D) by hand. sigma: [batch, 1]."""
    s = jnp.concatenate([x, z / jnp.sqrt(sigma**2 + 0.25), jnp.log(sigma) / 4], 1)
    first, second = params.block["layers"][0], params.block["layers"][1]
    f = jnp.tanh(s @ first["kernel"] + first["bias"]) @ second["kernel"] + second["bias"]
    skip, out = 0.25 / (sigma**2 + 0.25), sigma * 0.5 / jnp.sqrt(sigma**2 + 0.25)
    return (skip * z + out * f) @ params.head.kernel + params.head.bias


def test_ranges_have_equal_probability():
    found = edges(7)
    shares = norm.cdf((np.log(found) + 1.2) / 1.2)
    assert (found[0], found[-1]) == (80.0, 0.002)
    np.testing.assert_allclose(-np.diff(shares), (shares[0] - shares[-1]) / 7, rtol=1e-9)


def test_the_preconditioned_target_has_unit_variance():
    """(u - c_skip z) / c_out, which f has to be, for u ~ N(0, σ_d²): of variance 1 at every σ, as its source derives."""
    for sigma in (0.01, 0.5, 20.0):
        skip, out = 0.25 / (sigma**2 + 0.25), sigma * 0.5 / math.sqrt(sigma**2 + 0.25)
        assert (0.25 * (1 - skip) ** 2 + skip**2 * sigma**2) / out**2 == pytest.approx(1, rel=1e-12)


def test_every_block_descends_its_own_loss_within_its_range(net, assert_close):
    grads, _, loss = net.gradients()
    u = jnp.eye(3)[net.batch.y]
    for i, block in enumerate(net.blocks):
        levels, noise = jax.random.split(jax.random.fold_in(net.batch.key, i))
        low, high = quantiles(block, 0.1)
        sigma = jnp.asarray(np.exp(norm.ppf(jax.random.uniform(levels, (4, 1), jnp.float64, low, high), -1.2, 1.2)))
        top, bottom = edges(DEPTH)[i : i + 2]
        wide = 0.1 * math.log(top / bottom)
        assert np.all(np.log(sigma) <= math.log(top) + wide)
        assert np.all(np.log(sigma) >= math.log(bottom) - wide)
        z = u + sigma * jax.random.normal(noise, (4, 3), jnp.float64)

        def by_hand(params, z=z, sigma=sigma):
            each = -jnp.sum(u * jax.nn.log_softmax(denoised(params, net.batch.x, z, sigma)), 1)
            return jnp.mean((sigma[:, 0] ** 2 + 0.25) / (0.5 * sigma[:, 0]) ** 2 * each)

        value, expected = jax.value_and_grad(by_hand)(net.state[i].params)
        scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
        assert_close(jax.tree.map(lambda g, s=scale: g / s, grads[i]), jax.tree.map(lambda g, s=scale: g / s, expected), 1e-9)
    assert float(loss) == pytest.approx(float(value), rel=1e-9)


def test_without_noise_the_guess_is_what_is_there(net):
    """σ → 0: D → z."""
    params, z = net.state[1].params, jnp.eye(3)[net.batch.y]
    out, _ = guess(net.blocks[1], params, net.batch.x, z, jnp.full((4, 1), 1e-9))
    np.testing.assert_allclose(out, z @ params.head.kernel + params.head.bias, atol=1e-7)


def test_predictions_are_euler_steps(net):
    z, sigmas = jnp.zeros((4, 3)), edges(DEPTH)
    for i in range(DEPTH):
        scores = denoised(net.state[i].params, net.batch.x, z, jnp.full((4, 1), sigmas[i]))
        z = z + (sigmas[i + 1] - sigmas[i]) * (z - jax.nn.softmax(scores)) / sigmas[i]
    np.testing.assert_allclose(net.rule.predict(net.chain, net.state, net.batch.x), scores, atol=1e-12)


def test_a_step_to_zero_noise_is_the_guess():
    """The flow of a perfect guess is a straight line: from z, a share σ'/σ of the way is left."""
    sigmas, z, p = edges(5), 3.0, 1.0
    for now, after in itertools.pairwise(sigmas):
        z = z + (after - now) / now * (z - p)
    assert z - p == pytest.approx(2.0 * sigmas[-1] / sigmas[0], rel=1e-9)


def test_nothing_passes_between_blocks(net):
    assert net.influences() == [{i} for i in range(DEPTH)]


def test_its_diagnosis_is_one_number_for_each_block(net):
    (found,) = net.rule.diagnose(net.chain, net.state, net.batch).values()
    assert all(0 < float(error) < 2 for error in found)


def test_other_models_are_refused():
    assert "denoiser" in DiffusionBlocks().problems(MLP(widths=(6, 5, 3)).blocks((6,)))[0]
