"""What local heads are made of: linear layers that begin at zero, and adaptive average pooling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from locallearn.rules._common import flat


class Layer(NamedTuple):
    """kernel: [n_in, n_out], or [3, ..., channels, channels] of a convolution; bias: one number for each output."""

    kernel: jax.Array
    bias: jax.Array


def blank(n_in: int, n_out: int) -> Layer:
    """A linear layer at zero: the block below it moves when it has moved."""
    return Layer(jnp.zeros((n_in, n_out)), jnp.zeros(n_out))


def read(layer: Layer, h: jax.Array) -> jax.Array:
    """Class scores from all features: [batch, classes]. h: [batch, ...]."""
    return flat(h) @ layer.kernel + layer.bias


def average_pool(h: jax.Array, sizes: Sequence[int]) -> jax.Array:
    """Spatial axes averaged down to `sizes` cells, which share what does not divide. h: [batch, ..., channels]."""
    for axis, size in enumerate(sizes, 1):
        n = h.shape[axis]
        if size < n:
            ends = [(k * n // size, -(-(k + 1) * n // size)) for k in range(size)]
            h = jnp.concatenate([jax.lax.slice_in_dim(h, a, b, axis=axis).mean(axis, keepdims=True) for a, b in ends], axis)
    return h
