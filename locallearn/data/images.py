"""MNIST, Fashion-MNIST and Kuzushiji-MNIST, read from their published files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from locallearn.data.dataset import Arrays, Dataset, limited
from locallearn.data.files import read_published
from locallearn.data.idx import parse_idx
from locallearn.data.imagefiles import ImageFiles
from locallearn.data.intake import Intake
from locallearn.data.published import PUBLISHED


@dataclass(frozen=True)
class _IdxImages(ImageFiles):
    """Images and labels in four IDX files, in the order of the table of published files."""

    example_shape: ClassVar[tuple[int, ...]] = (28, 28, 1)
    classes: ClassVar[int] = 10
    mean: ClassVar[float]  # over the pixels of the training images, in 0..1, as everybody publishes it
    deviation: ClassVar[float]
    sizes: ClassVar[tuple[int, int]] = (60000, 10000)

    @property
    def intake(self) -> Intake:
        """Images are stored as the bottom block sees them; what is cropped is filled with black."""
        return Intake(blank=float(self._scaled(np.zeros((), np.uint8))))

    def load(self) -> Dataset:
        """The images, values scaled; DataError if a file is missing, truncated or altered."""
        self.fetch()
        contents = zip(read_published(self.name, self.folder), PUBLISHED[self.name].files, strict=True)
        arrays = [parse_idx(content, file.name) for content, file in contents]
        train = limited(self.name, Arrays(*arrays[:2]), self.limit)
        train, test = (Arrays(self._scaled(part.x[..., None]), part.y) for part in (train, Arrays(*arrays[2:])))
        return Dataset.of(self.name, train, test, classes=self.classes, intake=self.intake)

    def _scaled(self, pixels: np.ndarray) -> np.ndarray:
        x = pixels / np.float32(255)
        if self.standardised:
            return (x - np.float32(self.mean)) / np.float32(self.deviation)
        return 2 * x - 1 if self.centred else x


@dataclass(frozen=True)
class Mnist(_IdxImages):
    """MNIST: handwritten digits, 28x28 (LeCun, Cortes and Burges).

    x float32 [28, 28, 1] in 0..1, labels 0 to 9; 60,000 training and 10,000 test images.
    """

    name: ClassVar[str] = "mnist"
    mean: ClassVar[float] = 0.1307
    deviation: ClassVar[float] = 0.3081
    licence: ClassVar[str] = "CC BY-SA 3.0"


@dataclass(frozen=True)
class FashionMnist(_IdxImages):
    """Fashion-MNIST: articles of clothing, 28x28 (Xiao, Rasul and Vollgraf, arXiv 1708.07747).

    x float32 [28, 28, 1] in 0..1, 10 classes (T-shirt, trouser, pullover, dress, coat, sandal, shirt, sneaker, bag,
    ankle boot); 60,000 training and 10,000 test images.
    """

    name: ClassVar[str] = "fashion_mnist"
    mean: ClassVar[float] = 0.2860
    deviation: ClassVar[float] = 0.3530
    licence: ClassVar[str] = "MIT (Zalando SE)"


@dataclass(frozen=True)
class KuzushijiMnist(_IdxImages):
    """Kuzushiji-MNIST: cursive Japanese characters, 28x28 (Clanuwat et al., arXiv 1812.01718).

    x float32 [28, 28, 1] in 0..1, 10 classes (o, ki, su, tsu, na, ha, ma, ya, re, wo); 60,000 training and 10,000 test images.
    """

    name: ClassVar[str] = "kmnist"
    mean: ClassVar[float] = 0.1918
    deviation: ClassVar[float] = 0.3483
    licence: ClassVar[str] = "CC BY-SA 4.0"
