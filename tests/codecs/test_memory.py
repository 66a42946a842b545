"""Codecs that remember: what arrives of a series of messages, and that both ends remember the same."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from locallearn.codec import Context, Spec, blank, build, nbytes

FEEDBACK, EXACT, INT8, INT4 = (((name, ()),) for name in ("error_feedback", "exact", "int8", "int4"))
few = settings(max_examples=20)
walks = hnp.arrays(np.float32, (12, 4, 20), elements=st.floats(-10, 10, width=32))


def slow(seed, steps=12, shape=(8, 50), moving=0.1):
    """A series of messages of which few numbers change from one to the next."""
    rng = np.random.default_rng(seed)
    change = rng.normal(size=(steps, *shape)) * (rng.uniform(size=(steps, *shape)) < moving)
    return np.cumsum(change, 0).astype(np.float32)


def used(spec, packet):
    return len(build(spec).wire.pack(b"".join(part.tobytes() for part in packet)))


@pytest.mark.parametrize("inner", ["int8", "bfloat16", "float16"])
@few
@given(x=walks)
def test_with_error_feedback_the_sum_of_what_arrives_tracks_the_sum_of_what_was_sent(series, inner, x):
    arrived, _ = series((*FEEDBACK, (inner, ())), x)
    owed = np.abs(np.cumsum(arrived, 0, dtype=np.float64) - np.cumsum(x, 0, dtype=np.float64))
    # what is owed is what the last message lost: half a step of a value of at most 10 and an older debt
    assert owed.max() <= 11 * {"int8": 1 / 254, "bfloat16": 2**-8, "float16": 2**-11}[inner] + 1e-4


@pytest.mark.parametrize("inner", [("topk", (0.1,)), ("sign", ()), ("low_rank", (1,)), ("randomk", (0.2, "nearest"))], ids=str)
def test_error_feedback_telescopes_around_every_contraction(series, inner):
    """The mean of what arrives of one message sent again and again goes to it as 1 / times."""
    x = np.random.default_rng(0).normal(size=(4, 20)).astype(np.float32)
    arrived, (sender, _) = series((*FEEDBACK, inner), [x] * 120)
    mean = np.cumsum(arrived, 0) / np.arange(1, 121)[:, None, None]
    np.testing.assert_allclose(arrived.sum(0) + sender[0], x * 120, rtol=1e-4, atol=1e-3)
    assert np.linalg.norm(mean[-1] - x) < 0.3 * np.linalg.norm(mean[5] - x)


def test_without_error_feedback_what_is_small_is_lost_for_good(series):
    x = np.array([[127.0, 0.4]], np.float32)
    assert series(INT8, [x] * 10)[0][:, 0, 1].sum() == 0
    assert abs(series((*FEEDBACK, *INT8), [x] * 10)[0][:, 0, 1].sum() - 4) <= 0.5


LOSSLESS = ["error_feedback", "every(1)", "delayed(0)", "difference", "difference(0)", "deflate"]


@pytest.mark.parametrize("name", LOSSLESS)
@few
@given(x=walks.map(lambda x: np.where(np.abs(x) < 1e-30, np.float32(0), x)))  # arithmetic flushes subnormal numbers
def test_wrappers_that_do_nothing_are_exact(series, name, x):
    word, _, inside = name.rstrip(")").partition("(")
    arrived, memory = series(((word, (float(inside) if word == "difference" else int(inside),) if inside else ()), *EXACT), x)
    assert np.array_equal(arrived, x)
    if name == "error_feedback":
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(memory))


def test_every_sends_one_in_k_and_repeats_it(cross):
    spec = (("every", (3,)), *INT8)
    messages = slow(0, 8)
    memory, arrived, sizes = None, [], []
    for x in messages:
        packet, y, memory = cross(spec, x, memory)
        arrived.append(y)
        sizes.append(used(spec, packet))
    plain = [cross(INT8, messages[k - k % 3])[1] for k in range(8)]
    assert np.array_equal(arrived, plain)
    assert [size > 0 for size in sizes] == [k % 3 == 0 for k in range(8)]


def test_every_counts_for_the_codec_inside_only_what_was_sent(series):
    x = slow(1, 9)
    thinned, _ = series((("every", (3,)), *FEEDBACK, *INT4), x)
    assert np.array_equal(thinned[::3], series((*FEEDBACK, *INT4), x[::3])[0])


def test_delayed_messages_arrive_later(series):
    x = slow(2)
    for k in (1, 3):
        arrived, _ = series((("delayed", (k,)), *EXACT), x)
        assert np.array_equal(arrived[k:], x[:-k])
        assert not arrived[:k].any()


@pytest.mark.parametrize("threshold", [0.0, 0.3])
def test_events_leave_no_number_further_off_than_the_threshold(series, threshold):
    x = slow(3)
    arrived, _ = series((("difference", (threshold,)),), x)
    assert np.abs(arrived - x).max() <= threshold
    assert np.array_equal(arrived[0] != 0, np.abs(x[0]) > threshold)
    moved = arrived[1:] != arrived[:-1]
    assert np.array_equal(arrived[1:][moved], x[1:][moved])


@pytest.mark.parametrize(("inner", "row"), [((), 256), (INT8, 68), (INT4, 36)])
@few
@given(seed=st.integers(0, 99), moving=st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0]))
def test_events_take_bytes_for_what_happened(cross, inner, row, seed, moving):
    spec = (("difference", (0.0,)), *inner)
    before, after = slow(seed, 2, moving=1.0)[0], slow(seed, 2, moving=1.0)[0]
    chosen = np.random.default_rng(seed).uniform(size=after.shape) < moving
    after[chosen] += 1
    packet, y, memory = cross(spec, before)
    base = y.copy()
    packet, y, _ = cross(spec, after, memory)
    k = np.count_nonzero(after != base)
    places = min(2 * k, 50)
    room = 4 + places + row * (k // 64) + (row if k % 64 else 0)
    assert used(spec, packet) <= (room if k else 0)
    assert used(spec, packet) > room - row - 1 or not k
    assert np.array_equal(y == base, after == base) or inner


@pytest.mark.parametrize(
    "spec", [(("difference", ()), *INT8), (("difference", (0.05,)), *INT4), (("difference", (None, 5)), *INT4)], ids=str
)
def test_both_ends_of_a_difference_know_the_same_bits(series, spec):
    _, (sender, receiver) = series(spec, slow(4, 40))
    assert all(a.tobytes() == b.tobytes() for a, b in zip(*map(jax.tree.leaves, (sender[0], receiver[0])), strict=True))


def test_both_ends_know_the_same_bits_in_programs_of_their_own():
    """Sender and receiver are compiled apart where frames are real."""
    x, context = slow(5, 60), Context(np.arange(8))
    seen = Spec(x[0].shape, x.dtype)
    jax.config.update("jax_disable_most_optimizations", False)
    for inner in (INT4, (("int4", ("nearest", "minmax")),), (("bfloat16", ()),)):
        codec = build((("difference", ()), *inner))
        sender, receiver = blank(codec, seen)
        encode = jax.jit(lambda x, memory, codec=codec: codec.encode(x, memory, context))
        decode = jax.jit(lambda packet, memory, codec=codec: codec.decode(packet, memory, seen, context))
        for message in x:
            packet, sender = encode(message, sender)
            _, receiver = decode(packet, receiver)
        np.testing.assert_array_equal(sender[0].values, receiver[0].values)
    jax.config.update("jax_disable_most_optimizations", True)


def test_a_closed_loop_comes_to_the_value(series):
    x = np.random.default_rng(0).normal(size=(4, 20)).astype(np.float32)
    errors = np.abs(series((("difference", ()), *INT4), [x] * 8)[0] - x).max((1, 2))
    assert np.all(errors[1:6] < errors[:5] / 5)


def test_differences_by_example_come_closer_with_every_visit(series):
    """AQ-SGD: examples come in another order in each epoch; what was known of each is its own."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(20, 30)).astype(np.float32)
    order = [rng.permutation(20).reshape(5, 4) for _ in range(4)]
    index = np.concatenate(order)
    arrived, _ = series((("difference", (None, 20)), *INT4), values[index], index)
    errors = np.abs(arrived - values[index]).max((1, 2)).reshape(4, 5).max(1)
    assert np.all(errors[1:] < errors[:-1] / 5)
    shared, _ = series((("difference", (None, 10)), *INT4), values[index], index)
    plain, _ = series(INT4, values[index], index)
    assert np.abs(shared - values[index]).max() <= np.abs(plain - values[index]).max() * (1 + 1e-5)


