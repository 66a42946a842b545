"""Local classifiers against loops and losses written by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locallearn.chain import Row
from locallearn.rule import split_batch
from locallearn.rules.backprop import Backprop
from locallearn.rules.local_classifier import LocalClassifier, similarity, similarity_map
from locallearn.traffic import Channel


def cosines(rows):
    """Cosine similarity of all pairs of centred rows, one pair at a time."""
    rows = [np.asarray(row) - np.mean(row) for row in rows]
    return np.array([[float(a @ b) / math.sqrt(float(a @ a) * float(b @ b)) for b in rows] for a in rows])


def cross_entropy(scores, y):
    return -jnp.mean(jax.nn.log_softmax(scores)[jnp.arange(len(y)), y])


def corrcoef_loss(features, y, classes):
    """The similarity loss by another road: the cosine of centred rows is their correlation."""
    same = y[:, None] == y[None, :]
    return jnp.mean((jnp.corrcoef(features) - jnp.where(same, 1.0, -1 / (classes - 1))) ** 2)


def by_hand(params, x, y, beta, dense):
    h = dense(params.block, x)
    pred = cross_entropy(h @ params.head.decoder + params.head.bias, y)
    return (1 - beta) * pred + (beta * corrcoef_loss(h @ params.head.g, y, 3) if beta else 0)


@pytest.mark.parametrize("beta", [0.0, 0.99])
def test_one_block_is_backpropagation(small, assert_close, beta):
    net, reference = small(LocalClassifier(beta), (6, 3)), small(Backprop(), (6, 3))
    reference.state = Row(s._replace(params=s.params.block) for s in net.state)
    (grads,), _, loss = net.gradients()
    (expected,), _, expected_loss = reference.gradients()
    assert_close(grads.block, expected)
    assert loss == expected_loss


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.99, 1.0])
def test_every_block_descends_its_own_loss(small, dense, assert_close, beta):
    net = small(LocalClassifier(beta))
    grads, _, _ = net.gradients()
    x = net.batch.x
    for i in range(3):
        expected = jax.jit(jax.grad(lambda params, x=x: by_hand(params, x, net.batch.y, beta, dense)))(net.state[i].params)
        if beta == 1:
            assert not jnp.any(grads[i].head.decoder)
            assert_close((grads[i].block, grads[i].head.g), (expected.block, expected.head.g), 1e-7)
        else:
            assert_close(grads[i], expected, 1e-7)
        x = dense(net.state[i].params.block, x)

    def at_the_top(params):
        return cross_entropy(dense(params.block, x, lambda u: u), net.batch.y)

    assert_close(grads[3], jax.jit(jax.grad(at_the_top))(net.state[3].params))


@pytest.mark.parametrize("changed", range(4))
def test_a_block_depends_on_those_below_it_and_on_no_other(small, changed):
    net = small(LocalClassifier())
    before, _, _ = net.gradients()
    after, _, _ = net.gradients(net.shaken_at(changed))
    for i in range(4):
        same = jax.tree.map(lambda a, b: bool(jnp.all(a == b)), before[i], after[i])
        assert all(jax.tree.leaves(same)) == (i < changed)


def test_similarity_is_the_cosine_of_each_pair(small):
    rows = np.random.default_rng(0).normal(size=(5, 9)) + 3
    np.testing.assert_allclose(similarity(jnp.asarray(rows)), cosines(rows), atol=1e-8)


def test_similarity_of_labels_is_one_within_a_class(small):
    other = -1 / 3
    wanted = [[1, other, 1, other], [other, 1, other, other], [1, other, 1, other], [other, other, other, 1]]
    np.testing.assert_allclose(similarity(jnp.eye(4)[jnp.array([0, 2, 0, 3])]), wanted, atol=1e-7)


def test_similarity_of_features_in_space_compares_how_much_each_channel_varies(small):
    features = np.random.default_rng(0).normal(size=(4, 3, 5, 6)) * np.arange(1, 7)
    np.testing.assert_allclose(similarity(jnp.asarray(features)), cosines(features.std((1, 2))), atol=1e-7)


def test_silent_rows_have_a_finite_gradient(small):
    slopes = jax.grad(lambda rows: jnp.sum((similarity(rows) - 1) ** 2))(jnp.zeros((3, 4)).at[0, 0].set(1))
    assert jnp.all(jnp.isfinite(slopes))


def test_the_similarity_map_of_dense_features_is_a_matrix(small):
    rng = np.random.default_rng(0)
    g, h = rng.normal(size=(5, 5)), rng.normal(size=(3, 5))
    np.testing.assert_allclose(similarity_map(jnp.asarray(g), jnp.asarray(h)), h @ g, atol=1e-14)


def test_the_similarity_map_of_features_in_space_is_a_convolution(small):
    rng = np.random.default_rng(0)
    g, h = rng.normal(size=(3, 3, 2, 2)), rng.normal(size=(1, 4, 5, 2))
    padded, expected = np.pad(h, ((0, 0), (1, 1), (1, 1), (0, 0))), np.zeros_like(h)
    for i in range(4):
        for j in range(5):
            expected[0, i, j] = np.einsum("xyc,xycd->d", padded[0, i : i + 3, j : j + 3], g)
    np.testing.assert_allclose(similarity_map(jnp.asarray(g), jnp.asarray(h)), expected, atol=1e-13)


def test_decoders_begin_at_zero_so_that_pred_moves_them_first(small):
    net = small(LocalClassifier(0.0))
    fresh = [net.rule.init(block, jax.random.PRNGKey(0)) for block in net.blocks]
    grads, _, _ = net.gradients(Row(fresh))
    for state, grad in zip(fresh[:-1], grads[:-1], strict=True):
        assert not jnp.any(state.params.head.decoder)
        assert not jnp.any(state.params.head.bias)
        assert not jnp.any(grad.block["linear"]["kernel"])
        assert jnp.any(grad.head.decoder)


@pytest.mark.parametrize("beta", [0.0, 0.99])
def test_gradients_add_up_over_the_batch_where_the_rule_says_so(small, beta):
    net = small(LocalClassifier(beta))
    whole, _, _ = net.gradients()
    halves = [net.gradients(batch=half)[0] for half in split_batch(net.batch, 2)]
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *halves)
    gap = max(float(jnp.max(jnp.abs(a - b))) for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(mean), strict=True))
    assert net.rule.additive_over_batch == (gap < 1e-12)
    assert net.rule.additive_over_batch == (beta == 0)


def test_a_boundary_carries_activities_up_and_one_byte_for_each_label_down(make_setup):
    setup = make_setup("local_classifier", shards=3, batch=12)  # widths 12-8-7-6-3: shards end after 7 and 6
    assert dict(setup.plan_step(setup.stages[0]).traffic.payload) == {
        Channel("activation", "activation", 0, 1): 12 * 7 * 4,
        Channel("activation", "activation", 1, 2): 12 * 6 * 4,
        Channel("label", "label", 2, 0): 12,
        Channel("label", "label", 2, 1): 12,
    }


def test_a_block_for_images_descends_the_same_loss(convolutional, assert_close):
    net = convolutional(LocalClassifier(0.9))
    grads, _, _ = net.gradients()

    def local(params):
        h = net.blocks[0].apply(params.block, net.batch.x)
        pred = cross_entropy(h.reshape(4, -1) @ params.head.decoder + params.head.bias, net.batch.y)
        g = jax.lax.conv_general_dilated(h, params.head.g, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return 0.1 * pred + 0.9 * corrcoef_loss(jnp.std(g, (1, 2)), net.batch.y, 3)

    assert_close(grads[0], jax.jit(jax.grad(local))(net.state[0].params), 1e-6)
