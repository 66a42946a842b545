"""Multi-layer perceptron: one dense block for each pair of neighbouring widths."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from locallearn.block import Block
from locallearn.fields import Count, Positive
from locallearn.markers import Parsed
from locallearn.models.layers import INITS, Activation, Init, Norm, dense, numbered

PRESETS: dict[str, tuple[int, ...]] = {
    "mlp-s": (784, 512, 512, 10),
    "mlp-pcx": (784, 128, 128, 128, 10),
    "mlp-ff": (784, 2000, 2000, 2000, 2000, 10),
    "mlp-ff-3": (784, 1000, 1000, 1000, 10),
    "mlp-local": (784, 1024, 1024, 1024, 10),
}
"""Widths by name, for MNIST: a small one; those of Pinchetti et al. (2024), Hinton (2022) twice, and Nøkland & Eidnes (2019)."""


def parse_widths(value: Any) -> Any:
    """A name in place of the list."""
    if not isinstance(value, str):
        return value
    if value not in PRESETS:
        raise ValueError(f"is neither a list of widths nor the name of one ({', '.join(PRESETS)})")
    return PRESETS[value]


def misfits(widths: Sequence[int], example_shape: tuple[int, ...], classes: int) -> list[tuple[str, str]]:
    """(field, what is wrong) where the first and the last of some widths are not the data's."""
    if len(widths) < 2:
        return [("widths", "needs an input and an output, such as [784, 512, 10]")]
    size = math.prod(example_shape)
    found = []
    if widths[0] != size:
        found.append(("widths", f"begins with {widths[0]}, but an example has {size} values"))
    if widths[-1] != classes:
        found.append(("widths", f"ends with {widths[-1]}, but the data has {classes} classes"))
    return found


@dataclass(frozen=True)
class MLP:
    """Multi-layer perceptron: a block for each dense layer, the top one linear.

    widths: from the values of an example to the classes, or the name of some for MNIST: mlp-s 784-512-512-10; mlp-pcx 784-128-128-128-10
    (Pinchetti et al. 2024); mlp-ff 784-2000-2000-2000-2000-10 and mlp-ff-3 784-1000-1000-1000-10 (Hinton 2022); mlp-local
    784-1024-1024-1024-10 (Nøkland & Eidnes 2019). gain: multiplies the first weights.
    """

    name: ClassVar[str] = "mlp"

    widths: Annotated[tuple[Count, ...], Parsed(parse_widths)]
    activation: Activation = "relu"
    norm: Norm = "none"
    init: Init = "he"
    gain: Positive = 1.0

    def problems(self, example_shape: tuple[int, ...], classes: int) -> list[tuple[str, str]]:
        """(field, what is wrong) where this model does not fit the data."""
        return misfits(self.widths, example_shape, classes)

    def blocks(self, example_shape: tuple[int, ...], classes: int | None = None) -> list[Block]:
        """One block for each layer. The lowest takes examples of `example_shape`, flattened."""
        *hidden, top = self.widths[1:]
        parts = dense(tuple(example_shape), hidden, top, INITS[self.init](self.gain), activation=self.activation, norm=self.norm)
        return numbered(parts, top)
