"""Mono-Forward against its local losses written by hand."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locallearn.chain import Row
from locallearn.rules.backprop import Backprop
from locallearn.rules.mono_forward import MonoForward
from locallearn.traffic import Channel


def logistic(scores, y):
    """Mean of -log softmax(scores)[y]."""
    return -jnp.mean((scores - jax.scipy.special.logsumexp(scores, axis=1, keepdims=True))[jnp.arange(len(y)), y])


def inputs_by_hand(net, dense):
    """What each block sees."""
    x = [net.batch.x]
    for state in net.state.values[:-1]:
        x.append(dense(state.params.block, x[-1]))
    return x


def test_one_block_is_backpropagation(small, assert_close):
    net, reference = small(MonoForward(), (6, 3)), small(Backprop(), (6, 3))
    reference.state = Row(s._replace(params=s.params.block) for s in net.state)
    (grads,), _, loss = net.gradients()
    (expected,), _, expected_loss = reference.gradients()
    assert_close(grads.block, expected)
    assert loss == expected_loss


def test_every_block_descends_its_own_cross_entropy(small, dense, assert_close):
    net = small(MonoForward())
    grads, _, _ = net.gradients()
    for i, x in enumerate(inputs_by_hand(net, dense)[:-1]):

        def local(params, x=x):
            return logistic(jnp.einsum("bn,cn->bc", dense(params.block, x), params.head), net.batch.y)

        assert_close(grads[i], jax.jit(jax.grad(local))(net.state[i].params))


def test_the_top_is_logistic_regression_on_the_activities_below(small, dense):
    net = small(MonoForward())
    grads, _, loss = net.gradients()
    a, top = inputs_by_hand(net, dense)[-1], net.state[-1].params.block["linear"]
    scores = a @ top["kernel"] + top["bias"]
    error = (jax.nn.softmax(scores) - jnp.eye(3)[net.batch.y]) / len(a)
    np.testing.assert_allclose(grads[-1].block["linear"]["kernel"], a.T @ error, atol=1e-14)
    np.testing.assert_allclose(grads[-1].block["linear"]["bias"], error.sum(0), atol=1e-14)
    assert loss == pytest.approx(float(logistic(scores, net.batch.y)), abs=1e-14)
    assert grads[-1].head == ()


@pytest.mark.parametrize("changed", range(4))
def test_a_block_depends_on_those_below_it_and_on_no_other(small, changed):
    net = small(MonoForward())
    before, _, _ = net.gradients()
    after, _, _ = net.gradients(net.shaken_at(changed))
    for i in range(4):
        same = jax.tree.map(lambda a, b: bool(jnp.all(a == b)), before[i], after[i])
        assert all(jax.tree.leaves(same)) == (i < changed)


def test_prediction_is_the_top_of_a_plain_forward_pass(small, dense):
    net = small(MonoForward())
    scores = net.rule.predict(net.chain, net.state, net.batch.x)
    expected = dense(net.state[-1].params.block, inputs_by_hand(net, dense)[-1], f=lambda u: u)
    np.testing.assert_allclose(scores, expected, atol=1e-14)


def test_projections_begin_at_the_scale_of_one_activity(small):
    head = MonoForward().init(small(MonoForward(), (6, 500, 3)).blocks[0], jax.random.PRNGKey(0)).params.head
    assert head.shape == (3, 500)
    assert jnp.sum(head**2, 1) == pytest.approx(np.ones(3), rel=0.2)


def test_bodies_begin_as_under_backpropagation(small):
    block, key = small(MonoForward()).blocks[1], jax.random.PRNGKey(3)
    ours, theirs = MonoForward().init(block, key).params.block, Backprop().init(block, key).params
    assert jnp.all(ours["linear"]["kernel"] == theirs["linear"]["kernel"])


def test_a_boundary_carries_activities_up_and_one_byte_for_each_label_down(make_setup):
    setup = make_setup("mono_forward", shards=3, batch=12)  # widths 12-8-7-6-3: shards end after 7 and 6
    assert dict(setup.plan_step(setup.stages[0]).traffic.payload) == {
        Channel("activation", "activation", 0, 1): 12 * 7 * 4,
        Channel("activation", "activation", 1, 2): 12 * 6 * 4,
        Channel("label", "label", 2, 0): 12,
        Channel("label", "label", 2, 1): 12,
    }


def test_blocks_that_do_not_know_the_classes_are_refused(small):
    net = small(MonoForward())
    blocks = [replace(block, classes=0) if block.index == 1 else block for block in net.blocks]
    assert net.rule.problems(blocks) == ["needs blocks that know the number of classes, 3: the model must give it to each of them"]
