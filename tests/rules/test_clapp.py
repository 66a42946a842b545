"""CLAPP against its Hebbian rule written by hand, example by example, and the cases of its hinge."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locallearn.chain import Chain, Row
from locallearn.models import MLP
from locallearn.rules._views import Views, second_view
from locallearn.rules.clapp import CLAPP, Scores, eyes, hinge, scores
from locallearn.traffic import Channel


def glances(net):
    """What each block below the top sees, twice."""
    x = np.asarray(net.batch.x)
    other = np.asarray(second_view(net.blocks[0], net.batch.x, net.batch.key, views=net.rule.views))
    for state in net.state.values[:-1]:
        yield x, other
        x, other = (np.tanh(v @ state.params.block["linear"]["kernel"] + state.params.block["linear"]["bias"]) for v in (x, other))
    yield x, other


def hebbian(net, state, x, other, away, coin):
    """-ΔW, -Δb, -ΔW_pred, -ΔW_ret of one block: predicted activity, derivative, input, and a factor for all units."""
    w, b = (np.asarray(state.params.block["linear"][name]) for name in ("kernel", "bias"))
    forth, back = (np.asarray(m) for m in state.params.head)
    c, z, n = np.tanh(x @ w + b), np.tanh(other @ w + b), len(x)
    dw, db, dforth, dback = (np.zeros_like(m) for m in (w, b, forth, back))
    for i in range(n):
        kinds = [(1, i), (-1, (i + away) % n)]
        for y, j in kinds if coin is None else kinds[:1] if coin[i] else kinds[1:]:
            if y * (z[j] @ forth @ c[i]) < 1:
                delta = y * (forth @ c[i]) * (1 - z[j] ** 2)
                dw += np.outer(other[j], delta)
                db += delta
                dforth += y * np.outer(z[j], c[i])
            if y * (z[j] @ back @ c[i]) < 1:
                delta = y * (back.T @ z[j]) * (1 - c[i] ** 2)
                dw += np.outer(x[i], delta)
                db += delta
                dback += y * np.outer(z[j], c[i])
    return [-m / n for m in (dw, db, dforth, dback)]


@pytest.mark.parametrize("synchronous", [True, False])
def test_every_block_by_hand(small, synchronous):
    net = small(CLAPP(synchronous=synchronous), count=12)
    away, coin = eyes(net.batch.key, 12, synchronous=synchronous)
    grads, _, loss = net.gradients()
    seen = list(glances(net))
    for i in range(3):
        dw, db, dforth, dback = hebbian(net, net.state[i], *seen[i], int(away), None if coin is None else np.asarray(coin))
        np.testing.assert_allclose(grads[i].block["linear"]["kernel"], dw, atol=1e-12)
        np.testing.assert_allclose(grads[i].block["linear"]["bias"], db, atol=1e-12)
        np.testing.assert_allclose(grads[i].head.forth, dforth, atol=1e-12)
        np.testing.assert_allclose(grads[i].head.back, dback, atol=1e-12)
        assert all(np.abs(m).max() > 1e-3 for m in (dw, dforth, dback))
    x, top = seen[3][0], net.state[3].params.block["linear"]
    error = np.asarray(jax.nn.softmax(x @ top["kernel"] + top["bias"])) - np.eye(3)[np.asarray(net.batch.y)]
    np.testing.assert_allclose(grads[3].block["linear"]["kernel"], x.T @ error / 12, atol=1e-12)
    np.testing.assert_allclose(
        loss, -np.log((error + np.eye(3)[np.asarray(net.batch.y)])[range(12), np.asarray(net.batch.y)]).mean(), atol=1e-12
    )
    np.testing.assert_allclose(net.rule.predict(net.chain, net.state, net.batch.x), x @ top["kernel"] + top["bias"], atol=1e-12)


def test_one_matrix_for_both_ways_is_the_gradient_of_one_hinge(small, assert_close):
    net = small(CLAPP(retrodiction=False), (6, 8, 3), count=8)
    away = int(eyes(net.batch.key, 8, synchronous=True)[0])
    first, second = next(iter(glances(net)))

    def formula(params):
        c, z = (jnp.tanh(v @ params.block["linear"]["kernel"] + params.block["linear"]["bias"]) for v in (first, second))
        u = jnp.stack([z[i] @ params.head.forth @ c[i] for i in range(8)])
        v = jnp.stack([z[(i + away) % 8] @ params.head.forth @ c[i] for i in range(8)])
        return jnp.mean(jnp.where(u < 1, 1 - u, 0) + jnp.where(v > -1, 1 + v, 0))

    assert_close(net.gradients()[0][0], jax.grad(formula)(net.state[0].params))


def test_with_equal_matrices_both_ways_are_the_gradient_of_one_hinge(small, assert_close):
    """W_ret = W_pred: what reaches the block is the gradient through both glances at once; each matrix learns the same."""
    two, one = small(CLAPP(), (6, 8, 3), count=8), small(CLAPP(retrodiction=False), (6, 8, 3), count=8)
    params = one.state[0].params
    both = params._replace(head=two.state[0].params.head._replace(forth=params.head.forth, back=params.head.forth))
    (grads, _), *_ = two.gradients(Row([two.state[0]._replace(params=both), one.state[1]]))
    (expected, _), *_ = one.gradients()
    assert_close(grads.block, expected.block)
    assert_close([grads.head.forth, grads.head.back], [expected.head.forth] * 2)


def test_the_hinge(small):
    u = Scores(jnp.asarray([2.0, 0.25, -3.0]), jnp.asarray([-2.0, -0.25, 3.0]))
    assert float(hinge(u, None)) == (0 + 0 + 0.75 + 0.75 + 4 + 4) / 3
    assert float(hinge(u, jnp.asarray([True, True, False]))) == (0 + 0.75 + 4) / 3
    slopes = jax.grad(hinge)(u, None)
    np.testing.assert_allclose(slopes.stays, np.array([0, -1, -1]) / 3)  # a fixation wants a larger score, until it is 1
    np.testing.assert_allclose(slopes.leaves, np.array([0, 1, 1]) / 3)  # a saccade a smaller one, until it is -1


def test_a_coin_and_its_other_side_are_both_kinds_of_glance(small):
    rng = np.random.default_rng(0)
    u, coin = Scores(*jnp.asarray(rng.normal(size=(2, 9)))), jnp.asarray(rng.integers(0, 2, 9), bool)
    assert float(hinge(u, coin) + hinge(u, ~coin)) == pytest.approx(float(hinge(u, None)), abs=1e-14)


def test_a_block_that_predicts_with_a_margin_rests(small):
    """Same glance twice, answers that are orthogonal for different examples: W = 2I - ... satisfies every margin."""
    net = small(CLAPP(views=Views(shift=0, mask=0)), (4, 4, 3), "identity", count=4)
    w = 5 * (2 * np.eye(4) - np.ones((4, 4)) / 2)  # u = 7.5 for the same example, -2.5 for another
    params = net.state[0].params
    still = params._replace(
        block={"linear": {"kernel": jnp.eye(4), "bias": jnp.zeros(4)}}, head=params.head._replace(forth=jnp.asarray(w), back=jnp.asarray(w))
    )
    state, batch = Row([net.state[0]._replace(params=still), net.state[1]]), net.batch._replace(x=jnp.eye(4))
    assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(net.gradients(state, batch)[0][0]))
    swapped = still._replace(head=params.head._replace(forth=-jnp.asarray(w), back=-jnp.asarray(w)))
    state = Row([net.state[0]._replace(params=swapped), net.state[1]])
    assert all(jnp.any(leaf) for leaf in jax.tree.leaves(net.gradients(state, batch)[0][0].head))


def test_a_saccade_goes_to_another_example_and_all_blocks_agree_where(small):
    places = [int(eyes(jax.random.PRNGKey(k), 5, synchronous=True)[0]) for k in range(60)]
    assert set(places) == {1, 2, 3, 4}
    coins = np.stack([np.asarray(eyes(jax.random.PRNGKey(k), 50, synchronous=False)[1]) for k in range(60)])
    assert abs(coins.mean() - 0.5) < 0.05
    z, c, w = np.random.default_rng(0).normal(size=(3, 5, 5))
    u = scores(jnp.asarray(z), jnp.asarray(c), jnp.asarray(w), jnp.asarray(2))
    np.testing.assert_allclose(u.leaves, [z[(i + 2) % 5] @ w @ c[i] for i in range(5)], atol=1e-13)
    np.testing.assert_allclose(u.stays, [z[i] @ w @ c[i] for i in range(5)], atol=1e-13)


def test_a_block_depends_on_those_below_it_and_on_no_other(small):
    assert small(CLAPP()).influences() == [{0}, {0, 1}, {0, 1, 2}, {0, 1, 2, 3}]


def test_labels_are_no_business_of_blocks_below_the_top(small):
    net = small(CLAPP())
    one, other = net.gradients()[0], net.gradients(batch=net.batch._replace(y=(net.batch.y + 1) % 3))[0]
    for i in range(4):
        same = [bool(jnp.all(a == b)) for a, b in zip(jax.tree.leaves(one[i]), jax.tree.leaves(other[i]), strict=True)]
        assert all(same) == (i < 3)


@pytest.mark.parametrize(("cells", "n"), [(1, 3), (2, 12), (9, 48)])
def test_positions_are_averaged_over_cells(convolutional, assert_close, cells, n):
    net = convolutional(CLAPP(cells=cells, retrodiction=False))
    block, state = net.blocks[0], net.state[0]
    assert state.params.head.forth.shape == (n, n)
    other = second_view(block, net.batch.x, net.batch.key, views=net.rule.views)
    away = int(eyes(net.batch.key, 4, synchronous=True)[0])
    per = min(cells, 4)

    def formula(params):
        c, z = (
            block.apply(params.block, x).reshape(4, per, 4 // per, per, 4 // per, 3).mean((2, 4)).reshape(4, n)
            for x in (net.batch.x, other)
        )
        u, v = jnp.einsum("bi,ij,bj->b", z, params.head.forth, c), jnp.einsum("bi,ij,bj->b", jnp.roll(z, -away, 0), params.head.forth, c)
        return jnp.mean(jnp.maximum(0, 1 - u) + jnp.maximum(0, 1 + v))

    assert_close(net.gradients()[0][0], jax.jit(jax.grad(formula))(state.params))


@pytest.mark.parametrize("learn", [(0,), (1,), (0, 2), (3,)])
def test_only_learners_learn_and_the_second_glance_goes_no_further_than_they(small, learn):
    net = small(CLAPP())
    everything, _, _ = net.gradients()
    net.chain = Chain([replace(b, learns=b.index in learn) for b in net.blocks], net.chain.fabric)
    first = next((i + 1 for i in reversed(range(3)) if i in learn), 0)
    grads = net.rule.gradients(net.chain, net.state, net.batch)[0]
    for i in range(3):
        assert all(jnp.any(leaf) == (i in learn) for leaf in jax.tree.leaves(grads[i]))
        if i in learn:
            assert all(bool(jnp.allclose(a, b)) for a, b in zip(jax.tree.leaves(grads[i]), jax.tree.leaves(everything[i]), strict=True))
    told = np.asarray([float(v) for v in net.rule.diagnose(net.chain, net.state, net.batch)["told_apart"]])
    np.testing.assert_array_equal(np.isnan(told), np.arange(4) >= first)


def test_a_boundary_carries_both_glances_up(make_setup, phase):
    up = {(k, k + 1): 12 * width * 4 for k, width in enumerate((8, 7, 6))}
    setup = make_setup("clapp", shards=4, batch=12)
    assert dict(setup.plan_step(setup.stages[0]).traffic.payload) == {
        **{Channel("activation", "activation", *link): size for link, size in up.items()},
        **{Channel("view", "activation", *link): up[link] for link in [(0, 1), (1, 2)]},  # the top sees the first alone
    }
    setup = make_setup([phase(CLAPP(), 1, (0, 1, 2)), phase(CLAPP(), 1, (3,))], shards=4, batch=12)
    assert dict(setup.plan_step(setup.stages[1]).traffic.payload) == {
        Channel("activation", "activation", *link): size for link, size in up.items()
    }


def test_it_tells_how_well_glances_are_told_apart(small):
    net = small(CLAPP(), count=12)
    told = net.rule.diagnose(net.chain, net.state, net.batch)["told_apart"]
    away = int(eyes(net.batch.key, 12, synchronous=True)[0])
    for i, (x, other) in enumerate(list(glances(net))[:3]):
        p = net.state[i].params
        c, z = (np.tanh(v @ p.block["linear"]["kernel"] + p.block["linear"]["bias"]) for v in (x, other))
        stays = [z[k] @ p.head.forth @ c[k] > 0 for k in range(12)]
        leaves = [z[(k + away) % 12] @ p.head.forth @ c[k] < 0 for k in range(12)]
        assert float(told[i]) == pytest.approx((np.mean(stays) + np.mean(leaves)) / 2, abs=1e-7)


def test_matrices_begin_within_a_bound_and_blocks_as_under_every_other_rule(small):
    net = small(CLAPP(), (6, 50, 3))
    state = net.rule.init(net.blocks[0], jax.random.PRNGKey(3))
    for matrix in state.params.head:
        assert 0.95 / np.sqrt(50) < float(jnp.abs(matrix).max()) <= 1 / np.sqrt(50)
    assert jnp.any(state.params.head.forth != state.params.head.back)
    np.testing.assert_array_equal(state.params.block["linear"]["kernel"], net.blocks[0].init(jax.random.PRNGKey(3))["linear"]["kernel"])


def test_what_it_cannot_take(small):
    assert "needs a block below the top" in CLAPP().problems(MLP(widths=(6, 3)).blocks((6,)))[0]
    assert "`batch` at least 2" in CLAPP().problems([replace(b, batch=1) for b in MLP(widths=(6, 5, 3)).blocks((6,))])[0]
    assert not CLAPP().problems(small(CLAPP()).blocks)
