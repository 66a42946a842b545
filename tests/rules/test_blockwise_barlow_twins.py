"""Blockwise Barlow Twins against its loss and its gradient written by hand, and the cases in which they are known."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locallearn.chain import Chain
from locallearn.models import MLP
from locallearn.rules._views import Views, output, second_view
from locallearn.rules.blockwise_barlow_twins import EPSILON, BlockwiseBarlowTwins, barlow, correlation, normalised, project, twins
from locallearn.traffic import Channel

SAME = Views(shift=0, mask=0)
COUNT = 12


def standard(z):
    """(N(z), what it was divided by)."""
    deviation = np.sqrt(z.var(0) + EPSILON)
    return (z - z.mean(0)) / deviation, deviation


def through_standard(z, slope):
    """The gradient by z of a loss whose gradient by N(z) is `slope`."""
    n, deviation = standard(z)
    return (slope - slope.mean(0) - n * (slope * n).mean(0)) / deviation


def loss_by_hand(c, weight):
    total = 0.0
    for i in range(len(c)):
        for j in range(len(c)):
            total += (1 - c[i, i]) ** 2 if i == j else weight * c[i, j] ** 2
    return total


def views(net):
    """What each block below the top sees, twice."""
    x = np.asarray(net.batch.x)
    other = np.asarray(second_view(net.blocks[0], net.batch.x, net.batch.key, views=net.rule.views))
    for state in net.state.values[:-1]:
        yield x, other
        x, other = (np.tanh(v @ state.params.block["linear"]["kernel"] + state.params.block["linear"]["bias"]) for v in (x, other))


def test_every_block_by_hand(small):
    """A projector of one layer, through C, both normalisations and the block, without automatic differentiation."""
    net = small(BlockwiseBarlowTwins(projector=(5,), weight=0.3, scale=0.7), count=COUNT)
    grads, _, _ = net.gradients()
    for i, (x, other) in enumerate(views(net)):
        w, b = (np.asarray(net.state[i].params.block["linear"][name]) for name in ("kernel", "bias"))
        p = np.asarray(net.state[i].params.head.last)
        h, z, n = [], [], []
        for v in (x, other):
            h.append(np.tanh(v @ w + b))
            z.append(h[-1] @ p)
            n.append(standard(z[-1])[0])
        c = n[0].T @ n[1] / COUNT
        slope = 0.7 * (2 * 0.3 * c - np.diag(2 * 0.3 * np.diag(c)) - np.diag(2 * (1 - np.diag(c))))
        dz = [through_standard(z[0], n[1] @ slope.T / COUNT), through_standard(z[1], n[0] @ slope / COUNT)]
        du = [d @ p.T * (1 - a**2) for d, a in zip(dz, h, strict=True)]
        np.testing.assert_allclose(grads[i].head.last, h[0].T @ dz[0] + h[1].T @ dz[1], atol=1e-11)
        np.testing.assert_allclose(grads[i].block["linear"]["kernel"], x.T @ du[0] + other.T @ du[1], atol=1e-11)
        np.testing.assert_allclose(grads[i].block["linear"]["bias"], (du[0] + du[1]).sum(0), atol=1e-11)
        assert np.abs(grads[i].block["linear"]["kernel"]).max() > 1e-2
        assert float(barlow(jnp.asarray(c), 0.3)) == pytest.approx(loss_by_hand(c, 0.3), abs=1e-12)


def test_projectors_with_hidden_layers(small, assert_close):
    net = small(BlockwiseBarlowTwins(projector=(9, 7, 4), weight=0.2, scale=2.0), (6, 8, 3), count=COUNT)
    first, second = next(views(net))

    def n(z):
        return (z - jnp.mean(z, 0)) / jnp.sqrt(jnp.mean((z - jnp.mean(z, 0)) ** 2, 0) + EPSILON)

    def formula(params):
        features = []
        for x in (first, second):
            h = jnp.tanh(x @ params.block["linear"]["kernel"] + params.block["linear"]["bias"])
            for layer in params.head.hidden:
                h = jnp.maximum(n(h @ layer.kernel) + layer.bias, 0)
            features.append(n(h @ params.head.last))
        c = features[0].T @ features[1] / COUNT
        off = c - jnp.diag(jnp.diag(c))
        return 2.0 * (jnp.sum((1 - jnp.diag(c)) ** 2) + 0.2 * jnp.sum(off**2))

    params = net.state[0].params
    assert [layer.kernel.shape for layer in params.head.hidden] == [(8, 9), (9, 7)]
    assert params.head.last.shape == (7, 4)
    assert_close(net.gradients()[0][0], jax.jit(jax.grad(formula))(params))


def test_the_same_view_twice_agrees(small):
    """C_ii = variance / (variance + ε), so that without λ there is next to nothing to learn."""
    net = small(BlockwiseBarlowTwins(views=SAME, projector=(5,), weight=0.0, scale=1.0), count=COUNT)
    x = np.asarray(net.batch.x)
    state = net.state[0].params
    c = np.asarray(twins(net.blocks[0], state, net.batch.x, net.batch.x, net.batch.key, 0.0))
    z = np.tanh(x @ state.block["linear"]["kernel"] + state.block["linear"]["bias"]) @ np.asarray(state.head.last)
    np.testing.assert_allclose(np.diag(c), z.var(0) / (z.var(0) + EPSILON), atol=1e-12)
    np.testing.assert_allclose(c, c.T, atol=1e-14)
    np.testing.assert_allclose(c, np.corrcoef(z.T), atol=1e-3)
    still = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(net.gradients()[0][0]))
    moving = small(BlockwiseBarlowTwins(views=SAME, projector=(5,), weight=1.0, scale=1.0), count=COUNT).gradients()[0][0]
    assert still < 1e-4
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(moving)) > 1e-2


def test_opposite_views_disagree_and_unrelated_features_cost_nothing():
    with jax.enable_x64(True):
        h = jnp.asarray([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])  # three features without mean or correlation
        np.testing.assert_allclose(correlation(h, h), np.eye(3) / (1 + EPSILON), atol=1e-14)
        assert float(barlow(correlation(h, h), 5.0)) < 1e-9
        assert float(barlow(correlation(h, -h), 5.0)) == pytest.approx(3 * 4, abs=1e-3)
        twice = jnp.stack([h[:, 0], h[:, 0]], 1)  # one feature, two times
        assert float(barlow(correlation(twice, twice), 5.0)) == pytest.approx(2 * 5, abs=1e-3)
        moved = correlation(h * jnp.asarray([3.0, 0.5, 7]) + 2, h)
        np.testing.assert_allclose(moved, correlation(h, h), atol=1e-4)


def test_the_loss_is_linear_in_lambda_and_does_not_see_other_correlations_without_it():
    with jax.enable_x64(True):
        c = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (4, 4)))
        zero, one, three = (float(barlow(c, weight)) for weight in (0.0, 1.0, 3.0))
        assert zero == pytest.approx(float(np.sum((1 - np.diag(c)) ** 2)), abs=1e-14)
        assert three - zero == pytest.approx(3 * (one - zero), abs=1e-13)
        slope = np.asarray(jax.grad(barlow)(c, 0.0))
        np.testing.assert_array_equal(slope - np.diag(np.diag(slope)), 0)


def test_a_block_depends_on_those_below_it_and_on_no_other(small):
    assert small(BlockwiseBarlowTwins(projector=(6, 5))).influences() == [{0}, {0, 1}, {0, 1, 2}, {0, 1, 2, 3}]


def test_labels_teach_the_top_alone(small):
    net = small(BlockwiseBarlowTwins(projector=(6, 5)))
    one, other = net.gradients()[0], net.gradients(batch=net.batch._replace(y=(net.batch.y + 1) % 3))[0]
    for i in range(4):
        same = [bool(jnp.all(a == b)) for a, b in zip(jax.tree.leaves(one[i]), jax.tree.leaves(other[i]), strict=True)]
        assert all(same) == (i < 3)
    *_, (x, _) = views(net)
    hidden, top = net.state[2].params.block["linear"], net.state[3].params.block["linear"]
    h = np.tanh(x @ hidden["kernel"] + hidden["bias"])
    error = np.asarray(jax.nn.softmax(h @ top["kernel"] + top["bias"])) - np.eye(3)[np.asarray(net.batch.y)]
    np.testing.assert_allclose(one[3].block["linear"]["kernel"], h.T @ error / 4, atol=1e-12)


def test_features_are_averaged_over_positions_after_the_first_layer(convolutional, assert_close):
    net = convolutional(BlockwiseBarlowTwins(projector=(5, 4), weight=0.5, scale=1.0))
    block, state = net.blocks[0], net.state[0]
    h = block.apply(state.params.block, net.batch.x)  # [4, 4, 4, 3]
    layer = state.params.head.hidden[0]
    u = np.einsum("bxyc,cd->bxyd", np.asarray(h), np.asarray(layer.kernel))
    u = (u - u.mean((0, 1, 2))) / np.sqrt(u.var((0, 1, 2)) + EPSILON) + np.asarray(layer.bias)
    expected = np.maximum(u, 0).mean((1, 2)) @ np.asarray(state.params.head.last)
    np.testing.assert_allclose(project(state.params.head, h), expected, atol=1e-12)
    np.testing.assert_allclose(normalised(h).mean((0, 1, 2)), 0, atol=1e-12)
    other = second_view(block, net.batch.x, net.batch.key, views=net.rule.views)

    def formula(params):
        return barlow(correlation(*(project(params.head, block.apply(params.block, x)) for x in (net.batch.x, other))), 0.5)

    assert_close(net.gradients()[0][0], jax.jit(jax.grad(formula))(state.params))


# Noise.


def test_noise_is_that_of_the_loss_and_of_what_goes_up_and_of_no_evaluation(small, assert_close):
    net = small(BlockwiseBarlowTwins(projector=(5, 4), noise=0.25), count=COUNT)
    block, params = net.blocks[1], net.state[1].params
    x = [net.batch.x, second_view(net.blocks[0], net.batch.x, net.batch.key, views=net.rule.views)]
    sent = [output(net.blocks[0], net.state[0].params.block, v, net.batch.key, number=k, noise=0.25) for k, v in enumerate(x)]

    def formula(params):
        noisy = [output(block, params.block, v, net.batch.key, number=k, noise=0.25) for k, v in enumerate(sent)]
        return 0.03125 * barlow(correlation(*(project(params.head, h) for h in noisy)), 0.02)

    assert_close(net.gradients()[0][1], jax.jit(jax.grad(formula))(params))
    quiet = small(BlockwiseBarlowTwins(projector=(5, 4)), count=COUNT)
    np.testing.assert_array_equal(
        net.rule.predict(net.chain, net.state, net.batch.x), quiet.rule.predict(quiet.chain, net.state, net.batch.x)
    )


def test_noise_is_a_share_of_the_deviation_its_own_in_every_block_and_view_and_silent_at_rest(small):
    net = small(BlockwiseBarlowTwins(), (6, 8, 8, 3), count=400)
    params = net.state[0].params.block

    def noise(block, number):
        return np.asarray(output(block, params, net.batch.x, net.batch.key, number=number, noise=0.25) - block.apply(params, net.batch.x))

    block = net.blocks[0]
    one = noise(block, 0)
    assert one.std() == pytest.approx(0.25 * float(jnp.std(block.apply(params, net.batch.x))), rel=0.05)
    for other in (noise(block, 1), noise(replace(block, index=1), 0)):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.1
    assert not np.any(noise(replace(block, learns=False), 0))
    assert not np.any(noise(replace(block, index=2), 0)), "nor has the read-out any"


# Around it.


def test_only_learners_learn(small):
    net = small(BlockwiseBarlowTwins(projector=(6, 5)))
    everything, _, _ = net.gradients()
    net.chain = Chain([replace(b, learns=b.index in (1, 3)) for b in net.blocks], net.chain.fabric)
    grads = net.rule.gradients(net.chain, net.state, net.batch)[0]
    assert [any(bool(jnp.any(leaf)) for leaf in jax.tree.leaves(g)) for g in grads] == [False, True, False, True]
    for a, b in zip(jax.tree.leaves(grads[1]), jax.tree.leaves(everything[1]), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)
    told = net.rule.diagnose(net.chain, net.state, net.batch)
    assert [bool(np.isnan(v)) for v in told["agreement"]] == [False, False, True, True]


def test_a_boundary_carries_two_views_up_and_nothing_down(make_setup, phase):
    both = [phase(BlockwiseBarlowTwins(), 1, (0, 1, 2)), phase(BlockwiseBarlowTwins(), 1, (3,))]
    setup = make_setup(both, shards=3, batch=12)  # shards end after widths 7 and 6; the top rests in the first phase
    sizes = [12 * 7 * 4, 12 * 6 * 4]
    first = {Channel("activation", "activation", k, k + 1): size for k, size in enumerate(sizes)}
    twice = {Channel(name, "activation", 0, 1): sizes[0] for name in ("activation", "view")}
    assert dict(setup.plan_step(setup.stages[0]).traffic.payload) == twice
    assert dict(setup.plan_step(setup.stages[1]).traffic.payload) == first


def test_it_tells_agreement_and_redundancy(small):
    net = small(BlockwiseBarlowTwins(projector=(6, 5)), count=COUNT)
    told = net.rule.diagnose(net.chain, net.state, net.batch)
    for i, (x, other) in enumerate(views(net)):
        c = np.asarray(twins(net.blocks[i], net.state[i].params, jnp.asarray(x), jnp.asarray(other), net.batch.key, 0.0))
        off = c[~np.eye(5, dtype=bool)]
        assert float(told["agreement"][i]) == pytest.approx(np.diag(c).mean(), abs=1e-12)
        assert float(told["redundancy"][i]) == pytest.approx(np.sqrt((off**2).mean()), abs=1e-12)


def test_projectors_begin_at_the_scale_of_he(small):
    net = small(BlockwiseBarlowTwins(projector=(300, 200)), (6, 400, 3))
    head = net.rule.init(net.blocks[0], jax.random.PRNGKey(0)).params.head
    assert float(jnp.std(head.hidden[0].kernel)) == pytest.approx(np.sqrt(2 / 400), rel=0.02)
    assert float(jnp.std(head.last)) == pytest.approx(np.sqrt(2 / 300), rel=0.02)
    assert not jnp.any(head.hidden[0].bias)
    assert net.rule.init(net.blocks[1], jax.random.PRNGKey(0)).params.head == ()


def test_what_it_cannot_take(small):
    blocks = MLP(widths=(6, 5, 3)).blocks((6,))
    assert "needs a block below the top" in BlockwiseBarlowTwins().problems(MLP(widths=(6, 3)).blocks((6,)))[0]
    assert "`projector`" in BlockwiseBarlowTwins(projector=()).problems(blocks)[0]
    assert "`batch` at least 2" in BlockwiseBarlowTwins().problems([replace(b, batch=1) for b in blocks])[0]
    assert not BlockwiseBarlowTwins().problems(small(BlockwiseBarlowTwins()).blocks)
