"""From stored examples to what the bottom block sees, on the device: scaling of bytes, and augmentation.

Moves of whole values, then one subtraction and one product: every program that does this gives the same bits, be it the compiled loop of
`Fused` or one of the bottom shard's. Random numbers follow from the step's key and each example's place in the training set, so that they
depend neither on the fabric nor on how a batch is cut.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from locallearn.data.intake import Intake

_STREAM = 0xA06
_CROP, _JITTER, _FLIP, _HOLE = range(4)


def seen(intake: Intake, x: Any) -> Any:
    """What an evaluation sees of stored examples x: [batch, *example_shape]; floating-point numbers are taken as seen already."""
    if intake.tokens:
        return x.astype(jnp.int32)
    if intake.scale and not jnp.issubdtype(x.dtype, jnp.floating):
        return (x.astype(jnp.float32) - jnp.array(intake.offset, jnp.float32)) * jnp.array(intake.scale, jnp.float32)
    return x


def seen_in_training(intake: Intake, x: Any, key: Any, index: Any) -> Any:
    """What a training step sees: examples augmented by the key of the step and their places in the training set, index: [batch] int32."""
    augment = intake.augment
    if augment is None:
        return seen(intake, x)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, _STREAM), index)
    for part, reach in ((_CROP, augment.crop), (_JITTER, augment.jitter)):
        x = _shifted(x, _own(keys, part), reach, intake.blank) if reach else x
    x = _flipped(x, _own(keys, _FLIP)) if augment.flip else x
    x = seen(intake, x)
    return _holed(x, _own(keys, _HOLE), augment.cutout) if augment.cutout else x


@functools.lru_cache(maxsize=64)
def training_program(intake: Intake) -> Any:
    """`seen_in_training` as a program of its own: of a shard, where steps run one by one."""
    return jax.jit(functools.partial(seen_in_training, intake))


@functools.lru_cache(maxsize=64)
def evaluation_program(intake: Intake) -> Any:
    """`seen` as a program of its own."""
    return jax.jit(functools.partial(seen, intake))


def _own(keys: Any, part: int) -> Any:
    """Keys [batch, 2] of one kind of random numbers."""
    return jax.vmap(lambda key: jax.random.fold_in(key, part))(keys)


def _shifted(x: Any, keys: Any, reach: int, blank: float) -> Any:
    """Padded by `reach` on each side, and cut out at one of (2 reach + 1)^2 places."""

    def one(image: Any, key: Any) -> Any:
        corner = jax.random.randint(key, (2,), 0, 2 * reach + 1)
        padded = jnp.pad(image, ((reach, reach), (reach, reach), (0, 0)), constant_values=jnp.asarray(blank, image.dtype))
        return jax.lax.dynamic_slice(padded, (corner[0], corner[1], 0), image.shape)

    return jax.vmap(one)(x, keys)


def _flipped(x: Any, keys: Any) -> Any:
    """Left and right exchanged, one time in two."""
    return jnp.where(jax.vmap(jax.random.bernoulli)(keys)[:, None, None, None], x[:, :, ::-1], x)


def _holed(x: Any, keys: Any, side: int) -> Any:
    """A square of zeros around a pixel of the image; an even square reaches one pixel further up and left."""
    height, width = x.shape[1:3]

    def hole(key: Any) -> Any:
        first = jax.random.randint(key, (2,), 0, jnp.array([height, width])) - side // 2
        rows, columns = jnp.arange(height) - first[0], jnp.arange(width) - first[1]
        return ((rows >= 0) & (rows < side))[:, None] & ((columns >= 0) & (columns < side))[None, :]

    return jnp.where(jax.vmap(hole)(keys)[..., None], jnp.zeros((), x.dtype), x)
