"""A data set in memory, its split into training and validation examples, and the order of the batches."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from locallearn.data.intake import PLAIN, Intake
from locallearn.errors import DataError

# Key of the one permutation behind every stratified choice: fixed, so that a split never depends on a run's seed.
_SPLIT_KEY = 0x73706C6974
_DRAWS = 1 << 63
"""Above every epoch's number: draws of a step are apart from the permutations under the same seed."""


class Arrays(NamedTuple):
    """Examples and their labels: `x` [N, *example_shape], float32 unless an `Intake` reads other numbers, `y` int32 [N]."""

    x: np.ndarray
    y: np.ndarray

    def take(self, index: np.ndarray) -> Arrays:
        """The examples at `index` (int [K]), in that order."""
        return Arrays(self.x[index], self.y[index])


class Split(NamedTuple):
    """Training, validation (perhaps of size 0) and test examples of one data set."""

    train: Arrays
    validation: Arrays
    test: Arrays


@dataclass(frozen=True, eq=False)
class Dataset:
    """A classification data set in memory, read-only; build one with `Dataset.of`.

    `fingerprint` is the SHA-256 (hex) of the shapes, types and bytes of all four arrays. intake: how stored examples become inputs.
    span: of data in order, such as stretches of a text, how many neighbours on each side an example shares something with; None where
    examples are independent.
    """

    name: str
    train: Arrays
    test: Arrays
    classes: int
    fingerprint: str
    intake: Intake = PLAIN
    span: int | None = None

    @property
    def example_shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return self.train.x.shape[1:]

    @classmethod
    def of(
        cls,
        name: str,
        train: tuple[np.ndarray, np.ndarray],
        test: tuple[np.ndarray, np.ndarray],
        classes: int | None = None,
        *,
        intake: Intake = PLAIN,
        span: int | None = None,
    ) -> Dataset:
        """A checked data set from (x, y) pairs: x real numbers [N, *example_shape], y integers [N] from 0 on.

        `classes` is one more than the largest label unless given. x becomes float32, unless an `intake` reads it as it is. Float32 and
        int32 arrays are not copied, so do not change them afterwards. DataError says which array is wrong and how.
        """
        checked = _checked(f"{name}, train", *train, intake), _checked(f"{name}, test", *test, intake)
        shapes = [part.x.shape[1:] for part in checked]
        if shapes[0] != shapes[1]:
            raise DataError(f"{name}: training examples have shape {shapes[0]} but test examples {shapes[1]}")
        found = 1 + max(int(part.y.max()) for part in checked)
        if classes is not None and classes < found:
            raise DataError(f"{name}: label {found - 1} does not fit {classes} classes (labels are 0 to classes - 1)")
        return cls(name, *checked, classes=classes or found, fingerprint=_fingerprint(checked), intake=intake, span=span)


def _checked(where: str, x: np.ndarray, y: np.ndarray, intake: Intake) -> Arrays:
    x, y = np.asarray(x), np.asarray(y)
    if x.dtype.kind not in "fiub" or x.ndim < 2:
        raise DataError(f"{where}: x must be real numbers [N, *example_shape], not {x.dtype} {list(x.shape)}")
    if y.dtype.kind not in "iu" or y.ndim != 1:
        raise DataError(f"{where}: labels y must be integers [N], not {y.dtype} {list(y.shape)}")
    if len(x) != len(y):
        raise DataError(f"{where}: {len(x)} examples x but {len(y)} labels y")
    if x.size == 0:
        raise DataError(f"{where}: empty, x has shape {list(x.shape)}")
    if y.min() < 0 or y.max() >= 2**31:
        raise DataError(f"{where}: labels must be 0 to classes - 1, found {y.min()} to {y.max()}")
    if intake.scale or intake.tokens:
        return Arrays(_read_only(x), _read_only(y.astype(np.int32, copy=False)))
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, and is reported as such
        x = x.astype(np.float32, copy=False)
    bad = np.flatnonzero(~np.isfinite(x).reshape(len(x), -1).all(axis=1))
    if len(bad):
        raise DataError(f"{where}: {len(bad)} examples with NaN or infinite values (as float32), first at {bad[0]}")
    return Arrays(_read_only(x), _read_only(y.astype(np.int32, copy=False)))


def _read_only(array: np.ndarray) -> np.ndarray:
    view = array.view()
    view.flags.writeable = False
    return view


def _fingerprint(parts: Iterable[Arrays]) -> str:
    digest = hashlib.sha256()
    for array in (array for part in parts for array in part):
        little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))  # the same on every machine
        digest.update(f"{little.dtype.str}{list(little.shape)}".encode())
        digest.update(little.data)  # the array's own buffer, not a copy
    return digest.hexdigest()