@pytest.mark.parametrize("threshold", [None, 0.001])
def test_rounds_begin_anew_with_each_batch(series, threshold):
    """What is far from the last batch and small is not drowned in the difference."""
    rng = np.random.default_rng(0)
    large, small = rng.normal(size=(2, 4, 20)).astype(np.float32) * np.array([100, 0.01], np.float32)[:, None, None]
    messages, index = [large, large, small, small * 2], [[0, 1, 2, 3]] * 2 + [[4, 5, 6, 7]] * 2
    arrived, _ = series((("difference", (threshold,)), *INT8), messages, index)
    assert np.abs(arrived[2] - small).max() <= max(np.abs(small).max() / 127, threshold or 0)
    assert np.array_equal(arrived[:2], series((("difference", (threshold,)), *INT8), messages[:2])[0])
    drowned, _ = series((("difference", (threshold, "message")), *INT8), messages, index)
    assert np.abs(drowned[2] - small).max() > np.abs(small).max()


def test_what_has_no_row_for_each_example_goes_on_from_batch_to_batch(series):
    x = slow(6, 6, shape=(5, 20))
    arrived, _ = series((("difference", ()), *INT4), [x[0]] * 6, [[k, k + 1] for k in range(6)])
    assert np.abs(arrived[-1] - x[0]).max() < 1e-4 * np.abs(x[0]).max()
    single, _ = series((("difference", (None, 7)), *EXACT), [np.float32(k) for k in range(3)], [[1, 2]] * 3)
    assert single.tolist() == [0, 1, 2]


