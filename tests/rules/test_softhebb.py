"""SoftHebb against sums over examples and positions written by hand, its fixed points, and Oja's."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from locallearn.models import MLP
from locallearn.rule import init_state
from locallearn.rules.softhebb import SoftHebb, hebb, oja, response
from locallearn.traffic import Channel


def soft(u, temperature, anti):
    e = np.exp((u - u.max(-1, keepdims=True)) / temperature)
    y = e / e.sum(-1, keepdims=True)
    return np.where(u == u.max(-1, keepdims=True), y, -y) if anti else y


def updated(w, change, rate, power):
    """Unit by unit."""
    new = w.copy()
    for k in range(w.shape[-1]):
        length = np.sqrt((w[..., k] ** 2).sum())
        new[..., k] += rate * abs(length - 1) ** power * change[..., k] / np.abs(change).max()
    return new


@pytest.mark.parametrize("anti", [True, False])
def test_every_block_below_the_top_by_hand(small, anti):
    blocks = [replace(b, tx=optax.sgd(0.3)) for b in MLP(widths=(6, 8, 5, 3)).blocks((6,))]
    rule = SoftHebb(rates=(0.2, 0.3), power=0.7, temperatures=(0.6, 0.9), anti=anti, exponent=1.4)
    net = small(rule, blocks=blocks)
    new, info = jax.jit(lambda s, b: rule.step(net.chain, s, b))(net.state, net.batch)
    x = np.asarray(net.batch.x)
    for i in range(2):
        w, bias = (np.asarray(net.state[i].params["linear"][name]) for name in ("kernel", "bias"))
        u = x @ w + bias
        y, change = soft(u, (0.6, 0.9)[i], anti), np.zeros_like(w)
        for example in range(4):
            for k in range(w.shape[1]):
                change[:, k] += y[example, k] * (x[example] - u[example, k] * w[:, k]) / 4
        np.testing.assert_allclose(new[i].params["linear"]["kernel"], updated(w, change, (0.2, 0.3)[i], 0.7), atol=1e-12)
        np.testing.assert_array_equal(new[i].params["linear"]["bias"], bias)
        np.testing.assert_allclose(info.inputs[i], x, atol=1e-12)
        x = np.maximum(u - u.mean(1, keepdims=True), 0) ** 1.4
    w, bias = (np.asarray(net.state[2].params["linear"][name]) for name in ("kernel", "bias"))
    error = np.asarray(jax.nn.softmax(x @ w + bias)) - np.eye(3)[np.asarray(net.batch.y)]
    np.testing.assert_allclose(new[2].params["linear"]["kernel"], w - 0.3 * x.T @ error / 4, atol=1e-12)
    np.testing.assert_allclose(rule.predict(net.chain, net.state, net.batch.x), x @ w + bias, atol=1e-12)


def test_a_convolution_learns_patch_by_patch(convolutional):
    net = convolutional(SoftHebb())
    block, state = net.blocks[0], net.state[0]
    w, bias = (np.asarray(state.params["inner"][name]) for name in ("kernel", "bias"))
    padded = np.pad(np.asarray(net.batch.x), ((0, 0), (1, 1), (1, 1), (0, 0)))
    change, places = np.zeros_like(w), 4 * 4 * 4
    for example in range(4):
        for row in range(4):
            for column in range(4):
                patch = padded[example, row : row + 3, column : column + 3]
                u = np.einsum("xyc,xyck->k", patch, w) + bias
                change += soft(u, 1.0, True) * (patch[..., None] - u * w) / places
    np.testing.assert_allclose(
        oja(block, state.params, net.batch.x, response(block.pre(state.params, net.batch.x), 1.0, anti=True))["inner"]["kernel"],
        change,
        atol=1e-12,
    )
    new = hebb(block, state, net.batch.x, rates=(0.1,), power=0.5, temperatures=(1.0,), anti=True)
    np.testing.assert_allclose(new.params["inner"]["kernel"], updated(w, change, 0.1, 0.5), atol=1e-12)


def without_bias(params):
    return {"linear": {"kernel": params["linear"]["kernel"], "bias": jnp.zeros_like(params["linear"]["bias"])}}


@pytest.mark.parametrize("anti", [True, False])
def test_lengths_are_drawn_to_one(small, anti):
    """w_k · ΔW_k = (1 - ‖w_k‖²) mean of y_k u_k, whatever y is."""
    net = small(SoftHebb(), count=20)
    block, params = net.blocks[0], without_bias(net.state[0].params)
    u = block.pre(params, net.batch.x)
    y = response(u, 0.5, anti=anti)
    w = params["linear"]["kernel"]
    along = jnp.sum(w * oja(block, params, net.batch.x, y)["linear"]["kernel"], 0)
    np.testing.assert_allclose(along, (1 - jnp.sum(w**2, 0)) * jnp.mean(y * u, 0), atol=1e-13)


def test_winners_rest_at_length_one_on_the_mean_of_what_they_win(small):
    net = small(SoftHebb(), (6, 3, 3))
    rng, centres = np.random.default_rng(1), 4 * np.eye(3, 6) + 1
    x = jnp.asarray(np.repeat(centres, 10, axis=0) + 0.3 * rng.normal(size=(30, 6)))
    means = np.stack([np.asarray(x[10 * k : 10 * k + 10]).mean(0) for k in range(3)], 1)
    block = net.blocks[0]

    def change(w):
        params = {"linear": {"kernel": jnp.asarray(w), "bias": jnp.zeros(3)}}
        return np.asarray(oja(block, params, x, response(block.pre(params, x), 1e-3, anti=False))["linear"]["kernel"])

    rest = means / np.linalg.norm(means, axis=0)
    assert np.abs(change(rest)).max() < 1e-12
    assert np.abs(change(means)).max() > 0.1
    w = rest + 0.1 * rng.normal(size=rest.shape)
    for _ in range(400):
        w = w + 0.1 * change(w)
    np.testing.assert_allclose(w, rest, atol=1e-12)


def test_oja_finds_the_first_principal_component(small):
    """Responses that are the inputs themselves, y = u: length 1, and the eigenvector of the largest eigenvalue."""
    net = small(SoftHebb(), (6, 1, 3))
    rng = np.random.default_rng(2)
    x = jnp.asarray(rng.normal(size=(200, 6)) @ np.diag([3.0, 2, 1, 1, 0.5, 0.1]) @ np.linalg.qr(rng.normal(size=(6, 6)))[0])
    block, params = net.blocks[0], {"linear": {"kernel": jnp.asarray(rng.normal(size=(6, 1))), "bias": jnp.zeros(1)}}
    step = jax.jit(lambda p: jax.tree.map(lambda w, d: w + 0.02 * d, p, oja(block, p, x, block.pre(p, x))))
    for _ in range(2000):
        params = step(params)
    w = np.asarray(params["linear"]["kernel"])[:, 0]
    first = np.linalg.eigh(np.asarray(x.T @ x))[1][:, -1]
    assert np.linalg.norm(w) == pytest.approx(1, abs=1e-10)
    assert abs(w @ first) == pytest.approx(1, abs=1e-10)


def test_responses_are_shares_of_one_and_losers_turn_away():
    u = jnp.asarray([[1.0, 3.0, 2.0], [0.5, -1.0, 0.0]])
    y = response(u, 0.7, anti=False)
    np.testing.assert_allclose(y.sum(-1), 1, rtol=1e-6)
    np.testing.assert_allclose(y, soft(np.asarray(u), 0.7, False), rtol=1e-6)
    np.testing.assert_allclose(response(u, 0.7, anti=True), np.asarray(y) * [[-1, 1, -1], [1, -1, -1]], rtol=1e-6)
    np.testing.assert_allclose(response(u, 1e-3, anti=True), [[0, 1, 0], [1, 0, 0]], atol=1e-6)


def test_labels_are_no_business_of_blocks_below_the_top(small):
    blocks = [replace(b, tx=optax.sgd(0.3)) for b in MLP(widths=(6, 8, 5, 3)).blocks((6,))]
    net = small(SoftHebb(), blocks=blocks)
    step = jax.jit(lambda b: net.rule.step(net.chain, net.state, b)[0])
    one, other = step(net.batch), step(net.batch._replace(y=(net.batch.y + 1) % 3))
    for i in range(3):
        same = [bool(jnp.all(a == b)) for a, b in zip(jax.tree.leaves(one[i]), jax.tree.leaves(other[i]), strict=True)]
        assert all(same) == (i < 2)


def test_blocks_that_do_not_learn_stay(small):
    blocks = [replace(b, learns=b.index != 0) for b in MLP(widths=(6, 8, 5, 3)).blocks((6,))]
    net = small(SoftHebb(), blocks=blocks)
    new, _ = net.rule.step(net.chain, net.state, net.batch)
    stays = [bool(jnp.all(new[i].params["linear"]["kernel"] == net.state[i].params["linear"]["kernel"])) for i in range(2)]
    assert stays == [True, False]


def test_units_begin_at_the_radius(small):
    net = small(SoftHebb())
    rule = SoftHebb(radius=7.0)
    state, plain = init_state(rule, net.blocks, 0), init_state(SoftHebb(radius=1.0), net.blocks, 0)
    for i in range(3):
        np.testing.assert_allclose(jnp.linalg.norm(state[i].params["linear"]["kernel"], axis=0), 7, rtol=1e-5)
    np.testing.assert_array_equal(state[3].params["linear"]["kernel"], plain[3].params["linear"]["kernel"])


def test_it_tells_lengths_and_winners(small):
    net = small(SoftHebb())
    told = net.rule.diagnose(net.chain, net.state, net.batch)
    x = np.asarray(net.batch.x)
    for i, state in enumerate(net.state):
        w = np.asarray(state.params["linear"]["kernel"])
        u = x @ w + np.asarray(state.params["linear"]["bias"])
        assert float(told["norm"][i]) == pytest.approx(np.linalg.norm(w, axis=0).mean(), abs=1e-12)
        assert float(told["wins"][i]) == pytest.approx(len(set(u.argmax(1).tolist())) / w.shape[1], abs=1e-7)
        x = np.tanh(u - u.mean(1, keepdims=True))


def test_activities_go_up_and_nothing_else_crosses(make_setup):
    setup = make_setup("softhebb", shards=4, batch=12)
    assert dict(setup.plan_step(setup.stages[0]).traffic.payload) == {
        Channel("activation", "activation", i, i + 1): 12 * width * 4 for i, width in enumerate((8, 7, 6))
    }


def test_values_for_too_few_blocks_are_refused(small):
    blocks = small(SoftHebb()).blocks
    assert not SoftHebb(rates=(0.1, 0.2, 0.3), temperatures=(1.0,)).problems(blocks)
    assert "`temperatures`" in SoftHebb(temperatures=(0.1, 0.2)).problems(blocks)[0]
    assert "needs a block below the top" in SoftHebb().problems(small(SoftHebb(), (6, 3)).blocks)[0]
