"""Convolutional networks that pass on narrow codes: a few bounded numbers for each position, however many channels a block has inside."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from locallearn.block import Block
from locallearn.convolution import Convolution
from locallearn.fields import Count
from locallearn.markers import Later
from locallearn.models.layers import ACTIVATIONS, INITS, Activation, Init, Layer, Part, Pool, numbered, pooled, too_small

POOL = Pool("max")


class ConvCoder(nnx.Module):
    """Convolutions, pooling, and a code at each position, clipped to [-1, 1]; at the top class scores of all positions together.

    kernel: positions that a convolution sees along each axis; None for a convolution over patches of two positions along each axis and
    others over one, without pooling.
    """

    def __init__(
        self,
        below: tuple[int, ...],
        widths: tuple[int, ...],
        out: int,
        rngs: nnx.Rngs,
        *,
        kernel: int | None,
        top: bool,
        activation: str,
        init: Any,
    ):
        self.activation, self.axes, self.kernel, self.top = activation, max(1, len(below) - 1), kernel, top
        sizes = itertools.pairwise((below[-1] if len(below) > 1 else 1, *widths))
        taps = [kernel] * len(widths) if kernel else [2, *[1] * (len(widths) - 1)]
        self.layers = nnx.List([self._over(n, a, b, kernel_init=init, rngs=rngs) for n, (a, b) in zip(taps, sizes, strict=True)])
        positions = math.prod(map(POOL.length, below[: self.axes])) if top else 1
        self.out = nnx.Linear(positions * widths[-1], out, kernel_init=INITS["lecun"](0.5), rngs=rngs)

    def _over(self, taps: int, n_in: int, n_out: int, **options: Any) -> nnx.Module:
        stride, padding = (1, "SAME") if taps % 2 else (taps, "VALID")  # an even number of positions is a patch
        return Convolution(n_in, n_out, (taps,) * self.axes, strides=stride, padding=padding, **options)

    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [batch, ..., channels], or [batch, length] of one channel -> [batch, ..., code], or [batch, classes] at the top."""
        h = x if x.ndim > self.axes + 1 else x[..., None]
        for layer in self.layers:
            h = ACTIVATIONS[self.activation](layer(h))
        h = pooled(h, POOL) if self.kernel else h
        return self.out(h.reshape(h.shape[0], -1)) if self.top else jnp.clip(self.out(h), -1, 1)


@dataclass(frozen=True)
class CodeConvnet:
    """Blocks of convolutions, each with pooling by 2, that pass on `code` numbers from -1 to 1 for each position.

    Codes suit integers with a scale of `one`: `"int4(nearest, symmetric, one)"`. Each block sees twice as far as the one below it: what the
    first shard can tell by itself, and what more shards add to it, differ more than in a dense network.

    channels: of each block's convolutions, from the bottom. layers: convolutions in a block. patches: the first of them is over two
    positions along each axis that no other patch has, the others over one, in place of `kernel` and pooling: for data that is made of such
    patches, as `hierarchy` is.
    """

    name: ClassVar[str] = "code_convnet"

    channels: tuple[Count, ...] = (64, 80, 96, 96)
    code: Count = 20
    layers: Count = 2
    kernel: Count = 5
    activation: Activation = "relu"
    init: Init = "he"
    patches: Annotated[bool, Later()] = False

    def problems(self, example_shape: tuple[int, ...], classes: int) -> list[tuple[str, str]]:
        """A single block, an even kernel, or examples that are too small."""
        if len(self.channels) < 2:
            return [("channels", "needs at least two blocks, such as [64, 80, 96, 96]")]
        if self.kernel % 2 == 0:
            return [("kernel", "must be odd")]
        sentence = too_small(tuple(example_shape), [Layer(self.code, self.kernel, pool=POOL)] * len(self.channels))
        return [("channels", sentence)] if sentence else []

    def blocks(self, example_shape: tuple[int, ...], classes: int) -> list[Block]:
        """One block for each of `channels`."""
        parts: list[Part] = []
        shape, code = tuple(example_shape), Layer(self.code, self.kernel, pool=POOL)
        for i, channels in enumerate(self.channels):
            top = i == len(self.channels) - 1
            inside, out, kernel = (channels,) * self.layers, classes if top else self.code, None if self.patches else self.kernel
            options = {"kernel": kernel, "top": top, "activation": self.activation, "init": INITS[self.init](1.0)}
            parts.append((functools.partial(ConvCoder, shape, inside, out, **options), shape))
            shape = code.shape(shape)
        return numbered(parts, classes)
