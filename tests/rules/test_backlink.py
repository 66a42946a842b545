"""Backlinks against gradients of sums of losses written by hand, between local losses and backpropagation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locallearn.chain import Row
from locallearn.rule import split_batch
from locallearn.rules.backlink import BackLink
from locallearn.rules.backprop import Backprop
from locallearn.rules.local_classifier import LocalClassifier
from locallearn.traffic import Channel


def losses(params, x, y, dense, weight=1.0):
    """The loss of every block as a function of all parameters, nothing stopped."""
    found = []
    for p in params[:-1]:
        x = dense(p.block, x)
        scores = x @ p.head.kernel + p.head.bias
        found.append(-weight * jnp.mean(jax.nn.log_softmax(scores)[jnp.arange(len(y)), y]))
    scores = dense(params[-1].block, x, lambda u: u)
    return [*found, -jnp.mean(jax.nn.log_softmax(scores)[jnp.arange(len(y)), y])]


def by_hand(net, dense, reach, weight=1.0):
    """For each block the gradient of its own loss and of the next `reach` by its parameters."""
    params = [state.params for state in net.state]

    def total(i, params):
        return sum(losses(params, net.batch.x, net.batch.y, dense, weight)[i : i + reach + 1])

    return [jax.jit(jax.grad(lambda params, i=i: total(i, params)))(params)[i] for i in range(len(params))]


def bodies(net):
    return Row(state._replace(params=state.params.block) for state in net.state)


def test_one_block_is_backpropagation(small, assert_close):
    net, reference = small(BackLink(), (6, 3)), small(Backprop(), (6, 3))
    reference.state = bodies(net)
    (grads,), _, loss = net.gradients()
    (expected,), _, expected_loss = reference.gradients()
    assert_close(grads.block, expected)
    assert loss == expected_loss


@pytest.mark.parametrize(("widths", "reach", "weight"), [((6, 8, 3), 1, 1.0), ((6, 8, 7, 5, 3), 1, 1.0), ((6, 8, 7, 5, 3), 2, 0.3)])
def test_a_block_descends_its_own_loss_and_those_within_reach(small, dense, assert_close, widths, reach, weight):
    net = small(BackLink(reach, weight), widths)
    grads, memory, loss = net.gradients()
    assert_close(grads, by_hand(net, dense, reach, weight))
    assert float(loss) == pytest.approx(float(losses([s.params for s in net.state], net.batch.x, net.batch.y, dense)[-1]), abs=1e-14)
    assert memory == [()] * len(grads)


@pytest.mark.parametrize("reach", [3, 9])
def test_with_all_in_reach_and_the_top_loss_alone_it_is_backpropagation(small, assert_close, reach):
    net, reference = small(BackLink(reach, 0.0)), small(Backprop())
    reference.state = bodies(net)
    grads, _, _ = net.gradients()
    assert_close([grad.block for grad in grads], reference.gradients()[0])
    assert not any(jnp.any(leaf) for grad in grads for leaf in jax.tree.leaves(grad.head))


def test_without_reach_it_is_the_local_classifier(small, assert_close):
    net, reference = small(BackLink(0)), small(LocalClassifier(0.0))
    reference.state = Row(
        a._replace(params=jax.tree.unflatten(jax.tree.structure(b.params), jax.tree.leaves(a.params)))
        for a, b in zip(net.state, reference.state, strict=True)
    )
    assert_close(jax.tree.leaves(net.gradients()[0]), jax.tree.leaves(reference.gradients()[0]))


@pytest.mark.parametrize("reach", [1, 2])
def test_a_block_feels_those_within_reach_and_no_further(small, reach):
    assert small(BackLink(reach)).influences() == [set(range(min(4, i + reach + 1))) for i in range(4)]


def test_convolutions_link_too(convolutional, assert_close):
    net = convolutional(BackLink())

    def loss(params):
        x, total = net.batch.x, 0.0
        for block, p in zip(net.blocks[:2], params[:2], strict=True):
            x = block.apply(p.block, x)
            scores = x.reshape(4, -1) @ p.head.kernel + p.head.bias
            total -= jnp.mean(jax.nn.log_softmax(scores)[jnp.arange(4), net.batch.y])
        return total

    assert_close(net.gradients()[0][0], jax.jit(jax.grad(loss))([state.params for state in net.state])[0])


def test_microbatches_add_up_and_the_prediction_is_plain(small, dense, assert_close):
    net = small(BackLink())
    halves = [net.gradients(batch=half)[0] for half in split_batch(net.batch, 2)]
    assert_close(jax.tree.map(lambda a, b: (a + b) / 2, *halves), net.gradients()[0])
    h = net.batch.x
    for state in net.state.values[:-1]:
        h = dense(state.params.block, h)
    expected = dense(net.state[-1].params.block, h, lambda u: u)
    np.testing.assert_allclose(net.rule.predict(net.chain, net.state, net.batch.x), expected, atol=1e-14)
    told = net.rule.diagnose(net.chain, net.state, net.batch)["accuracy"]
    assert float(told[3]) == np.mean(np.argmax(expected, 1) == net.batch.y)


@pytest.mark.parametrize(("reach", "errors"), [(1, (1, 1)), (2, (2, 1)), (9, (2, 1))])
def test_a_boundary_carries_as_many_errors_as_there_are_losses_within_reach(make_setup, reach, errors):
    setup = make_setup(BackLink(reach), shards=3, batch=12, widths=(12, 7, 6, 3))
    assert dict(setup.plan_step(setup.stages[0]).traffic.payload) == {
        Channel("activation", "activation", 0, 1): 12 * 7 * 4,
        Channel("activation", "activation", 1, 2): 12 * 6 * 4,
        Channel("error", "error", 1, 0): errors[0] * 12 * 7 * 4,
        Channel("error", "error", 2, 1): errors[1] * 12 * 6 * 4,
        Channel("label", "label", 2, 0): 12,
        Channel("label", "label", 2, 1): 12,
    }


def test_a_step_waits_for_as_many_errors_as_the_reach_however_deep(make_setup):
    def hops(depth):
        setup = make_setup(BackLink(1), shards=depth, widths=(12, *[6] * (depth - 1), 3))
        return setup.plan_step(setup.stages[0]).hops

    assert [hops(depth) for depth in (2, 4, 6)] == [2, 4, 6]  # a sweep up of depth - 1, and one error
