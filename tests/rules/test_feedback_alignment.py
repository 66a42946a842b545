"""Feedback alignment against backpropagation, and against its equations by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locallearn.chain import Row
from locallearn.rule import split_batch
from locallearn.rules.backprop import Backprop
from locallearn.rules.feedback_alignment import FeedbackAlignment
from locallearn.traffic import Channel
from tests.rules.measures import true_gradients


def symmetric(net):
    """The state with B_l = W_l."""
    return Row(state if block.bottom else state._replace(memory=state.params) for block, state in zip(net.blocks, net.state, strict=True))


def cosine(a, b):
    """Of the angle between two blocks' gradients."""
    a, b = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for tree in (a, b))
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


@pytest.mark.parametrize("norm", ["none", "layer"])
@pytest.mark.parametrize("activation", ["tanh", "gelu"])
def test_with_symmetric_feedback_it_is_backpropagation(small, assert_close, activation, norm):
    net = small(FeedbackAlignment(), activation=activation, norm=norm)
    grads, _, _ = net.gradients(symmetric(net))
    assert_close(grads, true_gradients(net))


def test_with_symmetric_feedback_it_is_backpropagation_through_convolutions(convolutional, assert_close):
    net = convolutional(FeedbackAlignment())
    grads, _, _ = net.gradients(symmetric(net))
    assert_close(grads, true_gradients(net))


def test_with_random_feedback_it_is_not(small, assert_close):
    net = small(FeedbackAlignment())
    grads, _, _ = net.gradients()
    expected = true_gradients(net)
    assert_close(grads[-1], expected[-1])
    for i in range(3):
        assert cosine(grads[i], expected[i]) < 0.9


def test_hidden_errors_by_hand(small, dense, assert_close):
    net = small(FeedbackAlignment())
    grads, memory, _ = net.gradients()
    h = [net.batch.x]
    for state in net.state.values[:-1]:
        h.append(dense(state.params, h[-1]))
    d = (jax.nn.softmax(dense(net.state[-1].params, h[-1], f=lambda u: u)) - jnp.eye(3)[net.batch.y]) / 4
    for i in (3, 2, 1, 0):
        assert_close(grads[i], {"linear": {"kernel": h[i].T @ d, "bias": d.sum(0)}})
        if i:
            d = (1 - h[i] ** 2) * (d @ net.state[i].memory["linear"]["kernel"].T)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, memory, list(net.state.memory)))


def test_feedback_is_drawn_like_the_weights_but_apart_from_them(small):
    block = small(FeedbackAlignment(), (6, 400, 300, 3)).blocks[1]
    state, key = FeedbackAlignment().init(block, jax.random.PRNGKey(0)), jax.random.PRNGKey(0)
    w, b = state.params["linear"]["kernel"], state.memory["linear"]["kernel"]
    assert float(b.std()) == pytest.approx(float(w.std()), rel=0.02)
    assert abs(np.corrcoef(np.ravel(w), np.ravel(b))[0, 1]) < 0.02
    assert jnp.array_equal(w, Backprop().init(block, key).params["linear"]["kernel"])
    assert jnp.array_equal(b, FeedbackAlignment().init(block, key).memory["linear"]["kernel"])
    np.testing.assert_allclose(FeedbackAlignment(scale=3.0).init(block, key).memory["linear"]["kernel"], 3 * b, rtol=1e-6)
    assert FeedbackAlignment().init(small(FeedbackAlignment()).blocks[0], key).memory == ()


def test_microbatches_add_up_to_the_batch(small, assert_close):
    net = small(FeedbackAlignment())
    parts = [net.gradients(batch=part)[0] for part in split_batch(net.batch, 2)]
    assert_close(jax.tree.map(lambda a, b: (a + b) / 2, *parts), net.gradients()[0])


def test_a_boundary_carries_as_much_as_under_backpropagation(make_setup):
    setup = make_setup("feedback_alignment", shards=3, batch=12)  # widths 12-8-7-6-3: shards end after 7 and 6
    assert dict(setup.plan_step(setup.stages[0]).traffic.payload) == {
        Channel("activation", "activation", 0, 1): 12 * 7 * 4,
        Channel("activation", "activation", 1, 2): 12 * 6 * 4,
        Channel("error", "error", 1, 0): 12 * 7 * 4,
        Channel("error", "error", 2, 1): 12 * 6 * 4,
    }
