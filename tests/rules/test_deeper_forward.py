"""DeeperForward against its equations written by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locallearn.rules.deeper_forward import DeeperForward, normalised
from locallearn.traffic import Channel

WIDTHS = (6, 9, 6, 3)


def softmax(g):
    e = np.exp(g - g.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def standard(v):
    return (v - v.mean(1, keepdims=True)) / np.sqrt(v.var(1, keepdims=True) + 1e-5)


def layers(net):
    """[(what the hidden block sees, h)], with relu; and a_{L-1}."""
    a, pairs = standard(np.asarray(net.batch.x)), []
    for state in net.state.values[:-1]:
        h = np.maximum(a @ np.asarray(state.params["linear"]["kernel"]) + np.asarray(state.params["linear"]["bias"]), 0)
        pairs.append((a, h))
        a = np.concatenate([standard(group) for group in np.split(h, 3, axis=1)], 1)
    return pairs, a


def mean_goodness(h):
    return np.stack([group.mean(1) for group in np.split(h, 3, axis=1)], 1)


def test_every_hidden_block_descends_the_cross_entropy_of_its_mean_goodness(small):
    net = small(DeeperForward(), WIDTHS, "relu")
    grads, _, loss = net.gradients()
    y, total = np.asarray(net.batch.y), 0.0
    for i, (a, h) in enumerate(layers(net)[0]):
        chance, n = softmax(mean_goodness(h)), h.shape[1] // 3
        by_u = np.repeat((chance - np.eye(3)[y]) / 4, n, axis=1) / n * (h > 0)
        np.testing.assert_allclose(grads[i]["linear"]["kernel"], a.T @ by_u, atol=1e-12)
        np.testing.assert_allclose(grads[i]["linear"]["bias"], by_u.sum(0), atol=1e-12)
        total -= np.log(chance[np.arange(4), y]).mean()
    assert float(loss) == pytest.approx(total, abs=1e-12)
    assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(grads[-1]))


def test_an_active_units_gradient_does_not_shrink_with_its_activity(small):
    """What the paper holds against sums of squares: there it does."""
    net = small(DeeperForward(), WIDTHS, "relu")
    one, other = net.state, net.state
    params = {k: dict(v) for k, v in net.state[0].params.items()}
    size = []
    for bias in (1e-3, 1e-6):
        params = {"linear": {"kernel": net.state[0].params["linear"]["kernel"] * 0, "bias": jnp.full(9, bias)}}
        other = type(one)(s._replace(params=params) if j == 0 else s for j, s in enumerate(one))
        size.append(net.gradients(other)[0][0]["linear"]["bias"])
    assert jnp.all(size[0] != 0)
    np.testing.assert_allclose(size[0], size[1], atol=1e-12)


@pytest.mark.parametrize("shape", [(5, 12), (5, 4, 3, 6)])
def test_what_goes_up_tells_nothing_of_goodness(small, shape):
    h = jnp.asarray(np.random.default_rng(0).gamma(1.0, size=shape) * np.repeat([1.0, 10, 100], shape[-1] // 3))
    groups = np.split(np.asarray(normalised(h, 3)), 3, axis=-1)
    for group, before in zip(groups, np.split(np.asarray(h), 3, axis=-1), strict=True):
        flat, old = group.reshape(5, -1), before.reshape(5, -1)
        np.testing.assert_allclose(flat.mean(1), 0, atol=1e-12)
        np.testing.assert_allclose(flat.var(1), 1, atol=1e-3)
        np.testing.assert_allclose(flat, standard(old), atol=1e-12)


@pytest.mark.parametrize("changed", range(3))
def test_no_gradient_passes_between_blocks(small, changed):
    net = small(DeeperForward(inference="readout"), WIDTHS, "relu")
    before, after = net.gradients()[0], net.gradients(net.shaken_at(changed))[0]
    for i in range(3):
        same = jax.tree.map(lambda a, b: bool(jnp.all(a == b)), before[i], after[i])
        assert all(jax.tree.leaves(same)) == (i < changed)


def test_inference_by_goodness_and_by_read_out(small):
    net = small(DeeperForward(), WIDTHS, "relu")
    pairs, a = layers(net)
    g = [mean_goodness(h) for _, h in pairs]
    np.testing.assert_allclose(net.rule.predict(net.chain, net.state, net.batch.x), g[0] + g[1], atol=1e-12)
    np.testing.assert_allclose(DeeperForward(skip=1).predict(net.chain, net.state, net.batch.x), g[1], atol=1e-12)
    net = small(DeeperForward(inference="readout"), WIDTHS, "relu")
    grads, _, _ = net.gradients()
    top = net.state[-1].params["linear"]
    scores = a @ np.asarray(top["kernel"]) + np.asarray(top["bias"])
    np.testing.assert_allclose(net.rule.predict(net.chain, net.state, net.batch.x), scores, atol=1e-12)
    error = (softmax(scores) - np.eye(3)[np.asarray(net.batch.y)]) / 4
    np.testing.assert_allclose(grads[-1]["linear"]["kernel"], a.T @ error, atol=1e-12)
    y, margin = np.asarray(net.batch.y), net.rule.diagnose(net.chain, net.state, net.batch)["margin"]
    for i in range(2):
        expected = np.mean([g[i][k, y[k]] - np.delete(g[i][k], y[k]).mean() for k in range(4)])
        assert float(margin[i]) == pytest.approx(expected, abs=1e-12)
    assert margin[2] == 0


def test_what_cannot_be_is_refused(small):
    assert not DeeperForward(skip=1).problems(small(DeeperForward(), WIDTHS).blocks)
    assert "block 0 has one activity for each class" in DeeperForward().problems(small(DeeperForward(), (6, 3, 6, 3)).blocks)[0]
    assert "block 1 has 7" in DeeperForward().problems(small(DeeperForward(), (6, 9, 7, 3)).blocks)[0]


def test_one_activity_up_labels_to_all(make_setup):
    setup = make_setup("deeper_forward", shards=4, batch=12)  # widths 12-9-6-6-3
    assert dict(setup.plan_step(setup.stages[0]).traffic.payload) == {
        **{Channel("label", "label", 3, i): 12 for i in range(3)},
        Channel("activation", "activation", 0, 1): 12 * 9 * 4,
        Channel("activation", "activation", 1, 2): 12 * 6 * 4,
        **{Channel("loss", "scalar", i, i + 1): 4 for i in range(3)},
    }
