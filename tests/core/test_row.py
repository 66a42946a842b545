"""Rows: one value for each block."""

import copy
import pickle
from typing import NamedTuple

import jax
import numpy as np
import pytest

from locallearn.chain import ABSENT, Row


class Pair(NamedTuple):
    a: object
    b: object


def test_an_attribute_of_a_row_is_the_row_of_that_attribute():
    row = Row([Pair(1, Pair(2, 3)), Pair(4, Pair(5, 6))])
    assert row.a.values == (1, 4)
    assert row.b.b.values == (3, 6)


def test_a_row_is_a_sequence():
    row = Row("abc")
    assert len(row) == 3
    assert row[0] == "a"
    assert row[-1] == "c"
    assert list(row) == ["a", "b", "c"]


def test_an_attribute_that_a_value_lacks_is_an_error():
    with pytest.raises(AttributeError, match="nothing"):
        _ = Row([Pair(1, 2)]).nothing


def test_attributes_of_what_is_absent_are_absent():
    row = Row([ABSENT, Pair(1, 2)])
    assert row.a[0] is ABSENT
    assert row.a[1] == 1


@pytest.mark.parametrize("here", [(True, True, True), (False, True, False), (False, False, False)])
def test_pytree_round_trip_keeps_what_is_absent_in_its_place(here):
    row = Row(Pair(np.full(2, i), i) if is_here else ABSENT for i, is_here in enumerate(here))
    leaves, tree = jax.tree.flatten(row)
    assert len(leaves) == 2 * sum(here)
    back = jax.tree.unflatten(tree, leaves)
    assert [value is not ABSENT for value in back] == list(here)
    assert all(value.b == i for i, value in enumerate(back) if value is not ABSENT)


def test_maps_touch_only_what_is_here():
    doubled = jax.tree.map(lambda x: 2 * x, Row([1, ABSENT, 3]))
    assert doubled.values == (2, ABSENT, 6)


def test_rows_with_different_gaps_are_different_structures():
    assert jax.tree.structure(Row([1, ABSENT])) != jax.tree.structure(Row([ABSENT, 1]))


@pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy, lambda row: pickle.loads(pickle.dumps(row))], ids=["copy", "deep", "pickle"])
def test_absent_stays_the_one_absent_when_copied_or_pickled(clone):
    back = clone(Row([ABSENT, 1]))
    assert back[0] is ABSENT
    assert back[1] == 1


def test_a_row_passes_through_jit():
    total = jax.jit(lambda row: Row([row[0], row[1] + 1]))(Row([ABSENT, 1]))
    assert total[0] is ABSENT
    assert total[1] == 2
