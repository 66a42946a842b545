"""Direct Kolen-Pollack against Kolen-Pollack where the two meet, and against its equations by hand."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locallearn.chain import Row
from locallearn.models import MLP
from locallearn.rule import split_batch
from locallearn.rules.backprop import Backprop
from locallearn.rules.direct_feedback import DirectFeedback
from locallearn.rules.direct_kolen_pollack import DirectKolenPollack
from locallearn.traffic import Channel
from locallearn.train import Optimizer


def as_direct_feedback(net):
    """The state as direct feedback alignment keeps it."""
    return Row(s._replace(params=s.params.block, memory=s.params.head) for s in net.state)


def test_weights_learn_by_direct_feedback(small, assert_close):
    net = small(DirectKolenPollack())
    grads, _, loss = net.gradients()
    expected, _, info = DirectFeedback().gradients(net.chain, as_direct_feedback(net), net.batch)
    assert_close([g.block for g in grads], list(expected))
    assert loss == info.loss


def test_feedback_learns_from_the_activities_and_the_error_by_hand(small, dense, assert_close):
    net = small(DirectKolenPollack())
    grads, _, _ = net.gradients()
    h = [net.batch.x]
    for state in net.state.values[:-1]:
        h.append(dense(state.params.block, h[-1]))
    e = (jax.nn.softmax(dense(net.state[-1].params.block, h[-1], f=lambda u: u)) - jnp.eye(3)[net.batch.y]) / 4
    for i in range(3):
        assert_close(grads[i].head, e.T @ h[i + 1])
    assert_close(grads[2].head, grads[3].block["linear"]["kernel"].T)  # of the layer that it stands for
    assert grads[3].head == ()


def test_feedback_of_maps(convolutional, assert_close):
    net = convolutional(DirectKolenPollack())
    grads, _, _ = net.gradients()
    h, maps = net.batch.x, []
    for block, state in zip(net.blocks, net.state, strict=True):
        h = block.apply(state.params.block, h)
        maps.append(h)
    e = (jax.nn.softmax(h) - jnp.eye(net.classes)[net.batch.y]) / len(h)
    assert_close(grads[0].head, jnp.einsum("bk,bijc->kijc", e, maps[0]))


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_below_the_top_feedback_and_weights_come_together_at_the_rate_of_the_decay(small, name):
    steps, rate, decay = 60, 0.1, 0.5
    optimizer = Optimizer(name=name, rate=rate, weight_decay=decay)
    plain = MLP(widths=(6, 8, 7, 3), activation="tanh").blocks((6,))
    net = small(DirectKolenPollack(), blocks=[replace(b, tx=optimizer.build(steps, b.index)) for b in plain])
    state = Row(b.state(s.params) for b, s in zip(net.blocks, net.state, strict=True))
    step = jax.jit(lambda state: net.rule.step(net.chain, state, net.batch)[0])
    gaps = []
    for _ in range(steps):
        gaps.append(state[1].params.head - state[2].params.block["linear"]["kernel"].T)
        state = step(state)
    for t, gap in enumerate(gaps):
        np.testing.assert_allclose(gap, (1 - rate * decay) ** t * gaps[0], atol=1e-13)


def test_where_they_agree_the_block_below_the_top_does_backpropagation(small, assert_close):
    net = small(DirectKolenPollack())
    states = list(net.state)
    states[2] = states[2]._replace(params=states[2].params._replace(head=states[3].params.block["linear"]["kernel"].T))
    net.state = Row(states)
    grads, _, _ = net.gradients()
    expected, _, _ = Backprop().gradients(net.chain, Row(s._replace(params=s.params.block) for s in states), net.batch)
    assert_close([g.block for g in grads[2:]], list(expected)[2:])


def test_feedback_begins_as_under_direct_feedback_alignment(small):
    block = small(DirectKolenPollack()).blocks[0]
    ours = DirectKolenPollack(scale=2.0).init(block, jax.random.PRNGKey(0)).params
    theirs = DirectFeedback(scale=2.0).init(block, jax.random.PRNGKey(0))
    assert jnp.array_equal(ours.head, theirs.memory)
    assert jnp.array_equal(ours.block["linear"]["kernel"], theirs.params["linear"]["kernel"])


def test_microbatches_add_up_to_the_batch(small, assert_close):
    net = small(DirectKolenPollack())
    parts = [net.gradients(batch=part)[0] for part in split_batch(net.batch, 2)]
    assert_close(jax.tree.map(lambda a, b: (a + b) / 2, *parts), net.gradients()[0])


def test_the_error_reaches_each_shard_once(make_setup):
    setup = make_setup("direct_kolen_pollack", shards=3, batch=12)  # widths 12-8-7-6-3: shards end after 7 and 6
    assert dict(setup.plan_step(setup.stages[0]).traffic.payload) == {
        Channel("activation", "activation", 0, 1): 12 * 7 * 4,
        Channel("activation", "activation", 1, 2): 12 * 6 * 4,
        Channel("error", "error", 2, 0): 12 * 3 * 4,
        Channel("error", "error", 2, 1): 12 * 3 * 4,
    }


def test_blocks_that_do_not_know_the_classes_are_refused(small):
    net = small(DirectKolenPollack())
    object.__setattr__(net.blocks[1], "classes", 0)
    assert net.rule.problems(net.blocks) == ["needs blocks that know the number of classes, 3: the model must give it to each of them"]
