"""What data sets of published image files have in common: where the files are, and how values are scaled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from locallearn.data.fetch import download
from locallearn.data.files import locate, present
from locallearn.data.published import PUBLISHED
from locallearn.fields import Count
from locallearn.markers import Aside


@dataclass(frozen=True)
class ImageFiles:
    """The keys of such a data set. sizes: training and test examples."""

    name: ClassVar[str]
    sizes: ClassVar[tuple[int, int]]

    folder: Annotated[str | None, Aside()] = None  # with the files; else the variable LOCALLEARN_DATA, else the user's cache
    download: Annotated[bool, Aside()] = False  # fetch missing files
    limit: Count | None = None  # use only so many training examples, in the classes' proportions
    centred: bool = False  # values from -1 to 1 instead of 0 to 1
    standardised: bool = False  # mean 0 and standard deviation 1, of each channel

    @property
    def train_size(self) -> int:
        """Training examples."""
        return self.limit or self.sizes[0]

    @property
    def test_size(self) -> int:
        """Test examples."""
        return self.sizes[1]

    def problems(self) -> list[tuple[str, str]]:
        """Two scalings at once."""
        return [("standardised", "give `centred` or `standardised`, not both")] if self.centred and self.standardised else []

    def source(self) -> str:
        """The folder where the files are, or are looked for."""
        return str(locate(self.name, self.folder))

    def available(self) -> bool:
        """Whether all files exist; their checksums are left to `load`."""
        place = locate(self.name, self.folder)
        return len(present(self.name, place)) == len(PUBLISHED[self.name].files)

    def fetch(self) -> None:
        """Download what is missing, if that was asked for."""
        if self.download and not self.available():
            download(self.name, self.folder)
