"""The model of denoising blocks: its chain form, its trunk, and what it says of data that it does not fit."""

import jax
import jax.numpy as jnp
import numpy as np

from locallearn.models.denoiser import Denoiser

IMAGE = (8, 8, 1)


def test_x_passes_through_and_the_scores_follow():
    blocks = Denoiser(widths=(6, 5, 3), depth=3).blocks((6,), 3)
    x = jax.random.normal(jax.random.key(0), (4, 6))
    h, z = x, jnp.zeros((4, 3))
    for block in blocks:
        params = block.init(jax.random.key(block.index))
        seen = jnp.concatenate([x, z, jnp.zeros((4, 1))], 1)
        first, second = params["layers"][0], params["layers"][1]
        z = jax.nn.relu(seen @ first["kernel"] + first["bias"]) @ second["kernel"] + second["bias"]
        h = block.apply(params, h)
        expected = z if block.top else jnp.concatenate([x, z, jnp.zeros((4, 1))], 1)
        np.testing.assert_allclose(h, expected, atol=1e-5)
    assert [block.in_shape for block in blocks] == [(6,), (10,), (10,)]
    assert [block.out_shape for block in blocks] == [(10,), (10,), (3,)]
    assert all(block.composite and block.classes == 3 for block in blocks)


def test_a_trunk_sees_the_image_in_every_block():
    blocks = Denoiser(widths=(64, 5, 3), depth=2, trunk=(4, 2), norm="layer").blocks(IMAGE, 3)
    params = [block.init(jax.random.key(1)) for block in blocks]
    assert params[1]["convolutions"][1]["kernel"].shape == (3, 3, 4, 2)
    assert params[1]["layers"][0]["kernel"].shape == (2 * 2 * 2 + 3 + 1, 5)
    x = jax.random.normal(jax.random.key(0), (4, *IMAGE))
    flat = jnp.concatenate([x.reshape(4, -1), jnp.zeros((4, 4))], 1)
    np.testing.assert_allclose(blocks[0].apply(params[0], x), blocks[0].apply(params[0], flat), atol=1e-6)
    moved = blocks[1].apply(params[1], flat.at[0, 0].add(1.0)) - blocks[1].apply(params[1], flat)
    assert np.any(moved[0])
    assert not np.any(moved[1:])


def test_it_says_what_does_not_fit():
    assert not Denoiser(widths=(64, 5, 3), trunk=(4,)).problems(IMAGE, 3)
    assert [field for field, _ in Denoiser(widths=(6, 5, 4), trunk=(4,)).problems((7,), 3)] == ["widths", "widths", "trunk"]
    assert [field for field, _ in Denoiser(widths=(64, 3), trunk=(4, 4, 4, 4)).problems(IMAGE, 3)] == ["trunk"]
    assert [field for field, _ in Denoiser(widths=(64,)).problems(IMAGE, 3)] == ["widths"]
