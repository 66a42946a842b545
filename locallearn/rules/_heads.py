"""What local heads are made of: linear layers that begin at zero, adaptive average pooling, auxiliary networks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from locallearn.convolution import convolve
from locallearn.rules._common import flat

CELLS = 2
"""Along each spatial axis, what dense layers of an auxiliary network see."""


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


class Auxiliary(NamedTuple):
    """An auxiliary network: hidden layers from the bottom up, and the read-out."""

    hidden: tuple[Layer, ...]
    readout: Layer


def hidden_shapes(features: Sequence[int], depth: int, width: int, head: str) -> tuple[list[tuple[int, ...]], int]:
    """Shapes of the kernels of an auxiliary network's hidden layers, from the bottom up, and how many numbers its read-out sees."""
    *space, channels = features
    n = math.prod(min(CELLS, size) for size in space) * channels
    if head == "conv" and space:
        return [(*(3 for _ in space), channels, channels)] * depth, n
    sizes = [n, *[width or n] * depth]
    return list(itertools.pairwise(sizes)), sizes[-1]


def auxiliary(params: Auxiliary, h: jax.Array) -> jax.Array:
    """Its class scores: [batch, classes]. h: [batch, ...]."""
    for kernel, bias in params.hidden:
        h = jax.nn.relu((cells(h) @ kernel if kernel.ndim == 2 else convolve(h, kernel)) + bias)
    return read(params.readout, cells(h))


def cells(h: jax.Array) -> jax.Array:
    """Features averaged down to `CELLS` along each spatial axis, flat. h: [batch, ..., channels] -> [batch, n]."""
    return flat(average_pool(h, [min(CELLS, size) for size in h.shape[1:-1]]))
