"""Batch normalisation: running statistics are part of the state, move once a step, and serve evaluations alone."""

from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import locallearn
from locallearn.block import Block, WithHead
from locallearn.chain import Chain
from locallearn.codec import Context, build
from locallearn.data.fashion14 import Fashion14
from locallearn.errors import RuleError
from locallearn.models import MLP, Convnet
from locallearn.models.layers import Norm
from locallearn.rule import Info, whole_step
from locallearn.rules import RULES
from locallearn.rules.backprop import Backprop
from locallearn.runtime.framed import EagerSession
from locallearn.runtime.fused import FusedSession
from locallearn.runtime.local import Fused
from locallearn.runtime.setup import Setup, Stage, rehearse
from locallearn.runtime.wiring import Wiring, choose_codecs, deal
from locallearn.train import Optimizer

RULES_WITH = ["backprop", "local_classifier"]
MOMENTUM = 0.9


def setup_of(rule, split, shards=2, norm: Norm = "batch", learn=(0, 1, 2), microbatches=1, optimizer=None, seed=0):
    rule = RULES[rule]() if isinstance(rule, str) else rule
    optimizer = optimizer or Optimizer(rate=0.01, weight_decay=0.1, name="adamw", clip=0.05)
    blocks = tuple(replace(b, tx=optimizer.build(8, b.index), learns=b.index in learn) for b in MLP((12, 8, 7, 3), norm=norm).blocks((12,)))
    wiring = Wiring(deal(3, shards), rule.messages, choose_codecs(rule.messages, {}, build((("exact", ()),))))
    return Setup((Stage(rule, blocks, wiring, 0, 8),), split, 12, 4, seed, microbatches)


def entered(session, setup):
    running = session(setup)
    running.enter(setup.stages[0])
    return running


def params(state):
    return state.params.block if isinstance(state.params, WithHead) else state.params


def chain_of(stage, blocks):
    return Chain(blocks, Fused(stage.wiring, {}, Context(jnp.arange(12))))


def leaves(session):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(session._state)]


