"""What blocks are made of: activations, normalisation, pooling, and the two blocks with a `pre` and a `post`, dense and convolutional."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from locallearn.block import Block, stacked
from locallearn.convolution import Convolution

Activation = Literal["relu", "leaky_relu", "tanh", "hard_tanh", "gelu", "sigmoid", "hard_sigmoid", "silu", "elu", "identity"]
Init = Literal["he", "glorot", "lecun", "orthogonal"]
Norm = Literal["none", "layer", "batch"]
PoolKind = Literal["none", "max", "average"]


def hard_sigmoid(u: jax.Array) -> jax.Array:
    """clip(u, 0, 1), the activation of equilibrium propagation (Scellier & Bengio 2017)."""
    return jnp.clip(u, 0, 1)


def triangle(u: jax.Array, power: float) -> jax.Array:
    """relu(u - its mean over the channels)^power, the activation of Journé et al. (2023), with a derivative of 0 where it is 0."""
    above = u - u.mean(-1, keepdims=True)
    return jnp.where(above > 0, jnp.where(above > 0, above, 1) ** power, 0)


ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "relu": nnx.relu,
    "leaky_relu": nnx.leaky_relu,
    "tanh": nnx.tanh,
    "hard_tanh": nnx.hard_tanh,
    "gelu": nnx.gelu,
    "sigmoid": nnx.sigmoid,
    "hard_sigmoid": hard_sigmoid,
    "silu": nnx.silu,
    "elu": nnx.elu,
    "identity": lambda u: u,
}

INITS: dict[str, Callable[..., Any]] = {
    "he": lambda gain: nnx.initializers.variance_scaling(2.0 * gain**2, "fan_in", "normal"),
    "glorot": lambda gain: nnx.initializers.variance_scaling(gain**2, "fan_avg", "normal"),
    "lecun": lambda gain: nnx.initializers.variance_scaling(gain**2, "fan_in", "normal"),
    "orthogonal": lambda gain: nnx.initializers.orthogonal(gain),
}


def batch_norm(channels: int, *, affine: bool = True, rngs: nnx.Rngs) -> nnx.Module:
    """Over the batch and all positions, for each channel; running statistics move by a tenth at each step."""
    return nnx.BatchNorm(channels, momentum=0.9, epsilon=1e-5, use_scale=affine, use_bias=affine, rngs=rngs)


def layer_norm(channels: int, axes: int, *, rngs: nnx.Rngs) -> nnx.Module:
    """Over all of one example's values, which have so many axes; scale and shift for each channel."""
    return nnx.LayerNorm(channels, reduction_axes=tuple(range(-axes, 0)), feature_axes=-1, rngs=rngs)


def normalisation(norm: str, channels: int, axes: int, *, rngs: nnx.Rngs) -> Any:
    """The module for a `Norm`, None for `none`."""
    if norm == "none":
        return None
    return batch_norm(channels, rngs=rngs) if norm == "batch" else layer_norm(channels, axes, rngs=rngs)


class Pool(NamedTuple):
    """Windows of `size` values along each axis, `stride` apart, over an input that has `padding` values more on each side.

    What pads an average counts as zero, what pads a maximum never wins.
    """

    kind: Literal["max", "average"]
    size: int = 2
    stride: int = 2
    padding: int = 0

    def length(self, n: int) -> int:
        """Windows along an axis of n values."""
        return (n + 2 * self.padding - self.size) // self.stride + 1


def pooled(x: jax.Array, pool: Pool) -> jax.Array:
    """x: [batch, ..., channels], pooled over each of the axes between.

    One axis after the other, and each window as an elementwise maximum (or sum) of slices: XLA's own windows have a very slow derivative
    on a CPU.
    """
    combine, blank = (jnp.maximum, -jnp.inf) if pool.kind == "max" else (jnp.add, 0)
    for axis in range(1, x.ndim - 1):
        pads = [(pool.padding, pool.padding) if a == axis else (0, 0) for a in range(x.ndim)]
        x = jnp.pad(x, pads, constant_values=blank) if pool.padding else x
        last = pool.stride * (pool.length(x.shape[axis] - 2 * pool.padding) - 1)
        parts = [jax.lax.slice_in_dim(x, k, k + last + 1, pool.stride, axis) for k in range(pool.size)]
        x = functools.reduce(combine, parts)
    return x / pool.size ** (x.ndim - 2) if pool.kind == "average" else x


class Dense(nnx.Module):
    """pre: flatten, then x W + b. post: normalisation (on request), then the activation.

    averaged: pre begins with the mean over all positions, in place of flattening.
    """

    def __init__(self, n_in: int, n_out: int, rngs: nnx.Rngs, *, activation: str, norm: str = "none", init: Any, averaged: bool = False):
        self.activation, self.averaged = activation, averaged
        self.linear = nnx.Linear(n_in, n_out, kernel_init=init, rngs=rngs)
        self.norm = normalisation(norm, n_out, 1, rngs=rngs)

    def pre(self, x: jax.Array) -> jax.Array:
        """x: [batch, ...] -> [batch, n_out]."""
        flat = x.mean(tuple(range(1, x.ndim - 1))) if self.averaged else x.reshape(x.shape[0], -1)
        return self.linear(flat)

    def post(self, u: jax.Array) -> jax.Array:
        """u: [batch, n_out] -> [batch, n_out]."""
        return ACTIVATIONS[self.activation](self.norm(u) if self.norm is not None else u)


