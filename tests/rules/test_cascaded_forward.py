"""Cascaded forward: fixed blocks, and linear predictors against logistic and linear regression."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locallearn.chain import Row
from locallearn.rule import split_batch
from locallearn.rules.backprop import Backprop
from locallearn.rules.cascaded_forward import CascadedForward
from locallearn.runtime.fused import FusedSession
from locallearn.traffic import Channel
from locallearn.train import Optimizer


def features(net, dense):
    """h_1, …, of the hidden blocks."""
    found = [net.batch.x]
    for state in net.state.values[:-1]:
        found.append(dense(state.params.block, found[-1]))
    return [np.asarray(h) for h in found[1:]]


def softmax(scores):
    e = np.exp(scores - scores.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def test_one_block_is_backpropagation(small, assert_close):
    net, reference = small(CascadedForward(), (6, 3)), small(Backprop(), (6, 3))
    reference.state = Row(s._replace(params=s.params.block) for s in net.state)
    (grads,), _, loss = net.gradients()
    (expected,), _, expected_loss = reference.gradients()
    assert_close(grads.block, expected)
    assert loss == expected_loss


@pytest.mark.parametrize("loss", ["cross_entropy", "squared"])
def test_predictors_are_regressions_on_fixed_features(small, dense, loss):
    net = small(CascadedForward(loss))
    grads, _, _ = net.gradients()
    target = np.eye(3)[net.batch.y]
    for i, h in enumerate(features(net, dense)):
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(grads[i].block))
        if i == 2:  # the top is its predictor
            layer, grad = [tree.block["linear"] for tree in (net.state[3].params, grads[3])]
            weights, grad = (layer["kernel"], layer["bias"]), (grad["kernel"], grad["bias"])
            assert grads[2].head == ()
        else:
            weights, grad = net.state[i].params.head, grads[i].head
        scores = h @ weights[0] + weights[1]
        error = ((softmax(scores) if loss == "cross_entropy" else scores) - target) / 4
        np.testing.assert_allclose(grad[0], h.T @ error, atol=1e-14)
        np.testing.assert_allclose(grad[1], error.sum(0), atol=1e-14)


def test_linear_regression_rests_at_its_closed_form(small, dense):
    net = small(CascadedForward("squared"), (6, 5, 4, 3), count=20)
    h = np.c_[features(net, dense)[0], np.ones(20)]
    solution = np.linalg.solve(h.T @ h, h.T @ np.eye(3)[net.batch.y])
    head = type(net.state[0].params.head)(jnp.asarray(solution[:-1]), jnp.asarray(solution[-1]))
    solved = net.state[0]._replace(params=net.state[0].params._replace(head=head))
    (grads, *_), _, _ = net.gradients(Row([solved, *net.state.values[1:]]))
    assert max(np.abs(leaf).max() for leaf in grads.head) < 1e-13
    assert max(np.abs(leaf).max() for leaf in net.gradients()[0][0].head) > 1e-3


def test_the_prediction_is_the_sum_of_what_all_predictors_say(small, dense):
    net = small(CascadedForward())
    h = features(net, dense)
    each = [softmax(h[i] @ net.state[i].params.head.kernel + net.state[i].params.head.bias) for i in range(2)]
    each.append(softmax(np.asarray(dense(net.state[3].params.block, h[2], lambda u: u))))
    np.testing.assert_allclose(net.rule.predict(net.chain, net.state, net.batch.x), sum(each), atol=1e-14)
    told = [float(value) for value in net.rule.diagnose(net.chain, net.state, net.batch)["accuracy"]]
    right = [np.mean(p.argmax(1) == net.batch.y) for p in each]
    assert (told[0], told[1], told[3]) == tuple(right)
    assert np.isnan(told[2])


def test_predictors_do_not_depend_on_each_other(small):
    net = small(CascadedForward())
    before, _, _ = net.gradients()
    for i in range(2):
        params = net.state[i].params
        other = net.state[i]._replace(params=params._replace(head=jax.tree.map(lambda p: p + 1, params.head)))
        after, _, _ = net.gradients(Row(other if j == i else state for j, state in enumerate(net.state)))
        for j in range(4):
            assert bool(jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.all(a == b)), before[j], after[j]))) == (j != i)


def test_microbatches_add_up(small, assert_close):
    net = small(CascadedForward())
    halves = [net.gradients(batch=half)[0] for half in split_batch(net.batch, 2)]
    mean, whole = jax.tree.map(lambda a, b: (a + b) / 2, *halves), net.gradients()[0]
    assert_close([mean[0].head, mean[1].head, mean[3].block], [whole[0].head, whole[1].head, whole[3].block])


def test_blocks_stay_as_they_were_drawn_whatever_the_optimizer_does(begun):
    session = begun(FusedSession, "cascaded_forward", optimizer=Optimizer(name="adamw", rate=0.1, weight_decay=0.5))
    before = [jax.tree.map(np.array, state.params) for state in session._state]
    session.advance(0, 3)
    for i, (old, new) in enumerate(zip(before, (state.params for state in session._state), strict=True)):
        same = jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), old, new)
        assert jax.tree.all(same.block) == (i < 3)
        assert not any(jax.tree.leaves(same.head))


def test_blocks_trained_in_a_phase_before_are_taken_over(make_setup, phase):
    session = FusedSession(make_setup([phase("direct_feedback", 2), phase(CascadedForward(), 2)]))
    session.enter(session.setup.stages[0])
    session.advance(0, 2)
    trained = [np.array(state.params["linear"]["kernel"]) for state in session._state]
    session.enter(session.setup.stages[1])
    session.advance(2, 4)
    for kernel, state in zip(trained[:-1], session._state, strict=False):
        np.testing.assert_array_equal(kernel, state.params.block["linear"]["kernel"])


def test_a_boundary_carries_activities_and_at_predictions_a_sum_besides(make_setup):
    setup = make_setup("cascaded_forward", shards=2, batch=12, widths=(12, 7, 6, 3))
    stage, size = setup.stages[0], setup.evaluation_batch
    activation, prediction = Channel("activation", "activation", 0, 1), Channel("prediction", "evaluation", 0, 1)
    assert dict(setup.plan_step(stage).traffic.payload) == {activation: 12 * 6 * 4, Channel("label", "label", 1, 0): 12}
    assert sum(setup.plan_evaluation(stage).traffic.payload.values()) == size * 6 * 4 + size * 3 * 4
    assert prediction in setup.plan_evaluation(stage).traffic.payload
