"""Residual networks: every block but the first and the last is composite, so that a rule needs no more of it than `apply`.

He, Zhang, Ren & Sun (2016), "Deep residual learning for image recognition". https://arxiv.org/abs/1512.03385

    h = relu(norm(conv(relu(norm(conv(x))))) + shortcut(x))

The first block is one 3x3 convolution, the last the mean over all positions and a linear top. Convolutions have no bias where
normalisation has one. With `norm: layer` or `none` a rule that does not tell what its blocks saw can take them, too.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from locallearn.block import Block
from locallearn.convolution import Convolution
from locallearn.fields import Positive
from locallearn.models.convnet import Problems, scaled
from locallearn.models.layers import INITS, Init, Layer, Norm, Part, averaged, convolutions, normalisation, numbered


class Residual(nnx.Module):
    """Two 3x3 convolutions beside a shortcut: the identity, or where the shape changes a projection (1x1) or zeros in the new channels."""

    activation = "relu"

    def __init__(self, n_in: int, n_out: int, stride: int, projection: bool, norm: str, init: Any, rngs: nnx.Rngs):
        self.stride, self.new = stride, n_out - n_in
        options = {"use_bias": norm == "none", "kernel_init": init, "rngs": rngs}
        self.conv1 = Convolution(n_in, n_out, (3, 3), stride, padding=1, **options)
        self.norm1 = normalisation(norm, n_out, 3, rngs=rngs)
        self.conv2 = Convolution(n_out, n_out, (3, 3), padding=1, **options)
        self.norm2 = normalisation(norm, n_out, 3, rngs=rngs)
        changes = stride > 1 or n_in != n_out
        self.project = Convolution(n_in, n_out, (1, 1), stride, padding="VALID", **options) if changes and projection else None
        self.norm3 = normalisation(norm, n_out, 3, rngs=rngs) if self.project is not None else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [batch, height, width, channels]."""
        h = nnx.relu(_normed(self.norm1, self.conv1(x)))
        return nnx.relu(_normed(self.norm2, self.conv2(h)) + self.shortcut(x))

    def shortcut(self, x: jax.Array) -> jax.Array:
        """What goes round the convolutions."""
        if self.project is not None:
            return _normed(self.norm3, self.project(x))
        return jnp.pad(x[:, :: self.stride, :: self.stride], [(0, 0)] * 3 + [(0, self.new)]) if self.new or self.stride > 1 else x


def _normed(norm: Any, x: jax.Array) -> jax.Array:
    return x if norm is None else norm(x)


def network(
    shape: tuple[int, ...], classes: int, stages: Sequence[int], depth: int, *, projection: bool, norm: str, init: Any
) -> list[Block]:
    """The stem, `depth` residual blocks for each stage, of which all but the first begin by halving the image, and the top."""
    stem = Layer(stages[0], 3, 1, 1, norm=norm, bias=norm == "none")
    parts, shape = convolutions(tuple(shape), [stem], init)
    blocks: list[Part] = list(parts)
    for number, channels in enumerate(stages):
        for k in range(depth):
            stride = 2 if number and not k else 1
            blocks.append((functools.partial(Residual, shape[-1], channels, stride, projection, norm, init), shape))
            shape = (*(-(-n // stride) for n in shape[:-1]), channels)
    return numbered([*blocks, averaged(shape, classes, init)], classes)


def unfit(example_shape: tuple[int, ...]) -> Problems:
    """Images have two axes of positions."""
    if len(example_shape) == 3:
        return []
    return [("", f"takes images [height, width, channels]; an example has shape {list(example_shape)}")]


@dataclass(frozen=True)
class ResNet20:
    """The residual network of 20 layers for CIFAR: three stages of three blocks with 16, 32 and 64 channels, shortcuts without weights.

    width: multiplies the channels.
    """

    name: ClassVar[str] = "resnet20"
    stages: ClassVar[tuple[int, ...]] = (16, 32, 64)
    depth: ClassVar[int] = 3
    projection: ClassVar[bool] = False

    width: Positive = 1.0
    norm: Norm = "batch"
    init: Init = "he"
    gain: Positive = 1.0  # multiplies the first weights

    def problems(self, example_shape: tuple[int, ...], classes: int) -> Problems:
        """What is wrong where this model does not fit the data."""
        return unfit(example_shape)

    def blocks(self, example_shape: tuple[int, ...], classes: int) -> list[Block]:
        """The stem, the residual blocks, the top."""
        stages = [scaled(c, self.width) for c in self.stages]
        init = INITS[self.init](self.gain)
        return network(example_shape, classes, stages, self.depth, projection=self.projection, norm=self.norm, init=init)


@dataclass(frozen=True)
class ResNet18(ResNet20):
    """The residual network of 18 layers without early pooling, as for CIFAR: four stages of two blocks with 64 to 512 channels.

    width: multiplies the channels.
    """

    name: ClassVar[str] = "resnet18"
    stages: ClassVar[tuple[int, ...]] = (64, 128, 256, 512)
    depth: ClassVar[int] = 2
    projection: ClassVar[bool] = True