@pytest.mark.parametrize("rule", RULES_WITH)
def test_statistics_are_the_exponential_average_of_what_the_batches_were(rule, tiny_split):
    """By hand: the bottom block's linear part on each batch, with the weights that the step began with."""
    session = entered(EagerSession, setup_of(rule, tiny_split))
    mean, variance = np.zeros(8), np.ones(8)
    for step in range(4):
        weights = jax.tree.map(np.asarray, params(session._state[0]))["linear"]
        u = np.asarray(session.batch(step).x, np.float64) @ weights["kernel"] + weights["bias"]
        mean = MOMENTUM * mean + (1 - MOMENTUM) * u.mean(0)
        variance = MOMENTUM * variance + (1 - MOMENTUM) * u.var(0)
        session.advance(step, step + 1)
        np.testing.assert_allclose(params(session._state[0])["norm"]["mean"], mean, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(params(session._state[0])["norm"]["var"], variance, rtol=1e-4)


@pytest.mark.parametrize("rule", RULES_WITH)
def test_evaluation_is_by_running_statistics_and_changes_nothing(rule, tiny_split):
    session = entered(FusedSession, setup_of(rule, tiny_split))
    session.advance(0, 8)
    before = leaves(session)
    got = session.correct(tiny_split.test, lossless=False)
    h = x = np.asarray(tiny_split.test.x)
    for i, state in enumerate(session._state):
        p = params(state)
        h = h @ np.asarray(p["linear"]["kernel"]) + np.asarray(p["linear"]["bias"])
        if i < 2:
            norm = jax.tree.map(np.asarray, p["norm"])
            h = np.maximum((h - norm["mean"]) / np.sqrt(norm["var"] + 1e-5) * norm["scale"] + norm["bias"], 0)
    assert got == int((h.argmax(1) == tiny_split.test.y).sum())
    stage = session.stage
    np.testing.assert_allclose(stage.rule.predict(chain_of(stage, stage.evaluating), session._state, x), h, rtol=1e-4, atol=1e-5)
    assert not np.allclose(stage.rule.predict(chain_of(stage, stage.blocks), session._state, x), h, rtol=1e-2)
    for a, b in zip(before, leaves(session), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_result_predicts_by_running_statistics():
    result = locallearn.run(
        {
            "rule": {"name": "backprop"},
            "model": {"name": "mlp", "widths": [196, 12, 10], "norm": "batch", "shards": 2},
            "data": {"name": "fashion14", "limit": 300, "validation": 20},
            "train": {"steps": 20, "batch": 50},
        }
    )
    test = Fashion14().load().test
    assert np.mean(result.predict(test.x) == test.y) == pytest.approx(result.test_accuracy, abs=1e-3)
    np.testing.assert_allclose(result.scores(test.x[:1]), result.scores(test.x[:9])[:1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rule", RULES_WITH)
def test_fabrics_agree_and_the_placement_does_not_matter(rule, tiny_split):
    runs = [(EagerSession, 1), (EagerSession, 3), (FusedSession, 2)]
    one, three, fused = (entered(session, setup_of(rule, tiny_split, shards)) for session, shards in runs)
    for session in (one, three, fused):
        session.advance(0, 4)
    for a, b in zip(leaves(one), leaves(three), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    for a, b in zip(leaves(one), leaves(fused), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("session", [EagerSession, FusedSession])
def test_a_snapshot_holds_the_statistics(session, tiny_split):
    whole, parted = (entered(session, setup_of("backprop", tiny_split)) for _ in range(2))
    whole.advance(0, 4)
    kept = whole.snapshot()
    whole.advance(4, 8)
    parted.restore(kept)
    parted.advance(4, 8)
    for a, b in zip(leaves(whole), leaves(parted), strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.any(params(parted._state[0])["norm"]["mean"] != 0)


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam", "adamw"])
@pytest.mark.parametrize("wrap", [lambda p: p, lambda p: WithHead(p, {"w": jnp.ones((2, 2))})], ids=["plain", "head"])
def test_the_optimizer_knows_nothing_of_statistics(name, wrap):
    """Gradients at the statistics, were there any, would neither move them nor count in the norm that is clipped; nothing decays them."""
    optimizer = Optimizer(name, 0.1, weight_decay=0.5, clip=1.0)
    batch, plain = (replace(MLP((4, 3, 2), norm=norm).blocks((4,))[0], tx=optimizer.build(5, 0)) for norm in ("batch", "layer"))
    p = batch.init(jax.random.PRNGKey(0))
    without = {**p, "norm": {key: p["norm"][key] for key in ("scale", "bias")}}
    states = batch.state(wrap(p)), plain.state(wrap(without))
    assert len(jax.tree.leaves(states[0].opt)) == len(jax.tree.leaves(states[1].opt))
    for _ in range(3):
        states = tuple(
            block.descend(state, jax.tree.map(lambda leaf: leaf + 1.0, state.params))
            for block, state in zip((batch, plain), states, strict=True)
        )
    after, expected = map(params, states)
    np.testing.assert_array_equal(after["norm"]["mean"], p["norm"]["mean"])
    np.testing.assert_array_equal(after["norm"]["var"], p["norm"]["var"])
    np.testing.assert_array_equal(after["norm"]["scale"], expected["norm"]["scale"])
    np.testing.assert_array_equal(after["linear"]["kernel"], expected["linear"]["kernel"])


def test_a_block_that_does_not_learn_acts_by_its_running_statistics_and_keeps_them(tiny_split):
    setup = setup_of("backprop", tiny_split, learn=(1, 2))
    session = entered(EagerSession, setup)
    first = jax.tree.map(np.asarray, session._state[0])
    session.advance(0, 2)
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, session._state[0]), first)
    assert np.any(params(session._state[1])["norm"]["mean"] != 0)
    frozen, (x, *_) = setup.stages[0].blocks[0], tiny_split.train
    assert not frozen.observes  # so that microbatches of such a run are allowed
    alone, together = frozen.apply(first.params, x[:1]), frozen.apply(first.params, x[:5])
    np.testing.assert_allclose(alone[0], together[0], rtol=1e-6)


def test_training_normalises_by_the_batch_and_evaluating_by_the_statistics(tiny_split):
    block = MLP((12, 8, 3), norm="batch", activation="identity").blocks((12,))[0]
    p = block.init(jax.random.PRNGKey(0))
    x = tiny_split.train.x[:20]
    u = np.asarray(block.pre(p, x), np.float64)
    np.testing.assert_allclose(block.apply(p, x), (u - u.mean(0)) / np.sqrt(u.var(0) + 1e-5), atol=1e-4)
    np.testing.assert_allclose(block.evaluating.apply(p, x), u / np.sqrt(1 + 1e-5), rtol=1e-5, atol=1e-6)
    grads = jax.grad(lambda p: jnp.sum(block.apply(p, x) ** 3))(p)
    assert not np.any(grads["norm"]["mean"])
    assert not np.any(grads["norm"]["var"])
    assert block.evaluating is block.evaluating
    assert not block.evaluating.training


def test_blocks_without_statistics_are_their_own_evaluation():
    blocks = Convnet(channels=(4,), norm="layer").blocks((6, 6, 1), 3)
    assert all(block.evaluating is block and not block.has_statistics for block in blocks)


def test_microbatches_are_refused(tiny_split):
    session = entered(EagerSession, setup_of("backprop", tiny_split, microbatches=2))
    with pytest.raises(RuleError, match="microbatches: 1"):
        session.advance(0, 1)


@dataclass(frozen=True)
class Silent(Backprop):
    """Backpropagation that tells nothing of what its blocks saw."""

    messages: ClassVar = Backprop.messages

    def gradients(self, chain, state, batch):
        grads, memory, info = super().gradients(chain, state, batch)
        return grads, memory, Info(info.loss)


@dataclass(frozen=True)
class Wrapped(Backprop):
    """Keeps parameters in a form of its own."""

    messages: ClassVar = Backprop.messages

    def init(self, block, key):
        return block.state({"mine": block.init(key)})


def test_a_rule_that_tells_no_inputs_is_refused():
    blocks = MLP((12, 8, 3), norm="batch").blocks((12,))
    rehearse(Backprop(), blocks)
    rehearse(Silent(), MLP((12, 8, 3), norm="layer").blocks((12,)))
    with pytest.raises(RuleError, match=r"Silent does not tell what its blocks saw.*take layer normalisation"):
        rehearse(Silent(), blocks)


def test_a_rule_that_wraps_parameters_in_its_own_way_is_refused():
    block = replace(MLP((12, 8, 3), norm="batch").blocks((12,))[0], tx=Optimizer().build(1, 0))
    with pytest.raises(RuleError, match="WithHead"):
        Wrapped().init(block, jax.random.PRNGKey(0))


def test_without_batch_normalisation_a_step_is_the_rules_own(tiny_split):
    session = entered(EagerSession, setup_of("backprop", tiny_split, norm="layer"))
    stage = session.stage

    def program(step):
        return str(jax.make_jaxpr(lambda state, batch: step(chain_of(stage, stage.blocks), state, batch))(session._state, session.batch(0)))

    assert program(stage.rule.step) == program(partial(whole_step, stage.rule))


def test_a_module_of_ones_own_with_statistics_works():
    class Own(nnx.Module):
        def __init__(self, rngs):
            self.linear, self.norm = nnx.Linear(3, 2, rngs=rngs), nnx.BatchNorm(2, momentum=0.5, rngs=rngs)

        def __call__(self, x):
            return self.norm(self.linear(x))

    block = Block(Own, (3,))
    state = block.state(block.init(jax.random.PRNGKey(0)))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(6, 3)), jnp.float32)
    after = block.observe(state, state.params, x)
    u = np.asarray(x @ state.params["linear"]["kernel"])
    np.testing.assert_allclose(after.params["norm"]["mean"], 0.5 * u.mean(0), rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(after.params["linear"]["kernel"], state.params["linear"]["kernel"])
