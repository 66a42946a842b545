"""Backpropagation through the chain against the gradient of the whole network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locallearn.chain import Row
from locallearn.rule import split_batch
from locallearn.rules.backprop import Backprop
from locallearn.traffic import Channel


def loss_of_all(net):
    """Softmax cross-entropy of the blocks one after the other, in one function of all their parameters."""

    def loss(params):
        h = net.batch.x
        for block, p in zip(net.blocks, params, strict=True):
            h = block.apply(p, h)
        return -jnp.mean(jax.nn.log_softmax(h)[jnp.arange(len(h)), net.batch.y])

    return loss


@pytest.mark.parametrize("norm", ["none", "layer"])
@pytest.mark.parametrize("activation", ["tanh", "gelu", "leaky_relu"])
def test_the_chain_gives_the_gradient_of_the_whole_network(small, assert_close, activation, norm):
    net = small(Backprop(), activation=activation, norm=norm)
    grads, memory, loss = net.gradients()
    expected_loss, expected = jax.value_and_grad(loss_of_all(net))([state.params for state in net.state])
    assert loss == pytest.approx(float(expected_loss), abs=1e-14)
    assert_close(grads, expected)
    assert memory == [()] * 4


@pytest.mark.parametrize("changed", range(4))
def test_every_block_matters_to_every_gradient(small, changed):
    net = small(Backprop())
    before, _, _ = net.gradients()
    after, _, _ = net.gradients(net.shaken_at(changed))
    for i in range(4):
        assert all(jnp.any(a != b) for a, b in zip(jax.tree.leaves(before[i]), jax.tree.leaves(after[i]), strict=True))


def test_microbatches_add_up_to_the_batch(small, assert_close):
    net = small(Backprop())
    parts = [net.gradients(batch=part)[0] for part in split_batch(net.batch, 2)]
    assert_close(jax.tree.map(lambda a, b: (a + b) / 2, *parts), net.gradients()[0])


def test_one_block_is_softmax_regression(small):
    net = small(Backprop(), (6, 3))
    (grads,), _, _ = net.gradients()
    params = net.state[0].params["linear"]
    e = (jax.nn.softmax(net.batch.x @ params["kernel"] + params["bias"]) - jnp.eye(3)[net.batch.y]) / 4
    np.testing.assert_allclose(grads["linear"]["kernel"], net.batch.x.T @ e, atol=1e-15)
    np.testing.assert_allclose(grads["linear"]["bias"], e.sum(0), atol=1e-15)


def test_prediction_is_a_plain_forward_pass(small, dense):
    net = small(Backprop())
    h = net.batch.x
    for state in net.state.values[:-1]:
        h = dense(state.params, h)
    expected = dense(net.state[-1].params, h, f=lambda u: u)
    np.testing.assert_allclose(net.rule.predict(net.chain, net.state, net.batch.x), expected, atol=1e-14)


def test_a_boundary_carries_one_activation_up_and_one_error_down(make_setup):
    setup = make_setup("backprop", shards=3, batch=12)  # widths 12-8-7-6-3: shards end after 7 and 6
    assert dict(setup.plan_step(setup.stages[0]).traffic.payload) == {
        Channel("activation", "activation", 0, 1): 12 * 7 * 4,
        Channel("activation", "activation", 1, 2): 12 * 6 * 4,
        Channel("error", "error", 1, 0): 12 * 7 * 4,
        Channel("error", "error", 2, 1): 12 * 6 * 4,
    }


def test_the_memory_is_not_touched(small):
    net = small(Backprop())
    state = Row(state._replace(memory=jnp.arange(i)) for i, state in enumerate(net.state))
    assert [m.tolist() for m in net.gradients(state)[1]] == [[], [0], [0, 1], [0, 1, 2]]
