"""AugLocal: which blocks are copied, against the paper's formulas; its losses by hand."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locallearn.block import stacked
from locallearn.chain import Row
from locallearn.rule import split_batch
from locallearn.rules.auglocal import AugLocal, depth_at, fitted, originals, sampled
from locallearn.rules.backprop import Backprop
from locallearn.traffic import Channel


def cross_entropy(scores, y):
    return -jnp.mean(jax.nn.log_softmax(scores)[jnp.arange(len(y)), y])


def test_the_depth_falls_along_a_straight_line_to_one(small):
    assert [depth_at(i, 7, 6, 1.0) for i in range(6)] == [6, 5, 4, 3, 2, 1]
    assert [depth_at(i, 7, 6, 0.0) for i in range(6)] == [6] * 6
    assert depth_at(5, 7, 6, 0.5) == 4  # half-way from 6 to 1, 3.5 rounded to even
    assert [depth_at(0, hidden, 3, 0.5) for hidden in (1, 2)] == [3, 3]


def test_copies_are_spread_evenly_over_the_blocks_above_and_end_with_the_last(small):
    assert sampled(0, 16, 3) == [5, 10, 15]
    assert sampled(5, 16, 5) == [7, 9, 11, 13, 15]
    assert sampled(12, 16, 5) == [13, 14, 15]
    assert sampled(15, 16, 5) == []
    for i in range(10):
        for depth in range(1, 9):
            found = sampled(i, 12, depth)
            assert found == sorted(set(found))
            assert len(found) == min(depth, 11 - i)
            assert found[-1] == 11


def test_one_block_is_backpropagation(small, assert_close):
    net, reference = small(AugLocal(), (6, 3)), small(Backprop(), (6, 3))
    reference.state = Row(s._replace(params=s.params.block) for s in net.state)
    (grads,), _, loss = net.gradients()
    (expected,), _, expected_loss = reference.gradients()
    assert_close(grads.block, expected)
    assert loss == expected_loss


def test_with_copies_of_all_that_follows_the_bottom_learns_as_by_backpropagation(small, assert_close):
    net, reference = small(AugLocal(depth=3)), small(Backprop())
    bottom, copies = net.state[0].params
    assert all(copy.adapter == () for copy in copies)
    reference.state = Row(s._replace(params=p) for s, p in zip(net.state, [bottom, *(copy.params for copy in copies)], strict=True))
    grads, expected = net.gradients()[0][0], reference.gradients()[0]
    assert_close([grads.block, *(copy.params for copy in grads.head)], expected)


def test_losses_by_hand_where_a_block_is_left_out(small, dense, assert_close):
    net = small(AugLocal(depth=1, decay=0.0))  # block 0 copies blocks 2 and 3, and needs a map from 8 to 7 numbers
    grads, memory, _ = net.gradients()
    assert [block.index for block in originals(net.blocks[0], 1, 0.0)] == [2, 3]
    assert net.state[0].params.head[0].adapter.shape == (8, 7)

    def local(params):
        (second, adapter), (top, _) = params.head
        h = dense(second, dense(params.block, net.batch.x) @ adapter)
        return cross_entropy(dense(top, h, lambda u: u), net.batch.y)

    assert_close(grads[0], jax.jit(jax.grad(local))(net.state[0].params))
    h = dense(net.state[1].params.block, dense(net.state[0].params.block, net.batch.x))

    def before_the_last(params):
        return cross_entropy(dense(params.head[0].params, dense(params.block, h), lambda u: u), net.batch.y)

    assert_close(grads[2], jax.jit(jax.grad(before_the_last))(net.state[2].params))
    assert memory == [()] * 4


def test_a_block_depends_on_those_below_it_and_on_no_other(small):
    assert small(AugLocal()).influences() == [{0}, {0, 1}, {0, 1, 2}, {0, 1, 2, 3}]


def test_features_in_space_are_averaged_and_mapped_to_the_channels_of_a_copy(small):
    rng = np.random.default_rng(0)
    h, adapter = rng.normal(size=(2, 4, 4, 3)), rng.normal(size=(3, 5))
    quarters = h.reshape(2, 2, 2, 2, 2, 3).mean((2, 4))
    np.testing.assert_allclose(fitted(jnp.asarray(h), (2, 2, 5), jnp.asarray(adapter)), quarters @ adapter, atol=1e-14)
    np.testing.assert_allclose(fitted(jnp.asarray(h), (5,), jnp.asarray(adapter)), h.mean((1, 2)) @ adapter, atol=1e-14)
    np.testing.assert_array_equal(fitted(jnp.asarray(h), (4, 4, 3), ()), h)


def test_a_network_for_images(small, convolutional, assert_close):
    plain = convolutional(Backprop())  # 4x4x2, convolutions to 4x4x3 and 2x2x2, dense top
    net = small(AugLocal(), blocks=stacked(plain.blocks))
    assert net.rule.problems(net.blocks) == []
    bottom, copies = net.state[0].params
    plain.state = Row(s._replace(params=p) for s, p in zip(net.state, [bottom, *(copy.params for copy in copies)], strict=True))
    grads = net.gradients()[0][0]
    assert_close([grads.block, *(copy.params for copy in grads.head)], plain.gradients()[0])
    grown = [replace(plain.blocks[0], in_shape=(4, 4, 2)), replace(plain.blocks[1], in_shape=(8, 8, 3)), plain.blocks[2]]
    assert "cannot be brought to the shape [8, 8, 3] of block 1" in net.rule.problems(stacked(grown))[0]


def test_blocks_that_do_not_know_those_above_are_refused(small):
    net = small(AugLocal())
    blocks = [replace(block, later=()) for block in net.blocks]
    assert net.rule.problems(blocks) == [
        "needs blocks that know those above them: pass the model's list through `locallearn.block.stacked`"
    ]
    assert net.rule.problems(stacked(blocks)) == net.rule.problems(net.blocks) == []


def test_copies_begin_as_their_originals_would(small):
    net = small(AugLocal(depth=1, decay=0.0), (6, 300, 200, 100, 3))
    head = net.rule.init(net.blocks[0], jax.random.PRNGKey(0)).params.head
    assert jnp.std(head[0].adapter) == pytest.approx(1 / math.sqrt(300), rel=0.02)
    assert jnp.std(head[0].params["linear"]["kernel"]) == pytest.approx(math.sqrt(2 / 200), rel=0.03)
    kernels = [net.rule.init(block, jax.random.PRNGKey(0)).params.head[-1].params["linear"]["kernel"] for block in net.blocks[:2]]
    assert kernels[0].shape == kernels[1].shape == (100, 3)


def test_microbatches_add_up(small, assert_close):
    net = small(AugLocal())
    halves = [net.gradients(batch=half)[0] for half in split_batch(net.batch, 2)]
    assert_close(jax.tree.map(lambda a, b: (a + b) / 2, *halves), net.gradients()[0])


def test_a_boundary_carries_activities_up_and_one_byte_for_each_label_down(make_setup):
    setup = make_setup("auglocal", shards=2, batch=12)
    assert dict(setup.plan_step(setup.stages[0]).traffic.payload) == {
        Channel("activation", "activation", 0, 1): 12 * 7 * 4,
        Channel("label", "label", 1, 0): 12,
    }
