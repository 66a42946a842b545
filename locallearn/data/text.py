"""Text as next-character prediction: from so many characters, the one that follows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np

from locallearn.data.dataset import Arrays, Dataset
from locallearn.data.fetch import download
from locallearn.data.files import locate, present, read_published
from locallearn.data.intake import Intake
from locallearn.data.published import PUBLISHED
from locallearn.errors import DataError
from locallearn.fields import Count
from locallearn.markers import Aside

_LENGTH = 1115394  # characters
_TRAIN = 1003854  # of them before the test part: nine tenths, rounded down


@dataclass(frozen=True)
class TinyShakespeare:
    """Tiny Shakespeare: the next of 65 characters, from those before it (Karpathy, char-rnn).

    x int32 [context], numbers of characters; y the number of the character that follows; accuracy is the share of characters that are
    guessed. The first nine tenths of the text are for training, the rest is the test; `validation` holds back the end of the training
    part. No character is in a training example and in a validation or test example. Characters are numbered in the order of their codes,
    from the training part alone.
    """

    name: ClassVar[str] = "tiny_shakespeare"
    classes: ClassVar[int] = 65
    licence: ClassVar[str] = "public domain"

    folder: Annotated[str | None, Aside()] = None  # with the file; else the variable LOCALLEARN_DATA, else the user's cache
    download: Annotated[bool, Aside()] = False  # fetch the file if it is missing
    limit: Count | None = None  # use only so many training examples, from the beginning of the text
    context: Count = 64  # characters that an example sees
    stride: Count = 4  # characters from the beginning of one example to that of the next

    @property
    def example_shape(self) -> tuple[int, ...]:
        """Characters of one example."""
        return (self.context,)

    @property
    def train_size(self) -> int:
        """Training examples."""
        return self.limit or self._count(_TRAIN)

    @property
    def test_size(self) -> int:
        """Test examples."""
        return self._count(_LENGTH - _TRAIN)

    @property
    def intake(self) -> Intake:
        """Characters stay bytes until a batch of them is read."""
        return Intake(tokens=True)

    def problems(self) -> list[tuple[str, str]]:
        """A test part that is shorter than an example, and a limit beyond the text."""
        most = _LENGTH - _TRAIN - 1
        if self.context > most:
            return [("context", f"is longer than the test part; at most {most}")]
        most = self._count(_TRAIN)
        return [("limit", f"must be 1 to {most}, the number of training examples")] if (self.limit or 1) > most else []

    def source(self) -> str:
        """The folder where the file is, or is looked for."""
        return str(locate(self.name, self.folder))

    def available(self) -> bool:
        """Whether the file exists; its checksum is left to `load`."""
        return bool(present(self.name, locate(self.name, self.folder)))

    def load(self) -> Dataset:
        """All examples, as views of the text; DataError if the file is missing or altered."""
        if self.download and not self.available():
            download(self.name, self.folder)
        (content,) = read_published(self.name, self.folder)
        where = f"{self.name}: {PUBLISHED[self.name].files[0].name}"
        train, test = numbered(where, np.frombuffer(content, np.uint8), len(content) * 9 // 10)
        parts = [windows(part, self.context, self.stride) for part in (train, test)]
        kept = Arrays(*(array[: self.limit] for array in parts[0]))
        span = self.context // self.stride  # the next example that shares no character begins context + 1 characters later
        return Dataset.of(self.name, kept, parts[1], classes=self.classes, intake=self.intake, span=span)

    def _count(self, length: int) -> int:
        return max(0, length - self.context - 1) // self.stride + 1


def numbered(where: str, text: np.ndarray, cut: int) -> tuple[np.ndarray, np.ndarray]:
    """The text before and from the `cut` on, uint8, each character by its number among those of the first part."""
    known = np.unique(text[:cut])
    number = np.full(256, len(known), np.int32)
    number[known] = np.arange(len(known))
    numbers = number[text]
    if numbers.max() == len(known):
        raise DataError(f"{where}: the character {bytes(text[numbers.argmax() :][:1])!r} is only in the test part")
    return numbers[:cut].astype(np.uint8), numbers[cut:].astype(np.uint8)


def windows(text: np.ndarray, context: int, stride: int) -> Arrays:
    """x [N, context], stretches of the text that begin every `stride` characters, and y [N], the character that follows each."""
    return Arrays(np.lib.stride_tricks.sliding_window_view(text, context)[:-1:stride], text[context::stride])
