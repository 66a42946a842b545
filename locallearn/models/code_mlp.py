"""Dense networks that pass on narrow codes: what a shard sends is a few bounded numbers for each example, however wide it is inside."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
from annotated_types import Ge
from flax import nnx

from locallearn.block import Block
from locallearn.fields import Count
from locallearn.models.layers import ACTIVATIONS, INITS, Activation, Init, Part, numbered


class Coder(nnx.Module):
    """clip(skip · x + V h, -1, 1), where h is what hidden layers make of x; the top block does not clip."""

    def __init__(self, widths: tuple[int, ...], rngs: nnx.Rngs, *, skip: bool, top: bool, activation: str, init: Any):
        *hidden, out = widths
        self.activation, self.skip, self.top = activation, skip, top
        self.layers = nnx.List([nnx.Linear(a, b, kernel_init=init, rngs=rngs) for a, b in itertools.pairwise(hidden)])
        self.out = nnx.Linear(hidden[-1], out, kernel_init=INITS["lecun"](0.5), rngs=rngs)
        self.shortcut = nnx.Linear(widths[0], out, kernel_init=INITS["lecun"](1.0), rngs=rngs) if skip and top else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [batch, ...] -> [batch, code], or [batch, classes] at the top."""
        x = h = x.reshape(x.shape[0], -1)
        for layer in self.layers:
            h = ACTIVATIONS[self.activation](layer(h))
        y = self.out(h)
        if self.top:
            return y if self.shortcut is None else y + self.shortcut(x)
        return jnp.clip(x + y if self.skip else y, -1, 1)


@dataclass(frozen=True)
class CodeMLP:
    """Blocks of dense layers that pass on `code` numbers from -1 to 1 for each example.

        c_1 = clip(V_1 h_1(x), -1, 1),    c_l = clip(c_{l-1} + V_l h_l(c_{l-1}), -1, 1),    scores = U c_{L-1} + V_L h_L(c_{L-1})

    h_1 has `first` as hidden layers, every other h_l has `hidden`: with a narrow code a block above the first one needs two layers to be
    of its size. skips: without them, c_{l-1} and U are left out. Codes suit integers with a scale of `one`: `"int4(nearest, symmetric,
    one)"`.
    A code so narrow has to carry what was decided so far as well as what was not; with skips a block adds to what it was told.
    """

    name: ClassVar[str] = "code_mlp"

    code: Count = 14
    first: tuple[Count, ...] = (512,)
    hidden: tuple[Count, ...] = (600, 600)
    depth: Annotated[int, Ge(2)] = 4
    skips: bool = True
    activation: Activation = "relu"
    init: Init = "he"

    def problems(self, example_shape: tuple[int, ...], classes: int) -> list[tuple[str, str]]:
        """A block without a hidden layer."""
        return [(name, "needs a hidden layer, such as [512]") for name in ("first", "hidden") if not getattr(self, name)]

    def blocks(self, example_shape: tuple[int, ...], classes: int) -> list[Block]:
        """`depth` blocks."""
        parts: list[Part] = []
        for i in range(self.depth):
            shape, top = tuple(example_shape) if i == 0 else (self.code,), i == self.depth - 1
            widths = (math.prod(shape), *(self.hidden if i else self.first), classes if top else self.code)
            skip, init = self.skips and i > 0, INITS[self.init](1.0)
            parts.append((functools.partial(Coder, widths, skip=skip, top=top, activation=self.activation, init=init), shape))
        return numbered(parts, classes)
