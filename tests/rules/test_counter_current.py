"""Counter-current learning against its equations by hand, and against logistic regression where it ends."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from locallearn.chain import Row
from locallearn.rule import split_batch
from locallearn.rules.counter_current import CounterCurrent
from locallearn.traffic import Channel


def kernel(weights):
    return weights["linear"]["kernel"]


def activities(net, dense):
    a = [net.batch.x]
    for state in net.state.values[:-1]:
        a.append(dense(state.params.block, a[-1]))
    return a


def test_both_streams_by_hand(small, dense, assert_close):
    net = small(CounterCurrent(scale=5.0))
    a = activities(net, dense)
    y = np.asarray(net.batch.y)
    c = {4: jnp.eye(3)}
    for l in (3, 2, 1):
        c[l] = jax.nn.elu(c[l + 1] @ kernel(net.state[l].params.head).T)
    grads, memory, _ = net.gradients()

    def loss(activity, signal):
        total = 0.0
        for i in range(4):
            for k in range(3):
                total += (activity[i] @ signal[k] - (1.0 if y[i] == k else 0.0)) ** 2
        return 5.0 * total / 4 / 3 / activity.shape[1]

    for l in range(3):
        assert_close(grads[l].block, jax.grad(lambda p, l=l: loss(dense(p, a[l]), c[l + 1]))(net.state[l].params.block))
    for l in (1, 2, 3):

        def below(v, l=l):
            return loss(a[l], jax.nn.elu(c[l + 1] @ v.T))

        assert_close(kernel(grads[l].head), jax.grad(below)(kernel(net.state[l].params.head)))
        assert float(jnp.abs(grads[l].head["linear"]["bias"]).max()) == 0, "feedback layers have no bias"
    assert grads[0].head == ()
    assert memory == [()] * 4


@pytest.mark.parametrize("widths", [(6, 3), (6, 8, 3), (6, 8, 7, 5, 3)])
def test_the_top_is_logistic_regression_on_what_it_is_given(small, dense, assert_close, widths):
    net = small(CounterCurrent(), widths=widths)
    a = activities(net, dense)[-1]

    def loss(params):
        scores = dense(params, a, f=lambda u: u)
        return optax.softmax_cross_entropy_with_integer_labels(scores, net.batch.y).mean()

    grads, _, value = net.gradients()
    assert_close(grads[-1].block, jax.grad(loss)(net.state[-1].params.block))
    assert float(value) == pytest.approx(float(loss(net.state[-1].params.block)), abs=1e-14)


def test_activities_that_say_the_class_leave_nothing_to_learn(small):
    """One linear block below the top, one example of each class, signals that are the dual basis of the activities: a · c is onehot(y)."""
    net = small(CounterCurrent(activation="tanh"), widths=(6, 3, 3), activation="identity", count=3)
    bottom, top = net.state
    activity = net.batch.x @ kernel(bottom.params.block) + bottom.params.block["linear"]["bias"]
    signal = jnp.linalg.inv(activity).T
    shrink = 0.5 / float(jnp.abs(signal).max())  # tanh reaches what is below 1: longer activities, shorter signals
    bottom = bottom._replace(params=bottom.params._replace(block=jax.tree.map(lambda w: w / shrink, bottom.params.block)))
    head = {"linear": {**top.params.head["linear"], "kernel": jnp.arctanh(signal * shrink).T}}
    grads, _, _ = net.gradients(Row([bottom, top._replace(params=top.params._replace(head=head))]))
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves([grads[0].block, grads[1].head])) < 1e-10
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(net.gradients()[0][0].block)) > 0.1
    known = net.rule.diagnose(net.chain, Row([bottom, top._replace(params=top.params._replace(head=head))]), net.batch)["recognised"]
    assert float(known[0]) == 1


def test_convolutions_have_feedback_layers_too(convolutional):
    grads, _, _ = convolutional(CounterCurrent()).gradients()
    for g in grads[1:]:
        assert all(jnp.any(leaf != 0) for leaf in jax.tree.leaves([g.block, [v for v in jax.tree.leaves(g.head) if v.ndim > 1]]))
    assert all(jnp.any(leaf != 0) for leaf in jax.tree.leaves(grads[0].block))


def test_microbatches_add_up(small, assert_close):
    net = small(CounterCurrent())
    parts = [net.gradients(batch=part)[0] for part in split_batch(net.batch, 2)]
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *parts)
    whole, _, _ = net.gradients()
    assert_close([g.block for g in mean], [g.block for g in whole])
    assert_close([kernel(g.head) for g in mean[1:]], [kernel(g.head) for g in whole[1:]])


def test_a_row_for_each_class_comes_down_and_a_byte_for_each_label(make_setup):
    setup = make_setup(CounterCurrent(), shards=3)  # widths 12-8-7-6-3: after 7 and 6, 12 examples, 3 classes
    assert dict(setup.plan_step(setup.stages[0]).traffic.payload) == {
        Channel("activation", "activation", 0, 1): 12 * 7 * 4,
        Channel("activation", "activation", 1, 2): 12 * 6 * 4,
        Channel("target", "target", 1, 0): 3 * 7 * 4,
        Channel("target", "target", 2, 1): 3 * 6 * 4,
        Channel("label", "label", 2, 0): 12,
        Channel("label", "label", 2, 1): 12,
    }
    assert setup.plan_step(setup.stages[0]).hops == 2, "neither stream waits for the other"
