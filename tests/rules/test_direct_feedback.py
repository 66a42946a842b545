"""Direct feedback alignment against backpropagation in a linear network, and against its equations by hand."""

import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locallearn.chain import Row
from locallearn.rule import split_batch
from locallearn.rules.backprop import Backprop
from locallearn.rules.direct_feedback import DirectFeedback, pack, unpack
from locallearn.traffic import Channel
from tests.rules.measures import distance, true_gradients

BLOCK = SimpleNamespace()


def with_products(net):
    """The state with B_l = (W_L … W_{l+1})ᵀ, here [classes, n_l]: a dense layer is x W."""
    states, product = [net.state[-1]], jnp.eye(net.classes)
    for i in reversed(range(len(net.blocks) - 1)):
        product = product @ net.state[i + 1].params["linear"]["kernel"].T
        states.append(net.state[i]._replace(memory=product))
    return Row(reversed(states))


def test_a_linear_network_with_the_products_of_its_weights_does_backpropagation(small, assert_close):
    net = small(DirectFeedback(), activation="identity")
    grads, _, _ = net.gradients(with_products(net))
    assert_close(grads, true_gradients(net))


def test_a_linear_network_with_random_feedback_does_not(small, assert_close):
    net = small(DirectFeedback(), activation="identity")
    grads, _, _ = net.gradients()
    expected = true_gradients(net)
    assert_close(grads[-1], expected[-1])
    assert all(distance(grads[i], expected[i]) > 0.3 for i in range(3))


def test_nor_does_a_nonlinear_network_but_below_the_top(small, assert_close):
    net = small(DirectFeedback(), activation="tanh")
    grads, _, _ = net.gradients(with_products(net))
    expected = true_gradients(net)
    assert_close(grads[2:], expected[2:])
    assert all(distance(grads[i], expected[i]) > 0.05 for i in range(2))


def test_hidden_errors_by_hand(small, dense, assert_close):
    net = small(DirectFeedback())
    grads, memory, loss = net.gradients()
    h = [net.batch.x]
    for state in net.state.values[:-1]:
        h.append(dense(state.params, h[-1]))
    scores = dense(net.state[-1].params, h[-1], f=lambda u: u)
    assert loss == pytest.approx(float(-jnp.mean(jax.nn.log_softmax(scores)[jnp.arange(4), net.batch.y])), abs=1e-14)
    e = (jax.nn.softmax(scores) - jnp.eye(3)[net.batch.y]) / 4
    for i in range(4):
        d = e if i == 3 else (e @ memory[i]) * (1 - h[i + 1] ** 2)
        assert_close(grads[i], {"linear": {"kernel": h[i].T @ d, "bias": d.sum(0)}})


def test_errors_reach_the_maps_of_a_convolution(convolutional, assert_close):
    net = convolutional(DirectFeedback())
    grads, memory, _ = net.gradients()
    x, block, params = net.batch.x, net.blocks[0], net.state[0].params
    assert memory[0].shape == (net.classes, *block.out_shape)
    h = x
    for b, state in zip(net.blocks, net.state, strict=True):
        h = b.apply(state.params, h)
    e = (jax.nn.softmax(h) - jnp.eye(net.classes)[net.batch.y]) / len(x)
    wanted = jnp.einsum("bk,k...->b...", e, memory[0])
    assert_close(grads[0], jax.grad(lambda p: jnp.sum(wanted * block.apply(p, x)))(params))


def test_feedback_has_the_spread_of_the_paper(small):
    block, key = small(DirectFeedback(), (6, 5000, 3)).blocks[0], jax.random.PRNGKey(0)
    b = DirectFeedback().init(block, key).memory
    assert b.shape == (3, 5000)
    assert float(b.std()) * 5000**0.5 == pytest.approx(1, rel=0.03)
    np.testing.assert_allclose(DirectFeedback(scale=2.0).init(block, key).memory, 2 * b, rtol=1e-6)
    assert DirectFeedback().init(small(DirectFeedback()).blocks[-1], key).memory == ()
    ours, theirs = DirectFeedback().init(block, key).params, Backprop().init(block, key).params
    assert jnp.array_equal(ours["linear"]["kernel"], theirs["linear"]["kernel"])


