"""Data sets that are drawn from random numbers, as many examples as wanted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from locallearn.data.dataset import Arrays, Dataset

TRAIN, TEST = range(2)


class Generated(ABC):
    """The same examples for the same fields. The test set does not depend on `samples`.

    A later numpy may draw other numbers from the same stream (NEP 19); the fingerprint would tell.
    """

    name: ClassVar[str]
    licence: ClassVar[str] = "MIT (generated)"
    samples: int
    test_samples: int

    @property
    @abstractmethod
    def classes(self) -> int:
        """How many there are."""

    @abstractmethod
    def _examples(self, count: int, stream: int) -> Arrays:
        """So many. stream: TRAIN or TEST."""

    @property
    def train_size(self) -> int:
        """Training examples."""
        return self.samples

    @property
    def test_size(self) -> int:
        """Test examples."""
        return self.test_samples

    def source(self) -> str:
        """Where the examples come from."""
        return "generated"

    def available(self) -> bool:
        """Always."""
        return True

    def load(self) -> Dataset:
        """Draw the examples."""
        train, test = self._examples(self.samples, TRAIN), self._examples(self.test_samples, TEST)
        return Dataset.of(self.name, train, test, classes=self.classes)
