"""Difference target propagation against linear algebra, against backpropagation where it begins, and against its equations by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from locallearn.block import Block
from locallearn.chain import Row
from locallearn.rule import split_batch
from locallearn.rules.difference_target import DifferenceTarget, Inverse
from locallearn.traffic import Channel
from tests.rules.measures import true_gradients


def identity(u):
    return u


def kernel(state):
    return state.params.block["linear"]["kernel"]


def with_exact_inverses(net):
    """The state of a linear network of square blocks in which every G_l undoes f_l: h ↦ (h - b) K⁻¹."""

    def exact(state):
        if not state.params.head:
            return state
        back = jnp.linalg.inv(kernel(state))
        weights = {"linear": {"kernel": back.T, "bias": state.params.head.weights["linear"]["bias"]}}
        head = Inverse(weights, -state.params.block["linear"]["bias"] @ back)
        return state._replace(params=state.params._replace(head=head))

    return Row(exact(state) for state in net.state)


def test_with_exact_inverses_a_target_is_a_gauss_newton_step(small):
    """On ½ ‖h_{L-1}(h_l) - ĥ_{L-1}‖², whose Jacobian J is square: the step J⁻¹ (ĥ_{L-1} - h_{L-1}), read from a bias's gradient."""
    net = small(DifferenceTarget(step_size=0.4), widths=(6, 6, 6, 6, 6, 3), activation="identity", count=1)
    state = with_exact_inverses(net)
    grads, _, _ = net.gradients(state)
    displacement = [-0.4 * g.block["linear"]["bias"] for g in grads[:-1]]
    assert np.linalg.norm(displacement[3]) > 1e-3
    for l, move in enumerate(displacement[:3]):
        jacobian = jnp.eye(6)
        for above in state.values[l + 1 : 4]:
            jacobian = jacobian @ kernel(above)
        np.testing.assert_allclose(move, np.linalg.solve(jacobian.T, displacement[3]), rtol=1e-11)


def test_exact_inverses_have_nothing_to_learn_whatever_the_noise(small):
    net = small(DifferenceTarget(noise=0.7), widths=(6, 6, 6, 6, 3), activation="identity")
    learnt = [g.head for g in net.gradients(with_exact_inverses(net))[0][1:3]]
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(learnt)) < 1e-12
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves([g.head for g in net.gradients()[0][1:3]])) > 0.1


def test_the_two_highest_blocks_learn_as_in_backpropagation_the_others_do_not(small, assert_close):
    net = small(DifferenceTarget(step_size=0.2))
    grads, memory, _ = net.gradients()
    expected = true_gradients(net)
    assert_close([g.block for g in grads[2:]], expected[2:])
    for mine, true in zip(grads[:2], expected[:2], strict=True):
        assert float(jnp.abs(mine.block["linear"]["kernel"] - true["linear"]["kernel"]).max()) > 0.01
    assert [g.head for g in (grads[0], grads[3])] == [(), ()]
    assert memory == [()] * 4


def test_convolutions_have_inverses_too(convolutional, assert_close):
    net = convolutional(DifferenceTarget(step_size=0.2))
    grads, _, _ = net.gradients()
    assert_close([g.block for g in grads[1:]], true_gradients(net)[1:])
    assert grads[1].head.bias.shape == (4, 4, 3)
    assert float(jnp.abs(grads[1].head.weights["inner"]["kernel"]).max()) > 0


def test_targets_and_learning_by_hand(small, dense, assert_close):
    step, noise = 0.5, 0.3
    net = small(DifferenceTarget(step_size=step, noise=noise))
    blocks, heads = [s.params.block for s in net.state], [s.params.head for s in net.state]

    def back(head, h):
        return jnp.tanh(h @ head.weights["linear"]["kernel"].T + head.bias)

    h = [net.batch.x]
    for p in blocks[:-1]:
        h.append(dense(p, h[-1]))

    def each_loss(p, below):
        return optax.softmax_cross_entropy_with_integer_labels(dense(p, below, f=identity), net.batch.y)

    target = {3: h[3] - step * jax.grad(lambda below: each_loss(blocks[3], below).sum())(h[3])}
    for l in (2, 1):
        target[l] = h[l] + back(heads[l], target[l + 1]) - back(heads[l], h[l + 1])
    expected = [jax.grad(lambda p, l=l: 0.5 / step / 4 * jnp.sum((dense(p, h[l]) - target[l + 1]) ** 2))(blocks[l]) for l in range(3)]
    expected.append(jax.grad(lambda p: each_loss(p, h[3]).mean())(blocks[3]))
    grads, _, _ = net.gradients()
    assert_close([g.block for g in grads], expected)
    for l in (1, 2):
        seen = h[l] + noise * jax.random.normal(jax.random.fold_in(net.batch.key, l), h[l].shape, jnp.float64)
        rebuilt = jax.grad(lambda head, l=l, seen=seen: 0.5 / 4 * jnp.sum((back(head, dense(blocks[l], seen)) - seen) ** 2))(heads[l])
        assert_close(grads[l].head.bias, rebuilt.bias)
        assert_close(grads[l].head.weights["linear"]["kernel"], rebuilt.weights["linear"]["kernel"])


def test_microbatches_add_up_without_noise(small, assert_close):
    net = small(DifferenceTarget(noise=0.0))
    parts = [net.gradients(batch=part)[0] for part in split_batch(net.batch, 2)]
    sums = jax.tree.map(lambda a, b: (a + b) / 2, *parts)
    whole, _, _ = net.gradients()
    assert_close([g.block for g in sums], [g.block for g in whole])
    assert_close([g.head.bias for g in sums[1:3]], [g.head.bias for g in whole[1:3]])
    assert net.rule.additive_over_batch
    assert not DifferenceTarget().additive_over_batch


def test_misfit_is_zero_where_the_inverses_are_exact(small):
    net = small(DifferenceTarget(), widths=(6, 6, 6, 6, 3), activation="identity")
    exact = net.rule.diagnose(net.chain, with_exact_inverses(net), net.batch)["misfit"]
    assert [float(m) for m in exact] == pytest.approx([0.0] * 4, abs=1e-12)
    misfit = [float(m) for m in net.rule.diagnose(net.chain, net.state, net.batch)["misfit"]]
    assert misfit[0] == misfit[3] == 0
    assert min(misfit[1:3]) > 0.1


def test_a_boundary_carries_an_activity_up_and_a_target_down(make_setup):
    setup = make_setup(DifferenceTarget(), shards=3)  # widths 12-8-7-6-3: after 7 and 6, 12 examples
    assert dict(setup.plan_step(setup.stages[0]).traffic.payload) == {
        Channel("activation", "activation", 0, 1): 12 * 7 * 4,
        Channel("activation", "activation", 1, 2): 12 * 6 * 4,
        Channel("target", "target", 1, 0): 12 * 7 * 4,
        Channel("target", "target", 2, 1): 12 * 6 * 4,
    }


def test_it_refuses_an_activation_that_it_cannot_give_an_inverse(small):
    net = small(DifferenceTarget())
    assert net.rule.problems(net.blocks) == []

    odd = Block(net.blocks[1].build, (8,), 1, 4)
    odd.__dict__["module"] = type("Odd", (), {"activation": "triangle", "pre": None})()
    assert "knows no activation triangle" in net.rule.problems([net.blocks[0], odd, *net.blocks[2:]])[0]