class Layer(NamedTuple):
    """A convolutional block, but for what its input decides.

    padding: values on each side, as many as keep the size without it; `reflect` mirrors the input there, otherwise they are zero.
    pool_first: whether pooling belongs to `pre`, before normalisation and activation. power: of the activation `triangle`.
    input_norm: `pre` begins with batch normalisation without scale and shift.
    """

    channels: int
    kernel: int = 3
    stride: int = 1
    padding: int | None = None
    pool: Pool | None = None
    pool_first: bool = False
    activation: str = "relu"
    power: float = 1.0
    norm: str = "none"
    bias: bool = True
    reflect: bool = False
    input_norm: bool = False

    @property
    def pad(self) -> int:
        """Values on each side."""
        return self.kernel // 2 if self.padding is None else self.padding

    def length(self, n: int) -> int:
        """What comes out along an axis of n values; less than one where the input is too small."""
        n = (n + 2 * self.pad - self.kernel) // self.stride + 1
        return self.pool.length(n) if self.pool else n

    def shape(self, below: Sequence[int]) -> tuple[int, ...]:
        """[..., channels] of what comes out."""
        return (*map(self.length, space(below)), self.channels)


def space(shape: Sequence[int]) -> tuple[int, ...]:
    """The axes of positions of one example: all but the last, the channels; those of a plain list of numbers are its own."""
    return tuple(shape[:-1]) if len(shape) > 1 else tuple(shape)


class Conv(nnx.Module):
    """pre: a convolution. post: normalisation (on request), activation, pooling (on request)."""

    def __init__(self, below: tuple[int, ...], layer: Layer, init: Any, rngs: nnx.Rngs):
        self.layer, self.activation, self.axes = layer, layer.activation, len(space(below))
        channels = below[-1] if len(below) > 1 else 1
        kernel, stride, pad = (layer.kernel,) * self.axes, (layer.stride,) * self.axes, ((layer.pad, layer.pad),) * self.axes
        self.input_norm = batch_norm(channels, affine=False, rngs=rngs) if layer.input_norm else None
        around: Any = "VALID" if layer.reflect else pad
        self.conv = Convolution(channels, layer.channels, kernel, stride, padding=around, use_bias=layer.bias, kernel_init=init, rngs=rngs)
        self.norm = normalisation(layer.norm, layer.channels, self.axes + 1, rngs=rngs)

    def pre(self, x: jax.Array) -> jax.Array:
        """x: [batch, ..., channels], or [batch, length] of one channel."""
        x = x if x.ndim > self.axes + 1 else x[..., None]
        x = self.input_norm(x) if self.input_norm is not None else x
        if self.layer.reflect:
            pad = self.layer.pad
            x = jnp.pad(x, [(0, 0), *[(pad, pad)] * self.axes, (0, 0)], mode="reflect")
        u = self.conv(x)
        return pooled(u, self.layer.pool) if self.layer.pool and self.layer.pool_first else u

    def post(self, u: jax.Array) -> jax.Array:
        """u: what `pre` gives."""
        u = self.norm(u) if self.norm is not None else u
        h = triangle(u, self.layer.power) if self.activation == "triangle" else ACTIVATIONS[self.activation](u)
        return pooled(h, self.layer.pool) if self.layer.pool and not self.layer.pool_first else h


Part = tuple[Callable[[nnx.Rngs], nnx.Module], tuple[int, ...]]
"""What makes a block: how its module is made, and the shape of one example at its input."""


def numbered(parts: Sequence[Part], classes: int, in_dtype: Any = jnp.float32) -> list[Block]:
    """The blocks from the bottom. in_dtype: of the data."""
    count = len(parts)
    return stacked(
        [
            Block(build, shape, i, count, classes=classes, in_dtype=in_dtype if i == 0 else jnp.float32)
            for i, (build, shape) in enumerate(parts)
        ]
    )


def convolutions(shape: tuple[int, ...], layers: Sequence[Layer], init: Any) -> tuple[list[Part], tuple[int, ...]]:
    """The convolutional blocks of a network, and the shape of what comes out of them."""
    parts: list[Part] = []
    for layer in layers:
        parts.append((functools.partial(Conv, shape, layer, init), shape))
        shape = layer.shape(shape)
    return parts, shape


def dense(shape: tuple[int, ...], widths: Sequence[int], classes: int, init: Any, **options: Any) -> list[Part]:
    """Dense blocks of these widths, then the linear top. options: of the blocks below the top."""
    parts: list[Part] = []
    for i, width in enumerate([*widths, classes]):
        given = options if i < len(widths) else {"activation": "identity"}
        parts.append((functools.partial(Dense, math.prod(shape), width, init=init, **given), shape))
        shape = (width,)
    return parts


def averaged(shape: tuple[int, ...], classes: int, init: Any) -> Part:
    """A linear top on the mean over all positions."""
    return functools.partial(Dense, shape[-1], classes, init=init, activation="identity", averaged=True), shape


def too_small(shape: tuple[int, ...], layers: Sequence[Layer]) -> str | None:
    """The sentence for examples of which nothing would be left, or without positions."""
    if len(shape) > 3:
        return f"takes examples [length], [length, channels] or [height, width, channels], not {list(shape)}"
    for number, layer in enumerate(layers):
        below, shape = shape, layer.shape(shape)
        if min(space(shape)) < 1 or (layer.reflect and min(space(below)) <= layer.pad):
            return f"makes the example too small: block {number} leaves nothing of {list(below)}"
    return None
