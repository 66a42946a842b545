"""Channel-wise competition against its losses written by hand, group by group."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locallearn.rule import init_state
from locallearn.rules.channelwise import Channelwise, goodness
from locallearn.traffic import Channel

WIDTHS = (6, 9, 6, 3)


def softmax(g):
    e = np.exp(g - g.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def layers(net, f=np.tanh):
    """[(what the hidden block sees, h)]."""
    x, pairs = np.asarray(net.batch.x), []
    for state in net.state.values[:-1]:
        h = f(x @ np.asarray(state.params["linear"]["kernel"]) + np.asarray(state.params["linear"]["bias"]))
        pairs.append((x, h))
        x = h
    return pairs


def group_goodness(h, classes=3):
    """Unit by unit: the first n/C belong to class 0, the next to class 1, and so on."""
    n = h.shape[1] // classes
    return np.stack([(h[:, c * n : (c + 1) * n] ** 2).mean(1) for c in range(classes)], 1)


def test_every_hidden_block_descends_its_own_competition(small):
    net = small(Channelwise(), WIDTHS)
    grads, _, loss = net.gradients()
    y, total = np.asarray(net.batch.y), 0.0
    for i, (x, h) in enumerate(layers(net)):
        chance, n = softmax(group_goodness(h)), h.shape[1] // 3
        by_goodness = (chance - np.eye(3)[y]) / 4
        by_h = np.repeat(by_goodness, n, axis=1) * 2 * h / n
        by_u = by_h * (1 - h**2)
        np.testing.assert_allclose(grads[i]["linear"]["kernel"], x.T @ by_u, atol=1e-13)
        np.testing.assert_allclose(grads[i]["linear"]["bias"], by_u.sum(0), atol=1e-13)
        total -= np.log(chance[np.arange(4), y]).mean()
    assert loss == pytest.approx(total, abs=1e-12)
    assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(grads[-1]))


@pytest.mark.parametrize("changed", range(3))
def test_no_gradient_passes_between_blocks(small, changed):
    net = small(Channelwise(inference="readout"), WIDTHS)
    before, after = net.gradients()[0], net.gradients(net.shaken_at(changed))[0]
    for i in range(3):
        same = jax.tree.map(lambda a, b: bool(jnp.all(a == b)), before[i], after[i])
        assert all(jax.tree.leaves(same)) == (i < changed)


def test_classes_that_change_places_with_their_groups_change_nothing_else(small):
    net = small(Channelwise(), WIDTHS)
    grads, _, loss = net.gradients()
    order = np.array([2, 0, 1])
    units = [(order[:, None] * n + np.arange(n)).ravel() for n in (3, 2)]
    moved = net.state
    for i, unit in enumerate(units):
        p = moved[i].params["linear"]
        kernel = p["kernel"][:, unit] if i == 0 else p["kernel"][units[0]][:, unit]
        moved = type(moved)(
            s._replace(params={"linear": {"kernel": kernel, "bias": p["bias"][unit]}}) if j == i else s for j, s in enumerate(moved)
        )
    inverse = np.argsort(order)
    other, _, other_loss = net.gradients(moved, net.batch._replace(y=jnp.asarray(inverse[np.asarray(net.batch.y)], jnp.int32)))
    assert float(other_loss) == pytest.approx(float(loss), abs=1e-13)
    np.testing.assert_allclose(other[0]["linear"]["kernel"], grads[0]["linear"]["kernel"][:, units[0]], atol=1e-13)
    np.testing.assert_allclose(other[1]["linear"]["kernel"], grads[1]["linear"]["kernel"][units[0]][:, units[1]], atol=1e-13)


def test_inference_by_goodness_and_by_read_out(small):
    net = small(Channelwise(), WIDTHS)
    g = [group_goodness(h) for _, h in layers(net)]
    np.testing.assert_allclose(net.rule.predict(net.chain, net.state, net.batch.x), g[0] + g[1], atol=1e-13)
    last = Channelwise(skip=1)
    np.testing.assert_allclose(last.predict(net.chain, net.state, net.batch.x), g[1], atol=1e-13)
    net = small(Channelwise(inference="readout"), WIDTHS)
    grads, _, _ = net.gradients()
    h, top = layers(net)[-1][1], net.state[-1].params["linear"]
    scores = h @ np.asarray(top["kernel"]) + np.asarray(top["bias"])
    np.testing.assert_allclose(net.rule.predict(net.chain, net.state, net.batch.x), scores, atol=1e-13)
    error = (softmax(scores) - np.eye(3)[np.asarray(net.batch.y)]) / 4
    np.testing.assert_allclose(grads[-1]["linear"]["kernel"], h.T @ error, atol=1e-13)


def test_the_margin_is_the_right_class_less_the_others(small):
    net = small(Channelwise(), WIDTHS)
    margin = net.rule.diagnose(net.chain, net.state, net.batch)["margin"]
    for i, (_, h) in enumerate(layers(net)):
        g, y = group_goodness(h), np.asarray(net.batch.y)
        expected = np.mean([g[k, y[k]] - np.delete(g[k], y[k]).mean() for k in range(4)])
        assert margin[i] == pytest.approx(expected, abs=1e-13)
    assert margin[2] == 0


def test_goodness_of_images_is_a_mean_over_a_groups_channels_and_positions(convolutional):
    net = convolutional(Channelwise())
    assert "block 1 has 2" in net.rule.problems(net.blocks)[0]
    h = np.asarray(net.blocks[0].apply(net.state[0].params, net.batch.x))
    expected = np.stack([(h[..., c] ** 2).mean((1, 2)) for c in range(3)], 1)
    np.testing.assert_allclose(goodness(net.blocks[0], net.state[0].params, net.batch.x), expected, atol=1e-13)


def test_a_separator_is_a_group_of_small_blocks_of_its_own(small):
    """The second hidden block, with `separate`: three dense layers 3 -> 2, one for each class, and it stays so."""
    rule = Channelwise(separate=True)
    net = small(rule, WIDTHS)
    state = init_state(rule, net.blocks, 0)
    full = init_state(Channelwise(), net.blocks, 0)
    kernel, all_weights = (np.asarray(s[1].params["linear"]["kernel"]) for s in (state, full))
    own = np.kron(np.eye(3), np.ones((3, 2)))
    np.testing.assert_allclose(kernel, all_weights * own * np.sqrt(3), atol=1e-6)
    np.testing.assert_array_equal(state[0].params["linear"]["kernel"], full[0].params["linear"]["kernel"])
    grads, whole = net.gradients()[0], small(Channelwise(), WIDTHS).gradients()[0]
    np.testing.assert_allclose(grads[1]["linear"]["kernel"], whole[1]["linear"]["kernel"] * own, atol=1e-13)
    assert np.all((np.asarray(grads[1]["linear"]["kernel"]) != 0) == (own != 0))
    np.testing.assert_allclose(grads[0]["linear"]["kernel"], whole[0]["linear"]["kernel"], atol=1e-13)


def test_what_cannot_be_is_refused(small):
    blocks = small(Channelwise(), WIDTHS).blocks
    assert not Channelwise(skip=1).problems(blocks)
    assert "skips 2 blocks" in Channelwise(skip=2).problems(blocks)[0]
    assert "block 1 has 7" in Channelwise().problems(small(Channelwise(), (6, 9, 7, 3)).blocks)[0]
    assert "needs a hidden block" in Channelwise().problems(small(Channelwise(), (6, 3)).blocks)[0]


def test_one_activity_up_labels_to_all(make_setup):
    setup = make_setup("channelwise", shards=4, batch=12)  # widths 12-9-6-6-3
    assert dict(setup.plan_step(setup.stages[0]).traffic.payload) == {
        **{Channel("label", "label", 3, i): 12 for i in range(3)},
        Channel("activation", "activation", 0, 1): 12 * 9 * 4,
        Channel("activation", "activation", 1, 2): 12 * 6 * 4,
        **{Channel("loss", "scalar", i, i + 1): 4 for i in range(3)},
    }
