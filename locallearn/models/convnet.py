"""Convolutional networks: blocks of one convolution each, then dense blocks. The published ones have names of their own.

Not taken over from the papers: dropout. Where a paper measures a local loss before pooling, ours is measured behind it, on what is sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from locallearn.block import Block
from locallearn.fields import Count, Positive
from locallearn.models.layers import INITS, Activation, Init, Layer, Norm, Pool, PoolKind, convolutions, dense, numbered, too_small

Problems = list[tuple[str, str]]


def scaled(channels: int, width: float) -> int:
    """That many channels times `width`, at least one."""
    return max(1, round(channels * width))


def network(shape: tuple[int, ...], classes: int, layers: Sequence[Layer], hidden: Sequence[int], init: str, gain: float) -> list[Block]:
    """Convolutional blocks, dense ones of the widths `hidden` with the last convolution's activation and normalisation, a linear top."""
    start = INITS[init](gain)
    parts, shape = convolutions(tuple(shape), layers, start)
    return numbered(parts + dense(shape, hidden, classes, start, activation=layers[-1].activation, norm=layers[-1].norm), classes)


def unfit(shape: tuple[int, ...], layers: Sequence[Layer], field: str = "") -> Problems:
    """Where these layers do not fit the data."""
    sentence = too_small(tuple(shape), layers)
    return [(field, sentence)] if sentence else []


@dataclass(frozen=True)
class Convnet:
    """Convolutions of the widths `channels`, each with pooling by 2, then dense blocks: for images, and for [length] or [length, channels].

    padding: values on each side, as many as keep the size without it. pool_first: pooling belongs to the linear part, before
    normalisation and activation, as equilibrium propagation needs it.
    """

    name: ClassVar[str] = "convnet"

    channels: tuple[Count, ...]
    dense: tuple[Count, ...] = ()
    kernel: Count = 3
    stride: Count = 1
    padding: int | None = None
    pool: PoolKind = "max"
    pool_first: bool = False
    activation: Activation = "relu"
    norm: Norm = "none"
    init: Init = "he"
    gain: Positive = 1.0  # multiplies the first weights

    def problems(self, example_shape: tuple[int, ...], classes: int) -> Problems:
        """(field, what is wrong) where this model does not fit the data."""
        if not self.channels:
            return [("channels", "needs at least one, such as [32, 64, 128]")]
        if self.padding is not None and self.padding < 0:
            return [("padding", "must not be negative")]
        if self.padding is None and self.kernel % 2 == 0:
            return [("kernel", "is even: give `padding`, for none keeps the size")]
        if self.pool_first and self.pool == "none":
            return [("pool_first", "has no effect without a `pool`")]
        return unfit(example_shape, self._layers(), "channels")

    def blocks(self, example_shape: tuple[int, ...], classes: int) -> list[Block]:
        """One block for each convolution and each dense layer."""
        return network(example_shape, classes, self._layers(), self.dense, self.init, self.gain)

    def _layers(self) -> list[Layer]:
        pool = None if self.pool == "none" else Pool(self.pool)
        options = (self.kernel, self.stride, self.padding, pool, self.pool_first, self.activation)
        return [Layer(channels, *options, norm=self.norm) for channels in self.channels]


@dataclass(frozen=True)
class VGG5:
    """Convolutions 128-256-512-512, each with pooling by 2, then a linear top: for predictive coding and equilibrium propagation.

    Pinchetti et al. (2024), https://arxiv.org/abs/2407.01163; Laborieux et al. (2021), https://arxiv.org/abs/2006.03824;
    Scellier et al. (2023), https://arxiv.org/abs/2312.15103. The last two have `pool_first: true`. width: multiplies the channels.
    """

    name: ClassVar[str] = "vgg5"

    width: Positive = 1.0
    activation: Activation = "gelu"
    norm: Norm = "none"
    pool: Literal["max", "average"] = "max"
    pool_first: bool = False
    init: Init = "he"
    gain: Positive = 1.0  # multiplies the first weights

    def problems(self, example_shape: tuple[int, ...], classes: int) -> Problems:
        """(field, what is wrong) where this model does not fit the data."""
        return unfit(example_shape, self._layers())

    def blocks(self, example_shape: tuple[int, ...], classes: int) -> list[Block]:
        """Four convolutions and the top."""
        return network(example_shape, classes, self._layers(), (), self.init, self.gain)

    def _layers(self) -> list[Layer]:
        options = (3, 1, 1, Pool(self.pool), self.pool_first, self.activation)
        return [Layer(scaled(c, self.width), *options, norm=self.norm) for c in (128, 256, 512, 512)]


