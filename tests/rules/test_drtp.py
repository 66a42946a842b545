"""Direct random target projection: direct feedback alignment that is told the label in place of the error."""

import jax
import jax.numpy as jnp
import pytest

from locallearn.rule import split_batch
from locallearn.rules.backprop import Backprop
from locallearn.rules.direct_feedback import DirectFeedback
from locallearn.rules.drtp import DirectRandomTargetProjection
from locallearn.traffic import Channel


def test_hidden_errors_by_hand(small, dense, assert_close):
    net = small(DirectRandomTargetProjection())
    grads, memory, loss = net.gradients()
    h = [net.batch.x]
    for state in net.state.values[:-1]:
        h.append(dense(state.params, h[-1]))
    scores = dense(net.state[-1].params, h[-1], f=lambda u: u)
    assert loss == pytest.approx(float(-jnp.mean(jax.nn.log_softmax(scores)[jnp.arange(4), net.batch.y])), abs=1e-14)
    target = jnp.eye(3)[net.batch.y]
    for i in range(4):
        d = jax.nn.softmax(scores) - target if i == 3 else (-target @ memory[i]) * (1 - h[i + 1] ** 2)
        assert_close(grads[i], {"linear": {"kernel": h[i].T @ d / 4, "bias": d.mean(0)}})


def test_it_is_direct_feedback_alignment_with_the_target_for_an_error(small, assert_close, monkeypatch):
    ours, theirs = small(DirectRandomTargetProjection()), small(DirectFeedback())
    error = -jnp.eye(3)[ours.batch.y] / 4
    monkeypatch.setattr("locallearn.rules.direct_feedback.unpack", lambda block, sent, like, **options: error)
    assert_close(ours.gradients()[0], theirs.gradients(ours.state)[0])


def test_the_top_learns_as_under_backpropagation_and_no_other_block_does(small, assert_close):
    net = small(DirectRandomTargetProjection())
    expected, _, _ = small(Backprop()).gradients(net.state)
    grads, _, _ = net.gradients()
    assert_close(grads[-1], expected[-1])
    assert all(not jnp.allclose(grads[i]["linear"]["kernel"], expected[i]["linear"]["kernel"], rtol=0.1) for i in range(3))


def test_a_step_turns_activities_towards_the_projection_of_their_label(small):
    net = small(DirectRandomTargetProjection(), (6, 8, 3))
    grads, memory, _ = net.gradients()
    block, params = net.blocks[0], net.state[0].params

    def alignment(params):
        return jnp.sum(block.apply(params, net.batch.x) * memory[0][net.batch.y])

    assert alignment(jax.tree.map(lambda p, g: p - 1e-3 * g, params, grads[0])) > alignment(params)


@pytest.mark.parametrize("changed", range(1, 4))
def test_no_block_hears_of_those_above(small, changed):
    net = small(DirectRandomTargetProjection())
    before, after = net.gradients()[0], net.gradients(net.shaken_at(changed))[0]
    for i in range(4):
        same = jax.tree.all(jax.tree.map(jnp.array_equal, before[i], after[i]))
        assert same == (i < changed)


def test_errors_reach_the_maps_of_a_convolution(convolutional, assert_close):
    net = convolutional(DirectRandomTargetProjection())
    grads, memory, _ = net.gradients()
    block, x = net.blocks[0], net.batch.x
    wanted = memory[0][net.batch.y]
    assert_close(grads[0], jax.grad(lambda p: -jnp.sum(wanted * block.apply(p, x)) / len(x))(net.state[0].params))


def test_projections_are_those_of_direct_feedback_alignment(small):
    net = small(DirectRandomTargetProjection())
    for block in net.blocks:
        ours, theirs = (rule(scale=2.0).init(block, jax.random.PRNGKey(0)) for rule in (DirectRandomTargetProjection, DirectFeedback))
        assert jax.tree.all(jax.tree.map(jnp.array_equal, ours, theirs))


def test_microbatches_add_up_to_the_batch(small, assert_close):
    net = small(DirectRandomTargetProjection())
    parts = [net.gradients(batch=part)[0] for part in split_batch(net.batch, 2)]
    assert_close(jax.tree.map(lambda a, b: (a + b) / 2, *parts), net.gradients()[0])


def test_the_labels_reach_each_shard_once_in_one_byte_each(make_setup):
    setup = make_setup("drtp", shards=3, batch=12)  # widths 12-8-7-6-3: shards end after 7 and 6
    assert dict(setup.plan_step(setup.stages[0]).traffic.payload) == {
        Channel("activation", "activation", 0, 1): 12 * 7 * 4,
        Channel("activation", "activation", 1, 2): 12 * 6 * 4,
        Channel("label", "label", 2, 0): 12,
        Channel("label", "label", 2, 1): 12,
    }


def test_blocks_that_do_not_know_the_classes_are_refused(small):
    net = small(DirectRandomTargetProjection())
    object.__setattr__(net.blocks[1], "classes", 0)
    assert net.rule.problems(net.blocks) == ["needs blocks that know the number of classes, 3: the model must give it to each of them"]
