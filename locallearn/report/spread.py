"""How far numbers over seeds lie apart: means with 95 % intervals, and differences by seed."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

LEVEL = 0.95


class Estimate(NamedTuple):
    """A mean over n values and its 95 % interval, which one value alone does not have."""

    mean: float
    low: float | None
    high: float | None
    n: int

    @property
    def half(self) -> float:
        """Half the width of the interval; 0 where there is none."""
        return 0.0 if self.low is None else self.mean - self.low

    @property
    def sign(self) -> int:
        """1 or -1 where the interval lies on one side of zero, else 0."""
        return 0 if self.low is None or self.high is None else (self.low > 0) - (self.high < 0)


def estimate(values: Sequence[float]) -> Estimate:
    """Student's t interval of the mean (Student 1908): right for few seeds if they scatter normally."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Estimate(mean, None, None, len(values))
    half = _quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Estimate(mean, mean - half, mean + half, len(values))


@functools.cache
def _quantile(freedom: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + LEVEL) / 2))


def paired(one: Mapping[Any, float], other: Mapping[Any, float]) -> Estimate | None:
    """One minus the other over the seeds that both have: what seeds have in common (data order, initial weights) cancels."""
    common = sorted(one.keys() & other.keys())
    return estimate([one[seed] - other[seed] for seed in common]) if common else None
