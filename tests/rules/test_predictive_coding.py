"""Predictive coding against backpropagation in its limits, against linear algebra, and against its dynamics by hand."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locallearn.rule import split_batch
from locallearn.rules.predictive_coding import PredictiveCoding
from locallearn.traffic import Channel
from tests.rules.measures import distance


def identity(u):
    return u


def loss_by_hand(name, scores, y):
    """Mean over the batch."""
    target = jnp.eye(scores.shape[1])[y]
    each = 0.5 * jnp.sum((scores - target) ** 2, 1) if name == "squared" else -jnp.sum(target * jax.nn.log_softmax(scores), 1)
    return jnp.mean(each)


def true_gradients(net, dense, name):
    """The loss of the forward pass and its gradient, by one function of all parameters."""

    def loss(params):
        h = net.batch.x
        for p in params[:-1]:
            h = dense(p, h)
        return loss_by_hand(name, dense(params[-1], h, f=identity), net.batch.y)

    return jax.value_and_grad(loss)([state.params for state in net.state])


@pytest.mark.parametrize("loss", ["squared", "cross_entropy"])
@pytest.mark.parametrize(("rate", "steps"), [(1.0, 3), (0.5, 150)])
def test_fixed_predictions_at_equilibrium_give_backpropagation(small, dense, assert_close, loss, rate, steps):
    net = small(PredictiveCoding(steps=steps, rate=rate, momentum=0.0, loss=loss, fixed_prediction=True))
    grads, memory, value = net.gradients()
    expected_value, expected = true_gradients(net, dense, loss)
    assert_close(grads, expected)
    assert float(value) == pytest.approx(float(expected_value), abs=1e-14)
    assert memory == [()] * 4


@pytest.mark.parametrize("change", [{"fixed_prediction": False}, {"steps": 2}, {"rate": 0.9}])
def test_otherwise_they_do_not(small, dense, change):
    net = small(PredictiveCoding(**{"steps": 3, "rate": 1.0, "momentum": 0.0, "fixed_prediction": True, **change}))
    assert distance(net.gradients()[0], true_gradients(net, dense, "squared")[1]) > 0.01


def test_a_weak_precision_tends_to_backpropagation_in_proportion(small, dense):
    errors = []
    for precision in (1e-1, 1e-2, 1e-3):
        net = small(PredictiveCoding(steps=400, rate=0.2, momentum=0.5, precision=precision))
        errors.append(distance(net.gradients()[0], true_gradients(net, dense, "squared")[1]))
    assert 0.01 < errors[0] < 1
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.3)
    assert errors[1] / errors[2] == pytest.approx(10, rel=0.05)


def relaxed(net):
    """(ε, z) of every block of a linear network with one example: there a bias's gradient is -ε_l, but for 1/λ."""
    grads, _, _ = net.gradients()
    eps = [-net.rule.precision * g["linear"]["bias"] for g in grads]
    z, below = [], net.batch.x[0]
    for state, e in zip(net.state, eps, strict=True):
        z.append(below @ state.params["linear"]["kernel"] + state.params["linear"]["bias"] + e)
        below = z[-1]
    return eps, z


@pytest.mark.parametrize("precision", [1.0, 0.3])
def test_a_linear_network_relaxes_to_the_energy_and_activities_of_linear_algebra(small, precision):
    net = small(PredictiveCoding(steps=3000, rate=0.1, momentum=0.5, precision=precision), activation="identity", count=1)
    eps, z = relaxed(net)
    w = [np.asarray(state.params["linear"]["kernel"]).T for state in net.state]
    b = [np.asarray(state.params["linear"]["bias"]) for state in net.state]
    x, y = np.asarray(net.batch.x[0]), np.eye(3)[0]

    mu = x
    for weight, bias in zip(w, b, strict=True):
        mu = weight @ mu + bias
    spread, product = np.eye(3) / precision, np.eye(3)
    for weight in reversed(w[1:]):
        product = product @ weight
        spread = spread + product @ product.T
    energy = sum(0.5 * float(jnp.sum(e**2)) for e in eps[:-1]) + 0.5 / precision * float(jnp.sum(eps[-1] ** 2))
    assert energy == pytest.approx(0.5 * (y - mu) @ np.linalg.solve(spread, y - mu), rel=1e-10)

    sizes, starts = [8, 7, 5], [0, 8, 15, 20]
    system, right = np.zeros((20, 20)), np.zeros(20)
    for k, n in enumerate(sizes):
        here = slice(starts[k], starts[k + 1])
        weight, scale = w[k + 1], precision if k == 2 else 1.0
        system[here, here] = np.eye(n) + scale * weight.T @ weight
        right[here] = b[k] + (w[0] @ x if k == 0 else 0) + (scale * weight.T @ (y - b[3]) if k == 2 else -weight.T @ b[k + 1])
        if k < 2:
            above = slice(starts[k + 1], starts[k + 2])
            system[here, above], system[above, here] = -weight.T, -weight
    np.testing.assert_allclose(np.concatenate(z[:3]), np.linalg.solve(system, right), atol=1e-10)


def test_no_round_raises_the_energy_of_a_linear_network(small):
    energies = []
    for steps in (3, 5, 20):
        eps, _ = relaxed(small(PredictiveCoding(steps=steps, rate=0.05, momentum=0.0), activation="identity", count=1))
        energies.append(sum(0.5 * float(jnp.sum(e**2)) for e in eps))
    assert all(b < a for a, b in itertools.pairwise(energies))


