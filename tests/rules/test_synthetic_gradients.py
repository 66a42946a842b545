"""Synthetic gradients against backpropagation, which they are when the predictions are right, and against their regressions by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from locallearn.chain import Row
from locallearn.rule import split_batch
from locallearn.rules.synthetic_gradients import Affine, SyntheticGradients
from locallearn.traffic import Channel
from tests.rules.measures import true_gradients


def each_loss(net, l, h):
    """Losses of the examples, from the outputs of block l - 1 on."""
    for block, state in zip(net.blocks[l:], net.state.values[l:], strict=True):
        h = block.apply(state.params.block, h)
    return optax.softmax_cross_entropy_with_integer_labels(h, net.batch.y)


def outputs(net):
    h = [net.batch.x]
    for block, state in zip(net.blocks, net.state, strict=True):
        h.append(block.apply(state.params.block, h[-1]))
    return h[1:]


def true_errors(net):
    """∂C_b/∂h_l for each example, for each block below the top."""
    return [jax.grad(lambda h, l=l: each_loss(net, l + 1, h).sum())(h) for l, h in enumerate(outputs(net)[:-1])]


def with_models(net, make):
    def change(l, state):
        return state._replace(params=state.params._replace(head=make(l, state.params.head))) if state.params.head else state

    return Row(change(l, state) for l, state in enumerate(net.state))


def perfect(net):
    """For one example a constant is a perfect model of its error."""
    errors = true_errors(net)
    return with_models(net, lambda l, head: (Affine(jnp.zeros_like(head[0].kernel), errors[l][0] / net.rule.speed),))


@pytest.mark.parametrize("label", [True, False])
def test_with_perfect_predictions_it_is_backpropagation_and_the_models_rest(small, assert_close, label):
    net = small(SyntheticGradients(label=label), count=1)
    grads, memory, _ = net.gradients(perfect(net))
    assert_close([g.block for g in grads], true_gradients(net))
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves([g.head for g in grads[:-1]])) < 1e-14
    assert memory == [()] * 4


def test_with_wrong_ones_it_is_not_but_for_the_top(small, assert_close):
    net = small(SyntheticGradients())
    grads, expected = net.gradients()[0], true_gradients(net)
    assert_close(grads[3].block, expected[3])
    for mine, true in zip(grads[:3], expected[:3], strict=True):
        assert float(jnp.abs(mine.block["linear"]["kernel"] - true["linear"]["kernel"]).max()) > 0.01


def test_models_that_begin_at_zero_hold_the_blocks_still_and_hear_the_truth_from_the_top_first(small):
    net = small(SyntheticGradients())
    zero = with_models(net, lambda l, head: jax.tree.map(jnp.zeros_like, head))
    grads, _, _ = net.gradients(zero)
    for g in grads[:3]:
        assert all(jnp.all(leaf == 0) for leaf in jax.tree.leaves(g.block))
    np.testing.assert_allclose(grads[2].head[0].bias, -8 * true_errors(net)[2].mean(0), atol=1e-13)
    for g in grads[:2]:
        assert all(jnp.all(leaf == 0) for leaf in jax.tree.leaves(g.head)), "what a model that says nothing passes on"
    fresh = [net.rule.init(block, jax.random.key(1)).params.head for block in net.blocks[:3]]
    assert all(jnp.all(leaf == 0) for leaf in jax.tree.leaves(fresh))
    deep = SyntheticGradients(hidden=9).init(net.blocks[0], jax.random.key(1)).params.head
    assert jnp.all(deep[1].kernel == 0)
    assert jnp.any(deep[0].kernel != 0)


@pytest.mark.parametrize(("label", "every", "hidden"), [(True, 1, 0), (True, 3, 0), (False, 2, 9), (True, 2, 9)])
def test_blocks_and_models_by_hand(small, dense, assert_close, label, every, hidden):
    net = small(SyntheticGradients(every=every, label=label, hidden=hidden, speed=3.0))
    h, labels = outputs(net), jnp.eye(3)[net.batch.y]
    blocks = [state.params.block for state in net.state]

    def model(layers, h, labels):
        v = jnp.concatenate([h, labels], 1) if label else h
        if hidden:
            v = jnp.maximum(v @ layers[0].kernel + layers[0].bias, 0)
        return 3 * (v @ layers[-1].kernel + layers[-1].bias)

    said = [model(net.state[l].params.head, h[l], labels) for l in range(3)]
    said.append(jax.nn.softmax(h[3]) - labels)
    functions = [jnp.tanh] * 3 + [lambda u: u]
    grads, _, _ = net.gradients()
    for l, f in enumerate(functions):
        below = net.batch.x if l == 0 else h[l - 1]
        assert_close(grads[l].block, jax.grad(lambda p, l=l, f=f, below=below: jnp.sum(dense(p, below, f=f) * said[l]) / 4)(blocks[l]))
    for l in range(3):
        told = jax.grad(lambda below, l=l: jnp.sum(dense(blocks[l + 1], below, f=functions[l + 1]) * said[l + 1]))(h[l])
        rows = np.arange(0, 4, every)

        def miss(layers, l=l, told=told, rows=rows):
            return 0.5 * jnp.sum((model(layers, h[l][rows], labels[rows]) - told[rows]) ** 2) / len(rows)

        assert_close(grads[l].head, jax.grad(miss)(net.state[l].params.head))


def test_convolutions_have_convolutional_models(convolutional, assert_close):
    net = convolutional(SyntheticGradients(hidden=4))
    grads, _, _ = net.gradients()
    assert grads[0].head[0].kernel.shape == (5, 5, 3 + 3, 4)
    assert grads[0].head[1].kernel.shape == (5, 5, 4, 3)
    assert all(jnp.any(leaf != 0) for g in grads[:2] for leaf in jax.tree.leaves(g))
    assert_close(grads[2].block, true_gradients(net)[2])


def test_microbatches_add_up_when_all_errors_are_sent(small, assert_close):
    net = small(SyntheticGradients())
    parts = [net.gradients(batch=part)[0] for part in split_batch(net.batch, 2)]
    assert_close(jax.tree.map(lambda a, b: (a + b) / 2, *parts), net.gradients()[0])
    assert net.rule.additive_over_batch
    assert not SyntheticGradients(every=2).additive_over_batch


def test_likeness_is_one_where_the_predictions_are_right(small):
    net = small(SyntheticGradients(every=2), count=1)
    assert [float(c) for c in net.rule.diagnose(net.chain, perfect(net), net.batch)["likeness"]] == pytest.approx([1.0] * 4)
    opposite = with_models(net, lambda l, head: jax.tree.map(jnp.negative, perfect(net)[l].params.head))
    assert float(net.rule.diagnose(net.chain, opposite, net.batch)["likeness"][2]) == pytest.approx(-1)


@pytest.mark.parametrize(("every", "rows"), [(1, 12), (4, 3), (5, 3), (16, 1)])
@pytest.mark.parametrize("label", [True, False])
def test_a_boundary_carries_the_errors_of_some_examples_and_nobody_waits_for_the_top(make_setup, every, rows, label):
    setup = make_setup(SyntheticGradients(every=every, label=label), shards=3)  # widths 12-8-7-6-3: after 7 and 6, 12 examples
    labels = {Channel("label", "label", 2, 0): 12, Channel("label", "label", 2, 1): 12} if label else {}
    plan = setup.plan_step(setup.stages[0])
    assert dict(plan.traffic.payload) == labels | {
        Channel("activation", "activation", 0, 1): 12 * 7 * 4,
        Channel("activation", "activation", 1, 2): 12 * 6 * 4,
        Channel("error", "error", 1, 0): rows * 7 * 4,
        Channel("error", "error", 2, 1): rows * 6 * 4,
    }
    assert plan.hops == 3
