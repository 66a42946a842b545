"""Multi-layer perceptron: one dense block for each pair of neighbouring widths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from locallearn.block import Block
from locallearn.fields import Count, Positive

Activation = Literal["relu", "leaky_relu", "tanh", "gelu", "sigmoid", "hard_sigmoid", "silu", "identity"]


def hard_sigmoid(u: jax.Array) -> jax.Array:
    """clip(u, 0, 1), the activation of equilibrium propagation (Scellier & Bengio 2017)."""
    return jnp.clip(u, 0, 1)


ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "relu": nnx.relu,
    "leaky_relu": nnx.leaky_relu,
    "tanh": nnx.tanh,
    "gelu": nnx.gelu,
    "sigmoid": nnx.sigmoid,
    "hard_sigmoid": hard_sigmoid,
    "silu": nnx.silu,
    "identity": lambda u: u,
}

INITS: dict[str, Callable[..., Any]] = {
    "he": lambda gain: nnx.initializers.variance_scaling(2.0 * gain**2, "fan_in", "normal"),
    "glorot": lambda gain: nnx.initializers.variance_scaling(gain**2, "fan_avg", "normal"),
    "lecun": lambda gain: nnx.initializers.variance_scaling(gain**2, "fan_in", "normal"),
}


class Dense(nnx.Module):
    """pre: flatten, then x W + b. post: layer normalisation (on request), then the activation."""

    def __init__(self, n_in: int, n_out: int, *, activation: str, norm: bool, init: Any, rngs: nnx.Rngs):
        self.activation = activation
        self.linear = nnx.Linear(n_in, n_out, kernel_init=init, rngs=rngs)
        self.norm = nnx.LayerNorm(n_out, rngs=rngs) if norm else None

    def pre(self, x: jax.Array) -> jax.Array:
        """x: [batch, ...] -> [batch, n_out]."""
        return self.linear(x.reshape(x.shape[0], -1))

    def post(self, u: jax.Array) -> jax.Array:
        """u: [batch, n_out] -> [batch, n_out]."""
        return ACTIVATIONS[self.activation](self.norm(u) if self.norm is not None else u)


@dataclass(frozen=True)
class MLP:
    """Multi-layer perceptron. The top block is linear: its output are the class scores."""

    name: ClassVar[str] = "mlp"

    widths: tuple[Count, ...]
    activation: Activation = "relu"
    norm: bool = False
    init: Literal["he", "glorot", "lecun"] = "he"
    gain: Positive = 1.0

    def problems(self, example_shape: tuple[int, ...], classes: int) -> list[tuple[str, str]]:
        """(field, what is wrong) where this model does not fit the data."""
        if len(self.widths) < 2:
            return [("widths", "needs an input and an output, such as [784, 512, 10]")]
        size = 1
        for n in example_shape:
            size *= n
        found = []
        if self.widths[0] != size:
            found.append(("widths", f"begins with {self.widths[0]}, but an example has {size} values"))
        if self.widths[-1] != classes:
            found.append(("widths", f"ends with {self.widths[-1]}, but the data has {classes} classes"))
        return found

    def blocks(self, example_shape: tuple[int, ...]) -> list[Block]:
        """One block for each layer. The lowest takes examples of `example_shape`, flattened."""
        count = len(self.widths) - 1
        shapes = [example_shape, *((n,) for n in self.widths[1:-1])]
        return [Block(self._builder(i, i == count - 1), shapes[i], i, count, classes=self.widths[-1]) for i in range(count)]

    def _builder(self, i: int, top: bool) -> Callable[[nnx.Rngs], nnx.Module]:
        n_in, n_out = self.widths[i], self.widths[i + 1]
        activation, norm = ("identity", False) if top else (self.activation, self.norm)
        init = INITS[self.init](self.gain)
        return lambda rngs: Dense(n_in, n_out, activation=activation, norm=norm, init=init, rngs=rngs)
