"""Forward gradients against backpropagation's gradient: along the direction exactly, without bias, and with the variance of theory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locallearn.rules._perturbation import direction
from locallearn.rules.backprop import Backprop
from locallearn.rules.forward_gradient import ForwardGradient
from tests.rules.measures import flat

DISTRIBUTIONS = ["normal", "rademacher"]


def truth(net):
    """Backpropagation's gradient, as one vector."""
    return flat(type(net)(Backprop(), (net.blocks[0].in_shape[0], *(b.out_shape[0] for b in net.blocks))).gradients(net.state)[0])


def draws(net, count):
    """The rule's estimates under as many keys: [count, d]."""

    def one(key):
        grads, _, _ = net.rule.gradients(net.chain, net.state, net.batch._replace(key=key))
        return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(list(grads))])

    return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.PRNGKey(7), count)))


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("samples", [1, 3])
def test_it_is_the_gradient_along_each_direction(small, distribution, samples):
    net = small(ForwardGradient(samples, distribution))
    g, expected = truth(net), 0
    for k in range(samples):
        v = flat([direction(b, s, net.batch.key, k, distribution=distribution) for b, s in zip(net.blocks, net.state, strict=True)])
        assert np.array_equal(np.abs(v), np.ones_like(v)) == (distribution == "rademacher")
        expected = expected + (g @ v) * v / samples
    np.testing.assert_allclose(flat(net.gradients()[0]), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("distribution", "more"), [("normal", 2), ("rademacher", 0)])
def test_it_is_unbiased_with_the_variance_of_theory(small, distribution, more):
    """E g v = ∇loss, and E ‖g v‖² = (d + 2) ‖∇loss‖² or d ‖∇loss‖²: no backpropagation, whose estimate has no variance."""
    count, net = 12_000, small(ForwardGradient(distribution=distribution))
    g, estimates = truth(net), draws(net, count)
    d = len(g)
    assert d == 177
    ratio = np.mean(np.sum(estimates**2, 1)) / (g @ g)
    assert ratio == pytest.approx(d + more, rel=0.05)
    error = np.linalg.norm(estimates.mean(0) - g) / np.linalg.norm(g)
    assert error == pytest.approx(np.sqrt((d + more - 1) / count), rel=0.25)


def test_more_directions_lessen_the_variance(small):
    one, four = (draws(small(ForwardGradient(samples)), 2000) for samples in (1, 4))
    assert np.mean(np.sum(np.var(one, 0))) / np.mean(np.sum(np.var(four, 0))) == pytest.approx(4, rel=0.15)


def test_convolutions(convolutional):
    net = convolutional(ForwardGradient())

    def loss(params):
        h = net.batch.x
        for block, p in zip(net.blocks, params, strict=True):
            h = block.apply(p, h)
        return -jnp.mean(jax.nn.log_softmax(h)[jnp.arange(len(h)), net.batch.y])

    g = flat(jax.grad(loss)([s.params for s in net.state]))
    v = flat([direction(b, s, net.batch.key, 0, distribution="normal") for b, s in zip(net.blocks, net.state, strict=True)])
    np.testing.assert_allclose(flat(net.gradients()[0]), (g @ v) * v, rtol=0, atol=1e-12)


def test_blocks_and_directions_are_independent(small):
    net = small(ForwardGradient(), (5, 5, 5))
    params = [direction(b, s, net.batch.key, k, distribution="normal") for b, s in zip(net.blocks, net.state, strict=True) for k in (0, 1)]
    numbers = np.concatenate([flat(v) for v in params])
    assert len(np.unique(numbers)) == len(numbers)


def test_its_diagnosis_is_the_length_of_the_estimate(small):
    net = small(ForwardGradient())
    found = net.rule.diagnose(net.chain, net.state, net.batch)
    lengths = [np.linalg.norm(flat(g)) for g in net.gradients()[0]]
    np.testing.assert_allclose(list(found["gradient_norm"]), lengths, rtol=1e-12)
    total = np.linalg.norm(
        flat([direction(b, s, net.batch.key, 0, distribution="normal") for b, s in zip(net.blocks, net.state, strict=True)])
    )
    np.testing.assert_allclose(list(found["projection"]), np.linalg.norm(lengths) / total, rtol=1e-6)
