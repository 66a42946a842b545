"""How far what arrives is from what was sent: every bound that a docstring names, and means where it says that they are right."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

ROWS, N = 4, 33
few = settings(max_examples=15)


def floats(shape, **limits):
    return hnp.arrays(np.float32, shape, elements=st.floats(width=32, allow_nan=False, allow_infinity=False, **limits))


arrays = floats((ROWS, N))
tame = floats((ROWS, N), min_value=-100, max_value=100)
TINY = 2.0**-119
"""Below that, float32 has no scale left."""


def over_rows(reduce, x):
    return reduce(np.asarray(x, np.float64), axis=-1, keepdims=True)


def squares(x):
    return np.sum(np.asarray(x, np.float64) ** 2, axis=-1)


def spec(name, *args, inner=()):
    return ((name, args), *inner)


@few
@given(x=floats((9,)))
def test_exact_keeps_every_bit(cross, x):
    special = np.array([np.nan, -np.nan, np.inf, -np.inf, -0.0, 0.0, 1e-45, -1e-45, 3.4e38], np.float32)
    for array in (x, special):
        assert cross(spec("exact"), array)[1].tobytes() == array.tobytes()
        assert cross(spec("deflate", 1), array)[1].tobytes() == array.tobytes()


@pytest.mark.parametrize(
    ("codec", "digits", "smallest", "top"),
    [
        (spec("bfloat16"), 8, 2.0**-126, 2.0**127 * (2 - 2**-7)),
        (spec("float16"), 11, 2.0**-24, 65504.0),
        (spec("float8", "e4m3", "one"), 4, 2.0**-9, 448.0),
        (spec("float8", "e5m2", "one"), 3, 2.0**-16, 57344.0),
    ],
)
@few
@given(x=arrays)
def test_casts_round_to_half_a_unit_in_the_last_place_and_limit_what_is_beyond(cross, codec, digits, smallest, top, x):
    limited = np.clip(x.astype(np.float64), -top, top)
    assert np.all(
        np.abs(cross(codec, x)[1].astype(np.float64) - limited) <= np.maximum(np.abs(limited) * 2.0**-digits, smallest / 2 + 2.0**-126)
    )


@pytest.mark.parametrize(("form", "relative", "absolute"), [("e4m3", 2.0**-4, 2.0**-18), ("e5m2", 2.0**-3, 2.0**-32)])
@few
@given(x=arrays)
def test_scaled_float8(cross, form, relative, absolute, x):
    y = cross(spec("float8", form), x)[1].astype(np.float64)
    wide = x.astype(np.float64)
    bound = np.maximum(relative * np.abs(wide), absolute * over_rows(np.max, np.abs(wide)))
    assert np.isfinite(y).all()
    assert np.all(np.abs(y - wide) <= bound * (1 + 1e-4) + TINY)


TOPS = {"int8": (127, 255), "int4": (7, 15), "int2": (1.5, 3)}


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("levels", ["symmetric", "minmax"])
@pytest.mark.parametrize("name", TOPS)
@settings(max_examples=10)
@given(x=arrays)
def test_integers_are_off_by_half_a_step_or_less_than_one(cross, name, levels, rounding, x):
    y = cross(spec(name, rounding, levels), x)[1].astype(np.float64)
    wide = x.astype(np.float64)
    largest = over_rows(np.max, np.abs(wide))
    span = largest / TOPS[name][0] if levels == "symmetric" else (over_rows(np.max, wide) - over_rows(np.min, wide)) / TOPS[name][1]
    assert np.isfinite(y).all()
    assert np.all(np.abs(y - wide) <= span * (0.5 if rounding == "nearest" else 1) + largest * 1e-5 + TINY)


def test_a_scale_for_the_whole_message_is_that_of_its_largest_number(cross):
    x = np.zeros((ROWS, N), np.float32)
    x[1, 2], x[3, 1] = 7, 2.6
    assert cross(spec("int4", "nearest", "symmetric", "message"), x)[1][[1, 3], [2, 1]].tolist() == [7, 3]
    assert cross(spec("int4"), x)[1][3, 1] == pytest.approx(2.6)


def test_known_numbers_of_integers(cross):
    x = np.array([[-2.54, 1.0, 0.02], [100, -50, 0]], np.float32)
    packet, y, _ = cross(spec("int8"), x)
    assert packet[0].tolist() in ([[-127, 50, 1], [127, -63, 0]], [[-127, 50, 1], [127, -64, 0]])
    np.testing.assert_allclose(packet[1], [[0.02], [100 / 127]], rtol=1e-6)
    np.testing.assert_allclose(y[0], [-2.54, 1.0, 0.02], rtol=1e-6)
    assert cross(spec("int4"), np.array([[-7, 3, 0.4, 7, 1.6]], np.float32))[0][0].tolist() == [[0 + (10 << 4), 7 + (14 << 4), 9]]
    assert cross(spec("int2"), np.array([[-3, -0.1, 0.1, 3, 1.9]], np.float32))[0][0].tolist() == [[0 + (1 << 2) + (2 << 4) + (3 << 6), 2]]
    np.testing.assert_allclose(
        cross(spec("int2", "nearest", "minmax"), np.array([[0, 1, 2.1, 3]], np.float32))[1], [[0, 1, 2, 3]], rtol=1e-6
    )
    assert cross(spec("ternary"), np.array([[2, 0, -4, 0.5, 0, 3]], np.float32))[0][0].tolist() == [[2 + 3 + 0 + 27 + 81, 2]]
    assert cross(spec("ternary"), np.array([[2, 0, -4, 0.5, 0, 3]], np.float32))[1].tolist() == [[3, 0, -3, 0, 0, 3]]
    assert cross(spec("sign"), np.array([[2, 0, -4]], np.float32))[1].tolist() == [[2, 2, -2]]
    assert cross(spec("binary"), np.array([[1, 0, 0, 7, 5]], np.float32))[1].tolist() == [[1 / np.float32(3)] * 3 + [6, 6]]


SCALED = ["int8", "int4", "int2", "ternary", "sign", "binary", "float8"]


@pytest.mark.parametrize("codec", [spec(name) for name in SCALED] + [spec(name, "nearest", "minmax") for name in SCALED[:3]], ids=str)
def test_the_largest_numbers_there_are_stay_finite_and_large(cross, codec):
    largest = np.finfo(np.float32).max
    for k in range(8):
        x = np.array([[largest * np.float32(1 - k * 1e-7), -largest / 2, largest / 4, -largest]], np.float32)
        y = cross(codec, x)[1]
        assert np.isfinite(y).all()
        assert np.abs(y).max() > largest / 3


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("size", [1e-6, 1])
def test_scales_of_narrow_floats_are_found_in_full_precision(cross, dtype, size):
    x = (np.random.default_rng(0).uniform(-1, 1, (ROWS, N)) * size).astype(dtype)
    packet, _, _ = cross(spec("int8"), x)
    wide = np.asarray(x, np.float64)
    scale = np.abs(wide).max(-1, keepdims=True) / 127
    np.testing.assert_allclose(packet[1], scale, rtol=1e-6)
    assert np.all(np.abs(packet[0] * scale - wide) <= scale / 2 * (1 + 1e-4))


@few
@given(x=arrays)
def test_of_one_and_of_three_levels_the_error_is_at_most_the_message(cross, x):
    unit = x / np.maximum(np.max(np.abs(x), axis=-1, keepdims=True), np.float32(1e-30))  # squares that float64 holds
    for codec in (
        spec("sign"),
        spec("ternary"),
        spec("topk", 0.2),
        spec("randomk", 0.3, "nearest"),
        spec("random_projection", 5),
        spec("low_rank", 2),
    ):
        assert np.sum(squares(cross(codec, unit)[1] - unit)) <= np.sum(squares(unit)) * (1 + 1e-5)
    y = cross(spec("binary"), unit)[1]
    assert np.all(squares(y - unit) <= squares(unit - over_rows(np.mean, unit)) * (1 + 1e-4) + 1e-9)
    np.testing.assert_allclose(y.mean(-1), unit.mean(-1), atol=1e-5)


@few
@given(x=tame)
def test_the_largest_numbers_cross_as_they_are(cross, x):
    for among, rows in (("row", x), ("message", x.reshape(1, -1))):
        y = cross(spec("topk", 0.2, among), x)[1].reshape(rows.shape)
        k = round(0.2 * rows.shape[1])
        for sent, arrived in zip(rows, y, strict=True):
            assert set(np.flatnonzero(arrived)) <= set(np.argsort(-np.abs(sent), kind="stable")[:k]) or len({*np.abs(sent)}) < len(sent)
            assert np.sum(np.sort(np.abs(sent))[-k:]) == pytest.approx(np.sum(np.abs(arrived)), rel=1e-5)
            assert all(a in (0, s) for a, s in zip(arrived, sent, strict=True))


@pytest.mark.parametrize("fraction", [0.05, 0.5])
def test_places_cross_as_numbers_or_as_bits(cross, fraction):
    x = np.random.default_rng(0).normal(size=(3, 300)).astype(np.float32)
    packet, y, _ = cross(spec("topk", fraction), x)
    assert packet[0].dtype == (np.uint16 if fraction == 0.05 else np.uint8)
    assert np.count_nonzero(y) == 3 * round(300 * fraction)
    assert np.array_equal(y[y != 0], x[y != 0])


def test_what_is_chosen_crosses_through_the_codec_after_it(cross):
    x = np.random.default_rng(0).normal(size=(ROWS, N)).astype(np.float32)
    plain, coarse = (cross(spec("topk", 0.2, inner=inner), x)[1] for inner in ((), spec("int8")))
    assert np.array_equal(plain != 0, coarse != 0)
    np.testing.assert_allclose(plain, coarse, atol=np.abs(x).max() / 254)


UNBIASED = [
    spec("int4", "stochastic"),
    spec("int2", "stochastic", "minmax"),
    spec("ternary", "stochastic"),
    spec("randomk", 0.3),
    spec("randomk", 0.3, inner=spec("int8", "stochastic")),
]


@pytest.mark.parametrize("codec", UNBIASED, ids=str)
def test_the_mean_over_messages_is_right(series, codec):
    x = np.random.default_rng(1).normal(size=(ROWS, N)).astype(np.float32)
    times = 400
    arrived, _ = series(codec, [x] * times)
    error = arrived.mean(0) - x
    spread = arrived.std(0) / np.sqrt(times) + 0.003 * np.abs(x).max()  # a chance of 1 % may not have come once
    assert np.abs(error / spread).max() < 5
    assert np.sqrt(np.mean((error / spread) ** 2)) < 1.4
    assert len({y.tobytes() for y in arrived}) > 300


def test_a_random_subspace_is_right_in_the_mean_over_seeds(cross):
    x = np.random.default_rng(1).normal(size=(ROWS, N)).astype(np.float32)
    codec = spec("random_projection", 5, "unbiased")
    arrived = np.stack([cross(codec, x, key=(0, seed))[1] for seed in range(200)])
    spread = arrived.std(0) / np.sqrt(len(arrived))
    assert np.abs((arrived.mean(0) - x) / spread).max() < 5
    nearest = np.stack([cross(spec("random_projection", 5), x, key=(0, seed))[1] for seed in range(200)])
    np.testing.assert_allclose(nearest, arrived * 5 / N, atol=1e-5)
    assert np.mean(squares(nearest - x)) == pytest.approx((1 - 5 / N) * np.mean(squares(x)), rel=0.02)
    np.testing.assert_allclose(cross(spec("random_projection", 5), nearest[0])[1], nearest[0], atol=1e-5)


@few
@given(seed=st.integers(0, 99))
def test_matrices_of_low_rank_cross_exactly(cross, seed):
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(2, 6, 2)) @ rng.normal(size=(2, 2, N))).astype(np.float32)
    x = np.concatenate([x[0] * [[1]], x[0]])  # twelve rows of rank two
    np.testing.assert_allclose(cross(spec("low_rank", 2), x.astype(np.float32))[1], x, atol=1e-3)


def test_low_rank_finds_the_main_directions_message_by_message(series):
    rng = np.random.default_rng(0)
    left, right = np.linalg.qr(rng.normal(size=(30, 8)))[0], np.linalg.qr(rng.normal(size=(N, 8)))[0]
    x = (left * np.array([5, 4, 2, 1.5, 1, 1, 1, 1]) @ right.T).astype(np.float32)
    arrived, _ = series(spec("low_rank", 2), [x] * 30)
    best = np.sqrt(4 + 2.25 + 4)
    errors = np.linalg.norm(arrived - x, axis=(1, 2))
    assert errors[-1] == pytest.approx(best, rel=1e-3)
    assert errors[0] > 1.1 * best
    back, _ = series(spec("low_rank", 2), [np.zeros_like(x), x * np.float32(np.nan), x])
    assert np.isfinite(back[-1]).all()
    assert np.linalg.norm(back[-1] - x) < np.linalg.norm(x)


def test_a_codebook_fits_the_data_better_and_better(series):
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(9, 4)) * 5 + 3
    messages = [
        (centres[rng.integers(0, 9, (32, 3))].reshape(32, 12) + rng.normal(size=(32, 12)) * 0.05).astype(np.float32) for _ in range(60)
    ]
    codec = spec("vq", 4, 4, 2)
    arrived, (sender, receiver) = series(codec, messages)
    errors = np.mean(np.stack([np.sum((a - b) ** 2) for a, b in zip(arrived, messages, strict=True)]).reshape(6, 10), -1)
    assert np.all(np.diff(errors[:3]) < 0)
    assert errors[-1] < 0.01 * errors[0]
    assert errors[-1] / (32 * 12) < 0.05**2 + (2.0**-8 * 15) ** 2
    assert np.array_equal(sender[0], receiver[0])


@pytest.mark.parametrize(("values", "bits"), [(2, 1), (3, 2), (10, 4), (16, 4), (17, 8), (256, 8)])
def test_labels_take_as_few_bits_as_they_need_and_none_is_lost(cross, values, bits):
    for dtype in (np.int32, np.uint8):
        labels = np.random.default_rng(0).integers(0, values, 77).astype(dtype)
        packet, y, _ = cross(spec("packed", values), labels)
        assert packet[0].nbytes == -(-77 * bits // 8)
        assert np.array_equal(y, labels)
    assert cross(spec("packed", values), np.array([-1, values, 1], np.int32))[1].tolist() == [0, values - 1, 1]


def test_more_values_than_a_byte_holds_cross_whole(cross):
    labels = np.array([0, 300, 65535], np.int32)
    assert np.array_equal(cross(spec("packed", 70000), labels)[1], labels)
