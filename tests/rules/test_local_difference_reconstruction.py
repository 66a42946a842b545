"""L-DRL against backpropagation, to which it tends, against linear algebra, and against its regressions by hand."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from locallearn.chain import Row
from locallearn.rules.local_difference_reconstruction import LocalDifferenceReconstruction
from locallearn.traffic import Channel
from tests.rules.measures import distance, true_gradients

STILL = 1e-30
"""A rate at which feedback weights stay as they are."""


def with_feedback(net, make):
    """The state with the kernel `make(l, state)` in every feedback layer, and an Adam that has seen nothing."""

    def change(l, state):
        if not state.memory:
            return state
        weights = {"linear": {**state.memory.weights["linear"], "kernel": make(l, state)}}
        return state._replace(memory=state.memory._replace(weights=weights, opt=optax.adam(1.0).init(weights)))

    return Row(change(l, state) for l, state in enumerate(net.state))


def kernel(state):
    return state.params["linear"]["kernel"]


def as_it_is(l, state):
    return state.memory.weights["linear"]["kernel"]


def test_in_a_linear_network_with_feedback_weights_as_they_should_be_it_is_backpropagation(small, assert_close):
    net = small(LocalDifferenceReconstruction(beta=2.0, rate=STILL), activation="identity")
    assert_close(net.gradients(with_feedback(net, lambda l, state: kernel(state)))[0], true_gradients(net))


def test_with_transposed_jacobians_it_tends_to_backpropagation_with_the_nudge(small, dense):
    """One example: there W̃ = K diag(tanh'(u) / tanh'(h)) makes the Jacobian of h ↦ tanh(h) W̃ᵀ that of f, transposed."""
    errors = []
    for beta in (0.01, 0.001):
        net = small(LocalDifferenceReconstruction(beta=beta, rate=STILL), count=1)
        h = [net.batch.x[0]]
        for state in net.state.values[:-1]:
            h.append(dense(state.params, h[-1]))

        def matched(l, state, h=h):
            return kernel(state) * ((1 - h[l + 1] ** 2) / (1 - jnp.tanh(h[l + 1]) ** 2) if l < 3 else 1.0)

        errors.append(distance(net.gradients(with_feedback(net, matched))[0], true_gradients(net)))
    assert 1e-5 < errors[0] < 0.1
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.05)
    assert distance(net.gradients(with_feedback(net, lambda l, state: kernel(state)))[0], true_gradients(net)) > 0.01


def test_with_any_other_feedback_weights_it_does_not(small):
    net = small(LocalDifferenceReconstruction(beta=1e-4, rate=STILL))
    assert distance(net.gradients(with_feedback(net, as_it_is))[0], true_gradients(net)) > 0.1


def test_with_exact_inverses_a_target_is_a_gauss_newton_step(small):
    net = small(LocalDifferenceReconstruction(beta=0.4, rate=STILL), widths=(3, 3, 3, 3), activation="identity", count=1)
    grads = net.gradients(with_feedback(net, lambda l, state: jnp.linalg.inv(kernel(state)).T))[0]
    displacement = [-0.4 * g["linear"]["bias"] for g in grads]
    for l, move in enumerate(displacement[:2]):
        jacobian = jnp.eye(3)
        for above in net.state.values[l + 1 :]:
            jacobian = jacobian @ kernel(above)
        np.testing.assert_allclose(move, np.linalg.solve(jacobian.T, displacement[2]), rtol=1e-11)


def test_feedback_weights_become_the_transposed_jacobian(small):
    """Of a linear network they become the weights themselves: with noise as strong as one likes, for K_l is a quadratic form."""
    net = small(LocalDifferenceReconstruction(iterations=3000, rate=0.003, noise=0.5), activation="identity")
    before = with_feedback(net, as_it_is)
    after = net.gradients(before)[1]
    for l in (1, 2, 3):
        assert distance(before[l].memory.weights["linear"]["kernel"], kernel(net.state[l])) > 0.9
        assert distance(after[l].weights["linear"]["kernel"], kernel(net.state[l])) < 0.1


def test_feedback_weights_learn_to_agree_with_a_curved_network_too(small):
    net = small(LocalDifferenceReconstruction(iterations=3000, rate=0.003, noise=0.05))
    state = with_feedback(net, as_it_is)
    first = net.rule.diagnose(net.chain, state, net.batch)["alignment"]
    learnt = Row(s._replace(memory=m) for s, m in zip(state, net.gradients(state)[1], strict=True))
    last = net.rule.diagnose(net.chain, learnt, net.batch)["alignment"]
    assert float(first[0]) == float(last[0]) == 1
    assert max(float(a) for a in first.values[1:]) < 0.6
    assert min(float(a) for a in last.values[1:]) > 0.9


def test_the_regression_and_the_targets_by_hand(small, dense, assert_close):
    rule = LocalDifferenceReconstruction(beta=0.6, iterations=3, rate=0.02, noise=0.3)
    net = small(rule)
    state = with_feedback(net, as_it_is)
    functions: list[Any] = [jnp.tanh] * 3 + [lambda u: u]
    h = [net.batch.x]
    for s, f in zip(state, functions, strict=True):
        h.append(dense(s.params, h[-1], f=f))
    grads, memory, _ = net.gradients(state)

    weights = {}
    for l in (1, 2, 3):
        v = state[l].memory.weights["linear"]["kernel"]
        moments = jnp.zeros_like(v), jnp.zeros_like(v)
        for k in range(3):
            keys = jax.random.split(jax.random.fold_in(jax.random.fold_in(net.batch.key, l), k))
            epsilon = 0.3 * jax.random.normal(keys[0], h[l].shape, jnp.float64)
            eta = 0.3 * jax.random.normal(keys[1], h[l + 1].shape, jnp.float64)
            f = functions[l]
            by_input = f(dense(state[l].params, h[l] + epsilon, f=f)) - f(h[l + 1])
            by_output = f(h[l + 1] + eta) - f(h[l + 1])
            slope = (2 * (by_output @ v.T).T @ by_output - 2 * epsilon.T @ by_input) / 4
            moments = 0.9 * moments[0] + 0.1 * slope, 0.999 * moments[1] + 0.001 * slope**2
            v = v - 0.02 * (moments[0] / (1 - 0.9 ** (k + 1))) / (jnp.sqrt(moments[1] / (1 - 0.999 ** (k + 1))) + 1e-8)
        weights[l] = v
        np.testing.assert_allclose(memory[l].weights["linear"]["kernel"], v, atol=1e-10)

    scores = jax.nn.softmax(h[4])
    target = {4: h[4] - 0.6 * (scores - jnp.eye(3)[net.batch.y])}
    for l in (3, 2, 1):
        target[l] = h[l] + (functions[l](target[l + 1]) - functions[l](h[l + 1])) @ weights[l].T
    for l in range(4):

        def miss(params, l=l):
            return 0.5 / 0.6 / 4 * jnp.sum((dense(params, h[l], f=functions[l]) - target[l + 1]) ** 2)

        assert_close(grads[l], jax.grad(miss)(state[l].params), tolerance=1e-9)


def test_convolutions_have_feedback_layers_too(convolutional):
    net = convolutional(LocalDifferenceReconstruction(beta=0.01, iterations=2000, rate=0.003, noise=0.1))
    fresh = Row(s._replace(memory=s.memory._replace(opt=optax.adam(1.0).init(s.memory.weights)) if s.memory else ()) for s in net.state)
    grads, memory, _ = net.gradients(fresh)
    assert distance(grads, true_gradients(net)) < 0.4
    assert memory[1].weights["inner"]["kernel"].shape == (3, 3, 3, 2)
    still = convolutional(LocalDifferenceReconstruction(beta=0.01, rate=STILL))
    assert distance(still.gradients(fresh)[0], true_gradients(still)) > 0.8


def test_a_boundary_carries_an_activity_up_and_a_target_down_whatever_the_iterations(make_setup):
    setup = make_setup(LocalDifferenceReconstruction(iterations=7), shards=3)  # widths 12-8-7-6-3: after 7 and 6, 12 examples
    assert dict(setup.plan_step(setup.stages[0]).traffic.payload) == {
        Channel("activation", "activation", 0, 1): 12 * 7 * 4,
        Channel("activation", "activation", 1, 2): 12 * 6 * 4,
        Channel("target", "target", 1, 0): 12 * 7 * 4,
        Channel("target", "target", 2, 1): 12 * 6 * 4,
    }


def test_it_refuses_an_activation_without_a_slope_to_match(small):
    net = small(LocalDifferenceReconstruction(), activation="hard_sigmoid")
    assert "not hard_sigmoid" in net.rule.problems(net.blocks)[0]
    assert small(LocalDifferenceReconstruction()).rule.problems(small(LocalDifferenceReconstruction()).blocks) == []
