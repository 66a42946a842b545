"""Residual multi-layer perceptron, in the standard parametrisation or in that of μPC, for networks of a hundred blocks.

Innocenti, Achour & Buckley (2025), "μPC: Scaling Predictive Coding to 100+ Layer Networks". https://arxiv.org/abs/2505.13124
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import jax
from annotated_types import Ge
from flax import nnx

from locallearn.block import Block
from locallearn.fields import Count, Positive
from locallearn.models.layers import ACTIVATIONS, Activation


class Scaled(nnx.Module):
    """skip · x + scale · W φ(x), without a bias; the bottom block flattens its input and applies no φ."""

    def __init__(self, n_in: int, n_out: int, *, scale: float, deviation: float, activation: str, skip: bool, rngs: nnx.Rngs):
        self.scale, self.activation, self.skip = scale, activation, skip
        self.linear = nnx.Linear(n_in, n_out, use_bias=False, kernel_init=nnx.initializers.normal(deviation), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [batch, ...] -> [batch, n_out]."""
        x = x.reshape(x.shape[0], -1)
        y = self.scale * self.linear(ACTIVATIONS[self.activation](x))
        return x + y if self.skip else y


@dataclass(frozen=True)
class ResidualMLP:
    """Residual multi-layer perceptron of L = `depth` blocks of equal width N, D numbers at the input, no biases.

        z_1 = a_1 W_1 x,    z_l = z_{l-1} + a W_l φ(z_{l-1}),    z_L = a_L W_L φ(z_{L-1})

    mupc: W of deviation 1, a_1 = 1/√D, a = 1/√(N L), a_L = 1/(N gamma). standard: a = 1 everywhere, W of deviation 1/√(fan in).
    skips: without them, z_l = a W_l φ(z_{l-1}), with a = 1/√N.

    With mupc the size of activities does not depend on width and depth, and rates of learning and of relaxation carry over from small
    networks to large ones: Adam at 0.01 to 0.1 (the weights are of size 1), a rate of the activities of 0.1 to 0.5.
    """

    name: ClassVar[str] = "residual_mlp"

    width: Count = 128
    depth: Annotated[int, Ge(3)] = 30
    activation: Activation = "relu"
    parametrisation: Literal["mupc", "standard"] = "mupc"
    skips: bool = True
    gamma: Positive = 1.0

    def problems(self, example_shape: tuple[int, ...], classes: int) -> list[tuple[str, str]]:
        """Every size follows from the data."""
        return []

    def blocks(self, example_shape: tuple[int, ...], classes: int) -> list[Block]:
        """One block for each layer."""
        shapes = [tuple(example_shape), *[(self.width,)] * (self.depth - 1)]
        return [Block(self._builder(i, shapes[i], classes), shapes[i], i, self.depth, classes=classes) for i in range(self.depth)]

    def _builder(self, i: int, shape: tuple[int, ...], classes: int) -> Callable[[nnx.Rngs], Any]:
        n_in, bottom, top = math.prod(shape), i == 0, i == self.depth - 1
        scale, deviation = 1.0, 1 / math.sqrt(n_in)
        if self.parametrisation == "mupc":
            inner = 1 / math.sqrt(n_in * (self.depth if self.skips and not bottom else 1))
            scale, deviation = 1 / (n_in * self.gamma) if top else inner, 1.0
        return lambda rngs: Scaled(
            n_in,
            classes if top else self.width,
            scale=scale,
            deviation=deviation,
            activation="identity" if bottom else self.activation,
            skip=self.skips and not bottom and not top,
            rngs=rngs,
        )
