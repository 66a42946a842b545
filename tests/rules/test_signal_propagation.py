"""Signal propagation against its losses written by hand, prototype by prototype."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locallearn.chain import Row
from locallearn.rule import split_batch
from locallearn.rules.backprop import Backprop
from locallearn.rules.signal_propagation import SignalPropagation
from locallearn.traffic import Channel


def seen(net, dense):
    """[(h_{l-1}, t_{l-1})] of all blocks; nothing comes in beside the data."""
    pairs = [(net.batch.x, None)]
    for i, state in enumerate(net.state.values[:-1]):
        h, t = pairs[-1]
        pairs.append((dense(state.params.block, h), jnp.tanh(state.params.head) if i == 0 else dense(state.params.block, t)))
    return pairs


def local(params, h, t, y, dense, scale):
    """loss_l, one example and one class at a time."""
    h, t = dense(params.block, h), jnp.tanh(params.head) if t is None else dense(params.block, t)
    near = jnp.array([[scale * jnp.dot(one, prototype) / jnp.sqrt(1.0 * len(one)) for prototype in t] for one in h])
    return -jnp.mean(jax.nn.log_softmax(near)[jnp.arange(len(y)), y])


def test_one_block_is_backpropagation(small, assert_close):
    net, reference = small(SignalPropagation(), (6, 3)), small(Backprop(), (6, 3))
    reference.state = Row(s._replace(params=s.params.block) for s in net.state)
    (grads,), _, loss = net.gradients()
    (expected,), _, expected_loss = reference.gradients()
    assert_close(grads.block, expected)
    assert loss == expected_loss


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_every_block_brings_activities_to_the_prototype_of_their_class(small, dense, assert_close, scale):
    net = small(SignalPropagation(scale))
    grads, memory, _ = net.gradients()
    pairs = seen(net, dense)
    for i in range(3):
        h, t = pairs[i]
        expected = jax.jit(jax.grad(lambda params, h=h, t=t: local(params, h, t, net.batch.y, dense, scale)))(net.state[i].params)
        assert_close(grads[i], expected)
    assert memory == [()] * 4


def test_the_top_is_logistic_regression_on_the_activities_below(small, dense):
    net = small(SignalPropagation())
    grads, _, loss = net.gradients()
    a, top = seen(net, dense)[-1][0], net.state[-1].params.block["linear"]
    scores = a @ top["kernel"] + top["bias"]
    error = (jax.nn.softmax(scores) - jnp.eye(3)[net.batch.y]) / len(a)
    np.testing.assert_allclose(grads[-1].block["linear"]["kernel"], a.T @ error, atol=1e-14)
    assert float(loss) == pytest.approx(-float(jnp.mean(jax.nn.log_softmax(scores)[jnp.arange(4), net.batch.y])), abs=1e-14)
    np.testing.assert_allclose(net.rule.predict(net.chain, net.state, net.batch.x), scores, atol=1e-14)
    told = net.rule.diagnose(net.chain, net.state, net.batch)["accuracy"]
    assert float(told[3]) == np.mean(np.argmax(scores, 1) == net.batch.y)


def test_a_block_depends_on_those_below_it_and_on_no_other(small):
    assert small(SignalPropagation()).influences() == [{0}, {0, 1}, {0, 1, 2}, {0, 1, 2, 3}]


def test_blocks_above_see_the_source_only_through_prototypes(small):
    net = small(SignalPropagation())
    before, _, loss = net.gradients()
    params = net.state[0].params
    other = net.state[0]._replace(params=params._replace(head=params.head + 1))
    after, _, same = net.gradients(Row([other, *net.state.values[1:]]))
    assert same == loss, "the top looks at activities alone"
    for i in range(3):
        assert not jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.all(a == b)), before[i], after[i]))


def test_convolutions_have_prototypes_of_the_shape_before_what_follows_them(convolutional, assert_close):
    net = convolutional(SignalPropagation(scale=1.0))
    assert net.state[0].params.head.shape == (3, 4, 4, 3)

    def near(params):
        h = net.blocks[0].apply(params.block, net.batch.x).reshape(4, -1)
        t = jnp.tanh(params.head).reshape(3, -1)
        return -jnp.mean(jax.nn.log_softmax(h @ t.T / jnp.sqrt(48.0))[jnp.arange(4), net.batch.y])

    assert_close(net.gradients()[0][0], jax.jit(jax.grad(near))(net.state[0].params))


def test_microbatches_add_up(small, assert_close):
    net = small(SignalPropagation())
    halves = [net.gradients(batch=half)[0] for half in split_batch(net.batch, 2)]
    assert_close(jax.tree.map(lambda a, b: (a + b) / 2, *halves), net.gradients()[0])


def test_a_boundary_carries_a_prototype_of_each_class_besides_but_for_the_last(make_setup):
    setup = make_setup("signal_propagation", shards=4, batch=12)  # widths 12-8-7-6-3
    sent = dict(setup.plan_step(setup.stages[0]).traffic.payload)
    labels = {Channel("label", "label", 3, k): 12 for k in range(3)}
    widths = (8, 7, 6)
    activations = {Channel("activation", "activation", k, k + 1): 12 * n * 4 for k, n in enumerate(widths)}
    targets = {Channel("target", "target", k, k + 1): 3 * n * 4 for k, n in enumerate(widths[:-1])}
    assert sent == labels | activations | targets


def test_blocks_that_do_not_know_the_classes_are_refused(small):
    net = small(SignalPropagation())
    blocks = [replace(block, classes=0) if block.index == 1 else block for block in net.blocks]
    assert net.rule.problems(blocks) == ["needs blocks that know the number of classes, 3: the model must give it to each of them"]
