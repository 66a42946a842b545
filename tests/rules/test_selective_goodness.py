"""Selective and shape-sensitive goodness against their equations written by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locallearn.rules.selective_goodness import SelectiveGoodness, asked, burstiness, top_k
from locallearn.traffic import Channel


def rms(a):
    return a / np.sqrt((a**2).mean(1, keepdims=True))


def layers(net, labels):
    """[(what the block sees, h)] of the hidden blocks, with tanh, where all of them are asked about these labels."""
    a, pairs = rms(np.asarray(net.batch.x)), []
    for state in net.state.values[:-1]:
        linear = state.params.block["linear"]
        h = np.tanh(a @ np.asarray(linear["kernel"]) + np.asarray(linear["bias"]) + np.asarray(state.params.head)[labels])
        pairs.append((a, h))
        a = rms(h)
    return pairs


def kurtosis(h):
    return np.array([((v - v.mean()) ** 4).mean() / (((v - v.mean()) ** 2).mean() + 1e-6) ** 2 - 3 for v in h])


def largest(h, k):
    return np.array([np.sort(v**2)[-k:].mean() for v in h])


def both_labels(net):
    return np.split(np.asarray(asked(net.blocks[0], net.batch.y, net.batch.key)), 2)


def test_top_k_goodness_by_hand(small):
    """k = 4, 4 and 2 of 8, 7 and 5 units: gradients reach those alone."""
    net = small(SelectiveGoodness("top_k", share=0.5, threshold=0.3))
    grads, _, loss = net.gradients()
    right, wrong = both_labels(net)
    assert not np.any(right == wrong)
    total = 0.0
    for i, (plus, minus) in enumerate(zip(layers(net, right), layers(net, wrong), strict=True)):
        n = plus[1].shape[1]
        k = round(0.5 * n)
        kernel, projection = np.zeros((plus[0].shape[1], n)), np.zeros((3, n))
        for (a, h), labels, sign in ((plus, right, -1), (minus, wrong, 1)):
            excess = sign * (largest(h, k) - 0.3)
            total += np.log1p(np.exp(excess)).mean() / 2
            counted = h**2 >= np.sort(h**2, axis=1)[:, [-k]]
            by_u = (sign / (1 + np.exp(-excess)) / 8)[:, None] * counted * 2 * h / k * (1 - h**2)
            kernel += a.T @ by_u
            np.add.at(projection, labels, by_u)
        np.testing.assert_allclose(grads[i].block["linear"]["kernel"], kernel, atol=1e-12)
        np.testing.assert_allclose(grads[i].head, projection, atol=1e-12)
    assert float(loss) == pytest.approx(total, abs=1e-12)
    assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(grads[-1]))


def test_burstiness_by_hand(small):
    net = small(SelectiveGoodness(threshold=-0.5))
    grads, _, loss = net.gradients()
    right, wrong = both_labels(net)

    def total(state):
        losses = []
        net.state, kept = state, net.state
        for plus, minus in zip(layers(net, right), layers(net, wrong), strict=True):
            losses.append((np.log1p(np.exp(-0.5 - kurtosis(plus[1]))).mean() + np.log1p(np.exp(kurtosis(minus[1]) + 0.5)).mean()) / 2)
        net.state = kept
        return losses

    assert float(loss) == pytest.approx(sum(total(net.state)), abs=1e-12)
    for i in range(3):  # the gradient by differences, of the block's own loss alone
        head = np.asarray(net.state[i].params.head)
        for place in ((0, 1), (2, 3)):
            values = []
            for step in (1e-5, -1e-5):
                moved = head.copy()
                moved[place] += step
                state = net.state[i]._replace(params=net.state[i].params._replace(head=moved))
                values.append(total(type(net.state)(state if j == i else s for j, s in enumerate(net.state)))[i])
            assert float(grads[i].head[place]) == pytest.approx((values[0] - values[1]) / 2e-5, abs=1e-9)


def test_burstiness_does_not_see_scale_nor_offset_and_top_k_does(small):
    h = jnp.asarray(np.random.default_rng(0).gamma(0.5, size=(6, 400)))
    np.testing.assert_allclose(burstiness(10 * h + 5), burstiness(h), rtol=1e-4)
    np.testing.assert_allclose(top_k(10 * h, 0.02), 100 * top_k(h, 0.02), rtol=1e-12)
    np.testing.assert_allclose(top_k(h, 1.0), jnp.mean(h**2, 1), rtol=1e-12)


def test_burstiness_of_known_distributions(small):
    """Normal 0, uniform -6/5, Laplace 3; one active unit of n: n - 4 + 1/(n-1), about n."""
    rng = np.random.default_rng(0)
    draws = jnp.asarray(np.stack([f(size=200_000) for f in (rng.normal, rng.uniform, rng.laplace)]))
    np.testing.assert_allclose(burstiness(draws), [0, -1.2, 3], atol=0.1)
    n = 50
    p = 1 / n
    expected = (1 - 6 * p * (1 - p)) / (p * (1 - p))  # Bernoulli
    np.testing.assert_allclose(burstiness(100.0 * jnp.eye(n)[:1]), expected, rtol=1e-6)


def test_prediction_asks_every_block_about_each_label(small):
    net = small(SelectiveGoodness())
    g = [[kurtosis(h) for _, h in layers(net, np.full(4, c))] for c in range(3)]
    for skip in (0, 1):
        expected = np.stack([sum(each[skip:]) for each in g], 1)
        scores = SelectiveGoodness(skip=skip).predict(net.chain, net.state, net.batch.x)
        np.testing.assert_allclose(scores, expected - expected.mean(1, keepdims=True), atol=1e-11)
    margin = net.rule.diagnose(net.chain, net.state, net.batch)["margin"]
    for i, pairs in enumerate(zip(*(layers(net, labels) for labels in both_labels(net)), strict=True)):
        assert float(margin[i]) == pytest.approx(np.mean(kurtosis(pairs[0][1]) - kurtosis(pairs[1][1])), abs=1e-11)
    assert margin[3] == 0


@pytest.mark.parametrize("changed", range(4))
def test_no_gradient_passes_between_blocks(small, changed):
    net = small(SelectiveGoodness())
    before, after = net.gradients()[0], net.gradients(net.shaken_at(changed))[0]
    for i in range(3):
        same = jax.tree.map(lambda a, b: bool(jnp.all(a == b)), before[i], after[i])
        assert all(jax.tree.leaves(same)) == (i < changed)


def test_images_take_a_label_in_each_channel(convolutional):
    net = convolutional(SelectiveGoodness())
    grads, _, _ = net.gradients()
    assert [g.head.shape for g in grads[:2]] == [(3, 3), (3, 2)]
    assert all(jnp.any(g.head != 0) for g in grads[:2])
    assert net.rule.predict(net.chain, net.state, net.batch.x).shape == (4, 3)


def test_two_activities_up_labels_to_all(make_setup):
    setup = make_setup("selective_goodness", shards=4, batch=12)
    assert dict(setup.plan_step(setup.stages[0]).traffic.payload) == {
        **{Channel("label", "label", 3, i): 12 for i in range(3)},
        Channel("activation", "activation", 0, 1): 2 * 12 * 8 * 4,
        Channel("activation", "activation", 1, 2): 2 * 12 * 7 * 4,
        **{Channel("loss", "scalar", i, i + 1): 4 for i in range(3)},
    }
