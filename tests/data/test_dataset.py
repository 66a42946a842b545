"""Dataset.of against mistakes, and the split against its promises."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from locallearn.data import Dataset, split
from locallearn.errors import DataError

X, Y = np.arange(12.0).reshape(6, 2), np.array([0, 1, 2, 0, 1, 2])


def labelled(y, test=3):
    """A data set in which x tells every example apart: training examples count up from 0, test examples down from -1."""
    x = np.arange(len(y), dtype=np.float32)[:, None]
    return Dataset.of("toy", (x, np.asarray(y)), (-1 - np.arange(float(test))[:, None], np.zeros(test, int)))


def test_of_converts_types_and_counts_classes():
    data = Dataset.of("toy", (X, Y), (X[:2], Y[:2]))
    assert (data.train.x.dtype, data.train.y.dtype) == (np.float32, np.int32)
    assert (data.classes, data.example_shape) == (3, (2,))
    np.testing.assert_array_equal(data.train.x, X)
    assert Dataset.of("toy", (X, Y), (X, Y), classes=7).classes == 7


def test_arrays_are_read_only_but_the_users_stay_writable():
    mine = X.astype(np.float32)
    data = Dataset.of("toy", (mine, Y), (X, Y))
    with pytest.raises(ValueError, match="read-only"):
        data.train.x[0] = 1
    mine[0] = 1


def test_fingerprint_is_the_hash_of_shapes_types_and_bytes():
    data = Dataset.of("toy", (X, Y), (X[:1], Y[:1]))
    digest = hashlib.sha256()
    for kind, shape, array in (("<f4", "[6, 2]", X), ("<i4", "[6]", Y), ("<f4", "[1, 2]", X[:1]), ("<i4", "[1]", Y[:1])):
        digest.update((kind + shape).encode() + array.astype(kind).tobytes())
    assert data.fingerprint == digest.hexdigest()


def test_fingerprint_notices_one_value_one_label_and_the_shape():
    changed_x, changed_y = X + np.eye(6, 2) * 1e-3, np.array([0, 1, 2, 0, 2, 1])
    variants = [(X, Y), (changed_x, Y), (X, changed_y), (X.reshape(6, 2, 1), Y), (X[:5], Y[:5])]
    prints = {Dataset.of("toy", v, (v[0][:1], v[1][:1])).fingerprint for v in variants}
    assert len(prints) == len(variants)
    assert Dataset.of("another name", (np.asfortranarray(X), Y), (X[:1], Y[:1])).fingerprint in prints


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X, Y[:5], r"toy, train: 6 examples x but 5 labels y"),
        (X[:0], Y[:0], r"empty, x has shape \[0, 2\]"),
        (X[:, :0], Y, r"empty, x has shape \[6, 0\]"),
        (np.where(X == 5, np.nan, X), Y, r"1 examples with NaN or infinite values \(as float32\), first at 2"),
        (X * 1e38, Y, r"NaN or infinite values"),
        (X, Y - 1, r"labels must be 0 to classes - 1, found -1 to 1"),
        (X, Y + 2**31, r"labels must be 0 to classes - 1"),
        (X, Y.astype(float), r"labels y must be integers \[N\], not float64 \[6\]"),
        (X, np.eye(6, dtype=int), r"labels y must be integers \[N\], not int64 \[6, 6\]"),
        (X[:, 0], Y, r"x must be real numbers \[N, \*example_shape\], not float64 \[6\]"),
        (X.astype(str), Y, r"x must be real numbers"),
        (X.astype(object), Y, r"x must be real numbers"),
        (X.reshape(6, 1, 2), Y, r"training examples have shape \(1, 2\) but test examples \(2,\)"),
    ],
)
def test_mistakes_in_arrays_are_named(x, y, message):
    with pytest.raises(DataError, match=message):
        Dataset.of("toy", (x, y), (X, Y))


def test_too_few_classes_is_an_error():
    with pytest.raises(DataError, match="label 2 does not fit 2 classes"):
        Dataset.of("toy", (X, Y), (X, Y), classes=2)


labels = st.lists(st.integers(0, 4), min_size=2, max_size=200)


@given(labels, st.data())
def test_split_divides_the_training_examples(y, data):
    dataset = labelled(y)
    count = data.draw(st.integers(0, len(y) - 1))
    parts = split(dataset, count)
    assert len(parts.validation.y) == count
    assert parts.test is dataset.test
    train, validation = parts.train.x[:, 0].astype(int), parts.validation.x[:, 0].astype(int)
    assert sorted([*train, *validation]) == list(range(len(y)))  # disjoint, complete, nothing from the test set
    for part, index in ((parts.train, train), (parts.validation, validation)):
        assert list(part.y) == [y[i] for i in index]
        assert list(index) == sorted(index)


@given(labels, st.data())
def test_split_is_stratified_to_within_one_example(y, data):
    count = data.draw(st.integers(0, len(y) - 1))
    kept = split(labelled(y), count).validation.y
    for label in set(y):
        assert abs((kept == label).sum() - y.count(label) * count / len(y)) < 1


@given(labels, st.floats(0, 0.99))
def test_split_by_share_is_the_split_by_count_and_repeats(y, share):
    count = round(share * len(y))
    if count == len(y) or (count == 0 and share > 0):
        with pytest.raises(DataError):
            split(labelled(y), share)
        return
    first, again, counted = split(labelled(y), share), split(labelled(y), share), split(labelled(y), count)
    assert first.train.x.tobytes() == again.train.x.tobytes() == counted.train.x.tobytes()


def test_split_does_not_simply_take_the_first_examples():
    kept = split(labelled([0] * 100), 50).validation.x[:, 0]
    assert 35 < kept.mean() < 65


def test_no_validation_is_an_empty_set_of_the_right_shape():
    parts = split(labelled([0, 1, 0]), 0)
    assert parts.validation.x.shape == (0, 1)
    assert parts.validation.y.dtype == np.int32
    assert len(split(labelled([0, 1, 0]), 0.0).validation.y) == 0


@pytest.mark.parametrize("validation", [3, 4, -1, 1.0, 2.5, -0.5, float("nan"), 0.99, True])
def test_too_much_validation_is_an_error(validation):
    with pytest.raises(DataError, match=r"must be a share .* or a count below the 3 training examples"):
        split(labelled([0, 1, 0]), validation)


def test_a_share_of_nothing_is_an_error():
    with pytest.raises(DataError, match="rounds to none"):
        split(labelled([0, 1, 0]), 0.01)
