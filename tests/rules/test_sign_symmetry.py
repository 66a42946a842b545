"""Sign symmetry against backpropagation, and against its equations by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locallearn.chain import Row
from locallearn.rule import split_batch
from locallearn.rules.sign_symmetry import SignSymmetry, feedback
from locallearn.traffic import Channel
from tests.rules.measures import true_gradients

MODES = ["usf", "frsf", "brsf"]


def map_params(fn, net, memory):
    """The state with fn(leaf) for parameters, and memory(params) above the bottom."""
    states = [s._replace(params=jax.tree.map(fn, s.params)) for s in net.state]
    return Row(s if i == 0 else s._replace(memory=jax.tree.map(memory, s.params)) for i, s in enumerate(states))


def test_uniform_feedback_is_backpropagation_where_all_weights_have_one_magnitude(small, assert_close):
    net = small(SignSymmetry())
    state = map_params(lambda w: 0.3 * jnp.sign(w), net, lambda w: jnp.asarray(0.3))
    assert_close(net.gradients(state)[0], true_gradients(net, state))


def test_fixed_feedback_is_backpropagation_where_it_has_the_magnitudes_of_the_weights(convolutional, assert_close):
    net = convolutional(SignSymmetry(mode="frsf"))
    state = map_params(lambda w: w, net, jnp.abs)
    assert_close(net.gradients(state)[0], true_gradients(net, state))


@pytest.mark.parametrize("mode", MODES)
def test_otherwise_it_is_not(small, assert_close, mode):
    net = small(SignSymmetry(mode=mode))
    grads, expected = net.gradients()[0], true_gradients(net)
    assert_close(grads[-1], expected[-1])
    for i in range(3):
        a, b = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree[i])]) for tree in (grads, expected))
        assert np.linalg.norm(a - b) > 0.1 * np.linalg.norm(b)


@pytest.mark.parametrize("mode", MODES)
def test_hidden_errors_by_hand(small, dense, assert_close, mode):
    net = small(SignSymmetry(mode=mode))
    net.state = Row(s if i == 0 else s._replace(memory=jax.tree.map(jnp.abs, s.memory)) for i, s in enumerate(net.state))
    grads, memory, _ = net.gradients()
    h = [net.batch.x]
    for state in net.state.values[:-1]:
        h.append(dense(state.params, h[-1]))
    d = (jax.nn.softmax(dense(net.state[-1].params, h[-1], f=lambda u: u)) - jnp.eye(3)[net.batch.y]) / 4
    for i in (3, 2, 1, 0):
        assert_close(grads[i], {"linear": {"kernel": h[i].T @ d, "bias": d.sum(0)}})
        if i:
            b, w = (t["linear"]["kernel"] for t in (feedback(net.blocks[i], net.state[i], net.batch.key, mode=mode), net.state[i].params))
            assert jnp.array_equal(jnp.sign(b), jnp.sign(w))
            if mode != "brsf":
                np.testing.assert_allclose(jnp.abs(b), jnp.broadcast_to(net.state[i].memory["linear"]["kernel"], b.shape))
            d = (1 - h[i] ** 2) * (d @ b.T)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, memory, list(net.state.memory)))


@pytest.mark.parametrize("mode", MODES)
def test_feedback_begins_with_the_size_of_the_weights(small, mode):
    block = small(SignSymmetry(), (6, 400, 300, 3)).blocks[1]
    state = SignSymmetry(mode=mode).init(block, jax.random.PRNGKey(0))
    w = state.params["linear"]["kernel"]
    b = feedback(block, state, jax.random.PRNGKey(1), mode=mode)["linear"]["kernel"]
    assert float(jnp.sqrt(jnp.mean(b**2))) == pytest.approx(float(jnp.sqrt(jnp.mean(w**2))), rel=0.01)
    spread = float(jnp.std(jnp.abs(b)) / jnp.sqrt(jnp.mean(b**2)))  # of |N(0, 1)|: sqrt(1 - 2/pi)
    assert spread == pytest.approx(0 if mode == "usf" else (1 - 2 / np.pi) ** 0.5, abs=0.01)
    larger = SignSymmetry(mode=mode, scale=3.0).init(block, jax.random.PRNGKey(0)).memory
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, 3 * b, rtol=1e-6), larger, state.memory)
    assert SignSymmetry(mode=mode).init(small(SignSymmetry()).blocks[0], jax.random.PRNGKey(0)).memory == ()


@pytest.mark.parametrize("mode", MODES)
def test_only_batchwise_magnitudes_change_from_step_to_step(small, mode):
    net = small(SignSymmetry(mode=mode))
    other = net.batch._replace(key=jax.random.PRNGKey(7))
    same = jax.tree.all(jax.tree.map(jnp.array_equal, net.gradients()[0], net.gradients(batch=other)[0]))
    assert same == (mode != "brsf")


def test_batchwise_magnitudes_differ_between_blocks(small):
    net = small(SignSymmetry(mode="brsf"), (6, 5, 5, 5, 3))
    ones = jax.tree.map(jnp.ones_like, net.state)
    first, second = (feedback(net.blocks[i], ones[i], net.batch.key, mode="brsf")["linear"]["kernel"] for i in (1, 2))
    assert not jnp.any(first == second)


@pytest.mark.parametrize("mode", MODES)
def test_microbatches_add_up_to_the_batch_unless_magnitudes_are_drawn_for_each(small, assert_close, mode):
    net = small(SignSymmetry(mode=mode))
    parts = [net.gradients(batch=part)[0] for part in split_batch(net.batch, 2)]
    summed = jax.tree.map(lambda a, b: (a + b) / 2, *parts)
    assert net.rule.additive_over_batch == (mode != "brsf")
    if net.rule.additive_over_batch:
        assert_close(summed, net.gradients()[0])
    else:
        assert not np.allclose(summed[0]["linear"]["kernel"], net.gradients()[0][0]["linear"]["kernel"], rtol=1e-3)


@pytest.mark.parametrize("mode", MODES)
def test_no_sign_of_a_weight_is_sent(make_setup, mode):
    setup = make_setup(SignSymmetry(mode=mode), shards=3, batch=12)  # widths 12-8-7-6-3: shards end after 7 and 6
    assert dict(setup.plan_step(setup.stages[0]).traffic.payload) == {
        Channel("activation", "activation", 0, 1): 12 * 7 * 4,
        Channel("activation", "activation", 1, 2): 12 * 6 * 4,
        Channel("error", "error", 1, 0): 12 * 7 * 4,
        Channel("error", "error", 2, 1): 12 * 6 * 4,
    }
