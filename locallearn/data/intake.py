"""What lies between a data set as it is stored and what the bottom block sees, described; `locallearn.runtime.intake` does it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

Side = Annotated[int, Ge(0)]


@dataclass(frozen=True)
class Augment:
    """What is done to training images, in this order; each image gets its own random numbers at every step.

    crop: pad by so many black pixels on each side, then cut out the image's size at a random place. jitter: shift by up to so many
    pixels each way, which papers call so and is the same; given together, both are done. flip: left and right exchanged, one time in two.
    cutout: a square of so many pixels a side, around a random pixel, becomes 0 after scaling (the mean, where images are standardised);
    what is beyond the edge is lost (DeVries & Taylor 2017, arXiv 1708.04552).
    """

    crop: Side = 0
    flip: bool = False
    jitter: Side = 0
    cutout: Side = 0

    def misfits(self, example_shape: tuple[int, ...]) -> list[tuple[str, str]]:
        """(field, what is wrong) where examples of this shape cannot be augmented so."""
        if len(example_shape) != 3:
            return [("", f"is for images [height, width, channels]; an example has shape {list(example_shape)}")]
        side = min(example_shape[:2])
        sizes = [("crop", self.crop, side - 1), ("jitter", self.jitter, side - 1), ("cutout", self.cutout, side)]
        return [(name, f"is too much for images of {side} pixels a side; at most {most}") for name, size, most in sizes if size > most]


@dataclass(frozen=True)
class Intake:
    """How stored examples become inputs.

    offset, scale: of pixels that are stored as bytes, one number for each channel: x = (byte - offset) * scale in float32; without them
    examples are stored as the bottom block sees them. tokens: stored numbers are those of characters or words, and are seen as int32.
    blank: the stored value of a black pixel. augment: what training examples go through besides; those of an evaluation never do.
    """

    offset: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()
    tokens: bool = False
    blank: float = 0.0
    augment: Augment | None = None

    @property
    def converts(self) -> bool:
        """Whether examples are stored in another form than the bottom block sees."""
        return bool(self.scale) or self.tokens


PLAIN = Intake()
"""Examples are seen as they are stored."""
