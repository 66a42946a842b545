"""The residual network of μPC: its scales by hand, activities that do not grow with depth, and predictive coding through 32 blocks."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from locallearn.chain import Chain
from locallearn.codec import Context, exact
from locallearn.models.residual_mlp import ResidualMLP
from locallearn.rule import Batch, init_state
from locallearn.rules.backprop import Backprop
from locallearn.rules.predictive_coding import PredictiveCoding
from locallearn.runtime.local import Fused
from locallearn.runtime.wiring import Wiring, choose_codecs


def kernels(blocks):
    return [state.params["linear"]["kernel"] for state in init_state(PredictiveCoding(), blocks, 0)]


def activities(blocks, x):
    """z_1 … z_L."""
    found = []
    for block, w in zip(blocks, kernels(blocks), strict=True):
        x = block.apply({"linear": {"kernel": w}}, x)
        found.append(x)
    return found


@pytest.fixture
def examples():
    """64 examples of three classes, 12 numbers each."""
    rng = np.random.default_rng(0)
    y = np.arange(64) % 3
    x = rng.normal(size=(64, 12)) + 1.5 * np.repeat(np.eye(3), 4, axis=1)[y]
    return jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.int32)


@pytest.mark.parametrize("skips", [True, False])
def test_its_scales_by_hand(examples, skips):
    x, _ = examples
    blocks = ResidualMLP(width=16, depth=5, activation="tanh", skips=skips, gamma=2.0).blocks((12,), 3)
    first, *inner, last = kernels(blocks)
    z = [x @ first / math.sqrt(12)]
    for w in inner:
        z.append(skips * z[-1] + jnp.tanh(z[-1]) @ w / math.sqrt(16 * (5 if skips else 1)))
    z.append(jnp.tanh(z[-1]) @ last / (16 * 2.0))
    for ours, expected in zip(activities(blocks, x), z, strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-5)
    assert all(float(jnp.std(w)) == pytest.approx(1, abs=0.15) for w in inner)
    plain = kernels(ResidualMLP(width=16, depth=5, parametrisation="standard").blocks((12,), 3))
    assert all(float(jnp.std(w)) == pytest.approx(1 / math.sqrt(w.shape[0]), rel=0.2) for w in plain[:-1])


def sizes(examples, parametrisation):
    """The mean size of the last activities below the top, of a network of 8, 32 and 128 blocks."""
    models = [ResidualMLP(width=64, depth=depth, parametrisation=parametrisation) for depth in (8, 32, 128)]
    return [float(jnp.sqrt(jnp.mean(activities(model.blocks((12,), 3), examples[0])[-2] ** 2))) for model in models]


def test_activities_keep_their_size_with_depth_as_they_do_not_in_the_standard_parametrisation(examples):
    assert max(sizes(examples, "mupc")) < 2
    assert min(sizes(examples, "mupc")) > 0.5
    standard = sizes(examples, "standard")
    assert standard[1] > 20 * standard[0]
    assert standard[2] > 1e6 * standard[1]


def losses(examples, parametrisation, rate, learning_rate):
    """Of 40 steps of predictive coding through 32 blocks, and the accuracy after them."""
    x, y = examples
    rule = PredictiveCoding(steps=31, rate=rate, momentum=0.0)
    model = ResidualMLP(width=16, depth=32, parametrisation=parametrisation)
    blocks = [replace(block, tx=optax.adam(learning_rate)) for block in model.blocks((12,), 3)]
    assert rule.problems(blocks) == []
    wiring = Wiring((0,) * 32, rule.messages, choose_codecs(rule.messages, {}, exact()))
    batch = Batch(x, y, jnp.arange(64, dtype=jnp.int32), jax.random.PRNGKey(0))
    chain = Chain(blocks, Fused(wiring, {}, Context(batch.index)))

    @jax.jit
    def run(state):
        def one(state, _):
            state, info = rule.step(chain, state, batch)
            return state, info.loss

        state, told = jax.lax.scan(one, state, length=40)
        return told, jnp.mean(jnp.argmax(rule.predict(chain, state, x), 1) == y)

    told, right = run(init_state(rule, blocks, 0))
    return np.asarray(told), float(right)


def test_predictive_coding_trains_32_blocks_as_it_does_not_in_the_standard_parametrisation(examples):
    told, right = losses(examples, "mupc", 0.5, 0.1)
    assert told[-1] < 0.2
    assert right > 0.9
    for rate, learning_rate in ((0.5, 0.01), (0.1, 0.001)):
        told, right = losses(examples, "standard", rate, learning_rate)
        assert told[-1] > 1, "worse than to say nothing, 0.5"
        assert right < 0.7


def gradient(rule, width, x, y):
    """All entries of the rule's gradient, at a network of four blocks."""
    blocks = ResidualMLP(width=width, depth=4, activation="tanh").blocks((12,), 3)
    wiring = Wiring((0,) * 4, rule.messages, choose_codecs(rule.messages, {}, exact()))
    chain = Chain(blocks, Fused(wiring, {}, Context(jnp.arange(64))))
    batch = Batch(x, y, jnp.arange(64, dtype=jnp.int32), jax.random.PRNGKey(0))
    grads = jax.jit(lambda state: rule.gradients(chain, state, batch)[0])(init_state(rule, blocks, 0))
    return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(grads)])


def test_at_equilibrium_the_gradient_tends_to_backpropagations_as_the_network_widens(examples):
    rest = PredictiveCoding(steps=300, rate=0.3, momentum=0.0, loss="cross_entropy")
    found = []
    for width in (16, 64, 256):
        ours, true = (gradient(rule, width, *examples) for rule in (rest, Backprop()))
        found.append(float(jnp.linalg.norm(ours - true) / jnp.linalg.norm(true)))
    assert found[2] < 0.02
    for wider, narrow in zip(found[1:], found, strict=False):
        assert narrow / wider == pytest.approx(4, rel=0.2)
