"""What every data set class offers, before and after anything is loaded."""

from __future__ import annotations

from typing import ClassVar, Protocol

from locallearn.data.dataset import Dataset


class Source(Protocol):
    """What a frozen dataclass needs to be a data set: its fields are the keys in YAML, `load` does the work.

    The first line of its docstring is shown by `locallearn datasets`.
    """

    name: ClassVar[str]
    classes: ClassVar[int]
    licence: ClassVar[str]

    @property
    def example_shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        ...

    @property
    def train_size(self) -> int:
        """Training examples that `load` gives, before any split."""
        ...

    @property
    def test_size(self) -> int:
        """Test examples that `load` gives."""
        ...

    def source(self) -> str:
        """Where the examples come from, in words or as a folder."""
        ...

    def available(self) -> bool:
        """Whether `load` can work now; a cheap look, nothing is read."""
        ...

    def load(self) -> Dataset:
        """The whole data set in memory; DataError if it is missing, truncated or altered."""
        ...
