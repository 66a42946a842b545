"""Kolen-Pollack: backpropagation once feedback and weights agree, and how fast they come to agree."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locallearn.block import WithHead
from locallearn.chain import Row
from locallearn.models import MLP
from locallearn.rules.feedback_alignment import FeedbackAlignment
from locallearn.rules.kolen_pollack import KolenPollack
from locallearn.traffic import Channel
from locallearn.train import Optimizer
from tests.rules.measures import true_gradients

RATE, DECAY, STEPS = 0.1, 0.2, 40


def kernels(params):
    """Weights of a block, and its feedback weights."""
    return params.block["linear"]["kernel"], params.head["linear"]["kernel"]


def agreed(net):
    """The state with B_l = W_l."""
    return Row(
        s if b.bottom else s._replace(params=WithHead(s.params.block, s.params.block)) for b, s in zip(net.blocks, net.state, strict=True)
    )


def trained(small, optimizer, steps=STEPS):
    """A net whose blocks have this optimizer; its states, step by step."""
    plain = MLP(widths=(6, 8, 7, 3), activation="tanh").blocks((6,))
    net = small(KolenPollack(), blocks=[replace(b, tx=optimizer.build(steps, b.index)) for b in plain])
    state = Row(b.state(s.params) for b, s in zip(net.blocks, net.state, strict=True))
    step = jax.jit(lambda state: net.rule.step(net.chain, state, net.batch)[0])
    states = [state]
    for _ in range(steps):
        states.append(step(states[-1]))
    return net, states


def differences(states, block):
    """W_l - B_l after every step."""
    pairs = [kernels(state[block].params) for state in states]
    return [np.asarray(w - b) for w, b in pairs]


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_weights_and_feedback_come_together_at_the_rate_of_the_decay(small, name):
    _, states = trained(small, Optimizer(name=name, rate=RATE, weight_decay=DECAY))
    for block in (1, 2):
        gaps = differences(states, block)
        for t, gap in enumerate(gaps):
            np.testing.assert_allclose(gap, (1 - RATE * DECAY) ** t * gaps[0], atol=1e-13)
        moved = kernels(states[-1][block].params)[0] - (1 - RATE * DECAY) ** STEPS * kernels(states[0][block].params)[0]
        assert np.linalg.norm(moved) > 0.5, "the weights have learnt meanwhile"


def test_with_momentum_too_by_its_own_recursion(small):
    _, states = trained(small, Optimizer(name="momentum", rate=RATE, weight_decay=DECAY, momentum=0.5))
    for block in (1, 2):
        gaps = differences(states, block)
        gap, velocity = gaps[0], np.zeros_like(gaps[0])
        for seen in gaps[1:]:
            velocity = 0.5 * velocity + DECAY * gap
            gap = gap - RATE * velocity
            np.testing.assert_allclose(seen, gap, atol=1e-13)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_without_decay_they_stay_as_far_apart(small, name):
    _, states = trained(small, Optimizer(name=name, rate=RATE))
    for block in (1, 2):
        gaps = differences(states, block)
        np.testing.assert_allclose(gaps[-1], gaps[0], atol=1e-13)


def test_decay_inside_the_gradient_of_adam_breaks_the_law(small):
    _, states = trained(small, Optimizer(name="adam", rate=RATE, weight_decay=DECAY))
    gaps = differences(states, 1)
    assert np.linalg.norm(gaps[-1] - (1 - RATE * DECAY) ** STEPS * gaps[0]) > 0.1 * np.linalg.norm(gaps[0])


def test_so_it_becomes_backpropagation(small):
    net, states = trained(small, Optimizer(name="sgd", rate=RATE, weight_decay=1.0), steps=300)
    net.state = states[-1]
    step = jax.jit(lambda state: net.rule.gradients(net.chain, state, net.batch)[0])
    for ours, theirs in zip(step(net.state), true_gradients(net), strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), ours.block, theirs)


@pytest.mark.parametrize("norm", [False, True])
def test_where_they_agree_it_is_backpropagation(small, assert_close, norm):
    net = small(KolenPollack(), norm=norm)
    grads, _, _ = net.gradients(agreed(net))
    assert_close([g.block for g in grads], true_gradients(net))


def test_where_they_agree_it_is_backpropagation_through_convolutions(convolutional, assert_close):
    net = convolutional(KolenPollack())
    grads, _, _ = net.gradients(agreed(net))
    assert_close([g.block for g in grads], true_gradients(net))
    for gradient in grads[1:]:
        assert_close(gradient.head, gradient.block)


def test_it_begins_as_feedback_alignment_and_the_feedback_gets_the_gradient_of_the_weights(small, assert_close):
    net = small(KolenPollack())
    grads, _, _ = net.gradients()
    state = Row(s._replace(params=s.params.block, memory=s.params.head) for s in net.state)
    assert_close([g.block for g in grads], list(FeedbackAlignment().gradients(net.chain, state, net.batch)[0]))
    assert grads[0].head == ()
    for gradient in grads[1:]:
        assert_close(gradient.head, gradient.block)


def test_feedback_has_nothing_to_learn_of_a_normalisation(small):
    grads, _, _ = small(KolenPollack(), norm=True).gradients()
    for gradient in grads[1:3]:
        assert jnp.any(gradient.block["norm"]["scale"] != 0)
        assert not jnp.any(gradient.head["norm"]["scale"])
        assert jnp.array_equal(gradient.head["linear"]["kernel"], gradient.block["linear"]["kernel"])


def test_feedback_is_drawn_like_the_weights_but_apart_from_them(small):
    net = small(KolenPollack())
    params = KolenPollack().init(net.blocks[1], jax.random.PRNGKey(0)).params
    as_fixed = FeedbackAlignment().init(net.blocks[1], jax.random.PRNGKey(0))
    assert jax.tree.all(jax.tree.map(jnp.array_equal, params, WithHead(as_fixed.params, as_fixed.memory)))
    assert KolenPollack().init(net.blocks[0], jax.random.PRNGKey(0)).params.head == ()


def test_a_boundary_carries_as_much_as_under_backpropagation(make_setup):
    setup = make_setup("kolen_pollack", shards=3, batch=12)  # widths 12-8-7-6-3: shards end after 7 and 6
    assert dict(setup.plan_step(setup.stages[0]).traffic.payload) == {
        Channel("activation", "activation", 0, 1): 12 * 7 * 4,
        Channel("activation", "activation", 1, 2): 12 * 6 * 4,
        Channel("error", "error", 1, 0): 12 * 7 * 4,
        Channel("error", "error", 2, 1): 12 * 6 * 4,
    }
