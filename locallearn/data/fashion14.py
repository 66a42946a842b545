"""The embedded real images: a small Fashion-MNIST."""

from __future__ import annotations

import hashlib
import io
import lzma
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from locallearn.data.dataset import Arrays, Dataset, limited
from locallearn.errors import DataError
from locallearn.fields import Count

_FILE = Path(__file__).with_name("fashion14_4bit.npz.xz")
_SHA256 = "83aeb4ab89ae81acb5cfef553bacea23d7a4e637b0b2ae9b9e4cff53e082328a"


@dataclass(frozen=True)
class Fashion14:
    """Fashion-MNIST in small: 14x14 pixels, 4 bits, embedded; for smoke tests and first pictures.

    x float32 [14, 14, 1] in 0..1 (steps of 1/15), 10 balanced classes (T-shirt, trouser, pullover, dress, coat, sandal,
    shirt, sneaker, bag, ankle boot). 4,000 of the published training and 1,000 of the published test images (Xiao et
    al., arXiv 1708.07747), averaged over 2x2 pixels. Shallow networks reach about the same accuracy on it with poor
    learning rules as with good ones: it is no evidence that a rule matches backprop.
    """

    name: ClassVar[str] = "fashion14"
    example_shape: ClassVar[tuple[int, ...]] = (14, 14, 1)
    classes: ClassVar[int] = 10
    licence: ClassVar[str] = "MIT (Zalando SE)"

    limit: Count | None = None  # use only so many training examples, in the classes' proportions

    @property
    def train_size(self) -> int:
        """Training examples."""
        return self.limit or 4000

    @property
    def test_size(self) -> int:
        """Test examples."""
        return 1000

    def source(self) -> str:
        """Where the examples come from."""
        return "embedded"

    def available(self) -> bool:
        """Whether the file of the package is there."""
        return _FILE.is_file()

    def load(self) -> Dataset:
        """The images; DataError if the package's file is missing or altered."""
        with np.load(io.BytesIO(lzma.decompress(_verified())), allow_pickle=False) as file:
            train, test = (Arrays(_unpacked(file[f"{part}_x"]), file[f"{part}_y"]) for part in ("train", "test"))
        return Dataset.of(self.name, limited(self.name, train, self.limit), test, classes=self.classes)


def _verified() -> bytes:
    try:
        content = _FILE.read_bytes()
    except OSError as error:
        raise DataError(f"{_FILE}: {error.strerror}; install locallearn again") from error
    found = hashlib.sha256(content).hexdigest()
    if found != _SHA256:
        raise DataError(f"{_FILE}: SHA-256 is {found}, expected {_SHA256}; install locallearn again")
    return content


def _unpacked(pairs: np.ndarray) -> np.ndarray:
    """Float32 [N, 14, 14, 1] from uint8 [N, 14, 7], two pixels a byte, the left one in the high bits."""
    pixels = np.stack([pairs >> 4, pairs & 15], axis=-1).reshape(len(pairs), 14, 14, 1)
    return pixels / np.float32(15)
