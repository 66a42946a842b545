"""Node perturbation against a loop over units, and against backpropagation on average."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locallearn.rules.backprop import Backprop
from locallearn.rules.node_perturbation import NodePerturbation, jitter
from tests.rules.measures import flat


def noises(net, sigma, number=0):
    """ξ_l of every block: a list of [batch, units]."""
    return [
        sigma * np.asarray(jitter(b, s, net.batch.key, number, jnp.zeros((4, *b.in_shape))))
        for b, s in zip(net.blocks, net.state, strict=True)
    ]


def run(net, xi):
    """(losses, activities below each block) of one noisy pass, in numpy."""
    h, below = np.asarray(net.batch.x), []
    for i, (state, noise) in enumerate(zip(net.state, xi, strict=True)):
        below.append(h)
        p = state.params["linear"]
        u = h @ np.asarray(p["kernel"]) + np.asarray(p["bias"]) + noise
        h = np.tanh(u) if i < 3 else u
    return np.log(np.exp(h).sum(1)) - h[np.arange(4), np.asarray(net.batch.y)], below


@pytest.mark.parametrize("sigma", [0.5, 1e-2])
@pytest.mark.parametrize("samples", [1, 2])
def test_every_unit_is_credited_with_the_change_of_the_loss(small, sigma, samples):
    net = small(NodePerturbation(sigma, samples))
    grads, _, loss = net.gradients()
    clean, below = run(net, [0.0] * 4)
    assert float(loss) == pytest.approx(clean.mean(), abs=1e-13)
    for i in range(4):
        kernel, bias = 0.0, 0.0
        for k in range(samples):
            xi = noises(net, sigma, k)
            delta = run(net, xi)[0] - clean
            for n in range(4):
                kernel = kernel + delta[n] * np.outer(below[i][n], xi[i][n]) / sigma**2 / 4 / samples
                bias = bias + delta[n] * xi[i][n] / sigma**2 / 4 / samples
        np.testing.assert_allclose(grads[i]["linear"]["kernel"], kernel, rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(grads[i]["linear"]["bias"], bias, rtol=1e-9, atol=1e-11)


def test_its_mean_is_backpropagation(small):
    """Up to O(σ²), with the spread of as many draws."""
    net, count = small(NodePerturbation(1e-3)), 20_000
    expected = flat(small(Backprop()).gradients(net.state)[0])

    def one(key):
        grads, _, _ = net.rule.gradients(net.chain, net.state, net.batch._replace(key=key))
        return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(list(grads))])

    draws = np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.PRNGKey(3), count)))
    spread = np.sqrt(np.var(draws, 0).sum() / count)
    error = np.linalg.norm(draws.mean(0) - expected)
    assert error == pytest.approx(spread, rel=0.25)
    assert error < 0.06 * np.linalg.norm(expected)
    assert np.linalg.norm(draws[0] - expected) > np.linalg.norm(expected), "a single draw is far away"


def test_small_noise_gives_the_directional_derivative(small):
    """δ / σ tends to ⟨∂loss/∂u, ξ/σ⟩ with an error O(σ): identical noise, and every σ a tenth of the one before."""
    nets = [small(NodePerturbation(sigma)) for sigma in (1e-2, 1e-3, 1e-4, 1e-6)]
    *others, limit = (flat(net.gradients()[0]) for net in nets)
    errors = [np.linalg.norm(g - limit) for g in others]
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(10, rel=0.1)


def test_normalisation_keeps_its_parameters(small):
    net = small(NodePerturbation(), norm="layer")
    grads, _, _ = net.gradients()
    for g in grads[:3]:
        assert not np.any(flat(g["norm"]))
        assert np.all(flat(g["linear"]) != 0)


def test_convolutions_have_noise_in_every_position(convolutional):
    net = convolutional(NodePerturbation())
    noise = jitter(net.blocks[0], net.state[0], net.batch.key, 0, net.batch.x)
    assert len(np.unique(noise)) == noise.size
    assert all(np.any(flat(g) != 0) for g in net.gradients()[0])


def test_its_diagnosis(small):
    net = small(NodePerturbation())
    found = net.rule.diagnose(net.chain, net.state, net.batch)
    np.testing.assert_allclose(list(found["gradient_norm"]), [np.linalg.norm(flat(g)) for g in net.gradients()[0]], rtol=1e-12)
    delta = run(net, noises(net, 0.01))[0] - run(net, [0.0] * 4)[0]
    np.testing.assert_allclose(list(found["projection"]), np.abs(delta).mean() / 0.01, rtol=1e-6)
