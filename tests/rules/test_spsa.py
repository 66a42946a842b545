"""Simultaneous perturbation against a loop over the two losses, and against forward gradients in the limit."""

import jax
import numpy as np
import pytest

from locallearn.rules._perturbation import direction
from locallearn.rules.forward_gradient import ForwardGradient
from locallearn.rules.spsa import SPSA
from tests.rules.measures import flat


def loss_of(params, x, y):
    """The mean cross-entropy of a dense tanh network, in numpy, one example at a time."""
    total = 0.0
    for example, label in zip(np.asarray(x), np.asarray(y), strict=True):
        h = example
        for i, p in enumerate(params):
            h = h @ np.asarray(p["linear"]["kernel"]) + np.asarray(p["linear"]["bias"])
            h = np.tanh(h) if i + 1 < len(params) else h
        total += np.log(np.sum(np.exp(h))) - h[label]
    return total / len(y)


@pytest.mark.parametrize("distribution", ["normal", "rademacher"])
@pytest.mark.parametrize("samples", [1, 3])
def test_it_is_the_slope_between_two_losses(small, distribution, samples):
    net = small(SPSA(0.1, samples, distribution))
    params, expected, losses = [s.params for s in net.state], 0.0, []
    for k in range(samples):
        v = [direction(b, s, net.batch.key, k, distribution=distribution) for b, s in zip(net.blocks, net.state, strict=True)]
        plus, minus = (loss_of(jax.tree.map(lambda p, d, e=e: p + e * d, params, v), *net.batch[:2]) for e in (0.1, -0.1))
        expected = expected + (plus - minus) / 0.2 * flat(v) / samples
        losses += [plus, minus]
    grads, memory, loss = net.gradients()
    np.testing.assert_allclose(flat(grads), expected, rtol=0, atol=1e-12)
    assert float(loss) == pytest.approx(np.mean(losses), abs=1e-13)
    assert memory == [()] * 4


def test_it_tends_to_the_forward_gradient_with_the_square_of_epsilon(small):
    exact = flat(small(ForwardGradient()).gradients()[0])

    def error(epsilon):
        return np.linalg.norm(flat(small(SPSA(epsilon)).gradients()[0]) - exact) / np.linalg.norm(exact)

    coarse, middle, fine = (error(epsilon) for epsilon in (1e-1, 1e-2, 1e-3))
    assert coarse > 1e-3
    assert middle / fine == pytest.approx(100, rel=0.05)
    assert fine < 1e-4


def test_its_diagnosis(small):
    net = small(SPSA())
    found = net.rule.diagnose(net.chain, net.state, net.batch)
    np.testing.assert_allclose(list(found["gradient_norm"]), [np.linalg.norm(flat(g)) for g in net.gradients()[0]], rtol=1e-12)
    assert len({float(g) for g in found["projection"]}) == 1
