"""Forward-forward against its equations written by hand, label by label and layer by layer."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locallearn.block import WithHead
from locallearn.chain import Row
from locallearn.rules._goodness import normalised, wrong_labels
from locallearn.rules._painting import paint, presentations
from locallearn.rules._readout import hard_labels
from locallearn.rules.forward_forward import ForwardForward, contrast
from locallearn.traffic import Channel


def rms(a):
    return jnp.sqrt(jnp.mean(a**2, axis=1, keepdims=True))


def shown(x, mark):
    """x with the mark on its first three values, divided by its root mean square."""
    painted = np.array(x)
    painted[:, :3] = mark
    return painted / rms(painted)


def hidden(net, a, f=jnp.tanh):
    """[(a_{l-1}, h_l)] of the hidden blocks."""
    pairs = []
    for state in net.state.values[:-1]:
        h = f(a @ state.params.block["linear"]["kernel"] + state.params.block["linear"]["bias"])
        pairs.append((a, h))
        a = h / rms(h)
    return pairs


def both(net):
    """a_0 of the positives and of the negatives, as the rule drew them."""
    a = presentations(net.blocks[0], net.batch.x, net.batch.y, None, net.batch.key)
    return a[:4], a[4:]


def test_painting_replaces_the_first_entries_and_no_other(small):
    x = jnp.arange(2 * 3 * 4, dtype=jnp.float64).reshape(2, 3, 4) + 1
    painted = paint(x, jnp.asarray([[0.0, 1, 0, 0, 0], [0.1] * 5]))
    assert painted.shape == x.shape
    np.testing.assert_array_equal(painted.reshape(2, 12)[:, :5], [[0, 1, 0, 0, 0], [0.1] * 5])
    np.testing.assert_array_equal(painted.reshape(2, 12)[:, 5:], x.reshape(2, 12)[:, 5:])


def test_wrong_labels_are_wrong_and_each_other_label_is_as_likely(small):
    y = jnp.tile(jnp.arange(5), 2000)
    wrong = wrong_labels(y, 5, jax.random.PRNGKey(0))
    counts = np.zeros((5, 5), int)
    np.add.at(counts, (np.asarray(y), np.asarray(wrong)), 1)
    assert np.all(np.diag(counts) == 0)
    assert np.all(np.abs(counts[~np.eye(5, dtype=bool)] - 500) < 5 * np.sqrt(2000 * 0.25 * 0.75))


def test_negatives_change_with_the_step_and_only_with_it(small):
    block, x, y = small(ForwardForward()).blocks[0], jnp.ones((64, 6)), jnp.zeros(64, jnp.int32)
    draw = [np.asarray(presentations(block, x, y, None, jax.random.PRNGKey(k))[64:]) for k in (0, 0, 1)]
    np.testing.assert_array_equal(draw[0], draw[1])
    assert np.any(draw[0] != draw[2])


def test_presentations_are_the_right_label_and_a_wrong_one(small):
    net = small(ForwardForward())
    x, y = net.batch.x, net.batch.y
    right, wrong = jnp.split(presentations(net.blocks[0], x, y.astype(jnp.uint8), None, net.batch.key), 2)
    np.testing.assert_allclose(right, shown(x, np.eye(3)[y]), atol=1e-7)
    drawn = jnp.argmax(wrong[:, :3], 1)
    assert not jnp.any(drawn == y)
    np.testing.assert_allclose(wrong, shown(x, np.eye(3)[drawn]), atol=1e-7)
    chosen = presentations(net.blocks[0], x, y, (y + 2) % 3, net.batch.key)[4:]
    np.testing.assert_allclose(chosen, shown(x, np.eye(3)[(y + 2) % 3]), atol=1e-7)


@pytest.mark.parametrize("shape", [(5, 7), (5, 3, 4, 2)])
def test_what_enters_a_block_has_mean_square_one(small, shape):
    a = jnp.asarray(np.random.default_rng(0).normal(size=shape)) * jnp.asarray([1e-3, 1, 3, 40, 1e6]).reshape(-1, *(1,) * (len(shape) - 1))
    np.testing.assert_allclose(jnp.mean(normalised(a) ** 2, tuple(range(1, len(shape)))), 1, atol=1e-5)
    assert not jnp.any(normalised(jnp.zeros(shape)))


@pytest.mark.parametrize("threshold", [1.0, 0.4])
def test_every_hidden_block_descends_its_own_contrast(small, dense, assert_close, threshold):
    net = small(ForwardForward(threshold, peer=0.0))
    grads, _, loss = net.gradients()
    losses = []
    for i, ((p, _), (n, _)) in enumerate(zip(*(hidden(net, a) for a in both(net)), strict=True)):

        def local(params, p=p, n=n):
            positive, negative = (jnp.sum(dense(params, a) ** 2, 1) for a in (p, n))
            theta = threshold * params["linear"]["bias"].shape[0]
            return (jnp.log1p(jnp.exp(theta - positive)).mean() + jnp.log1p(jnp.exp(negative - theta)).mean()) / 2

        value, expected = jax.jit(jax.value_and_grad(local))(net.state[i].params.block)
        assert_close(grads[i].block, expected, 1e-10)
        losses.append(float(value))
    assert len(losses) == 3
    assert loss == pytest.approx(sum(losses), abs=1e-10)


def test_the_gradient_of_a_relu_block_in_closed_form(small):
    net = small(ForwardForward(peer=0.0), activation="relu")
    grads, _, _ = net.gradients()
    for i, pairs in enumerate(zip(*(hidden(net, a, jax.nn.relu) for a in both(net)), strict=True)):
        expected = 0
        for (a, h), sign in zip(pairs, (1, -1), strict=True):
            chance = jax.nn.sigmoid(sign * (h.shape[1] - jnp.sum(h**2, 1)))
            expected += a.T @ (-sign * chance[:, None] * 2 * h) / 8
        np.testing.assert_allclose(grads[i].block["linear"]["kernel"], expected, atol=1e-9)


def test_the_peer_term_pulls_every_unit_to_the_mean_activity_whether_it_is_awake_or_not(small):
    net, without = small(ForwardForward(peer=0.7), activation="relu"), small(ForwardForward(peer=0.0), activation="relu")
    bias = net.state[0].params.block["linear"]["bias"].at[2].set(-100)
    for each in (net, without):
        each.state[0].params.block["linear"]["bias"] = bias
    a, h = hidden(net, both(net)[0], jax.nn.relu)[0]
    assert not jnp.any(h[:, 2])
    m = 0.9 * net.state[0].memory + 0.1 * h.mean(0)
    spread = m - m.mean()
    grads, memory, _ = net.gradients()
    others, _, _ = without.gradients()
    np.testing.assert_allclose(memory[0], m, atol=1e-9)
    pull = 0.7 * 2 * spread / 8 * 0.1
    np.testing.assert_allclose(grads[0].block["linear"]["bias"] - others[0].block["linear"]["bias"], pull, atol=1e-9)
    np.testing.assert_allclose(
        grads[0].block["linear"]["kernel"] - others[0].block["linear"]["kernel"], jnp.outer(a.mean(0), pull), atol=1e-9
    )
    assert others[0].block["linear"]["bias"][2] == 0 != grads[0].block["linear"]["bias"][2]


@pytest.mark.parametrize("inference", ["goodness", "readout"])
@pytest.mark.parametrize("changed", range(4))
def test_a_block_depends_on_those_below_it_and_on_no_other(small, changed, inference):
    """But for its part of the read-out, which learns from the scores of all."""
    net = small(ForwardForward(inference=inference))
    before, _, _ = net.gradients()
    after, _, _ = net.gradients(net.shaken_at(changed))
    for i in range(3):
        same = jax.tree.map(lambda a, b: bool(jnp.all(a == b)), before[i].block, after[i].block)
        assert all(jax.tree.leaves(same)) == (i < changed)


def test_a_top_that_adds_up_does_not_learn(small):
    net = small(ForwardForward())
    grads, memory, _ = net.gradients()
    assert jax.tree.structure(grads[-1]) == jax.tree.structure(net.state[-1].params)
    assert not any(jnp.any(g) for g in jax.tree.leaves(grads[-1]))
    assert memory[-1] == ()


def neutral(net):
    """a_l of all hidden blocks, x with the neutral label."""
    return [h / rms(h) for _, h in hidden(net, shown(net.batch.x, 0.1))]


def read_out(net, skip):
    """(features, weights, class scores) of one regression on all activities from `skip` on, next to each other."""
    features = jnp.concatenate(neutral(net)[skip:], 1)
    top = net.state[-1].params.block["linear"]
    weights = jnp.concatenate([*(s.params.head for s in net.state.values[skip + 1 : -1]), top["kernel"]])
    return features, weights, features @ weights + top["bias"]


@pytest.mark.parametrize("skip", [0, 1, 2])
def test_the_read_out_is_logistic_regression_on_all_activities_but_the_lowest(small, skip):
    net = small(ForwardForward(inference="readout", skip=skip))
    grads, _, loss = net.gradients()
    features, _, scores = read_out(net, skip)
    error = (jax.nn.softmax(scores) - jnp.eye(3)[net.batch.y]) / 4
    parts = [*(g.head for g in grads[skip + 1 : -1]), grads[-1].block["linear"]["kernel"]]
    np.testing.assert_allclose(jnp.concatenate(parts), features.T @ error, atol=1e-9)
    np.testing.assert_allclose(grads[-1].block["linear"]["bias"], error.sum(0), atol=1e-9)
    assert loss == pytest.approx(-float(jax.nn.log_softmax(scores)[jnp.arange(4), net.batch.y].mean()), abs=1e-9)
    np.testing.assert_allclose(net.rule.predict(net.chain, net.state, net.batch.x), scores, atol=1e-9)
    assert [isinstance(grads[i].head, tuple) for i in range(4)] == [i <= skip or i == 3 for i in range(4)]


def plainly(net, small):
    """The same blocks and memory under the rule without a read-out."""
    plain = small(ForwardForward())
    plain.state = Row(s._replace(params=WithHead(s.params.block, ())) for s in net.state)
    return plain


def test_the_read_out_changes_nothing_below_it(small, assert_close):
    net = small(ForwardForward(inference="readout"))
    one, other = net.gradients()[0], plainly(net, small).gradients()[0]
    assert_close([g.block for g in one[:3]], [g.block for g in other[:3]])


def test_hard_labels_are_wrong_and_as_likely_as_the_read_out_says(small):
    block = small(ForwardForward()).blocks[-1]
    scores = jnp.tile(jnp.asarray([2.0, 0.5, -1.0]), (20000, 1))
    drawn = hard_labels(block, scores, jnp.zeros(20000, jnp.int32), jax.random.PRNGKey(0))
    assert drawn.dtype == jnp.uint8
    assert set(np.unique(drawn)) == {1, 2}
    chance = math.exp(0.5) / (math.exp(0.5) + math.exp(-1))
    assert abs(float(jnp.mean(drawn == 1)) - chance) < 5 * math.sqrt(chance * (1 - chance) / 20000)


@pytest.mark.parametrize("inference", ["goodness", "readout"])
def test_hard_negatives_show_what_the_read_out_takes_the_example_for(small, assert_close, inference):
    """A read-out that is certain of a label, and that it is another one if not this, leaves no choice."""
    net = small(ForwardForward(negatives="hard", inference=inference))
    top = net.state[-1].params.block["linear"]
    top["bias"] = top["bias"] + jnp.asarray([0.0, 1e3, 500])
    wrong = jnp.where(net.batch.y == 1, 2, 1)
    a = presentations(net.blocks[0], net.batch.x, net.batch.y, wrong, net.batch.key)
    plain = plainly(net, small)
    inputs = [below for below, _ in hidden(plain, a)]
    expected = [contrast(*each, threshold=1.0, peer=0.03).grads for each in zip(plain.blocks, plain.state, inputs, strict=False)]
    grads, _, _ = net.gradients()
    assert_close([g.block for g in grads[:3]], [g.block for g in expected], 1e-10)
    assert jnp.any(grads[-1].block["linear"]["kernel"] != 0)


def test_goodness_prediction_shows_each_label_in_turn(small):
    net = small(ForwardForward())
    goodness = []
    for c in range(3):
        goodness.append(sum(jnp.sum(h**2, 1) for _, h in hidden(net, shown(net.batch.x, np.eye(3)[c]))))
    expected = jnp.stack(goodness, 1)
    scores = net.rule.predict(net.chain, net.state, net.batch.x)
    np.testing.assert_allclose(scores, expected - expected.mean(1, keepdims=True), atol=1e-9)


def test_skipped_blocks_have_no_say(small):
    net = small(ForwardForward(skip=1))
    expected = jnp.stack([sum(jnp.sum(h**2, 1) for _, h in hidden(net, shown(net.batch.x, np.eye(3)[c]))[1:]) for c in range(3)], 1)
    scores = net.rule.predict(net.chain, net.state, net.batch.x)
    np.testing.assert_allclose(scores, expected - expected.mean(1, keepdims=True), atol=1e-9)
    assert not ForwardForward(skip=2).problems(net.blocks)
    assert "skips 3 blocks" in ForwardForward(skip=3).problems(net.blocks)[0]


@pytest.mark.parametrize("inference", ["goodness", "readout"])
def test_it_tells_how_far_goodness_tells_right_from_wrong(small, inference):
    net = small(ForwardForward(inference=inference))
    told = net.rule.diagnose(net.chain, net.state, net.batch)["margin"]
    for i, ((_, p), (_, n)) in enumerate(zip(*(hidden(net, a) for a in both(net)), strict=True)):
        assert float(told[i]) == pytest.approx(float((p**2).mean() - (n**2).mean()), abs=1e-9)
    assert told[3] == 0


def test_it_tells_what_its_blocks_saw(small):
    net = small(ForwardForward())
    _, _, info = net.rule.gradients(net.chain, net.state, net.batch)
    for i, pairs in enumerate(zip(*(hidden(net, a) for a in both(net)), strict=True)):
        np.testing.assert_allclose(info.inputs[i], jnp.concatenate([a for a, _ in pairs]), atol=1e-9)
    assert info.inputs[3] is None


def test_gradients_add_up_over_the_batch_unless_a_mean_over_it_is_kept():
    assert ForwardForward(peer=0.0).additive_over_batch
    assert not ForwardForward().additive_over_batch


def test_goodness_sends_no_activity_to_the_top(make_setup):
    setup = make_setup("forward_forward", shards=4, batch=12)  # widths 12-8-7-6-3, a block in each shard
    assert dict(setup.plan_step(setup.stages[0]).traffic.payload) == {
        Channel("label", "label", 3, 0): 12,
        Channel("activation", "activation", 0, 1): 2 * 12 * 8 * 4,
        Channel("activation", "activation", 1, 2): 2 * 12 * 7 * 4,
        **{Channel("loss", "scalar", i, i + 1): 4 for i in range(3)},
    }
    size = setup.evaluation_batch
    assert dict(setup.plan_evaluation(setup.stages[0]).traffic.payload) == {
        Channel("activation", "evaluation", 0, 1): 3 * size * 8 * 4,
        Channel("activation", "evaluation", 1, 2): 3 * size * 7 * 4,
        **{Channel("goodness", "evaluation", i, i + 1): 3 * size * 4 for i in range(3)},
    }


@pytest.mark.parametrize("negatives", ["uniform", "hard"])
def test_a_read_out_asks_for_the_neutral_presentation_and_tells_its_error(make_setup, negatives):
    setup = make_setup(ForwardForward(inference="readout", negatives=negatives), shards=4, batch=12)
    assert dict(setup.plan_step(setup.stages[0]).traffic.payload) == {
        Channel("label", "label", 3, 0): 12,
        Channel("activation", "activation", 0, 1): 2 * 12 * 8 * 4,
        Channel("activation", "activation", 1, 2): 2 * 12 * 7 * 4,
        **{Channel("neutral", "activation", i, i + 1): 12 * width * 4 for i, width in enumerate((8, 7, 6))},
        **{Channel("score", "activation", i, i + 1): 12 * 3 * 4 for i in range(3)},
        **{Channel("error", "error", 3, i): 12 * 3 * 4 for i in range(3)},
        **({Channel("wrong", "target", 3, 0): 12} if negatives == "hard" else {}),
    }
    size = setup.evaluation_batch
    assert dict(setup.plan_evaluation(setup.stages[0]).traffic.payload) == {
        **{Channel("neutral", "evaluation", i, i + 1): size * width * 4 for i, width in enumerate((8, 7, 6))},
        **{Channel("score", "evaluation", i, i + 1): size * 3 * 4 for i in range(3)},
    }


@pytest.mark.parametrize(
    ("widths", "problem"),
    [((6, 3), "needs a hidden block"), ((3, 5, 3), "paints 3 labels on the input, which has only 3 values"), ((4, 5, 3), None)],
)
def test_networks_without_room_are_refused(small, widths, problem):
    found = ForwardForward().problems(small(ForwardForward(), widths).blocks)
    assert bool(found) == bool(problem)
    assert all(text.startswith(problem) for text in found)


def test_images_are_painted_and_contrasted_as_they_are(convolutional, assert_close):
    net = convolutional(ForwardForward(peer=0.0))
    grads, _, _ = net.gradients()
    block, params = net.blocks[0], net.state[0].params.block
    a = presentations(block, net.batch.x, net.batch.y, None, net.batch.key)

    def local(params):
        excess = jnp.sum(block.apply(params, a) ** 2, (1, 2, 3)) - 4 * 4 * 3
        return jnp.mean(jnp.log1p(jnp.exp(excess * jnp.repeat(jnp.array([-1.0, 1]), 4))))

    assert a.shape == (8, 4, 4, 2)
    assert_close(grads[0].block, jax.jit(jax.grad(local))(params), 1e-10)
    assert net.rule.predict(net.chain, net.state, net.batch.x).shape == (4, 3)
