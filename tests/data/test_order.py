"""The order of examples: permutations, pure functions, and a resumed run that sees what it would have seen."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from locallearn.data import batches, order, trickle
from locallearn.errors import DataError

seeds = st.integers(0, 2**64 - 1)


@given(seeds, st.integers(0, 10**6), st.integers(0, 500))
def test_order_is_a_permutation_and_repeats(seed, epoch, n):
    first = order(seed, epoch, n)
    assert first.dtype == np.int32
    np.testing.assert_array_equal(np.sort(first), np.arange(n))
    np.testing.assert_array_equal(first, order(seed, epoch, n))


def test_order_differs_between_epochs_and_seeds():
    drawn = {order(seed, epoch, 50).tobytes() for seed in range(20) for epoch in range(20)}
    assert len(drawn) == 400


def test_order_has_no_favourite_place():
    """Chi-squared over places: 2000 permutations of 8, 49 degrees of freedom, mean 49 and deviation 10."""
    counts = np.zeros((8, 8))
    for epoch in range(2000):
        counts[np.arange(8), order(7, epoch, 8)] += 1
    assert 10 < ((counts - 250) ** 2 / 250).sum() * 49 / 56 < 100


def philox(key, block):
    """Philox 4x64-10 (Salmon et al., SC 2011) in plain Python: four numbers from a key and a counter."""
    (k0, k1), (c0, c1, c2, c3), full = key, (block, 0, 0, 0), 2**64
    for _ in range(10):
        high0, low0 = divmod(0xD2E7470EE14C6C93 * c0, full)
        high1, low1 = divmod(0xCA5A826395121157 * c2, full)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) % full, (k1 + 0xBB67AE8584CAA73B) % full
    return [c0, c1, c2, c3]


@given(seeds, st.integers(0, 2**63), st.integers(0, 40))
def test_order_sorts_the_output_of_philox(seed, epoch, n):
    """So it is the same on every machine and with every numpy."""
    drawn = [number for block in range(1, n // 4 + 2) for number in philox((seed, epoch), block)][:n]
    assert order(seed, epoch, n).tolist() == sorted(range(n), key=drawn.__getitem__)


@given(seeds, st.integers(1, 60), st.data())
def test_resuming_anywhere_equals_a_slice_of_the_whole(seed, n, data):
    batch = data.draw(st.integers(1, n))
    start, middle, stop = sorted(data.draw(st.lists(st.integers(0, 40), min_size=3, max_size=3)))
    whole = batches(seed, n, batch, 0, 40)
    assert (whole.shape, whole.dtype) == ((40, batch), np.int32)
    np.testing.assert_array_equal(batches(seed, n, batch, start, stop), whole[start:stop])
    parts = batches(seed, n, batch, start, middle), batches(seed, n, batch, middle, stop)
    np.testing.assert_array_equal(np.concatenate(parts), whole[start:stop])


@given(seeds, st.integers(1, 60), st.data())
def test_each_epoch_is_the_head_of_its_permutation(seed, n, data):
    batch = data.draw(st.integers(1, n))
    steps = n // batch
    drawn = batches(seed, n, batch, 0, 3 * steps).reshape(3, -1)
    for epoch in range(3):
        np.testing.assert_array_equal(drawn[epoch], order(seed, epoch, n)[: steps * batch])


def test_every_example_gets_its_turn_though_remainders_are_dropped():
    assert set(batches(0, 10, 4, 0, 40).ravel()) == set(range(10))


def test_far_steps_cost_only_their_own_epochs():
    assert batches(3, 1000, 10, 10**9, 10**9 + 2).shape == (2, 10)


@pytest.mark.parametrize(("n", "batch"), [(10, 11), (10, 0), (0, 1), (10, -1)])
def test_a_batch_that_does_not_fit_is_an_error(n, batch):
    with pytest.raises(DataError, match=f"batch {batch} must be between 1 and the {n} training examples"):
        batches(0, n, batch, 0, 1)


def test_steps_and_seeds_out_of_range_are_errors():
    with pytest.raises(DataError, match="steps 3 to 2"):
        batches(0, 10, 2, 3, 2)
    with pytest.raises(DataError, match="seed -1"):
        order(-1, 0, 10)
    with pytest.raises(DataError, match="below"):
        order(2**64, 0, 10)


@given(seeds, st.integers(1, 60), st.data())
def test_examples_arrive_so_many_at_a_step_and_the_others_have_arrived(seed, n, data):
    batch = data.draw(st.integers(1, n))
    arrivals = data.draw(st.integers(1, batch))
    steps = -(-n // arrivals)
    drawn, known = trickle(seed, n, batch, arrivals, 0, steps), set()
    for rows in drawn:
        new = dict.fromkeys(i for i in rows.tolist() if i not in known)
        known |= set(new)
        assert list(new) == rows[: len(new)].tolist()
        assert len(new) == min(arrivals, n - len(known) + len(new))
    assert known == set(range(n))
    start, stop = sorted(data.draw(st.lists(st.integers(0, steps), min_size=2, max_size=2)))
    np.testing.assert_array_equal(trickle(seed, n, batch, arrivals, start, stop), drawn[start:stop])


def test_draws_have_no_favourite_among_those_that_have_arrived():
    """Chi-squared over eight examples: 2000 draws each of 200, 7 degrees of freedom, mean 7 and deviation 3.7."""
    counts = np.bincount(np.concatenate([trickle(seed, 8, 208, 8, 0, 1)[0, 8:] for seed in range(80)]), minlength=8)
    assert 0.5 < ((counts - 2000) ** 2 / 2000).sum() < 25


def test_more_arrivals_than_fit_are_an_error():
    with pytest.raises(DataError, match="arrivals 5 must be between 1 and the batch of 4"):
        trickle(0, 10, 4, 5, 0, 1)
