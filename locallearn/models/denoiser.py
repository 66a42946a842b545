"""Denoiser: blocks that all see the example, each with a guess of its class to improve, and are a small network each."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from locallearn.block import Block
from locallearn.convolution import Convolution
from locallearn.fields import Count
from locallearn.models.layers import ACTIVATIONS, INITS, Activation
from locallearn.models.mlp import misfits


class Guess(nnx.Module):
    """[x, z, level] -> [x, scores, level], all flattened; at the top the scores alone. x alone is taken for [x, 0, 0].

    x: example_shape, as many values as widths[0]; z and scores: widths[-1] classes; level: one number, of the noise in z. Scores are what a
    dense network of these widths makes of x, z and level, x behind the trunk: 3x3 convolutions, relu, 2x2 max pooling, for each entry.
    """

    def __init__(self, model: Denoiser, example_shape: tuple[int, ...], top: bool, rngs: nnx.Rngs):
        init = INITS["he"](1.0)
        shape, self.convolutions = example_shape, nnx.List([])
        for channels in model.trunk:
            self.convolutions.append(Convolution(shape[-1], channels, (3, 3), kernel_init=init, rngs=rngs))
            shape = (shape[0] // 2, shape[1] // 2, channels)
        widths = (math.prod(shape) + model.widths[-1] + 1, *model.widths[1:])
        self.layers = nnx.List([nnx.Linear(a, b, kernel_init=init, rngs=rngs) for a, b in itertools.pairwise(widths)])
        self.norms = nnx.List([nnx.LayerNorm(n, rngs=rngs) for n in widths[1:-1]] if model.norm == "layer" else [])
        self.function, self.example_shape, self.top = model.activation, example_shape, top

    def __call__(self, s: jax.Array) -> jax.Array:
        """s: [batch, ...] -> [batch, ...]."""
        size, classes = math.prod(self.example_shape), self.layers[-1].out_features
        s = s.reshape(s.shape[0], -1)
        if s.shape[1] == size:
            s = jnp.pad(s, ((0, 0), (0, classes + 1)))
        h = s
        if self.convolutions:
            x = s[:, :size].reshape(-1, *self.example_shape)
            for convolution in self.convolutions:
                x = nnx.max_pool(nnx.relu(convolution(x)), (2, 2), (2, 2))
            h = jnp.concatenate([x.reshape(x.shape[0], -1), s[:, size:]], 1)
        for i, layer in enumerate(self.layers[:-1]):
            u = layer(h)
            h = ACTIVATIONS[self.function](self.norms[i](u) if self.norms else u)
        scores = self.layers[-1](h)
        return scores if self.top else jnp.concatenate([s[:, :size], scores, s[:, -1:]], 1)


@dataclass(frozen=True)
class Denoiser:
    """For the rules of denoising blocks: `depth` blocks, each a network from the example and a noisy guess to class scores.

    widths: an example's size, hidden layers, classes; the input of each block's network is wider by the classes and one. trunk: channels of
    the convolutions before it. Under other rules it is a network whose blocks pass x on beside their scores.
    """

    name: ClassVar[str] = "denoiser"

    widths: tuple[Count, ...]
    depth: Count = 10
    activation: Activation = "relu"
    norm: Literal["none", "layer"] = "none"
    trunk: tuple[Count, ...] = ()

    def problems(self, example_shape: tuple[int, ...], classes: int) -> list[tuple[str, str]]:
        """(field, what is wrong) where this model does not fit the data."""
        found = misfits(self.widths, example_shape, classes)
        if self.trunk and len(example_shape) != 3:
            found.append(("trunk", f"is for images, but an example has the shape {list(example_shape)}"))
        elif self.trunk and min(example_shape[:2]) < 2 ** len(self.trunk):
            found.append(("trunk", f"halves an image of {example_shape[0]} x {example_shape[1]} more often than it can"))
        return found

    def blocks(self, example_shape: tuple[int, ...], classes: int) -> list[Block]:
        """`depth` blocks; the lowest takes examples of `example_shape`, the others [x, z, level], flattened."""
        between = (self.widths[0] + self.widths[-1] + 1,)
        shapes = [example_shape, *[between] * (self.depth - 1)]
        return [
            Block(self._builder(example_shape, i == self.depth - 1), shape, i, self.depth, classes=self.widths[-1])
            for i, shape in enumerate(shapes)
        ]

    def _builder(self, example_shape: tuple[int, ...], top: bool) -> Callable[[nnx.Rngs], Any]:
        return lambda rngs: Guess(self, example_shape, top, rngs)