@pytest.mark.parametrize("changed", range(1, 4))
def test_below_the_top_only_the_error_tells_of_the_blocks_above(small, changed):
    net = small(DirectFeedback())
    e, _, _ = net.gradients()
    other, _, _ = net.gradients(net.shaken_at(changed))
    ratio = other[0]["linear"]["bias"] / e[0]["linear"]["bias"]
    assert jnp.any(ratio != 1)
    net.state = Row(s._replace(memory=() if i == 3 else 0 * s.memory) for i, s in enumerate(net.state))
    silent, _, _ = net.gradients()
    assert all(jnp.all(leaf == 0) for leaf in jax.tree.leaves(silent[:3]))


@pytest.mark.parametrize("error", ["full", "sign", "ternary"])
def test_microbatches_add_up_to_the_batch(small, assert_close, error):
    net = small(DirectFeedback(error=error))
    parts = [net.gradients(batch=part)[0] for part in split_batch(net.batch, 2)]
    assert_close(jax.tree.map(lambda a, b: (a + b) / 2, *parts), net.gradients()[0])


@pytest.mark.parametrize(("error", "size"), [("full", 3 * 4), ("sign", 1), ("ternary", 1)])
def test_the_error_reaches_each_shard_once(make_setup, error, size):
    setup = make_setup(DirectFeedback(error=error), shards=3, batch=12)  # widths 12-8-7-6-3: shards end after 7 and 6
    assert dict(setup.plan_step(setup.stages[0]).traffic.payload) == {
        Channel("activation", "activation", 0, 1): 12 * 7 * 4,
        Channel("activation", "activation", 1, 2): 12 * 6 * 4,
        Channel("error", "error", 2, 0): 12 * size,
        Channel("error", "error", 2, 1): 12 * size,
    }


@pytest.mark.parametrize("classes", [1, 3, 4, 5, 8, 10, 17])
@pytest.mark.parametrize(("error", "bits"), [("sign", 1), ("ternary", 2)])
def test_an_error_takes_its_bits_and_arrives_as_it_was(classes, error, bits):
    e = np.random.default_rng(classes).uniform(-1, 1, (6, classes)).astype(np.float32)
    sent = pack(BLOCK, jnp.asarray(e / 6), error=error, threshold=0.4)
    assert (sent.dtype, sent.shape) == (jnp.uint8, (6, math.ceil(bits * classes / 8)))
    q = np.sign(e) if error == "sign" else np.sign(e) * (np.abs(e) > 0.4)
    arrived = unpack(SimpleNamespace(classes=classes), sent, jnp.zeros((6, 1)), error=error)
    np.testing.assert_allclose(arrived, q / 6, rtol=1e-6)


@pytest.mark.parametrize("error", ["sign", "ternary"])
def test_errors_of_few_bits_by_hand(small, dense, assert_close, error):
    net = small(DirectFeedback(error=error, threshold=0.35))
    grads, memory, _ = net.gradients()
    h = [net.batch.x]
    for state in net.state.values[:-1]:
        h.append(dense(state.params, h[-1]))
    e = jax.nn.softmax(dense(net.state[-1].params, h[-1], f=lambda u: u)) - jnp.eye(3)[net.batch.y]
    q = jnp.sign(e) * (jnp.abs(e) > (0.35 if error == "ternary" else 0))
    assert jnp.any(q != jnp.sign(e)) == (error == "ternary")
    for i in range(4):
        d = e if i == 3 else (q @ memory[i]) * (1 - h[i + 1] ** 2)
        assert_close(grads[i], {"linear": {"kernel": h[i].T @ d / 4, "bias": d.mean(0)}})


def test_with_softmax_the_sign_is_the_label(small):
    net = small(DirectFeedback(error="sign"))
    error = jax.nn.softmax(jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)))) - jnp.eye(3)[net.batch.y]
    sent = pack(BLOCK, error / 4, error="sign", threshold=0.0)
    np.testing.assert_array_equal(unpack(net.blocks[0], sent, error, error="sign") * 4, 1 - 2 * jnp.eye(3)[net.batch.y])


def test_blocks_that_do_not_know_the_classes_are_refused(small):
    net = small(DirectFeedback())
    object.__setattr__(net.blocks[1], "classes", 0)
    assert net.rule.problems(net.blocks) == ["needs blocks that know the number of classes, 3: the model must give it to each of them"]