@pytest.mark.parametrize("loss", ["squared", "cross_entropy"])
def test_dynamics_and_learning_by_hand(small, dense, assert_close, loss):
    rule = PredictiveCoding(steps=5, rate=0.1, momentum=0.6, loss=loss, precision=0.7)
    net = small(rule)
    grads, _, _ = net.gradients()
    params = [state.params for state in net.state]

    def energy(z, params):
        below, total = net.batch.x, 0.0
        for p, here in zip(params[:-1], z, strict=True):
            total, below = total + 0.5 * jnp.sum((here - dense(p, below)) ** 2), here
        return total + 0.7 * 4 * loss_by_hand(loss, dense(params[-1], below, f=identity), net.batch.y)

    z = [dense(params[0], net.batch.x)]
    for p in params[1:-1]:
        z.append(dense(p, z[-1]))
    velocity = [jnp.zeros_like(a) for a in z]
    slope = jax.jit(jax.grad(energy))
    for _ in range(5):
        velocity = [0.6 * v + s for v, s in zip(velocity, slope(z, params), strict=True)]
        z = [a - 0.1 * v for a, v in zip(z, velocity, strict=True)]
    assert_close(grads, jax.tree.map(lambda g: g / (0.7 * 4), jax.grad(energy, 1)(z, params)))


@pytest.mark.parametrize("loss", ["squared", "cross_entropy"])
def test_the_diagnosis_tells_the_energy_and_the_steepest_slope_of_every_block(small, dense, loss):
    net = small(PredictiveCoding(steps=4, rate=0.1, momentum=0.0, loss=loss, precision=0.7))
    params = [state.params for state in net.state]

    def parts(z):
        mu = [dense(p, below) for p, below in zip(params[:-1], [net.batch.x, *z[:-1]], strict=True)]
        top = 0.7 * loss_by_hand(loss, dense(params[-1], z[-1], f=identity), net.batch.y)
        return [*(0.5 * jnp.sum((a - b) ** 2) / 4 for a, b in zip(z, mu, strict=True)), top]

    z = [dense(params[0], net.batch.x)]
    for p in params[1:-1]:
        z.append(dense(p, z[-1]))
    slope = jax.jit(jax.grad(lambda z: 4 * sum(parts(z))))
    for _ in range(4):
        z = [a - 0.1 * s for a, s in zip(z, slope(z), strict=True)]
    found = net.rule.diagnose(net.chain, net.state, net.batch)
    np.testing.assert_allclose(list(found["energy"]), parts(z), atol=1e-13)
    np.testing.assert_allclose(list(found["residual"]), [*(jnp.max(jnp.abs(s)) for s in slope(z)), 0.0], atol=1e-13)
    rested = small(PredictiveCoding(steps=2000, rate=0.1, momentum=0.5, loss=loss))
    assert max(rested.rule.diagnose(rested.chain, rested.state, rested.batch)["residual"]) < 1e-12


def test_convolutions_relax_too(convolutional, assert_close):
    net = convolutional(PredictiveCoding(steps=2, rate=1.0, momentum=0.0, fixed_prediction=True))

    def loss(params):
        h = net.batch.x
        for block, p in zip(net.blocks, params, strict=True):
            h = block.apply(p, h)
        return loss_by_hand("squared", h, net.batch.y)

    assert_close(net.gradients()[0], jax.grad(loss)([state.params for state in net.state]))


def test_examples_relax_independently_so_microbatches_add_up(small, assert_close):
    net = small(PredictiveCoding(steps=6, rate=0.3, momentum=0.5))
    parts = [net.gradients(batch=part)[0] for part in split_batch(net.batch, 2)]
    assert_close(jax.tree.map(lambda a, b: (a + b) / 2, *parts), net.gradients()[0])


def test_prediction_is_a_plain_forward_pass(small, dense):
    net = small(PredictiveCoding())
    h = net.batch.x
    for state in net.state.values[:-1]:
        h = dense(state.params, h)
    expected = dense(net.state[-1].params, h, f=identity)
    np.testing.assert_allclose(net.rule.predict(net.chain, net.state, net.batch.x), expected, atol=1e-14)


@pytest.mark.parametrize(("fixed", "ups"), [(False, 1 + 5), (True, 1)])
def test_a_boundary_carries_an_activity_and_an_error_in_every_round(make_setup, fixed, ups):
    setup = make_setup(PredictiveCoding(steps=5, fixed_prediction=fixed), shards=3, batch=12)  # widths 12-8-7-6-3: after 7 and 6
    assert dict(setup.plan_step(setup.stages[0]).traffic.payload) == {
        Channel("activation", "activation", 0, 1): ups * 12 * 7 * 4,
        Channel("activation", "activation", 1, 2): ups * 12 * 6 * 4,
        Channel("error", "error", 1, 0): 5 * 12 * 7 * 4,
        Channel("error", "error", 2, 1): 5 * 12 * 6 * 4,
    }


def test_with_too_few_rounds_the_bottom_learns_nothing_and_the_rule_says_so(small):
    net = small(PredictiveCoding(steps=2))
    bottom = net.gradients()[0][0]
    assert all(jnp.all(leaf == 0) for leaf in jax.tree.leaves(bottom))
    assert net.rule.problems(net.blocks) == ["needs `steps` of at least 3 for 4 blocks: news from the top moves down one block in a round"]
    assert small(PredictiveCoding(steps=3)).rule.problems(net.blocks) == []
    assert all(jnp.any(leaf != 0) for leaf in jax.tree.leaves(small(PredictiveCoding(steps=3)).gradients()[0][0]))
