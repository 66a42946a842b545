"""SymBa against its equations written by hand, and its symmetry."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locallearn.block import State
from locallearn.rules.symba import Shown, SymBa, contrast, pair, patterns
from locallearn.traffic import Channel

ALPHA = 1.7


def rms(a):
    return a / np.sqrt((a**2).mean(1, keepdims=True))


def dense(params, x):
    return x @ np.asarray(params["linear"]["kernel"]) + np.asarray(params["linear"]["bias"])


def layers(net, labels):
    """[(what the block sees, h)] of the hidden blocks, with tanh, where the examples are shown with these labels."""
    bottom = net.state[0].params
    x, p = rms(np.asarray(net.batch.x)), np.asarray(patterns(net.blocks[0]))[labels]
    pairs = [((x, p), np.tanh(dense(bottom.block, x) + dense(bottom.head, p)))]
    for state in net.state.values[1:-1]:
        a = rms(pairs[-1][1])
        pairs.append(((a,), np.tanh(dense(state.params.block, a))))
    return pairs


def drawn(net):
    """The labels of the negatives."""
    return np.asarray(pair(net.blocks[0], net.batch.x, net.batch.y, net.batch.key).labels[4:])


def test_every_hidden_block_descends_the_difference_of_each_pair(small):
    net = small(SymBa(ALPHA))
    grads, _, loss = net.gradients()
    y, total = np.asarray(net.batch.y), 0.0
    assert not np.any(drawn(net) == y)
    for i, (plus, minus) in enumerate(zip(layers(net, y), layers(net, drawn(net)), strict=True)):
        difference = (plus[1] ** 2).mean(1) - (minus[1] ** 2).mean(1)
        pull = ALPHA / (1 + np.exp(ALPHA * difference)) / 4
        n = plus[1].shape[1]
        by_u = [sign * pull[:, None] * 2 * h / n * (1 - h**2) for sign, (_, h) in ((-1, plus), (1, minus))]
        kernel = plus[0][0].T @ by_u[0] + minus[0][0].T @ by_u[1]
        np.testing.assert_allclose(grads[i].block["linear"]["kernel"], kernel, atol=1e-12)
        np.testing.assert_allclose(grads[i].block["linear"]["bias"], by_u[0].sum(0) + by_u[1].sum(0), atol=1e-12)
        if i == 0:
            pattern = plus[0][1].T @ by_u[0] + minus[0][1].T @ by_u[1]
            np.testing.assert_allclose(grads[0].head["linear"]["kernel"], pattern, atol=1e-12)
        total += np.log1p(np.exp(-ALPHA * difference)).mean()
    assert float(loss) == pytest.approx(total, abs=1e-12)
    assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(grads[-1]))


def test_positive_and_negative_change_places(small):
    """softplus(-αΔ) - softplus(αΔ) = -αΔ; and the gradients are opposite, each pair's in the ratio e^{αΔ}: σ(αΔ) to σ(-αΔ)."""
    net = small(SymBa(ALPHA), count=1)
    block, state = net.blocks[1], net.state[1]
    both = jnp.asarray(np.random.default_rng(3).normal(size=(2, 8)))
    one = contrast(block, state, both, alpha=ALPHA)
    other = contrast(block, state, both[::-1], alpha=ALPHA)
    assert float(one.margin) == pytest.approx(-float(other.margin), abs=1e-14)
    assert float(one.loss - other.loss) == pytest.approx(-ALPHA * float(one.margin), abs=1e-13)
    ratio = np.exp(ALPHA * float(one.margin))
    for a, b in zip(jax.tree.leaves(one.grads), jax.tree.leaves(other.grads), strict=True):
        assert jnp.any(a != 0)
        np.testing.assert_allclose(b, -ratio * a, atol=1e-13)


def test_what_cannot_be_told_apart_pulls_nowhere(small):
    net = small(SymBa())
    same = jnp.tile(jnp.asarray(np.random.default_rng(3).normal(size=(4, 8))), (2, 1))
    learnt = contrast(net.blocks[1], net.state[1], same, alpha=4.0)
    assert float(learnt.loss) == pytest.approx(np.log(2), abs=1e-14)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(learnt.grads)) < 1e-14


def test_kernels_for_the_pattern_are_kernels_for_further_channels(convolutional):
    """A convolution of x and the pattern, one on top of the other."""
    net = convolutional(SymBa())
    block, params = net.blocks[0], net.state[0].params
    labels = jnp.asarray([0, 2, 1, 0])
    a = contrast(block, State(params), Shown(net.batch.x[:2], labels), alpha=1.0)
    p = patterns(block)[labels].astype(jnp.float64)
    x = jnp.concatenate([net.batch.x[:2], net.batch.x[:2]])
    both = jnp.concatenate([x, p], -1)
    kernel = jnp.concatenate([params.block["inner"]["kernel"], params.head["inner"]["kernel"]], 2)
    u = jax.lax.conv_general_dilated(both, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    h = jnp.tanh(u + params.block["inner"]["bias"] + params.head["inner"]["bias"])
    g = jnp.mean(h**2, (1, 2, 3))
    assert float(a.margin) == pytest.approx(float(jnp.mean(g[:2] - g[2:])), abs=1e-12)


def test_patterns_tell_classes_apart_and_are_the_same_in_every_run(small):
    block = small(SymBa()).blocks[0]
    p = np.asarray(patterns(block))
    assert p.shape == (3, 6)
    assert set(p.ravel().tolist()) == {-1.0, 1.0}
    assert len({row.tobytes() for row in p}) == 3
    np.testing.assert_array_equal(p, patterns(small(SymBa(), seed=7).blocks[0]))


def test_prediction_shows_each_pattern_in_turn(small):
    net = small(SymBa())
    g = [[(h**2).mean(1) for _, h in layers(net, np.full(4, c))] for c in range(3)]
    for skip in (0, 1):
        expected = np.stack([sum(each[skip:]) for each in g], 1)
        scores = SymBa(skip=skip).predict(net.chain, net.state, net.batch.x)
        np.testing.assert_allclose(scores, expected - expected.mean(1, keepdims=True), atol=1e-12)
    margin = net.rule.diagnose(net.chain, net.state, net.batch)["margin"]
    pairs = zip(layers(net, np.asarray(net.batch.y)), layers(net, drawn(net)), strict=True)
    for i, (plus, minus) in enumerate(pairs):
        assert float(margin[i]) == pytest.approx((plus[1] ** 2).mean() - (minus[1] ** 2).mean(), abs=1e-12)
    assert margin[3] == 0


@pytest.mark.parametrize("changed", range(4))
def test_no_gradient_passes_between_blocks(small, changed):
    net = small(SymBa())
    before, after = net.gradients()[0], net.gradients(net.shaken_at(changed))[0]
    for i in range(3):
        same = jax.tree.map(lambda a, b: bool(jnp.all(a == b)), before[i], after[i])
        assert all(jax.tree.leaves(same)) == (i < changed)


def test_two_activities_up_and_nothing_to_the_top(make_setup):
    setup = make_setup("symba", shards=4, batch=12)
    assert dict(setup.plan_step(setup.stages[0]).traffic.payload) == {
        Channel("label", "label", 3, 0): 12,
        Channel("activation", "activation", 0, 1): 2 * 12 * 8 * 4,
        Channel("activation", "activation", 1, 2): 2 * 12 * 7 * 4,
        **{Channel("loss", "scalar", i, i + 1): 4 for i in range(3)},
    }