Plan = tuple[tuple[int, bool], ...]
"""Channels of each convolution, and whether pooling follows."""

PLAN_8B: Plan = ((128, False), (256, True), (256, False), (512, True), (512, True), (512, True))
PLAN_11B: Plan = ((128, False), (128, False), (128, False), (256, True), (256, False), (512, True), (512, False), (512, True), (512, True))


def vgg(plan: Plan, width: float, activation: str, norm: str) -> list[Layer]:
    """3x3 convolutions without a bias where normalisation has one, with max pooling by 2 where the plan says so."""
    return [
        Layer(scaled(c, width), 3, 1, 1, Pool("max") if pools else None, activation=activation, norm=norm, bias=norm == "none")
        for c, pools in plan
    ]


@dataclass(frozen=True)
class VGG8b:
    """Six convolutions of 128 to 512 channels, a hidden dense layer and a linear top: the network of papers on local losses.

    Nøkland & Eidnes (2019), https://arxiv.org/abs/1901.06656. width: multiplies the channels; the paper's "2x" is 2. dense: hidden widths.
    """

    name: ClassVar[str] = "vgg8b"
    plan: ClassVar[Plan] = PLAN_8B

    width: Positive = 1.0
    dense: tuple[Count, ...] = (1024,)
    activation: Activation = "leaky_relu"
    norm: Norm = "batch"
    init: Init = "he"
    gain: Positive = 1.0  # multiplies the first weights

    def problems(self, example_shape: tuple[int, ...], classes: int) -> Problems:
        """(field, what is wrong) where this model does not fit the data."""
        return unfit(example_shape, self._layers())

    def blocks(self, example_shape: tuple[int, ...], classes: int) -> list[Block]:
        """The convolutions, the dense layers, the top."""
        return network(example_shape, classes, self._layers(), self.dense, self.init, self.gain)

    def _layers(self) -> list[Layer]:
        return vgg(self.plan, self.width, self.activation, self.norm)


@dataclass(frozen=True)
class VGG11b(VGG8b):
    """Nine convolutions of 128 to 512 channels, a hidden dense layer and a linear top: the larger network of papers on local losses.

    Nøkland & Eidnes (2019), https://arxiv.org/abs/1901.06656. width: multiplies the channels; the paper's "3x" is 3. dense: hidden widths.
    """

    name: ClassVar[str] = "vgg11b"
    plan: ClassVar[Plan] = PLAN_11B


@dataclass(frozen=True)
class SoftHebb3:
    """Convolutions 96-384-1536 and a linear top, after Journé et al. (2023), https://arxiv.org/abs/2209.11883.

    Each `pre` begins with batch normalisation without scale and shift, and its convolution has no bias and mirrors the edges. Kernels
    5, 3, 3; the activation is `triangle` with powers 0.7, 1.4, 1; pooling: maximum of 4x4 at every second place twice, then average of 2x2.
    width: multiplies the channels. gain: the weights begin at N(0, gain²/fan-in), in the paper 25.
    """

    name: ClassVar[str] = "softhebb3"

    width: Positive = 1.0
    gain: Positive = 25.0

    def problems(self, example_shape: tuple[int, ...], classes: int) -> Problems:
        """(field, what is wrong) where this model does not fit the data."""
        return unfit(example_shape, self._layers())

    def blocks(self, example_shape: tuple[int, ...], classes: int) -> list[Block]:
        """Three convolutions and the top, whose weights begin small whatever the gain."""
        parts, shape = convolutions(tuple(example_shape), self._layers(), INITS["lecun"](self.gain))
        return numbered(parts + dense(shape, (), classes, INITS["lecun"](1.0)), classes)

    def _layers(self) -> list[Layer]:
        plan = ((96, 5, 0.7, Pool("max", 4, 2, 1)), (384, 3, 1.4, Pool("max", 4, 2, 1)), (1536, 3, 1.0, Pool("average")))
        return [
            Layer(
                scaled(channels, self.width),
                kernel,
                pool=pool,
                activation="triangle",
                power=power,
                bias=False,
                reflect=True,
                input_norm=True,
            )
            for channels, kernel, power, pool in plan
        ]
