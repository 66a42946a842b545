"""Where tuning looks: ranges of values, and quasi-random points in them, the same for every rule.

The points of a study are those of Sobol's sequence (1967), moved around the unit cube by one random vector (Cranley & Patterson 1976),
which follows from the number of the study. Any first 2^k of them have one in each of 2^k equal parts of every axis. Neither axes nor
points that are added change those before: in one study all rules try the same rates, however many numbers of their own they have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

DIGITS = 3
"""Significant digits of a value: more would only make names longer."""


@dataclass(frozen=True)
class Log:
    """Numbers between two positive ones; as many between 1 and 10 as between 10 and 100."""

    low: float
    high: float

    def __post_init__(self) -> None:
        _rising(self.low, self.high)
        if self.low <= 0:
            raise ValueError("logarithms need a lower end above 0")

    def at(self, share: float) -> float:
        """The value at a share (0 to 1) of the range."""
        return _short(self.low * (self.high / self.low) ** share)


@dataclass(frozen=True)
class Linear:
    """Numbers between two others, all alike."""

    low: float
    high: float

    def __post_init__(self) -> None:
        _rising(self.low, self.high)

    def at(self, share: float) -> float:
        """The value at a share (0 to 1) of the range."""
        return _short(self.low + (self.high - self.low) * share)


@dataclass(frozen=True)
class Whole:
    """Whole numbers from one to another, both included."""

    low: int
    high: int

    def __post_init__(self) -> None:
        _rising(self.low, self.high)
        if self.low != int(self.low) or self.high != int(self.high):
            raise ValueError("must be two whole numbers")

    def at(self, share: float) -> int:
        """The value at a share (0 to 1) of the range."""
        return int(self.low) + min(int(share * (self.high - self.low + 1)), int(self.high - self.low))


@dataclass(frozen=True)
class Choice:
    """One of some values."""

    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        if len(self.values) < 2:
            raise ValueError("must be two values or more")

    def at(self, share: float) -> Any:
        """The value at a share (0 to 1) of the list."""
        return self.values[min(int(share * len(self.values)), len(self.values) - 1)]


Range = Log | Linear | Whole | Choice
KINDS = {"log": Log, "linear": Linear, "whole": Whole}


def points(axes: int, count: int, study: int) -> np.ndarray:
    """The first points of a study: float64[count, axes], from 0 to below 1."""
    from scipy.stats import qmc

    places = qmc.Sobol(axes, scramble=False).random_base2(max(0, count - 1).bit_length())
    return (places[:count] + np.random.default_rng(study).random(axes)) % 1.0


def values(space: Sequence[Range], count: int, study: int) -> list[list[Any]]:
    """For each trial of a study a value from each range."""
    if not space:
        return [[] for _ in range(count)]
    return [[each.at(float(share)) for each, share in zip(space, point, strict=True)] for point in points(len(space), count, study)]


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _rising(low: float, high: float) -> None:
    if not low < high:
        raise ValueError("must be a lower end and a higher one")
