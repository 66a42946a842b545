"""The second view of an example: what each of its options does, and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locallearn.models import MLP
from locallearn.rules._views import Views, moved, second_view

STILL = Views(shift=0, mask=0)
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def seen(views, shape=(5, 6, 2), count=300, seed=0, x=None):
    """(x, its second view)."""
    x = RNG.normal(size=(count, *shape)) if x is None else x
    view = second_view(MLP(widths=(1, 2)).blocks(x.shape[1:])[0], jnp.asarray(x), jax.random.PRNGKey(seed), views=views)
    assert view.shape == x.shape
    assert view.dtype == x.dtype
    return x, np.asarray(view)


@pytest.mark.parametrize("shape", [(7,), (5, 6, 2), (9, 3)])
def test_without_options_nothing_changes(shape):
    x, view = seen(STILL, shape)
    np.testing.assert_array_equal(view, x)


def test_whole_shifts_move_pixels_and_repeat_the_edge():
    x = RNG.normal(size=(3, 5, 6, 2))
    shift = np.array([[1, -2], [0, 0], [-3, 4]])
    view = np.asarray(moved(jnp.asarray(x), jnp.asarray(shift, float), jnp.ones(3)))
    for k, (down, right) in enumerate(shift):
        rows, columns = np.clip(np.arange(5) - down, 0, 4), np.clip(np.arange(6) - right, 0, 5)
        np.testing.assert_allclose(view[k], x[k][rows][:, columns], atol=1e-14)


def test_half_shifts_and_zoom_interpolate():
    x = np.arange(7.0)[None, :, None]
    np.testing.assert_allclose(moved(jnp.asarray(x), jnp.asarray([[0.5]]), jnp.ones(1))[0, :, 0], [0, 0.5, 1.5, 2.5, 3.5, 4.5, 5.5])
    np.testing.assert_allclose(moved(jnp.asarray(x), jnp.zeros((1, 1)), jnp.asarray([2.0]))[0, :, 0], 3 + np.arange(-3, 4) / 2)
    np.testing.assert_allclose(moved(jnp.asarray(x), jnp.zeros((1, 1)), jnp.asarray([0.5]))[0, :, 0], [0, 0, 1, 3, 5, 6, 6])


def test_shifts_are_spread_over_their_reach_along_each_axis():
    rows, columns = np.meshgrid(np.arange(21.0), np.arange(21.0), indexing="ij")
    _, view = seen(Views(shift=3, mask=0), x=np.tile(np.stack([rows, columns], -1), (400, 1, 1, 1)))  # pixels that say where they are
    shift = 10 - view[:, 10, 10]
    np.testing.assert_allclose(view[:, 8:13, 8:13], (np.stack([rows, columns], -1) - shift[:, None, None])[:, 8:13, 8:13], atol=1e-12)
    assert 2.9 < np.abs(shift).max() <= 3
    np.testing.assert_allclose(shift.mean(0), 0, atol=0.3)
    np.testing.assert_allclose(shift.std(0), np.sqrt(3), atol=0.15)
    assert abs(np.corrcoef(shift.T)[0, 1]) < 0.2


def test_zooms_are_spread_between_the_factor_and_its_inverse():
    x = np.tile((np.arange(21.0) - 10)[:, None, None], (400, 1, 21, 1))
    _, view = seen(Views(shift=0, mask=0, zoom=1.5), x=x)
    zoom = np.log(1 / (view[:, 11, 10, 0] - view[:, 10, 10, 0])) / np.log(1.5)
    assert 0.95 < np.abs(zoom).max() <= 1 + 1e-9
    assert abs(zoom.mean()) < 0.1
    assert abs(zoom.std() - 1 / np.sqrt(3)) < 0.06


def test_flips_are_left_and_right_one_time_in_two():
    x, view = seen(Views(shift=0, mask=0, flip=True))
    flipped = np.all(view == x[:, :, ::-1], axis=(1, 2, 3))
    assert np.all(flipped | np.all(view == x, axis=(1, 2, 3)))
    assert 0.4 < flipped.mean() < 0.6


@pytest.mark.parametrize("shape", [(60,), (8, 8, 3)])
def test_masks_take_a_share_of_the_positions(shape):
    x, view = seen(Views(shift=0, mask=0.3), shape)
    gone = view == 0
    assert np.all(gone | (view == x))
    assert abs(gone.mean() - 0.3) < 0.02
    if len(shape) > 1:
        assert np.all(gone == gone[..., :1]), "all channels of a position"
    assert np.any(gone[0] != gone[1]), "each example its own"


def test_contrast_is_each_channels_own():
    x, view = seen(Views(shift=0, mask=0, contrast=0.1))
    factor = (view[:, 1:] - view[:, :-1]) / (x[:, 1:] - x[:, :-1])
    np.testing.assert_allclose(factor, np.broadcast_to(factor[:, :1, :1], factor.shape), rtol=1e-6)
    a, b = np.log(factor[:, 0, 0]), (view - x * factor[:, :1, :1])[:, 0, 0]
    assert abs(a.std() - 0.1) < 0.01
    assert abs(b.std() - 0.1) < 0.01
    assert abs(np.corrcoef(a[:, 0], a[:, 1])[0, 1]) < 0.2


def test_noise_has_its_deviation():
    x, view = seen(Views(shift=0, mask=0, noise=0.3))
    assert abs((view - x).std() - 0.3) < 0.01


def test_a_view_follows_from_its_key():
    views = Views(shift=2, zoom=1.3, flip=True, contrast=0.2, mask=0.2, noise=0.1)
    x, one = seen(views)
    np.testing.assert_array_equal(seen(views, x=x)[1], one)
    assert not np.any(np.all(seen(views, x=x, seed=1)[1] == one, axis=(1, 2, 3)))
