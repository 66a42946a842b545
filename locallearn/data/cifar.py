"""CIFAR-10 and CIFAR-100, read from the binary version of their published files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from locallearn.data.dataset import Arrays, Dataset, limited
from locallearn.data.files import read_published
from locallearn.data.imagefiles import ImageFiles
from locallearn.data.intake import Intake
from locallearn.data.published import PUBLISHED
from locallearn.errors import DataError


@dataclass(frozen=True)
class _Cifar(ImageFiles):
    """Records of one or two bytes of labels, the last of which counts, and 3072 of pixels: red, green and blue, row by row."""

    sizes: ClassVar[tuple[int, int]] = (50000, 10000)
    example_shape: ClassVar[tuple[int, ...]] = (32, 32, 3)
    classes: ClassVar[int]
    licence: ClassVar[str] = "none stated; cite Krizhevsky (2009)"
    means: ClassVar[tuple[float, float, float]]  # of each channel over the training images, in 0..1, as everybody publishes them
    deviations: ClassVar[tuple[float, float, float]]

    unverified: bool = False  # take files whose checksums are not the published ones'; the results say so

    @property
    def intake(self) -> Intake:
        """Images stay bytes, a quarter of the memory, until a batch of them is read."""
        mean, deviation = ((0.5,) * 3, (0.5,) * 3) if self.centred else ((0.0,) * 3, (1.0,) * 3)
        if self.standardised:
            mean, deviation = self.means, self.deviations
        return Intake(tuple(255 * m for m in mean), tuple(1 / (255 * d) for d in deviation))

    def load(self) -> Dataset:
        """The images as bytes; DataError if a file is missing, truncated or altered."""
        self.fetch()
        files = PUBLISHED[self.name].files
        contents = read_published(self.name, self.folder, self.unverified)
        parts = [_records(content, file.name, self.classes) for content, file in zip(contents, files, strict=True)]
        train = Arrays(*(np.concatenate(arrays) for arrays in zip(*parts[:-1], strict=True)))
        return Dataset.of(self.name, limited(self.name, train, self.limit), parts[-1], classes=self.classes, intake=self.intake)


def _records(content: bytes, where: str, classes: int) -> Arrays:
    """Images [N, 32, 32, 3] and labels [N], both uint8."""
    labels = 2 if classes > 10 else 1
    if len(content) % (labels + 3072):
        raise DataError(f"{where}: {len(content)} bytes are not whole records of {labels + 3072}")
    records = np.frombuffer(content, np.uint8).reshape(-1, labels + 3072)
    return Arrays(np.ascontiguousarray(records[:, labels:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), records[:, labels - 1])


@dataclass(frozen=True)
class Cifar10(_Cifar):
    """CIFAR-10: small photographs of ten things, 32x32 (Krizhevsky 2009).

    x float32 [32, 32, 3] in 0..1, 10 classes (airplane, automobile, bird, cat, deer, dog, frog, horse, ship, truck); 50,000
    training and 10,000 test images, from the binary version: `cifar-10-binary.tar.gz`, or its folder `cifar-10-batches-bin`.
    """

    name: ClassVar[str] = "cifar10"
    classes: ClassVar[int] = 10
    means: ClassVar[tuple[float, float, float]] = (0.4914, 0.4822, 0.4465)
    deviations: ClassVar[tuple[float, float, float]] = (0.2470, 0.2435, 0.2616)


@dataclass(frozen=True)
class Cifar100(_Cifar):
    """CIFAR-100: small photographs of a hundred things, 32x32 (Krizhevsky 2009).

    x float32 [32, 32, 3] in 0..1, 100 fine classes; 50,000 training and 10,000 test images, from the binary version:
    `cifar-100-binary.tar.gz`, or its folder `cifar-100-binary`.
    """

    name: ClassVar[str] = "cifar100"
    classes: ClassVar[int] = 100
    means: ClassVar[tuple[float, float, float]] = (0.5071, 0.4865, 0.4409)
    deviations: ClassVar[tuple[float, float, float]] = (0.2673, 0.2564, 0.2762)
