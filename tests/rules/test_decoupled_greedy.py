"""Decoupled greedy learning against its local losses written by hand, and block after block in phases."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locallearn.chain import Chain, Row
from locallearn.codec import build, exact
from locallearn.rule import split_batch
from locallearn.rules._heads import average_pool
from locallearn.rules.backprop import Backprop
from locallearn.rules.decoupled_greedy import DecoupledGreedy
from locallearn.rules.local_classifier import LocalClassifier
from locallearn.runtime.framed import EagerSession
from locallearn.runtime.fused import FusedSession
from locallearn.runtime.influence import at_work
from locallearn.runtime.training import Evaluated, train
from locallearn.traffic import Channel


def logistic(scores, y):
    """Mean of -log softmax(scores)[y]."""
    return -jnp.mean((scores - jax.scipy.special.logsumexp(scores, axis=1, keepdims=True))[jnp.arange(len(y)), y])


def said(params, x, dense):
    """The class scores of a hidden block."""
    h = dense(params.block, x)
    for layer in params.head.hidden:
        h = jnp.maximum(h @ layer.kernel + layer.bias, 0)
    return h @ params.head.readout.kernel + params.head.readout.bias


def inputs_by_hand(net, dense):
    """What each block sees."""
    x = [net.batch.x]
    for state in net.state.values[:-1]:
        x.append(dense(state.params.block, x[-1]))
    return x


def in_phase(net, *learn):
    """The network while only these blocks learn."""
    net.chain = Chain(at_work(net.rule, [replace(block, learns=block.index in learn) for block in net.blocks]), net.chain.fabric)
    return net


def test_one_block_is_backpropagation(small, assert_close):
    net, reference = small(DecoupledGreedy(), (6, 3)), small(Backprop(), (6, 3))
    reference.state = Row(s._replace(params=s.params.block) for s in net.state)
    (grads,), _, loss = net.gradients()
    (expected,), _, expected_loss = reference.gradients()
    assert_close(grads.block, expected)
    assert loss == expected_loss


@pytest.mark.parametrize("depth", [1, 2])
def test_every_block_descends_the_loss_of_its_own_auxiliary_network(small, dense, assert_close, depth):
    net = small(DecoupledGreedy(depth))
    grads, _, loss = net.gradients()
    x = inputs_by_hand(net, dense)
    for i in range(3):
        assert len(grads[i].head.hidden) == depth
        expected = jax.jit(jax.grad(lambda params, x=x[i]: logistic(said(params, x, dense), net.batch.y)))(net.state[i].params)
        assert_close(grads[i], expected)

    def at_the_top(params):
        return logistic(dense(params.block, x[3], lambda u: u), net.batch.y)

    value, expected = jax.value_and_grad(at_the_top)(net.state[3].params)
    assert_close(grads[3], expected)
    assert loss == pytest.approx(float(value), abs=1e-14)


def test_without_hidden_layers_it_is_the_local_classifier(small, assert_close):
    ours, theirs = small(DecoupledGreedy(0)), small(LocalClassifier(0.0))
    for mine, other in zip(ours.state, theirs.state, strict=True):
        assert [leaf.shape for leaf in jax.tree.leaves(mine.params)] == [leaf.shape for leaf in jax.tree.leaves(other.params)]
    ours.state = Row(
        a._replace(params=jax.tree.unflatten(jax.tree.structure(a.params), jax.tree.leaves(b.params)))
        for a, b in zip(ours.state, theirs.state, strict=True)
    )
    (grads, _, loss), (expected, _, expected_loss) = ours.gradients(), theirs.gradients()
    assert_close(jax.tree.leaves(grads), jax.tree.leaves(expected))
    assert loss == expected_loss


def test_a_block_depends_on_those_below_it_and_on_no_other(small):
    assert small(DecoupledGreedy()).influences() == [{0}, {0, 1}, {0, 1, 2}, {0, 1, 2, 3}]


def test_microbatches_add_up(small, assert_close):
    net = small(DecoupledGreedy())
    halves = [net.gradients(batch=half)[0] for half in split_batch(net.batch, 2)]
    assert_close(jax.tree.map(lambda a, b: (a + b) / 2, *halves), net.gradients()[0])


def test_read_outs_begin_at_zero_and_hidden_layers_at_the_scale_of_he(small):
    net = small(DecoupledGreedy(), (6, 400, 3))
    head = net.rule.init(net.blocks[0], jax.random.PRNGKey(0)).params.head
    assert not any(jnp.any(leaf) for leaf in head.readout)
    assert jnp.std(head.hidden[0].kernel) == pytest.approx(np.sqrt(2 / 400), rel=0.02)
    bodies = [rule.init(net.blocks[0], jax.random.PRNGKey(0)).params for rule in (net.rule, Backprop())]
    assert jnp.all(bodies[0].block["linear"]["kernel"] == bodies[1]["linear"]["kernel"])


def test_pooling_averages_cells_that_may_share_a_row(small):
    h = np.random.default_rng(0).normal(size=(2, 5, 4, 3))
    expected = np.zeros((2, 2, 2, 3))
    for i, rows in enumerate([slice(0, 3), slice(2, 5)]):
        for j, columns in enumerate([slice(0, 2), slice(2, 4)]):
            expected[:, i, j] = h[:, rows, columns].mean((1, 2))
    np.testing.assert_allclose(average_pool(jnp.asarray(h), (2, 2)), expected, atol=1e-15)
    np.testing.assert_allclose(average_pool(jnp.asarray(h), (1, 1)), h.mean((1, 2), keepdims=True), atol=1e-15)
    np.testing.assert_array_equal(average_pool(jnp.asarray(h), (7, 4)), h)


@pytest.mark.parametrize("head", ["mlp", "conv"])
def test_heads_on_images(convolutional, assert_close, head):
    net = convolutional(DecoupledGreedy(1, head=head))
    grads, _, _ = net.gradients()
    assert net.state[0].params.head.hidden[0].kernel.shape == ((12, 12) if head == "mlp" else (3, 3, 3, 3))

    def quarters(h):
        return h.reshape(4, 2, 2, 2, 2, 3).mean((2, 4)).reshape(4, 12)

    def local(params):
        h = net.blocks[0].apply(params.block, net.batch.x)  # [4, 4, 4, 3]
        (kernel, bias), readout = params.head.hidden[0], params.head.readout
        if head == "mlp":
            h = jnp.maximum(quarters(h) @ kernel + bias, 0)
        else:
            padded = jnp.pad(h, ((0, 0), (1, 1), (1, 1), (0, 0)))
            taps = [padded[:, i : i + 4, j : j + 4] @ kernel[i, j] for i in range(3) for j in range(3)]
            h = quarters(jnp.maximum(sum(taps) + bias, 0))
        return logistic(h @ readout.kernel + readout.bias, net.batch.y)

    assert_close(grads[0], jax.jit(jax.grad(local))(net.state[0].params))


def test_a_boundary_carries_activities_up_and_one_byte_for_each_label_down(make_setup):
    setup = make_setup("decoupled_greedy", shards=3, batch=12)  # widths 12-8-7-6-3: shards end after 7 and 6
    assert dict(setup.plan_step(setup.stages[0]).traffic.payload) == {
        Channel("activation", "activation", 0, 1): 12 * 7 * 4,
        Channel("activation", "activation", 1, 2): 12 * 6 * 4,
        Channel("label", "label", 2, 0): 12,
        Channel("label", "label", 2, 1): 12,
    }


# Block after block.


@pytest.mark.parametrize("learner", [0, 2])
def test_in_its_phase_a_block_learns_as_if_all_did_and_those_above_are_not_even_read(small, assert_close, learner):
    net = small(DecoupledGreedy())
    everything, _, _ = net.gradients()
    nothing = jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), net.state)
    unread = Row(net.state[i] if i <= learner else nothing[i] for i in range(4))
    alone = in_phase(small(DecoupledGreedy()), learner)
    grads, _, loss = alone.gradients(unread)
    assert_close(grads[learner], everything[learner])
    assert not any(jnp.any(leaf) for i in range(4) if i != learner for leaf in jax.tree.leaves(grads[i]))
    assert jnp.isfinite(loss)
    assert jnp.all(jnp.isfinite(alone.rule.predict(alone.chain, unread, net.batch.x)))


def test_until_the_top_learns_the_highest_learner_predicts_and_tells_its_loss(small, dense):
    net = in_phase(small(DecoupledGreedy()), 0, 1)
    expected = said(net.state[1].params, inputs_by_hand(net, dense)[1], dense)
    np.testing.assert_allclose(net.rule.predict(net.chain, net.state, net.batch.x), expected, atol=1e-14)
    assert float(net.gradients()[2]) == pytest.approx(float(logistic(expected, net.batch.y)), abs=1e-14)
    hits = np.mean(np.argmax(expected, 1) == net.batch.y)
    awake = Chain([replace(block, rests=False) for block in net.chain.blocks], net.chain.fabric)
    told = [float(value) for value in net.rule.diagnose(awake, net.state, net.batch)["accuracy"]]
    assert told[1] == hits
    assert np.isnan(told[2:]).all()


@pytest.mark.parametrize("kind", [FusedSession, EagerSession])
def test_a_block_changes_in_its_phase_and_in_no_other(make_setup, phase, kind):
    rule = DecoupledGreedy()
    session = kind(make_setup([phase(rule, 2, (k,)) for k in range(4)], shards=4))
    for k, stage in enumerate(session.setup.stages):
        session.enter(stage)
        before = [[np.array(leaf) for leaf in jax.tree.leaves(state.params)] for state in session._state]
        session.advance(stage.start, stage.stop)
        after = [jax.tree.leaves(state.params) for state in session._state]
        changed = [any(np.any(a != b) for a, b in zip(*pair, strict=True)) for pair in zip(before, after, strict=True)]
        assert changed == [i == k for i in range(4)]
        assert session.traffic == sum(
            (session.setup.plan_step(s).traffic * 2 for s in session.setup.stages[: k + 1]), start=type(session.traffic)()
        )


def test_above_the_block_that_learns_one_number_crosses(make_setup, phase):
    setup = make_setup([phase(DecoupledGreedy(), 1, (1,))], exact(), shards=4, batch=12)
    sent = setup.plan_step(setup.stages[0]).traffic.payload
    assert [sent[Channel("activation", "activation", k, k + 1)] for k in range(3)] == [12 * 8 * 4, 0, 0]
    assert sent[Channel("loss", "scalar", 1, 3)] == 4


@pytest.mark.parametrize("kind", [FusedSession, EagerSession])
def test_through_reuse_every_example_crosses_each_boundary_once_in_all_phases(make_setup, phase, kind):
    """60 examples, two epochs of each block; the widths below the boundaries are 8, 7, 6."""
    epochs, each = 10, {"activation": build((("reuse", (60,)),)), "label": build((("reuse", (60,)), ("packed", (3,))))}
    setup = make_setup([phase(DecoupledGreedy(), epochs, (k,)) for k in range(4)], each, shards=4, steps=40)
    session = kind(setup)
    for stage in setup.stages:
        session.enter(stage)
        session.advance(stage.start, stage.stop)
    sent = session.traffic
    assert [sent.messages[Channel("activation", "activation", k, k + 1)] for k in range(3)] == [5, 5, 5]
    for k, width in enumerate((8, 7, 6)):
        assert sent.payload[Channel("activation", "activation", k, k + 1)] == pytest.approx(60 * width * 4, abs=5 * 4 * width)
        assert sent.messages[Channel("label", "label", 3, k)] == 5
        assert sent.payload[Channel("label", "label", 3, k)] <= 60 / 4


def test_phases_are_evaluated_through_lossy_codecs_in_every_fabric_alike(make_setup, phase):
    setup = make_setup(
        [phase(DecoupledGreedy(), 2, (0,)), phase(DecoupledGreedy(), 2, (2,))], (("error_feedback", ()), ("int8", ())), shards=4, every=2
    )
    ends = [list(train(kind(setup))) for kind in (FusedSession, EagerSession)]
    fused, eager = ([event for event in end if isinstance(event, Evaluated)] for end in ends)
    assert [event.traffic for event in fused] == [event.traffic for event in eager]
    for one, other in zip(fused, eager, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-4)
        assert abs(one.accuracy - other.accuracy) <= 1 / 11 + 1e-9
