"""Narrow bridges: what crosses is as wide as the bridge, and every rule trains blocks that end in one."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from locallearn.block import Block
from locallearn.chain import Chain
from locallearn.codec import Context, exact
from locallearn.config.own import Blocks
from locallearn.config.run import resolve
from locallearn.errors import ConfigError, RuleError
from locallearn.experiment.prepare import prepare
from locallearn.models import MLP, MODELS, Convnet, ResidualMLP, Transformer
from locallearn.models.bridge import bridged
from locallearn.rule import ELEMENTWISE, Batch, init_state, step_keys
from locallearn.rules import RULES
from locallearn.runtime.fused import FusedSession
from locallearn.runtime.local import Fused
from locallearn.runtime.setup import rehearse
from locallearn.runtime.wiring import Wiring
from tests.conftest import MODEL

WIDTH = 3
STILL = {
    "cascaded_forward": (0, 1),  # stay as they were drawn: predictors alone learn
    **dict.fromkeys(("node_perturbation", "activity_forward_gradient"), (0, 1)),  # learn what is in `pre`; P stands behind the activation
    **dict.fromkeys(("forward_forward", "symba", "selective_goodness", "channelwise", "deeper_forward"), (2,)),  # adds up what others say
}
"""Blocks of which some rules leave a bridge as it is."""
NO_LAYER_OF_THEIR_OWN = {"softhebb", "noprop", "diffusion_blocks"}
"""Rules that do not learn a projection: one is Hebbian, to the others what crosses is the example itself."""


def image_net(activation):
    return Convnet(channels=(6, 6), activation=activation, pool_first=True).blocks((8, 8, 1), 3)


def ready(blocks, rule, placement=None, width=WIDTH):
    held = bridged(blocks, placement or range(len(blocks)), width, elementwise=rule.needs == ELEMENTWISE)
    return [replace(block, batch=2) for block in held]


EVERYDAY = ("backprop", "direct_feedback", "predictive_coding", "equilibrium_propagation", "mono_forward", "node_perturbation", "softhebb")
"""The others take a minute together."""


@pytest.mark.parametrize("name", [name if name in EVERYDAY else pytest.param(name, marks=pytest.mark.slow) for name in RULES])
def test_every_rule_trains_blocks_between_bridges(name):
    rule, asked = RULES[name](), {"name": "mlp", "widths": (12, 9, 6, 3)} | MODEL.get(name, {})
    asked["widths"] = (12, 9, 6, 3)
    model = MODELS[asked.pop("name")](**asked)
    blocks = ready(model.blocks((12,), 3), rule, width=WIDTH if name != "deeper_forward" else 5)
    if name in NO_LAYER_OF_THEIR_OWN:
        assert rule.problems(blocks)
        return
    if name == "deeper_forward":  # normalises two activities for each class
        assert "wider" in str(rule.problems(ready(model.blocks((12,), 3), rule)))
        return
    assert rule.problems(blocks) == []
    before, after = trained(rule, blocks)
    for i, (old, new) in enumerate(zip(before, after, strict=True)):
        still = {path for path in old if "project" in path or "expand" in path if np.array_equal(old[path], new[path])}
        assert bool(still) == (i in STILL.get(name, ())), (i, still)
        assert all(np.isfinite(leaf).all() for leaf in new.values())


def trained(rule, blocks):
    """The parameters of each block by path, before and after three steps. Read-outs that begin at zero teach from the second on."""
    blocks = [replace(block, tx=optax.adam(0.01), batch=12) for block in blocks]
    wiring = Wiring((0,) * 3, rule.messages, {name: exact() for name in rule.messages})
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, 12)).astype(np.float32), np.arange(12, dtype=np.int32) % 3

    @jax.jit
    def step(state, key):
        batch = Batch(x, y, np.arange(12, dtype=np.int32), key)
        return rule.step(Chain(blocks, Fused(wiring, {}, Context(batch.index))), state, batch)[0]

    begun = state = init_state(rule, blocks, 0)
    for key in step_keys(0, 0, 3):
        state = step(state, key)
    return [[by_path(getattr(one.params, "block", one.params)) for one in row] for row in (begun, state)]


def by_path(tree):
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.parametrize("name", ["backprop", "feedback_alignment", "equilibrium_propagation", "decoupled_greedy", "difference_target"])
def test_bridges_of_images(name):
    rule = RULES[name]()
    blocks = ready(image_net("hard_sigmoid" if rule.needs == ELEMENTWISE else "tanh"), rule)
    assert [block.out_shape for block in blocks] == [(4, 4, WIDTH), (2, 2, WIDTH), (3,)]
    assert rule.problems(blocks) == []
    rehearse(rule, blocks)


def test_only_boundaries_have_bridges():
    blocks = MLP(widths=(12, 9, 8, 7, 3)).blocks((12,))
    held = bridged(blocks, (0, 0, 1, 1), WIDTH)
    assert [block.in_shape for block in held] == [(12,), (9,), (3,), (7,)]
    assert [block.out_shape for block in held] == [(9,), (3,), (7,), (3,)]
    assert held[0].init(jax.random.key(0)).keys() == blocks[0].init(jax.random.key(0)).keys()
    assert [b.out_shape for b in held[0].later] == [(3,), (7,), (3,)]
    assert bridged(blocks, (0, 0, 0, 0), 99)[3].in_shape == (7,), "one shard has no boundary"


@pytest.mark.parametrize("elementwise", [False, True])
def test_a_bridge_is_a_projection_after_the_block_and_one_back(elementwise):
    blocks = bridged(MLP(widths=(6, 5, 4, 3), activation="sigmoid").blocks((6,)), (0, 1, 1), 2, elementwise=elementwise)
    params, x = [b.init(jax.random.key(b.index)) for b in blocks], jax.random.normal(jax.random.key(9), (4, 6))
    u = x @ params[0]["inner"]["linear"]["kernel"] + params[0]["inner"]["linear"]["bias"]
    p = params[0]["project"]
    wanted = jax.nn.sigmoid(u @ p["kernel"] + p["bias"]) if elementwise else jax.nn.sigmoid(u) @ p["kernel"] + p["bias"]
    c = blocks[0].apply(params[0], x)
    np.testing.assert_allclose(c, wanted, rtol=1e-5)
    assert blocks[0].activation == ("sigmoid" if elementwise else "identity")
    back = params[1]["expand"]["kernel"]
    assert np.allclose(back @ back.T, np.eye(2), atol=1e-5) == elementwise, "an isometry where there is an energy"
    linear = params[1]["inner"]["linear"]
    np.testing.assert_allclose(blocks[1].apply(params[1], c), jax.nn.sigmoid(c @ back @ linear["kernel"] + linear["bias"]), rtol=1e-5)


def test_on_channels_it_is_the_same_at_each_position():
    block = bridged(image_net("tanh"), (0, 1, 1), WIDTH)[0]
    params, x = block.init(jax.random.key(0)), jnp.ones((1, 8, 8, 1))
    h = image_net("tanh")[0].apply(params["inner"], x)
    at = h[0, 2, 3] @ params["project"]["kernel"] + params["project"]["bias"]
    np.testing.assert_allclose(block.apply(params, x)[0, 2, 3], at, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("model", [ResidualMLP(width=9, depth=4), Transformer(width=8, layers=2)], ids=["residual_mlp", "transformer"])
def test_composite_blocks(model):
    blocks = ready(model.blocks((12,), 5), RULES["backprop"]())
    assert all(block.out_shape[-1] == WIDTH for block in blocks[:-1])
    rehearse(RULES["backprop"](), blocks)


def config(**model):
    return {
        "rule": {"name": "decoupled_greedy"},
        "model": {"name": "mlp", "widths": [40, 24, 24, 24, 10], "shards": 2, **model},
        "data": {"name": "strokes1d", "validation": 0.1},
        "train": {"steps": 4, "batch": 32},
        "codecs": {"activation": "float16"},
    }


def test_a_run_sends_as_much_as_the_bridge_is_wide():
    setup = prepare(resolve(config(bridge=5)))
    stage = setup.stages[0]
    assert stage.wiring.placement == (0, 0, 1, 1)
    sent = {c: n for c, n in setup.plan_step(stage).traffic.payload.items() if c.kind == "activation"}
    assert list(sent.values()) == [32 * 5 * 2]
    assert [(c.src, c.dst) for c in sent] == [(0, 1)]
    session = FusedSession(setup)
    session.enter(stage)
    before = session.snapshot()
    session.advance(0, 2)
    assert session.traffic == setup.plan_step(stage).traffic * 2
    names = {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(session._state[1].params)}
    assert any("project" in name for name in names)
    assert all(np.any(a != b) for a, b in zip(before[0], session.snapshot()[0], strict=True) if a.size > 100), "all weights learn"


def test_what_a_bridge_cannot_be_is_refused_at_its_line():
    def refused(**model):
        with pytest.raises(ConfigError) as caught:
            resolve(config(**model))
        return str(caught.value)

    assert "model.bridge" in refused(bridge=0)
    assert "block 1 passes on 24 features" in refused(bridge=24)
    assert "did you mean `bridge`" in refused(bridges=4)
    hebbian = config(bridge=4) | {"rule": {"name": "softhebb"}, "codecs": {}}
    with pytest.raises(ConfigError, match=r"model.bridge.*does not suit the rule.*one layer"):
        resolve(hebbian)
    with pytest.raises(RuleError, match="passes on 9"):
        bridged(MLP(widths=(12, 9, 3)).blocks((12,)), (0, 1), 9)


def test_a_run_without_a_bridge_is_the_run_that_it_was():
    plain = resolve(config())
    assert "bridge" not in plain.canonical()["model"]
    assert resolve(config(bridge=4)).canonical()["model"]["bridge"] == 4
    assert resolve(resolve(config(bridge=4)).canonical()).identity() == resolve(config(bridge=4)).identity() != plain.identity()


def test_a_list_of_blocks_from_python_takes_one():
    made = MLP(widths=(40, 24, 10)).blocks((40,))
    blocks = [Block(b.build, b.in_shape) for b in made]
    setup = prepare(resolve({**config(), "model": {"name": Blocks(blocks), "shards": 2, "bridge": 4}}))
    assert setup.stages[0].blocks[0].out_shape == (4,)
    assert math.prod(setup.stages[0].blocks[1].in_shape) == 4
