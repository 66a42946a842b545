"""PEPITA against its equations by hand, and its limit of weak modulation: feedback through the forward weights."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from locallearn.chain import Row
from locallearn.models import MLP
from locallearn.rule import split_batch
from locallearn.rules.backprop import Backprop
from locallearn.rules.pepita import Pepita
from locallearn.traffic import Channel
from tests.rules.measures import flat


def cosine(a, b):
    a, b = flat(a), flat(b)
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def activities(net, x, dense):
    """h_0 .. h_L for an input x."""
    h = [x]
    for state in net.state.values[:-1]:
        h.append(dense(state.params, h[-1]))
    return [*h, dense(net.state[-1].params, h[-1], f=lambda u: u)]


def modulated_by(net, size):
    """The state with F this many times as large."""
    return Row(s if i else s._replace(memory=size * s.memory) for i, s in enumerate(net.state))


def test_two_passes_by_hand(small, dense, assert_close):
    net = small(Pepita())
    grads, memory, loss = net.gradients()
    clean = activities(net, net.batch.x, dense)
    e = jax.nn.softmax(clean[-1]) - jnp.eye(3)[net.batch.y]
    assert loss == pytest.approx(float(-jnp.mean(jax.nn.log_softmax(clean[-1])[jnp.arange(4), net.batch.y])), abs=1e-14)
    modulated = activities(net, net.batch.x + e @ memory[0], dense)
    for i in range(4):
        d = e if i == 3 else clean[i + 1] - modulated[i + 1]
        assert_close(grads[i], {"linear": {"kernel": modulated[i].T @ d / 4, "bias": d.mean(0)}})


def test_with_weak_modulation_it_is_feedback_through_the_forward_weights(small, dense):
    net = small(Pepita())
    clean = activities(net, net.batch.x, dense)
    e = jax.nn.softmax(clean[-1]) - jnp.eye(3)[net.batch.y]
    expected, d = [], e @ net.state[0].memory
    for i, state in enumerate(net.state.values[:-1]):
        d = (d @ state.params["linear"]["kernel"]) * (1 - clean[i + 1] ** 2)
        expected.append({"linear": {"kernel": -clean[i].T @ d / 4, "bias": -d.mean(0)}})

    def distance(size):
        grads, _, _ = net.gradients(modulated_by(net, size))
        limit, seen = flat(expected), flat(grads[:-1]) / size
        return np.linalg.norm(seen - limit) / np.linalg.norm(limit)

    errors = [distance(size) for size in (1e-2, 1e-3, 1e-4)]
    assert errors[0] < 0.2
    np.testing.assert_allclose([errors[0] / errors[1], errors[1] / errors[2]], 10, rtol=0.1)


def test_with_weak_modulation_the_top_does_backpropagation(small, assert_close):
    net = small(Pepita())
    expected, _, _ = Backprop().gradients(net.chain, net.state, net.batch)
    grads, _, _ = net.gradients(modulated_by(net, 0.0))
    assert_close(grads[-1], expected[-1])
    assert not np.any(flat(grads[:-1]))


def test_training_turns_its_gradient_towards_that_of_backpropagation(small):
    """The forward weights come to agree with -F, as under feedback alignment (adaptive: Srinivasan et al. 2024)."""
    plain = MLP(widths=(20, 64, 4), activation="relu", gain=0.1).blocks((20,))
    net = small(Pepita(scale=0.5), blocks=[replace(b, tx=optax.sgd(0.1, 0.9)) for b in plain], count=256)
    labels = np.argmax(net.batch.x @ np.random.default_rng(1).normal(size=(20, 4)), 1)
    batch = net.batch._replace(y=jnp.asarray(labels, jnp.int32))
    first = Row(net.rule.init(b, jax.random.PRNGKey(b.index)) for b in net.blocks)
    true = small(Backprop(), blocks=net.blocks)

    def run(state):
        return jax.lax.fori_loop(0, 50, lambda _, s: net.rule.step(net.chain, s, batch)[0], state)

    def angle(state):
        plain = Row(s._replace(memory=()) for s in state)
        return cosine(net.gradients(state, batch)[0][0], true.gradients(plain, batch)[0][0])

    def agreement(state):
        forward = state[0].params["linear"]["kernel"] @ state[1].params["linear"]["kernel"]
        return cosine(forward, -state[0].memory.T)

    last = jax.jit(run)(first)
    assert abs(angle(first)) < 0.2
    assert abs(agreement(first)) < 0.2
    assert angle(last) > 0.3
    assert agreement(last) > 0.3


def test_shared_weights_take_the_mean_over_positions(convolutional, assert_close):
    net = convolutional(Pepita())
    grads, memory, _ = net.gradients()
    x, block, params = net.batch.x, net.blocks[0], net.state[0].params

    def whole(x):
        h = x
        for b, state in zip(net.blocks, net.state, strict=True):
            h = b.apply(state.params, h)
        return h

    e = jax.nn.softmax(whole(x)) - jnp.eye(net.classes)[net.batch.y]
    x_mod = x + jnp.einsum("bk,k...->b...", e, memory[0])
    change = block.apply(params, x) - block.apply(params, x_mod)
    expected = jax.grad(lambda p: jnp.sum(change * block.pre(p, x_mod)) / len(x) / 16)(params)  # 4 x 4 positions
    assert_close(grads[0], expected)


def test_modulation_has_the_size_of_the_paper(small):
    block, key = small(Pepita(), (400, 8, 3)).blocks[0], jax.random.PRNGKey(0)
    f = Pepita().init(block, key).memory
    bound = 0.05 * (6 / 400) ** 0.5
    assert f.shape == (3, 400)
    assert bound > float(jnp.abs(f).max()) > 0.98 * bound
    assert float(f.std()) == pytest.approx(bound / 3**0.5, rel=0.05)
    np.testing.assert_allclose(Pepita(scale=0.5).init(block, key).memory, 10 * f, rtol=1e-6)
    assert Pepita().init(small(Pepita()).blocks[1], key).memory == ()
    ours, theirs = Pepita().init(block, key).params, Backprop().init(block, key).params
    assert jnp.array_equal(ours["linear"]["kernel"], theirs["linear"]["kernel"])


def test_microbatches_add_up_to_the_batch(small, assert_close):
    net = small(Pepita())
    parts = [net.gradients(batch=part)[0] for part in split_batch(net.batch, 2)]
    assert_close(jax.tree.map(lambda a, b: (a + b) / 2, *parts), net.gradients()[0])


def test_a_boundary_carries_two_activities_and_the_error_goes_to_the_bottom(make_setup):
    setup = make_setup("pepita", shards=3, batch=12)  # widths 12-8-7-6-3: shards end after 7 and 6
    assert dict(setup.plan_step(setup.stages[0]).traffic.payload) == {
        Channel("activation", "activation", 0, 1): 12 * 7 * 4,
        Channel("activation", "activation", 1, 2): 12 * 6 * 4,
        Channel("modulated", "activation", 0, 1): 12 * 7 * 4,
        Channel("modulated", "activation", 1, 2): 12 * 6 * 4,
        Channel("error", "error", 2, 0): 12 * 3 * 4,
    }
