"""Activity-perturbed forward gradients against local gradients: exactly where nothing is random, else on average and in their variance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locallearn.models import MLP
from locallearn.rules._perturbation import noise, own_key
from locallearn.rules.activity_forward_gradient import ActivityForwardGradient
from tests.rules.measures import flat

WIDTHS = (6, 8, 8, 8, 3)


def local_gradients(net, dense):
    """Each block's gradient of its own cross-entropy, by hand."""
    x, y, found = net.batch.x, net.batch.y, []
    for i, state in enumerate(net.state):

        def loss(params, x=x, i=i):
            h = dense(params.block, x, f=(lambda u: u) if i == 3 else jnp.tanh)
            scores = h if i == 3 else h @ params.head.decoder + params.head.bias
            return -jnp.mean(jax.nn.log_softmax(scores)[jnp.arange(len(y)), y])

        found.append(jax.grad(loss)(state.params))
        x = dense(state.params.block, x)
    return found


def test_signs_and_groups_of_one_unit_are_a_local_classifier(small, dense, assert_close):
    net = small(ActivityForwardGradient(8, "rademacher"), WIDTHS)
    assert_close(net.gradients()[0], local_gradients(net, dense))


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("distribution", ["normal", "rademacher"])
def test_each_group_has_a_number_of_its_own(small, dense, assert_close, groups, distribution):
    net = small(ActivityForwardGradient(groups, distribution), WIDTHS)
    grads, _, _ = net.gradients()
    x, exact = np.asarray(net.batch.x), local_gradients(net, dense)
    for i in range(3):
        params = net.state[i].params
        v = np.asarray(noise(own_key(net.blocks[i], net.batch.key), (4, 8), jnp.float64, distribution))
        kernel = np.zeros((len(x[0]), 8))
        for n in range(4):

            def loss(u, n=n, params=params):
                return -jax.nn.log_softmax(jnp.tanh(u) @ params.head.decoder + params.head.bias)[net.batch.y[n]]

            u = x[n] @ params.block["linear"]["kernel"] + params.block["linear"]["bias"]
            true, estimate = np.asarray(jax.grad(loss)(u)), np.zeros(8)
            for group in np.split(np.arange(8), groups):
                estimate[group] = (true[group] @ v[n, group]) * v[n, group]
            kernel += np.outer(x[n], estimate) / 4
        np.testing.assert_allclose(grads[i].block["linear"]["kernel"], kernel, rtol=0, atol=1e-12)
        assert_close(grads[i].head, exact[i].head)
        x = np.asarray(dense(params.block, x))
    assert_close(grads[3], exact[3])


@pytest.mark.parametrize(
    ("groups", "distribution", "ratio"), [(1, "normal", 10), (1, "rademacher", 8), (4, "normal", 4), (4, "rademacher", 2)]
)
def test_it_is_unbiased_with_the_variance_of_a_group(small, dense, groups, distribution, ratio):
    """With one example, E ‖estimate‖² is k + 2 (signs: k) times the square of the gradient, k the units of a group, not of the network."""
    net, count = small(ActivityForwardGradient(groups, distribution), WIDTHS, count=1), 20_000
    exact = flat(local_gradients(net, dense)[0].block)

    def one(key):
        grads, _, _ = net.rule.gradients(net.chain, net.state, net.batch._replace(key=key))
        return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(grads[0].block)])

    draws = np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.PRNGKey(5), count)))
    error = np.linalg.norm(draws.mean(0) - exact) / np.linalg.norm(exact)
    assert error < 1.6 * np.sqrt((ratio - 1) / count)
    assert error < 0.035
    assert np.mean(np.sum(draws**2, 1)) / (exact @ exact) == pytest.approx(ratio, rel=0.06)


def test_nothing_comes_from_above(small):
    assert small(ActivityForwardGradient()).influences() == [{0}, {0, 1}, {0, 1, 2}, {0, 1, 2, 3}]


def test_groups_of_a_convolution_are_of_channels(convolutional):
    net = convolutional(ActivityForwardGradient())
    assert all(np.any(flat(g) != 0) for g in net.gradients()[0])


def test_groups_must_divide_the_units():
    blocks = MLP(widths=(6, 8, 7, 3)).blocks((6,))
    assert not ActivityForwardGradient().problems(blocks)
    (problem,) = ActivityForwardGradient(groups=4).problems(blocks)
    assert "block 1 has 7" in problem


def test_its_diagnosis(small):
    net = small(ActivityForwardGradient())
    found = net.rule.diagnose(net.chain, net.state, net.batch)
    np.testing.assert_allclose(list(found["gradient_norm"]), [np.linalg.norm(flat(g)) for g in net.gradients()[0]], rtol=1e-12)
