"""Every codec, and every codec inside every wrapper: what crosses, how exactly, and how many bytes it takes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from locallearn.codec import CODECS, COMBINATORS, Context, Spec, blank, build, exact, int8, nbytes, packet_spec
from locallearn.runtime.frame import TRAIN, Address, frame, unframe
from locallearn.traffic import HEADER_BYTES

PLAIN = [((name, ()),) for name in CODECS if name not in COMBINATORS]
WRAPPED = [((name, ()), *inner) for name in sorted(COMBINATORS) for inner in [(), *PLAIN]]
EVERY = [*PLAIN, *WRAPPED, (("error_feedback", ()), ("error_feedback", ()), ("int8", ()))]
every = pytest.mark.parametrize("codec", EVERY, ids=lambda spec: "+".join(name for name, _ in spec))

SHAPES = [(), (1,), (5,), (3, 1), (1, 7), (4, 5), (2, 3, 5)]
"""Scalar, one element, odd widths, width one; few of them, since each compiles anew."""
FLOAT_SIZE = {"exact": 4, "bfloat16": 2, "float16": 2, "int8": 1}
ADDRESS = Address(TRAIN, 0, 1, 0, 7, 3)
few = settings(max_examples=30)


def innermost(codec):
    return codec[-1][0] if codec[-1][0] not in COMBINATORS else "exact"


def floats(shape, **limits):
    return hnp.arrays(np.float32, shape, elements=st.floats(width=32, **limits))


arrays = st.sampled_from(SHAPES).flatmap(functools.partial(floats, allow_nan=False, allow_infinity=False))
wild = st.sampled_from(SHAPES).flatmap(floats)


@functools.cache
def program(codec, shape, dtype, training):
    codec, spec = build(codec), Spec(shape, dtype)

    def run(x, index, memory):
        context = Context(index, training)
        packet, sender = codec.encode(x, memory[0], context)
        y, receiver = codec.decode(packet, memory[1], spec, context)
        return packet, y, (sender, receiver)

    return jax.jit(run)


def cross(codec, x, memory=None, training=True):
    """(packet, what arrives, memory) of one message."""
    x = np.asarray(x)
    memory = blank(build(codec), Spec(x.shape, x.dtype)) if memory is None else memory
    return program(codec, x.shape, x.dtype, training)(x, np.arange(x.shape[0] if x.ndim else 0, dtype=np.int32), memory)


@every
@few
@given(wild)
def test_shape_and_dtype_come_back(codec, x):
    _, y, _ = cross(codec, x)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@every
def test_narrow_floats_come_back_as_they_were_sent(codec, dtype):
    x = np.linspace(-3, 3, 20).reshape(4, 5).astype(dtype)
    _, y, _ = cross(codec, x)
    assert y.dtype == dtype
    np.testing.assert_allclose(np.asarray(y, np.float32), np.asarray(x, np.float32), atol=3 / 127)


@every
@few
@given(wild)
def test_the_frame_has_the_planned_size(codec, x):
    planned = packet_spec(build(codec), Spec(x.shape, x.dtype))
    packet, _, _ = cross(codec, x)
    assert nbytes(planned) == nbytes(packet) == len(frame(ADDRESS, packet)) - HEADER_BYTES
    back = unframe(frame(ADDRESS, packet), planned)
    assert [(part.tobytes(), part.dtype, part.shape) for part in back] == [(np.asarray(p).tobytes(), p.dtype, p.shape) for p in packet]


@every
@pytest.mark.parametrize("shape", SHAPES)
def test_sizes_are_those_of_the_formats(codec, shape):
    if innermost(codec) not in FLOAT_SIZE:
        pytest.skip("a format that this table does not know")
    numbers = int(np.prod(shape))
    scales = 4 * (numbers // shape[-1] if shape else 1) if innermost(codec) == "int8" else 0
    assert nbytes(packet_spec(build(codec), Spec(shape, jnp.float32))) == numbers * FLOAT_SIZE[innermost(codec)] + scales


@every
@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.int8, np.uint32, np.bool_])
def test_what_is_no_float_crosses_untouched(codec, dtype):
    x = np.array([[0, 1, 2], [255, 127, 1]]).astype(dtype)
    packet, y, _ = cross(codec, x)
    assert y.dtype == dtype
    assert np.array_equal(x, y)
    assert nbytes(packet) == x.nbytes


@every
@pytest.mark.parametrize("shape", SHAPES)
def test_zeros_stay_zeros(codec, shape):
    assert not np.any(cross(codec, np.zeros(shape, np.float32))[1])


@few
@given(wild)
def test_exact_keeps_every_bit(x):
    special = np.array([np.nan, -np.nan, np.inf, -np.inf, -0.0, 0.0, 1e-45, -1e-45, 3.4e38], np.float32)
    for array in (x, special):
        assert np.asarray(cross((("exact", ()),), array)[1]).tobytes() == array.tobytes()


@pytest.mark.parametrize(
    ("name", "digits", "smallest", "top"),
    [("bfloat16", 8, 2.0**-126, 2.0**127 * (2 - 2**-7)), ("float16", 11, 2.0**-24, 65504.0)],
)
@few
@given(x=arrays)
def test_casts_round_to_half_a_unit_in_the_last_place(name, digits, smallest, top, x):
    y = np.asarray(cross(((name, ()),), x)[1], np.float64)
    limited = np.clip(x.astype(np.float64), -top, top)
    assert np.all(np.abs(y - limited) <= np.maximum(np.abs(limited) * 2.0**-digits, smallest))


def test_a_cast_limits_what_is_beyond_its_range():
    x = np.array([1e38, -1e38, 65504, 65519, 70000], np.float32)
    assert cross((("float16", ()),), x)[1].tolist() == [65504, -65504, 65504, 65504, 65504]
    assert np.isfinite(cross((("bfloat16", ()),), np.array([3.4028235e38, -3.4028235e38], np.float32))[1]).all()


@few
@given(arrays)
def test_int8_is_off_by_half_a_step_at_most(x):
    y = np.asarray(cross((("int8", ()),), x)[1], np.float64)
    largest = np.max(np.abs(np.atleast_1d(x)), axis=-1, keepdims=True).astype(np.float64)
    bound = np.reshape(np.broadcast_to(largest / 254, np.atleast_1d(x).shape), x.shape)
    assert np.all(np.isfinite(y))
    assert np.all(np.abs(y - x) <= bound * (1 + 1e-4) + 2.0**-119)  # below that, float32 has no scale left


@pytest.mark.parametrize("k", range(8))
def test_int8_makes_nothing_finite_infinite(k):
    largest = np.finfo(np.float32).max
    x = np.array([largest * np.float32(1 - k * 1e-7), 1], np.float32)
    np.testing.assert_allclose(cross((("int8", ()),), x)[1][0], x[0], rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("size", [1e-6, 1e-3, 1, 1e4])
def test_int8_finds_the_scale_of_narrow_floats_in_full_precision(dtype, size):
    x = (np.random.default_rng(0).uniform(-1, 1, (4, 64)) * size).astype(dtype)
    packet, _, _ = cross((("int8", ()),), x)
    wide = np.asarray(x, np.float64)
    scale = np.abs(wide).max(-1, keepdims=True) / 127
    np.testing.assert_allclose(packet[1], scale, rtol=1e-6)
    assert np.all(np.abs(packet[0] * scale - wide) <= scale / 2 * (1 + 1e-4))


def test_int8_keeps_the_largest_value_and_the_sign():
    x = np.array([[-2.54, 1.0, 0.02], [100, -50, 0]], np.float32)
    packet, y, _ = cross((("int8", ()),), x)
    assert packet[0].tolist() == [[-127, 50, 1], [127, -64, 0]] or packet[0].tolist() == [[-127, 50, 1], [127, -63, 0]]
    np.testing.assert_allclose(packet[1], [[0.02], [100 / 127]], rtol=1e-6)
    np.testing.assert_allclose(y[0], [-2.54, 1.0, 0.02], rtol=1e-6)


def test_int8_scales_each_row_by_itself():
    x = np.array([[1e-6, 2e-6], [1e6, 2e6]], np.float32)
    np.testing.assert_allclose(cross((("int8", ()),), x)[1], x, rtol=1 / 127)


@every
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shape", [(1,), (5,), (4, 5), (3, 1)])
def test_what_is_not_finite_shows_at_the_other_end_and_leaves_other_rows_alone(codec, bad, shape):
    x = np.ones(shape, np.float32)
    x[(0,) * len(shape)] = bad
    _, y, _ = cross(codec, x)
    assert not np.isfinite(y[(0,) * len(shape)])
    assert np.isfinite(y[1:]).all() or len(shape) == 1


@every
@few
@given(x=arrays, seed=st.integers(0, 3))
def test_an_evaluation_uses_no_memory_and_leaves_it_alone(codec, x, seed):
    shape = x.shape
    used = cross(codec, np.full(shape, 0.3, np.float32) + np.float32(seed))[2]
    with_memory, without = cross(codec, x, used, training=False), cross(codec, x, training=False)
    for before, after in zip(jax.tree.leaves(used), jax.tree.leaves(with_memory[2]), strict=True):
        assert np.array_equal(before, after)
    assert np.asarray(with_memory[1]).tobytes() == np.asarray(without[1]).tobytes()


@pytest.mark.parametrize("codec", EVERY, ids=lambda spec: "+".join(name for name, _ in spec))
def test_an_evaluation_takes_as_many_bytes_as_a_message_of_training(codec):
    spec = Spec((4, 5), jnp.float32)
    assert packet_spec(build(codec), spec, training=True) == packet_spec(build(codec), spec, training=False)


series = hnp.arrays(np.float32, (12, 4, 5), elements=st.floats(-10, 10, width=32))


@pytest.mark.parametrize("inner", ["int8", "bfloat16", "float16"])
@few
@given(x=series)
def test_with_error_feedback_the_sum_of_what_arrives_tracks_the_sum_of_what_was_sent(inner, x):
    codec = (("error_feedback", ()), (inner, ()))
    memory, arrived = None, []
    for message in x:
        _, y, memory = cross(codec, message, memory)
        arrived.append(np.asarray(y, np.float64))
        # what is owed is what the last message lost: half a step of a value of at most 10 and an older debt
        owed = np.abs(np.sum(arrived, 0) - np.sum(x[: len(arrived)], 0, dtype=np.float64))
        assert owed.max() <= 11 * {"int8": 1 / 254, "bfloat16": 2**-8, "float16": 2**-11}[inner] + 1e-4


def test_without_error_feedback_what_is_small_is_lost_for_good():
    x = np.array([[127.0, 0.4]], np.float32)
    memory, total, plain = None, np.zeros((1, 2)), np.zeros((1, 2))
    for _ in range(10):
        _, y, memory = cross((("error_feedback", ()), ("int8", ())), x, memory)
        total += y
        plain += cross((("int8", ()),), x)[1]
    assert plain[0, 1] == 0
    assert abs(total[0, 1] - 4) <= 0.5


@few
@given(x=series.map(lambda x: np.where(np.abs(x) < 1e-30, np.float32(0), x)))  # arithmetic flushes subnormal numbers
def test_error_feedback_on_exact_is_exact(x):
    memory = None
    for message in x:
        _, y, memory = cross((("error_feedback", ()), ("exact", ())), message, memory)
        assert np.array_equal(y, message)
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(memory))


def test_the_same_spec_builds_the_same_codec():
    spec = (("error_feedback", ()), ("int8", ()))
    assert build(spec) is build((("error_feedback", ()), ("int8", ())))
    assert build((("exact", ()),)) is exact()
    assert build((("int8", ()),)) is not build((("bfloat16", ()),))


def test_a_wrapper_with_nothing_in_it_wraps_exact():
    x = np.array([[1.1, 2.2]], np.float32)
    assert np.array_equal(cross((("error_feedback", ()),), x)[0][0], x)


@pytest.mark.parametrize("name", sorted(set(CODECS) - COMBINATORS))
def test_a_codec_that_wraps_nothing_must_stand_last(name):
    with pytest.raises(ValueError, match=f"`{name}` wraps nothing, so it must stand last"):
        build(((name, ()), ("exact", ())))


@pytest.mark.parametrize("name", CODECS)
def test_every_codec_says_what_it_suits(name):
    assert "Suits" in CODECS[name].__doc__


def test_int8_rounds_the_same_whatever_else_is_in_the_batch():
    x = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    codec = int8()
    whole = codec.encode(jnp.asarray(x), (), Context(None))[0]
    row = codec.encode(jnp.asarray(x[2:3]), (), Context(None))[0]
    assert np.array_equal(whole[0][2:3], row[0])
