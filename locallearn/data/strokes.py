"""A procedural one-dimensional benchmark: ten strokes under shift, scale, shear and noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Ge, Le, Lt

from locallearn.data.dataset import Arrays
from locallearn.data.generated import Generated
from locallearn.fields import Count, NonNegative

# The strokes as corners (position 0 to 11, height); each starts and ends at height 0. A 6 is an upturned 0, a 7 an
# upturned 1 and an 8 an upturned 3.
_ZERO = ((0, 0), (1, 1), (4, 2), (7, 2), (10, 1), (11, 0))
_ONE = ((0, 0), (1, -2), (2, -2), (9, 0.8), (10, 0), (11, 0))
_TWO = ((0, 0), (2, 1.5), (3, 1.5), (8, -1.5), (9, -1.5), (11, 0))
_THREE = ((0, 0), (2, 1.5), (3, 1.5), (5, 0), (6, 0), (8, 1.5), (9, 1.5), (11, 0))
_FOUR = ((0, 0), (4, -2.4), (5, -2.4), (6, 0), (11, 0))
_FIVE = ((0, 0), (1, -2), (4, -2), (5, 0), (7, 1.5), (8, 1.5), (10, -0.5), (11, 0))
_NINE = ((0, 0), (2, -1.5), (3, -1.5), (5, 0), (8, 0), (10, -0.7), (11, 0))
_STROKES = (
    (_ZERO, 1), (_ONE, 1), (_TWO, 1), (_THREE, 1), (_FOUR, 1), (_FIVE, 1), (_ZERO, -1), (_ONE, -1), (_THREE, -1),
    (_NINE, 1),
)  # fmt: skip

_POINTS = 12  # of a stroke
_PADDING = (36, 60)  # fewest and most blank points after a stroke: how narrow it gets on the grid
_GRID = _POINTS + _PADDING[1]  # of a signal while it is distorted
_LENGTH = 40  # of an example
_HEIGHT = 1 / 6  # of one standard deviation of a stroke
_STREAM = 0x7374726F6B6573  # keeps the random numbers apart from those of the batch order under the same seed
_KERNEL_WIDTH = 2.0  # standard deviation of the smoothing of the noise, in grid points
# Mean and standard deviation of all values with the default settings. Constants, so that neither the number of
# examples nor the knobs rescale the inputs: a model trained with one setting can be tested with another.
_MEAN, _DEVIATION = -0.006, 0.153


@dataclass(frozen=True)
class Strokes1d(Generated):
    """Ten one-dimensional strokes under shift, scale, shear and noise; generated, as many as wanted.

    x float32 [40], of mean 0 and standard deviation 1 over all values with the default settings; 10 balanced classes.

    In the manner of MNIST-1D (Greydanus and Kobak, arXiv 2011.14439, and its repository greydanus/mnist1d,
    Apache-2.0), written afresh with simplified strokes and another random stream: **not** MNIST-1D, so figures are to
    be compared with each other and not with published ones. It separates learning rules as MNIST-1D does. Test accuracy
    in % here / on MNIST-1D (ReLU, Adam, batch 50, 30 epochs, 4,000 examples, mean of 2 runs, the better of 2 learning
    rates by test accuracy; the test sets have 1,000 examples, so differences under 3 are noise):

        hidden layers       last layer only  feedback alignment  direct feedback alignment  backprop
        256, 256                    42 / 41             58 / 59                    59 / 60   67 / 68
        128, 128, 128, 128          35 / 36             47 / 46                    48 / 51   66 / 67

    A linear model has 35 / 32 (and 32 on 20,000 fresh examples). The 256, 256 backprop network trained here has 68 on
    MNIST-1D's test set, and the one trained on MNIST-1D has 70 here.
    """

    name: ClassVar[str] = "strokes1d"
    example_shape: ClassVar[tuple[int, ...]] = (_LENGTH,)

    samples: Count = 4000  # training examples
    test_samples: Count = 1000
    # Of the examples, not of the run: another seed gives fresh training and test sets.
    seed: Annotated[int, Ge(0), Lt(2**63)] = 0
    shift: Annotated[int, Ge(0), Le(_GRID - 1)] = 47  # largest shift to the right, in points of a grid of 72; cyclic
    scale: Annotated[float, Ge(0), Le(2)] = 0.4  # heights are multiplied by 1 - scale/2 to 1 + scale/2
    shear: NonNegative = 0.75  # a ramp that rises by -shear/2 to shear/2 is added
    noise: NonNegative = 0.25  # standard deviation of the background noise, before smoothing
    white_noise: NonNegative = 0.02  # standard deviation of the independent noise on every point

    @property
    def classes(self) -> int:
        """As many as strokes."""
        return len(_STROKES)

    def _examples(self, count: int, stream: int) -> Arrays:
        rng = np.random.Generator(np.random.Philox(key=np.array([self.seed, _STREAM + stream], np.uint64)))
        y = rng.permutation(np.arange(count, dtype=np.int32) % self.classes)
        values, is_stroke = _placed(y, rng.integers(*_PADDING, count, endpoint=True), rng.integers(0, self.shift + 1, count))
        values *= 1 + self.scale * (rng.random((count, 1)) - 0.5)
        background = _smooth(self.noise * rng.standard_normal(values.shape))
        values = np.where(is_stroke, values, background) + self.white_noise * rng.standard_normal(values.shape)
        values += self.shear * (rng.random((count, 1)) - 0.5) * np.linspace(-0.5, 0.5, _GRID)
        x = (_resample(values, _LENGTH) - _MEAN) / _DEVIATION
        # Rounded, so that the last bits, where machines may differ, do not change the fingerprint.
        return Arrays(np.round(x, 4).astype(np.float32), y)


def _templates() -> np.ndarray:
    """Heights of the strokes at their 12 points, [10, 12]; each has the same standard deviation."""
    corners = [np.array(stroke, float).T * [[1], [sign]] for stroke, sign in _STROKES]
    heights = np.stack([np.interp(np.arange(_POINTS), *corner) for corner in corners])
    return heights * _HEIGHT / heights.std(axis=1, keepdims=True)


def _placed(y: np.ndarray, padding: np.ndarray, shift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each stroke stretched over the grid as its padding leaves room, then shifted: heights and mask, [N, _GRID]."""
    place = (np.arange(_GRID) - shift[:, None]) % _GRID * ((_POINTS - 1 + padding) / (_GRID - 1))[:, None]
    blank = np.zeros((len(_STROKES), _PADDING[1] + 1))
    templates = np.concatenate([_templates(), blank], axis=1)
    left = place.astype(int)
    weight = place - left
    heights = templates[y[:, None], left] * (1 - weight) + templates[y[:, None], left + 1] * weight
    return heights, place < _POINTS


def _smooth(noise: np.ndarray) -> np.ndarray:
    """Gaussian smoothing along the last axis, mirrored at the ends."""
    reach = round(4 * _KERNEL_WIDTH)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / _KERNEL_WIDTH) ** 2)
    mirrored = np.pad(noise, ((0, 0), (reach, reach)), mode="symmetric")
    width = noise.shape[1]
    terms = (weight * mirrored[:, i : i + width] for i, weight in enumerate(kernel / kernel.sum()))
    return sum(terms, start=np.zeros_like(noise))


def _resample(values: np.ndarray, length: int) -> np.ndarray:
    """Linear interpolation of [N, M] at `length` even places, ends included."""
    place = np.linspace(0, values.shape[1] - 1, length)
    left = np.minimum(place.astype(int), values.shape[1] - 2)
    weight = place - left
    return values[:, left] * (1 - weight) + values[:, left + 1] * weight
