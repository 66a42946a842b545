"""Segments: calls wait, run together, give what direct calls give, and compile once."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locallearn.chain import ABSENT, Row
from locallearn.runtime.segments import Deferred, Segments, _pending


class Both(NamedTuple):
    total: jax.Array
    times: jax.Array


def both(owner, a, b, *, scale=1):
    return Both(scale * (a + b), a * b)


def lift(owner, a):
    return a + owner


X, Y = np.float32(3), np.arange(4, dtype=np.float32)


@pytest.fixture
def segments():
    return Segments()


def test_nothing_runs_before_it_is_needed(segments):
    value = segments.defer(both, 1, (X, Y), {})
    assert isinstance(value.total, Deferred)
    assert "not computed" in repr(value.total)
    assert segments.compiled == 0
    assert np.array_equal(segments.force(value.total), X + Y)
    assert "3." in repr(value.total)


def test_a_chain_of_calls_is_one_program(segments):
    first = segments.defer(both, 0, (X, Y), {"scale": 2})
    second = segments.defer(lift, 5, (first.total,), {})
    third = segments.defer(both, 0, (second, first.times), {})
    result = segments.force((third, {"kept": first.times}, Row([ABSENT, second])))
    assert segments.compiled == len(segments.programs) == 1
    expected = both(0, lift(5, both(0, X, Y, scale=2).total), both(0, X, Y).times)
    assert all(np.array_equal(a, b) for a, b in zip(result[0], expected, strict=True))
    assert np.array_equal(result[1]["kept"], X * Y)
    assert result[2][0] is ABSENT
    assert np.array_equal(result[2][1], 2 * (X + Y) + 5)


def test_what_is_not_needed_yet_waits(segments):
    calls = []

    def noted(owner, a):
        calls.append(owner)
        return a

    early, late = (segments.defer(noted, name, (X,), {}) for name in ("early", "late"))
    segments.force(early)
    assert calls == ["early"]
    segments.force(late)
    assert calls == ["early", "late"]


def test_a_call_runs_once_however_often_it_is_asked_for(segments):
    value = segments.defer(both, 0, (X, Y), {})
    a, b = segments.force(value.total), segments.force(value.total)
    after = segments.force(segments.defer(lift, 1, (value.total,), {}))
    assert a is b
    assert np.array_equal(after, X + Y + 1)


def test_the_same_structure_compiles_once_with_other_numbers(segments):
    for k in range(5):
        first = segments.defer(both, 0, (np.float32(k), Y + k), {})
        got = segments.force(segments.defer(lift, 2, (first.total,), {}))
        assert np.array_equal(got, k + (Y + k) + 2)
    assert segments.compiled == 1


@pytest.mark.parametrize(
    ("owner", "args", "options"), [(1, (X, Y), {}), (0, (X, Y), {"scale": 3}), (0, (X, X + 1), {}), (0, (X, Y.astype(np.int32)), {})]
)
def test_another_owner_option_or_shape_is_another_program(segments, owner, args, options):
    segments.force(segments.defer(both, 0, (X, Y), {}))
    got = segments.force(segments.defer(both, owner, args, options))
    assert segments.compiled == 2
    assert np.array_equal(got.total, both(owner, *args, **options).total)


def test_an_array_given_twice_is_not_taken_for_two_equal_ones(segments):
    same = segments.force(segments.defer(both, 0, (Y, Y), {}))
    different = segments.force(segments.defer(both, 0, (Y, Y + 1), {}))
    assert np.array_equal(same.times, Y * Y)
    assert np.array_equal(different.times, Y * (Y + 1))


def test_values_of_earlier_programs_are_inputs_of_later_ones(segments):
    first = segments.defer(both, 0, (X, Y), {})
    segments.force(first)
    second = segments.force(segments.defer(both, 0, (first.total, first.times), {}))
    assert np.array_equal(second.total, (X + Y) + X * Y)
    assert segments.compiled == 2


def test_values_that_nobody_deferred_come_back_as_they_are(segments):
    tree = (X, {"a": 1}, Row([ABSENT, Y]))
    back = segments.force(tree)
    assert back[0] is X
    assert back[1] == {"a": 1}
    assert back[2][1] is Y


def test_pytrees_and_empty_ones_are_arguments(segments):
    value = segments.defer(lambda owner, state, nothing: jax.tree.map(jnp.sum, state), 0, ({"w": Y, "b": X}, ()), {})
    assert float(segments.force(value)["w"]) == Y.sum()


def test_a_long_chain_needs_no_deep_stack(segments):
    value = X
    for _ in range(2000):
        value = segments.defer(same, None, (value,), {})
    assert len(_pending([value._call])) == 2000


def same(owner, a):
    return a
