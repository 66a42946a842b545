"""Features replay against backpropagation of the batch that is replayed, and against its history kept by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from locallearn.block import Block
from locallearn.chain import Row
from locallearn.rules.features_replay import FeaturesReplay


def loss_from(blocks, l, h, y, params):
    """The loss from the input of block l on."""
    for block, p in zip(blocks[l:], params[l:], strict=True):
        h = block.apply(p, h)
    return optax.softmax_cross_entropy_with_integer_labels(h, y).mean()


def true_gradients(net, batch, params=None):
    params = params or [state.params for state in net.state]
    return jax.jit(jax.grad(lambda p: loss_from(net.blocks, 0, batch.x, batch.y, p)))(params)


def batches(net, count):
    rng = np.random.default_rng(5)
    return [net.batch._replace(x=jnp.asarray(rng.normal(size=net.batch.x.shape)), y=net.batch.y[rng.permutation(4)]) for _ in range(count)]


def beginning(net):
    """The state with nothing to replay."""
    return Row(state._replace(memory=jax.tree.map(jnp.zeros_like, state.memory)) for state in net.state)


def after(state, memory, params=None):
    return Row(
        s._replace(memory=m, params=s.params if params is None else params[i]) for i, (s, m) in enumerate(zip(state, memory, strict=True))
    )


def test_with_weights_at_rest_a_gradient_is_backpropagations_of_an_earlier_batch(small, assert_close):
    net = small(FeaturesReplay())
    state, seen = beginning(net), batches(net, 6)
    for t, batch in enumerate(seen):
        grads, memory, loss = net.gradients(state, batch)
        for l in range(4):
            behind = 3 - l
            if t < behind:
                assert all(jnp.all(leaf == 0) for leaf in jax.tree.leaves(grads[l])), "nothing to replay yet"
            else:
                assert_close(grads[l], true_gradients(net, seen[t - behind])[l])
        assert float(loss) == pytest.approx(float(loss_from(net.blocks, 0, batch.x, batch.y, [s.params for s in net.state])), abs=1e-14)
        state = after(state, memory)


def test_with_weights_that_move_old_inputs_meet_new_weights(small, assert_close):
    """Inputs by the weights of their own step, errors through each block as it was when it replayed them, one step after the other."""
    net = small(FeaturesReplay())
    state, seen, history = beginning(net), batches(net, 7), []
    moving = [[jax.tree.map(lambda p, t=t: p * (1 + 0.1 * t), s.params) for s in net.state] for t in range(7)]
    for t, batch in enumerate(seen):
        params = moving[t]
        grads, memory, _ = net.gradients(after(state, [s.memory for s in state], params), batch)
        inputs = [batch.x]
        for block, p in zip(net.blocks[:-1], params[:-1], strict=True):
            inputs.append(block.apply(p, inputs[-1]))
        history.append(inputs)
        for l in range(4):
            start = t - (3 - l)
            if start < 0:
                continue
            delta = jax.grad(lambda h, y=seen[start].y: optax.softmax_cross_entropy_with_integer_labels(h, y).mean())(
                net.blocks[3].apply(moving[start][3], history[start][3])
            )
            for k in range(3, l, -1):  # block k replayed this batch at step start + 3 - k
                _, pull = jax.vjp(lambda h, k=k: net.blocks[k].apply(moving[start + 3 - k][k], h), history[start][k])  # noqa: B023
                (delta,) = pull(delta)
            _, pull = jax.vjp(lambda p, l=l: net.blocks[l].apply(p, history[start][l]), params[l])  # noqa: B023
            assert_close(grads[l], pull(delta)[0])
        state = after(state, memory)


@pytest.mark.parametrize("widths", [(6, 3), (6, 8, 3)])
def test_a_block_without_delay_is_backpropagation(small, assert_close, widths):
    net = small(FeaturesReplay(), widths=widths)
    grads, memory, _ = net.gradients()
    assert_close(grads[-1], true_gradients(net, net.batch)[-1])
    assert memory[-1] == ()
    if len(widths) == 3:
        assert float(jnp.abs(grads[0]["linear"]["kernel"] - true_gradients(net, net.batch)[0]["linear"]["kernel"]).max()) > 0.01


def test_convolutions_are_replayed_too(convolutional, assert_close):
    net = convolutional(FeaturesReplay())
    state, seen = beginning(net), batches(net, 3)
    for batch in seen[:2]:
        state = after(state, net.gradients(state, batch)[1])
    grads, _, _ = net.gradients(state, seen[2])
    for l in range(3):
        assert_close(grads[l], true_gradients(net, seen[l])[l])


def test_what_is_kept_is_as_long_as_the_delay(small):
    memory = [state.memory for state in small(FeaturesReplay()).state]
    assert [m.inputs.shape for m in memory[:3]] == [(3, 4, 6), (2, 4, 8), (1, 4, 7)]
    assert [m.delta.shape for m in memory[:3]] == [(4, 8), (4, 7), (4, 5)]


def test_it_costs_what_backpropagation_costs_but_the_way_down_is_one_hop(make_setup):
    ours, theirs = (make_setup(rule, shards=4) for rule in ("features_replay", "backprop"))
    mine, true = ours.plan_step(ours.stages[0]), theirs.plan_step(theirs.stages[0])
    assert dict(mine.traffic.payload) == dict(true.traffic.payload)
    assert (mine.hops, true.hops) == (4, 6)


def test_it_refuses_blocks_that_do_not_know_the_batch_and_batches_in_parts(small):
    net = small(FeaturesReplay())
    assert net.rule.problems(net.blocks) == []
    nameless = [Block(b.build, b.in_shape, b.index, b.count) for b in net.blocks]
    assert "number of examples" in net.rule.problems(nameless)[0]
    assert not net.rule.additive_over_batch
