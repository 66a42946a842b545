"""The first shard alone against backpropagation on a network of the same blocks, and averages of several against each of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locallearn.chain import Chain, Row
from locallearn.codec import Context, exact
from locallearn.config.run import resolve
from locallearn.errors import ConfigError
from locallearn.experiment.prepare import prepare
from locallearn.models import MLP, Convnet
from locallearn.rule import init_state
from locallearn.rules._heads import Layer
from locallearn.rules.backprop import Backprop
from locallearn.rules.decoupled_greedy import DecoupledGreedy, class_scores
from locallearn.rules.solo import Solo
from locallearn.runtime.framed import EagerSession
from locallearn.runtime.fused import FusedSession
from locallearn.runtime.local import Fused
from locallearn.runtime.wiring import Wiring


def test_on_a_whole_network_it_is_backpropagation(small, assert_close):
    net, known = small(Solo()), small(Backprop())
    assert_close(net.gradients()[0], known.gradients()[0])
    np.testing.assert_allclose(
        net.rule.predict(net.chain, net.state, net.batch.x), known.rule.predict(known.chain, known.state, known.batch.x), atol=1e-14
    )


def test_each_member_is_a_backpropagation_of_its_own(small, assert_close):
    net, known = small(Solo(members=3)), small(Backprop())
    grads, _, loss = net.gradients()
    alone = [known.gradients(Row(state._replace(params=state.params[m]) for state in net.state)) for m in range(3)]
    for m in range(3):
        assert_close([g[m] for g in grads], alone[m][0])
    assert loss == pytest.approx(sum(float(one[2]) for one in alone) / 3, abs=1e-13)


def test_predictions_are_averaged(small):
    net, known = small(Solo(members=3)), small(Backprop())
    members = [Row(state._replace(params=state.params[m]) for state in net.state) for m in range(3)]
    shares = [jax.nn.softmax(known.rule.predict(known.chain, state, net.batch.x)) for state in members]
    scores = net.rule.predict(net.chain, net.state, net.batch.x)
    np.testing.assert_allclose(jnp.exp(scores), sum(shares) / 3, atol=1e-13)


def test_members_begin_apart_and_the_first_as_ever(small):
    net = small(Solo())
    one, three, plain = (init_state(rule, net.blocks, 7) for rule in (Solo(), Solo(members=3), Backprop()))
    for k in range(4):
        first, second, third = three[k].params
        for a, b, c, d, e in zip(*map(jax.tree.leaves, (one[k].params, plain[k].params, first, second, third)), strict=True):
            assert np.array_equal(a, b)
            assert np.array_equal(a, c)
            assert a.ndim < 2 or (np.any(c != d) and np.any(d != e))


@pytest.mark.parametrize("placement", [(0, 0, 1, 1), (0, 1, 2, 3), (0, 0, 0, 1)])
def test_it_keeps_the_first_shard_and_reads_out(placement):
    blocks = MLP(widths=(12, 9, 8, 7, 3)).blocks((12,))
    held, shards = Solo().deployed(blocks, placement)
    kept = placement.count(0)
    assert shards == (0,) * (kept + 1)
    assert [b.out_shape for b in held] == [*[(9,), (8,), (7,)][:kept], (3,)]
    assert [(b.index, b.count) for b in held] == [(i, kept + 1) for i in range(kept + 1)]
    assert [len(b.later) for b in held] == list(range(kept, -1, -1))
    assert held[-1].top
    assert not held[0].top
    chain = Chain(held, Fused(Wiring(shards, Solo.messages, {name: exact() for name in Solo.messages}), {}, Context(jnp.arange(2))))
    state, x = init_state(Solo(), held, 0), jax.random.normal(jax.random.key(1), (2, 12))
    h = x
    for block, s in zip(held[:-1], state, strict=False):
        h = block.apply(s.params, h)
    linear = state[-1].params["linear"]
    np.testing.assert_allclose(Solo().predict(chain, state, x), h @ linear["kernel"] + linear["bias"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("head", "depth", "width"), [("conv", 2, 0), ("mlp", 1, 0), ("mlp", 2, 5)])
def test_its_read_out_may_be_the_auxiliary_network_of_greedy_learning(head, depth, width):
    """The same parameters give the same class scores."""
    blocks = Convnet(channels=(4, 5)).blocks((8, 8, 1), 3)
    rule, greedy = Solo(head=head, depth=depth, width=width), DecoupledGreedy(head=head, depth=depth, width=width)
    held, _ = rule.deployed(blocks, (0, 1, 1))
    known = greedy.init(blocks[0], jax.random.key(3)).params
    layers = [{"kernel": kernel, "bias": bias} for kernel, bias in known.head.hidden]
    readout = {"hidden": dict(enumerate(layers)), "linear": known.head.readout._asdict()}
    readout["linear"] = jax.tree.map(lambda leaf: leaf + 0.1 * jnp.arange(leaf.size).reshape(leaf.shape), readout["linear"])
    own = init_state(rule, held, 0)[1].params
    assert not np.any(own["linear"]["kernel"])
    assert jax.tree.map(jnp.shape, own) == jax.tree.map(jnp.shape, readout)
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 1))
    scores = held[1].apply(readout, held[0].apply(known.block, x))
    head_ = known.head._replace(readout=Layer(**readout["linear"]))
    np.testing.assert_allclose(scores, class_scores(blocks[0], known._replace(head=head_), x), rtol=1e-5, atol=1e-5)


def test_a_whole_model_keeps_its_top_and_images_are_read_out_whole():
    blocks = MLP(widths=(12, 9, 3)).blocks((12,))
    held, shards = Solo().deployed(blocks, (0, 0))
    assert shards == (0, 0)
    assert [b.build for b in held] == [b.build for b in blocks]
    held, _ = Solo().deployed(Convnet(channels=(4, 5)).blocks((8, 8, 1), 3), (0, 1, 1))
    assert held[1].in_shape == (4, 4, 4)
    assert held[1].out_shape == (3,)


def config(rule, **model):
    return {
        "rule": rule,
        "model": {"name": "mlp", "widths": [40, 24, 24, 10], "shards": 3, **model},
        "data": {"name": "strokes1d", "validation": 0.1},
        "train": {"steps": 6, "batch": 32},
        "codecs": {"activation": "int8"},
    }


@pytest.mark.parametrize("members", [1, 2])
def test_a_run_sends_nothing(members):
    setup = prepare(resolve(config({"name": "solo", "members": members}, bridge=4)))
    assert setup.planned_bytes(6) == 0
    fused, eager = FusedSession(setup), EagerSession(setup)
    for session in (fused, eager):
        session.enter(setup.stages[0])
        session.advance(0, 2)
        session.correct(setup.split.validation, lossless=False)
        session.decide(0)
        assert not session.traffic.messages
    for x, y in zip(jax.tree.leaves(eager._state), jax.tree.leaves(fused._state), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-3)


def test_what_it_does_not_suit_is_refused():
    with pytest.raises(ConfigError, match=r"rule.*takes no batch normalisation"):
        resolve(config({"name": "solo", "members": 2}, norm="batch"))
    resolve(config({"name": "solo"}, norm="batch"))
    with pytest.raises(ConfigError, match=r"rule.members"):
        resolve(config({"name": "solo", "members": 0}))
    phases = {"batch": 32, "phases": [{"steps": 3}, {"steps": 3, "rule": {"name": "solo"}}]}
    with pytest.raises(ConfigError, match=r"phases.*another cut of the model"):
        resolve(config({"name": "backprop"}) | {"train": phases})
