"""Fifty runs in which actors, workers, nodes and drivers are killed at random: about an hour, so not every day."""

import pytest

from tests.fabrics.kills import many

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_whatever_is_killed_the_result_is_right_and_nothing_is_left():
    assert many(50, seed=0) == 0
