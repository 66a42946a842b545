"""Blocks: two halves and a whole, fresh parameters, and a step of the block's own optimizer."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from locallearn.block import Block, State
from locallearn.models import MLP

X = jnp.asarray(np.random.default_rng(0).normal(size=(5, 4, 3)), jnp.float32)


class Doubled(nnx.Module):
    """A composite module: no linear part of its own."""

    def __init__(self, rngs):
        self.linear = nnx.Linear(3, 3, rngs=rngs)

    def __call__(self, x):
        return x + self.linear(x)


@pytest.fixture(scope="module", params=[{}, {"norm": "layer"}, {"activation": "tanh"}], ids=["plain", "norm", "tanh"])
def blocks(request):
    return MLP(widths=(12, 8, 5), **request.param).blocks((4, 3))


def test_the_whole_is_pre_then_post(blocks):
    for block, x in zip(blocks, (X, jnp.ones((5, 8))), strict=True):
        params = block.init(jax.random.PRNGKey(1))
        assert np.array_equal(block.apply(params, x), block.post(params, block.pre(params, x)))


def test_pre_is_affine_and_post_is_what_follows(blocks):
    params = blocks[0].init(jax.random.PRNGKey(1))
    expected = X.reshape(5, 12) @ params["linear"]["kernel"] + params["linear"]["bias"]
    np.testing.assert_allclose(blocks[0].pre(params, X), expected, rtol=1e-5, atol=1e-6)


def test_the_formula_of_a_dense_block():
    (block, top) = MLP(widths=(12, 8, 5)).blocks((4, 3))
    params = block.init(jax.random.PRNGKey(1))
    u = X.reshape(5, 12) @ params["linear"]["kernel"] + params["linear"]["bias"]
    np.testing.assert_allclose(block.apply(params, X), jnp.maximum(u, 0), rtol=1e-5, atol=1e-6)
    assert top.activation == "identity"
    assert block.activation == "relu"


def test_out_shape_is_the_shape_that_comes_out(blocks):
    x = X
    for block in blocks:
        x = block.apply(block.init(jax.random.PRNGKey(0)), x)
        assert block.out_shape == x.shape[1:]


def test_init_is_a_function_of_the_key_alone(blocks):
    first, again, other = (blocks[0].init(jax.random.PRNGKey(k)) for k in (3, 3, 4))
    assert jax.tree.all(jax.tree.map(np.array_equal, first, again))
    assert not np.array_equal(first["linear"]["kernel"], other["linear"]["kernel"])


def test_init_has_the_same_values_inside_jit(blocks):
    key = jax.random.PRNGKey(3)
    for outside, inside in zip(*(jax.tree.leaves(f(key)) for f in (blocks[0].init, jax.jit(blocks[0].init))), strict=True):
        np.testing.assert_allclose(outside, inside, rtol=1e-6)


def test_parameters_are_plain_dictionaries_of_arrays(blocks):
    params = blocks[0].init(jax.random.PRNGKey(0))
    assert type(params) is dict
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))


def test_a_block_knows_its_place():
    low, middle, high = MLP(widths=(12, 8, 6, 5)).blocks((12,))
    assert [(b.bottom, b.top) for b in (low, middle, high)] == [(True, False), (False, False), (False, True)]
    assert [b.in_shape for b in (low, middle, high)] == [(12,), (8,), (6,)]


def test_blocks_are_equal_to_themselves_alone():
    one, two = (MLP(widths=(4, 4, 4)).blocks((4,))[0] for _ in range(2))
    assert one != two
    assert len({one, two, one}) == 2


def test_a_composite_block_has_only_the_whole():
    block = Block(Doubled, (3,))
    params = block.init(jax.random.PRNGKey(0))
    x = jnp.ones((2, 3))
    assert block.composite
    assert not MLP(widths=(3, 3)).blocks((3,))[0].composite
    np.testing.assert_allclose(block.apply(params, x), x + x @ params["linear"]["kernel"] + params["linear"]["bias"], rtol=1e-6)
    assert block.out_shape == (3,)


def test_descend_is_one_step_of_the_optimizer():
    block = replace(MLP(widths=(3, 2)).blocks((3,))[0], tx=optax.sgd(0.5))
    state = block.state(block.init(jax.random.PRNGKey(0)), memory="kept")
    after = block.descend(state, jax.tree.map(jnp.ones_like, state.params))
    np.testing.assert_allclose(after.params["linear"]["kernel"], state.params["linear"]["kernel"] - 0.5, rtol=1e-6)
    assert after.memory == "kept"


def test_a_momentum_is_kept_from_step_to_step():
    block = replace(MLP(widths=(3, 2)).blocks((3,))[0], tx=optax.sgd(1.0, momentum=0.5))
    state = block.state({"w": jnp.zeros(())})
    for expected in (-1.0, -2.5, -4.25):
        state = block.descend(state, {"w": jnp.ones(())})
        assert float(state.params["w"]) == expected


@pytest.mark.parametrize("change", [{"learns": False, "tx": optax.sgd(0.5)}, {"tx": None}], ids=["frozen", "no optimizer"])
def test_a_block_that_does_not_learn_stays(change):
    block = replace(MLP(widths=(3, 2)).blocks((3,))[0], **change)
    state = State({"w": jnp.ones(())}, block.tx.init({"w": jnp.ones(())}) if block.tx else ())
    assert block.descend(state, {"w": jnp.ones(())}) is state
