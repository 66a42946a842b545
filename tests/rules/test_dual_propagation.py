"""Dual propagation against backpropagation, which it is below the margin, and against its sweep by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locallearn.block import Block
from locallearn.rule import split_batch
from locallearn.rules.dual_propagation import DualPropagation
from locallearn.traffic import Channel
from tests.rules.measures import backpropagation, distance, true_gradients


@pytest.mark.parametrize("beta", [1e-2, 1e-3, 1e-6])
def test_with_relu_and_no_unit_carried_over_its_threshold_it_is_backpropagation(small, beta):
    net = small(DualPropagation(beta=beta), activation="relu")
    grads, memory, loss = net.gradients()
    expected_loss, expected = backpropagation(net)
    assert distance(grads, expected) < 1e-15 / beta + 1e-14
    assert float(loss) == pytest.approx(float(expected_loss), abs=1e-14)
    assert memory == [()] * 4


def test_beyond_the_margin_it_is_not(small):
    net = small(DualPropagation(beta=3.0), activation="relu")
    assert distance(net.gradients()[0], true_gradients(net)) > 0.05


def test_with_a_smooth_activation_the_error_falls_with_the_square_of_the_nudge(small):
    errors = []
    for beta in (0.3, 0.03, 0.003):
        net = small(DualPropagation(beta=beta), activation="tanh")
        errors.append(distance(net.gradients()[0], true_gradients(net)))
    assert errors[0] > 1e-5
    assert errors[0] / errors[1] == pytest.approx(100, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(100, rel=0.1)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_the_sweep_by_hand(small, activation):
    beta, f = 2.0, {"relu": lambda u: np.maximum(u, 0), "tanh": np.tanh}[activation]
    net = small(DualPropagation(beta=beta), activation=activation)
    w = [np.asarray(s.params["linear"]["kernel"]) for s in net.state]
    b = [np.asarray(s.params["linear"]["bias"]) for s in net.state]
    grads, _, _ = net.gradients()
    for i, x in enumerate(np.asarray(net.batch.x)):
        h, u = [x], []
        for weight, bias in zip(w, b, strict=True):
            u.append(h[-1] @ weight + bias)
            h.append(f(u[-1]))
        scores = np.exp(u[3] - u[3].max())
        e = scores / scores.sum() - np.eye(3)[net.batch.y[i]]
        plus, minus = u[3] - beta / 2 * e, u[3] + beta / 2 * e
        for layer in (3, 2, 1, 0):
            if layer < 3:
                asked = w[layer + 1] @ (plus - minus)
                plus, minus = f(u[layer] + asked / 2), f(u[layer] - asked / 2)
            delta = -(plus - minus) / beta / 4
            grads[layer] = jax.tree.map(
                jnp.subtract, grads[layer], {"linear": {"bias": jnp.asarray(delta), "kernel": jnp.asarray(np.outer(h[layer], delta))}}
            )
    assert all(np.abs(leaf).max() < 1e-14 for leaf in jax.tree.leaves(grads))


def test_convolutions_too(convolutional):
    net = convolutional(DualPropagation(beta=1e-4))
    assert distance(net.gradients()[0], true_gradients(net)) < 1e-7


def test_microbatches_add_up(small, assert_close):
    net = small(DualPropagation(beta=1.0))
    parts = [net.gradients(batch=part)[0] for part in split_batch(net.batch, 2)]
    assert_close(jax.tree.map(lambda a, b: (a + b) / 2, *parts), net.gradients()[0])


def test_drift_tells_where_it_is_no_longer_backpropagation(small):
    net = small(DualPropagation(beta=1e-3), activation="relu")
    assert all(float(d) < 1e-14 for d in net.rule.diagnose(net.chain, net.state, net.batch)["drift"])
    net = small(DualPropagation(beta=3.0), activation="relu")
    drift = [float(d) for d in net.rule.diagnose(net.chain, net.state, net.batch)["drift"]]
    assert max(drift[:3]) > 0.01
    assert drift[3] < 1e-14, "the top is linear"


def test_a_boundary_carries_as_much_as_in_backpropagation(make_setup):
    plans = [make_setup(rule, shards=3).plan_step for rule in ("dual_propagation", "backprop")]
    ours, theirs = (plan(plan.__self__.stages[0]) for plan in plans)
    assert dict(ours.traffic.payload) == dict(theirs.traffic.payload)
    assert Channel("error", "error", 2, 1) in ours.traffic.payload
    assert ours.hops == theirs.hops


def test_it_refuses_what_mixes_the_units_of_a_block(small):
    net = small(DualPropagation(), norm="layer")
    assert "without normalisation and pooling" in net.rule.problems(net.blocks)[0]
    net = small(DualPropagation())
    assert net.rule.problems(net.blocks) == []
    bent = [*net.blocks[:3], Block(net.blocks[0].build, (6,), 3, 4)]
    assert net.rule.problems(bent) == ["needs a linear top block; this one has tanh"]
