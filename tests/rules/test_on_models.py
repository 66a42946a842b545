"""Every rule takes a step on a convolutional and on a residual network, unless it says why it does not; some with batch normalisation."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locallearn.chain import Chain
from locallearn.codec import Context
from locallearn.models import residual
from locallearn.models.convnet import Convnet
from locallearn.models.layers import INITS
from locallearn.rule import Batch, Rule, init_state, whole_step
from locallearn.rules import RULES
from locallearn.runtime.local import Fused
from locallearn.runtime.wiring import lossless
from locallearn.train import Optimizer

pytestmark = pytest.mark.slow  # some ninety programs, two minutes of compiling

SHAPE, CLASSES, COUNT = (8, 8, 1), 3, 6
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""A program that runs once is not worth optimising."""

RNG = np.random.default_rng(0)
BATCH = Batch(
    jnp.asarray(RNG.normal(size=(COUNT, *SHAPE)), jnp.float32),
    jnp.arange(COUNT, dtype=jnp.int32) % CLASSES,
    jnp.arange(COUNT, dtype=jnp.int32),
    jax.random.PRNGKey(7),
)


def resnet(norm):
    return residual.network(SHAPE, CLASSES, (3, 6), 1, projection=False, norm=norm, init=INITS["he"](1.0))


def networks():
    return {
        "convnet": Convnet(channels=(3, 6), activation="tanh").blocks(SHAPE, CLASSES),
        "convnet-bounded": Convnet(channels=(3, 4), activation="hard_sigmoid", pool_first=True, init="glorot").blocks(SHAPE, CLASSES),
        "resnet": resnet("none"),
        "resnet-layer": resnet("layer"),
        "convnet-batch": Convnet(channels=(3, 4), norm="batch").blocks(SHAPE, CLASSES),
        "resnet-batch": resnet("batch"),
    }


NETWORKS = networks()


def one_step(rule: Rule, name: str):
    """(state before, state after, loss, class scores) of one step of a rule with its default settings, in one program."""
    tx = Optimizer("sgd", 0.1).build(1, 0)
    blocks = [replace(block, tx=tx, batch=COUNT) for block in NETWORKS[name]]
    wiring = lossless(rule.messages, (0,) * len(blocks))
    x = jnp.asarray(RNG.normal(size=(COUNT, *blocks[0].in_shape)), jnp.float32)

    def chain(blocks, training=True):
        return Chain(blocks, Fused(wiring, {}, Context(BATCH.index, training=training)))

    def run(state, batch):
        after, info = whole_step(rule, chain(blocks), state, batch)
        return after, info.loss, rule.predict(chain([block.evaluating for block in blocks], False), after, batch.x)

    state = init_state(rule, blocks, 0)
    batch = BATCH._replace(x=x)
    return state, *jax.jit(run).lower(state, batch).compile(compiler_options=QUICK)(state, batch)


def refusal(rule: Rule, name: str) -> str:
    """What the rule says against a network."""
    return "; ".join(rule.problems([replace(block, batch=COUNT) for block in NETWORKS[name]]))


def assert_stepped(before, after, loss, scores):
    assert np.isfinite(loss)
    assert scores.shape == (COUNT, CLASSES)
    assert np.all(np.isfinite(scores))
    changed = [
        any(np.any(np.asarray(a) != np.asarray(b)) for a, b in zip(jax.tree.leaves(s), jax.tree.leaves(t), strict=True))
        for s, t in zip(before, after, strict=True)
    ]
    assert sum(changed) >= len(changed) - 1, "all blocks learn, but for a top that may be idle"
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(after))


@pytest.mark.parametrize("network", ["convnet", "resnet"])
@pytest.mark.parametrize("name", RULES)
def test_a_step_on_images(name, network):
    rule = RULES[name]()
    why = refusal(rule, network)
    if why:
        pytest.skip(why)
    assert_stepped(*one_step(rule, network))


@pytest.mark.parametrize("network", ["convnet-batch", "resnet-batch"])
@pytest.mark.parametrize("name", ["backprop", "local_classifier"])
def test_a_step_with_batch_normalisation(name, network):
    before, after, *rest = one_step(RULES[name](), network)
    assert_stepped(before, after, *rest)
    for block, s, t in zip(NETWORKS[network], before, after, strict=True):
        own, then = (getattr(state.params, "block", state.params) for state in (s, t))
        for statistic, old, new in zip(*map(jax.tree.leaves, (block._is_statistic, own, then)), strict=True):
            if statistic:
                assert np.any(old != new)


def test_equilibrium_propagation_on_a_network_that_pools_before_its_activation():
    rule = RULES["equilibrium_propagation"](free=4, nudged=3)
    assert rule.problems(NETWORKS["convnet-bounded"]) == []
    assert refusal(rule, "convnet")
    assert_stepped(*one_step(rule, "convnet-bounded"))


def test_rules_that_need_halves_refuse_residual_blocks():
    needy = [name for name, rule in RULES.items() if rule.needs != "apply"]
    assert needy
    assert all("composite" in refusal(RULES[name](), "resnet") for name in needy)