def test_of_two_rows_for_one_place_the_last_is_known(cross):
    spec = (("difference", (None, 4)), *INT8)
    x = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    _, y, (sender, receiver) = cross(spec, x, index=[1, 5, 2])
    assert np.array_equal(receiver[0].values[1], y[1])
    assert np.array_equal(receiver[0].about, [-1, 5, 2, -1])
    assert np.array_equal(sender[0].values, receiver[0].values)


@pytest.mark.parametrize("level", [1, 9])
@few
@given(x=hnp.arrays(np.int32, (16,), elements=st.integers(0, 3)))
def test_deflate_loses_nothing_and_never_takes_more(cross, level, x):
    wire = build((("deflate", (level,)),)).wire
    packet, y, _ = cross((("deflate", (level,)),), x)
    body = packet[0].tobytes()
    assert np.array_equal(x, y)
    assert wire.unpack(wire.pack(body), len(body)) == body
    noise = np.random.default_rng(int(x.sum())).bytes(100 + int(x[0]))
    assert len(wire.pack(noise)) <= len(noise)
    assert wire.unpack(wire.pack(noise), len(noise)) == noise
    assert len(wire.pack(bytes(10000) + b"\1" + bytes(300))) < 100


def test_deflate_finds_what_is_worth_leaving_out(cross):
    x = np.zeros((64, 64), np.float32)
    x[::7] = 1
    spec = (("deflate", ()), *INT4)
    packet, _, _ = cross(spec, x)
    assert used(spec, packet) < nbytes(packet) / 20