def split(dataset: Dataset, validation: float | int) -> Split:
    """Set aside `validation` training examples: a share of them (0 <= float < 1) or a count (int).

    Stratified by class and the same in every run, whatever its seed; test examples are never touched. Of data in order the last ones, and
    those that share something with them are dropped. 0 gives an empty validation set. DataError if nothing would be left to train on, or a
    share rounds to no example at all.
    """
    total = len(dataset.train.y)
    count = _validation_count(dataset.name, validation, total)
    if dataset.span is not None:
        kept = max(0, total - count - dataset.span) if count else total
        if not kept:
            raise DataError(f"{dataset.name}: validation {validation} leaves nothing to train on that shares nothing with it")
        return Split(Arrays(*(a[:kept] for a in dataset.train)), Arrays(*(a[total - count :] for a in dataset.train)), dataset.test)
    held = np.zeros(total, bool)
    held[stratified(dataset.train.y, count)] = True
    train, kept = (dataset.train.take(np.flatnonzero(mask)) for mask in (~held, held))
    return Split(train, kept, dataset.test)


def _validation_count(name: str, validation: float | int, total: int) -> int:
    is_count = isinstance(validation, int)
    count = validation if is_count else round(validation * total) if 0 <= validation < 1 else -1
    if isinstance(validation, bool) or not 0 <= count < total:
        raise DataError(f"{name}: validation {validation} must be a share (0 <= share < 1) or a count below the {total} training examples")
    if validation and not count:
        raise DataError(f"{name}: validation {validation} of {total} training examples rounds to none; give a count")
    return count


def limited(name: str, train: Arrays, limit: int | None) -> Arrays:
    """`limit` of the training examples of data set `name`, stratified by class; all of them with None."""
    if limit is None:
        return train
    if not 1 <= limit <= len(train.y):
        raise DataError(f"{name}: limit {limit} must be 1 to {len(train.y)}, the number of training examples")
    return train.take(stratified(train.y, limit))


def stratified(y: np.ndarray, count: int) -> np.ndarray:
    """Ascending indices of `count` examples of `y` (int [N]), each class in proportion to within one example.

    A pure function: within a class the choice follows one fixed permutation.
    """
    labels, sizes = np.unique(y, return_counts=True)
    share = sizes * count / max(len(y), 1)
    quota = np.floor(share).astype(int)
    largest_remainders = np.argsort(quota - share, kind="stable")[: count - quota.sum()]
    quota[largest_remainders] += 1
    shuffled = order(_SPLIT_KEY, 0, len(y))
    chosen = [shuffled[y[shuffled] == label][:k] for label, k in zip(labels, quota, strict=True)]
    return np.sort(np.concatenate(chosen)) if chosen else np.empty(0, np.int32)


def order(seed: int, epoch: int, n: int) -> np.ndarray:
    """The permutation of n examples in one epoch, int32 [n]: a pure function of its arguments (0 <= seed < 2**64).

    It sorts raw Philox output, which numpy promises never to change (NEP 19); `Generator.permutation` is not covered.
    """
    if not (0 <= seed < 2**64 and epoch >= 0 and n >= 0):
        raise DataError(f"seed {seed}, epoch {epoch} and n {n} must not be negative, and the seed below 2**64")
    raw = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(n)
    return np.argsort(raw, kind="stable").astype(np.int32)


def batches(seed: int, n: int, batch: int, start: int, stop: int) -> np.ndarray:
    """Indices of the examples of global steps start to stop - 1, int32 [stop - start, batch].

    An epoch has n // batch steps; the rest of its permutation is dropped, other examples in each epoch. A pure
    function of its arguments, so a run resumed at any step sees the order it would have seen. DataError if batch > n.
    """
    if not 1 <= batch <= n:
        raise DataError(f"batch {batch} must be between 1 and the {n} training examples")
    if not 0 <= start <= stop:
        raise DataError(f"steps {start} to {stop} are not a range from 0 on")
    steps = n // batch
    first, last = start // steps, -(-stop // steps)
    epochs = [order(seed, epoch, n)[: steps * batch].reshape(steps, batch) for epoch in range(first, last)]
    whole = np.concatenate([np.empty((0, batch), np.int32), *epochs])
    return whole[start - first * steps : stop - first * steps]


def trickle(seed: int, n: int, batch: int, arrivals: int, start: int, stop: int) -> np.ndarray:
    """The same of steps in which examples arrive: in each so many new ones, and others drawn from all that have arrived, with replacement.

    A step s >= 0 has the next `arrivals` examples of one permutation, or what is left of it. Also a pure function of its arguments.
    DataError if arrivals > batch.
    """
    if not 1 <= arrivals <= min(batch, n):
        raise DataError(f"arrivals {arrivals} must be between 1 and the batch of {batch}, and no more than the {n} training examples")
    coming, found = order(seed, 0, n), np.empty((stop - start, batch), np.int32)
    for k, step in enumerate(range(start, stop)):
        new = coming[step * arrivals : (step + 1) * arrivals]
        raw = np.random.Philox(key=np.array([seed, _DRAWS + step], np.uint64)).random_raw(batch - len(new))
        found[k] = np.concatenate([new, coming[(raw % np.uint64(min(n, (step + 1) * arrivals))).astype(np.int64)]])
    return found
