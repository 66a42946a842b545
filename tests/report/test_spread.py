"""Intervals against tables and by simulation; differences by seed."""

import numpy as np
import pytest

from locallearn.report.spread import estimate, paired


def test_students_table():
    """Half widths for n = 2, 3 and 5 from a printed table of t at 97.5 %: 12.706, 4.303, 2.776."""
    for values, quantile in (([0.0, 2.0], 12.706), ([0.0, 1.0, 2.0], 4.303), ([-2.0, -1.0, 0.0, 1.0, 2.0], 2.776)):
        found = estimate(values)
        error = np.std(values, ddof=1) / np.sqrt(len(values))
        assert found.mean == pytest.approx(np.mean(values))
        assert found.half == pytest.approx(quantile * error, rel=1e-3)
        assert found.high == pytest.approx(found.mean + found.half)


def test_nineteen_of_twenty_hold_the_mean():
    rng = np.random.default_rng(0)
    found = [estimate(list(row)) for row in rng.normal(3.0, 2.0, (2000, 4))]
    share = np.mean([abs(one.mean - 3.0) <= one.half for one in found])
    assert abs(share - 0.95) < 3 * np.sqrt(0.95 * 0.05 / 2000)


def test_one_value_has_no_interval():
    found = estimate([0.5])
    assert (found.mean, found.low, found.high, found.half, found.sign) == (0.5, None, None, 0.0, 0)


def test_what_seeds_share_cancels():
    base = {0: 0.1, 1: 0.5, 2: 0.9}
    found = paired({seed: value + 0.01 + 0.001 * (seed - 1) for seed, value in base.items()}, {**base, 7: 0.0})
    assert found
    assert (found.n, found.sign) == (3, 1)
    assert found.mean == pytest.approx(0.01)
    assert paired(base, {9: 0.5}) is None
    unclear = paired({0: 0.1, 1: 0.2}, {0: 0.2, 1: 0.1})
    assert unclear
    assert unclear.sign == 0
