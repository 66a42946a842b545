"""Where tuning looks: points fill every axis evenly, and stay where they are when axes and points are added."""

import numpy as np
import pytest

from locallearn.rules import RULES
from locallearn.search import Choice, Linear, Log, Whole, points, values


@pytest.mark.parametrize("study", [0, 1, 7])
@pytest.mark.parametrize("power", [0, 3, 5])
def test_each_equal_part_of_an_axis_has_one_point(study, power):
    found = points(5, 2**power, study)
    assert found.min() >= 0
    assert found.max() < 1
    for axis in found.T:
        assert sorted(np.floor(axis * 2**power)) == list(range(2**power))


def test_added_axes_and_points_leave_the_others_where_they_are():
    few = points(2, 5, 3)
    np.testing.assert_array_equal(points(2, 11, 3)[:5], few)
    np.testing.assert_array_equal(points(6, 5, 3)[:, :2], few)
    assert not np.array_equal(points(2, 5, 4), few)


def test_values_lie_in_their_ranges():
    assert [Log(1e-4, 1e-1).at(share) for share in (0.0, 1 / 3, 1.0)] == [1e-4, 1e-3, 1e-1]
    assert [Linear(-1.0, 3.0).at(share) for share in (0.0, 0.5, 1.0)] == [-1.0, 1.0, 3.0]
    assert [Whole(2, 4).at(share) for share in (0.0, 0.33, 0.34, 0.67, 1.0)] == [2, 2, 3, 4, 4]
    assert [Choice(("a", "b")).at(share) for share in (0.0, 0.49, 0.5, 1.0)] == ["a", "a", "b", "b"]
    assert Log(1.0, 10.0).at(0.123456) == 1.33
    drawn = values([Log(0.1, 10.0), Choice((1, 2, 3, 4))], 4, 0)
    assert sorted(second for _, second in drawn) == [1, 2, 3, 4]
    assert values([], 3, 0) == [[], [], []]


@pytest.mark.parametrize(
    ("kind", "ends"), [(Log, (0.0, 1.0)), (Log, (1.0, 1.0)), (Linear, (2.0, 1.0)), (Whole, (1, 2.5)), (Choice, ((1,),))]
)
def test_ranges_without_room_are_refused(kind, ends):
    with pytest.raises(ValueError, match=r"must be|need"):
        kind(*ends)


@pytest.mark.parametrize("name", list(RULES))
def test_a_rules_own_space_lies_within_what_its_fields_allow(name):
    from locallearn.config.fieldtypes import fields_of
    from locallearn.config.schema import Reader

    rule = RULES[name]
    reader = Reader(None)
    for key, each in rule.space.items():
        for share in (0.0, 0.5, 1.0):
            reader.field(fields_of(rule)[key], each.at(share), (key,))
        default = getattr(rule(), key)
        assert each.at(0.0) <= default <= each.at(1.0), f"{name}.{key}: its default, {default}, is outside"
    assert reader.mistakes == []
