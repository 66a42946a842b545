"""Deep supervision against the gradient of the sum of all losses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locallearn.block import WithHead
from locallearn.chain import Row
from locallearn.models import MLP
from locallearn.rule import init_state, split_batch
from locallearn.rules.backprop import Backprop
from locallearn.rules.deep_supervision import DeepSupervision
from locallearn.traffic import Channel


def cross_entropy(scores, y):
    return -jnp.mean(jax.nn.log_softmax(scores)[jnp.arange(len(y)), y])


def total(net, weight, supervised):
    """loss + α Σ aux_l, in one function of all parameters."""

    def loss(params):
        h, found = net.batch.x, 0.0
        for block, p in zip(net.blocks, params, strict=True):
            h = block.apply(p.block, h)
            if block.index in supervised:
                found += weight * cross_entropy(h.reshape(len(h), -1) @ p.head.kernel + p.head.bias, net.batch.y)
        return found + cross_entropy(h, net.batch.y)

    return loss


@pytest.mark.parametrize(("blocks", "supervised"), [(None, (0, 1, 2)), ((1,), (1,)), ((0, 2), (0, 2))])
def test_it_is_the_gradient_of_all_losses_together(small, assert_close, blocks, supervised):
    net = small(DeepSupervision(0.7, blocks))
    grads, _, loss = net.gradients()
    params = [state.params for state in net.state]
    assert_close(grads, jax.grad(total(net, 0.7, supervised))(params))
    assert loss == pytest.approx(float(total(net, 0.0, ())(params)), abs=1e-13)


@pytest.mark.parametrize("rule", [DeepSupervision(0.0), DeepSupervision(0.5, ())])
def test_without_weight_or_read_outs_it_is_backpropagation(small, assert_close, rule):
    net, known = small(rule), small(Backprop())
    plain = Row(state._replace(params=state.params.block) for state in net.state)
    grads, _, _ = net.gradients()
    assert_close([g.block for g in grads], known.gradients(plain)[0])


def test_microbatches_add_up_to_the_batch(small, assert_close):
    net = small(DeepSupervision())
    parts = [net.gradients(batch=part)[0] for part in split_batch(net.batch, 2)]
    assert_close(jax.tree.map(lambda a, b: (a + b) / 2, *parts), net.gradients()[0])


def test_images_are_read_out_whole(convolutional, assert_close):
    net = convolutional(DeepSupervision(0.7, (1,)))
    grads, _, _ = net.gradients()
    assert_close(grads, jax.grad(total(net, 0.7, (1,)))([state.params for state in net.state]))


def test_read_outs_begin_at_zero_and_blocks_as_ever():
    blocks = MLP(widths=(6, 5, 3)).blocks((6,))
    state, plain = init_state(DeepSupervision(), blocks, 3), init_state(Backprop(), blocks, 3)
    assert isinstance(state[0].params, WithHead)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(state[0].params.head))
    assert state[1].params.head == ()
    for mine, other in zip(state, plain, strict=True):
        for a, b in zip(jax.tree.leaves(mine.params.block), jax.tree.leaves(other.params), strict=True):
            assert np.array_equal(a, b)


def test_what_crosses(make_setup):
    setup = make_setup("deep_supervision", shards=3)  # widths 12-8-7-6-3: shards end after 7 and 6
    assert dict(setup.plan_step(setup.stages[0]).traffic.payload) == {
        Channel("activation", "activation", 0, 1): 12 * 7 * 4,
        Channel("activation", "activation", 1, 2): 12 * 6 * 4,
        Channel("error", "error", 1, 0): 12 * 7 * 4,
        Channel("error", "error", 2, 1): 12 * 6 * 4,
        Channel("label", "label", 2, 0): 12,
        Channel("label", "label", 2, 1): 12,
    }


def test_a_read_out_above_the_hidden_blocks_is_refused():
    blocks = MLP(widths=(6, 5, 3)).blocks((6,))
    assert "give numbers below 1" in DeepSupervision(blocks=(1,)).problems(blocks)[0]
    assert DeepSupervision(blocks=(0,)).problems(blocks) == []
