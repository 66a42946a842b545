"""Every codec in one table: what crosses, in how many bytes, what shows at the other end, and what an evaluation leaves alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from locallearn.codec import CODECS, COMBINATORS, Context, Spec, blank, build, exact, nbytes, packet_spec
from locallearn.runtime.frame import TRAIN, Address, frame, unframe
from locallearn.traffic import HEADER_BYTES

ADDRESS = Address(TRAIN, 0, 1, 0, 7, 3)
SHAPES = [(), (1,), (4, 5), (2, 3, 5), (16, 300)]
"""Scalar, one element, odd widths, a batch."""
SHAPE = (3, 70)
"""The shape of messages with values: odd, and more numbers than the 64 that changes cross in."""
few = settings(max_examples=8)

scale = 4
pair = 8


def up(a, b):
    return -(-a // b)


TABLE = {
    "exact": lambda r, n: 4 * r * n,
    "bfloat16": lambda r, n: 2 * r * n,
    "float16": lambda r, n: 2 * r * n,
    "float8": lambda r, n: r * (n + scale),
    "float8(e5m2,message)": lambda r, n: r * n + scale,
    "float8(e4m3,one)": lambda r, n: r * n,
    "int8": lambda r, n: r * (n + scale),
    "int8(stochastic)": lambda r, n: r * (n + scale),
    "int8(nearest,minmax,message)": lambda r, n: r * n + pair,
    "int4": lambda r, n: r * (up(n, 2) + scale),
    "int4(nearest,symmetric,message)": lambda r, n: up(r * n, 2) + scale,
    "int4(stochastic,minmax)": lambda r, n: r * (up(n, 2) + pair),
    "int2": lambda r, n: r * (up(n, 4) + scale),
    "int2(nearest,minmax)": lambda r, n: r * (up(n, 4) + pair),
    "ternary": lambda r, n: r * (up(n, 5) + scale),
    "ternary(stochastic,message)": lambda r, n: up(r * n, 5) + scale,
    "sign": lambda r, n: r * (up(n, 8) + scale),
    "sign(message)": lambda r, n: up(r * n, 8) + scale,
    "binary": lambda r, n: r * (up(n, 8) + pair),
    "packed": lambda r, n: 4 * r * n,
    "vq(4,3,2)": lambda r, n: up(r * up(n, 3), 2) + 2 * 3 * min(2, r * up(n, 3)),
    "topk(1.0)": lambda r, n: 4 * r * n,
    "topk(0.3)": lambda r, n: r * sparse(round(0.3 * n), n, 4),
    "topk(0.02,message)+bfloat16": lambda r, n: sparse(round(0.02 * r * n), r * n, 2),
    "randomk(0.4)": lambda r, n: 4 * r * max(1, round(0.4 * n)),
    "randomk(0.4,nearest)+int8": lambda r, n: r * (max(1, round(0.4 * n)) + scale),
    "random_projection(3)": lambda r, n: 4 * r * min(3, n),
    "random_projection(3,unbiased)+int4": lambda r, n: r * (up(min(3, n), 2) + scale),
    "low_rank(1)": lambda r, n: 4 * min(r + n, r * n),
    "low_rank(2)+bfloat16": lambda r, n: 2 * min(2 * (r + n), r * n),
    "difference": lambda r, n: 4 * r * n,
    "difference(none,7)+int4": lambda r, n: r * (up(n, 2) + scale),
    "difference(0.1)": lambda r, n: 4 + up(r * n, 8) + 4 * (r * n if r * n < 64 else 64 * up(r * n, 64)),
    "difference(0.1)+int4": lambda r, n: 4 + up(r * n, 8) + (up(r * n, 2) + scale if r * n < 64 else (32 + scale) * up(r * n, 64)),
    "error_feedback": lambda r, n: 4 * r * n,
    "error_feedback+int8": lambda r, n: r * (n + scale),
    "error_feedback+topk(0.3)": lambda r, n: r * sparse(round(0.3 * n), n, 4),
    "error_feedback+error_feedback+int8": lambda r, n: r * (n + scale),
    "every(3)+int8": lambda r, n: r * (n + scale),
    "reuse(64)+int8": lambda r, n: r * (n + scale),
    "delayed(2)": lambda r, n: 4 * r * n,
    "deflate+int4": lambda r, n: r * (up(n, 2) + scale),
    "deflate+difference(0.1)+int8": lambda r, n: 4 + up(r * n, 8) + (r * n + scale if r * n < 64 else (64 + scale) * up(r * n, 64)),
}
"""Bytes of r rows of n float32 numbers, by codec; at most so many where they vary."""


def sparse(k, n, each):
    """Bytes of k of n numbers with their places."""
    k = max(1, k)
    return each * k + (0 if k == n else min(up(n, 8), k * (1 if n <= 256 else 2)))


def parsed(text):
    """((name, arguments), ...) of name(argument,...)+name."""

    def value(word):
        return {"none": None}.get(word, word if word[0].isalpha() else float(word) if "." in word else int(word))

    parts = (part.rstrip(")").partition("(") for part in text.split("+"))
    return tuple((name, tuple(value(word) for word in inside.split(",") if word)) for name, _, inside in parts)


EVERY = {text: parsed(text) for text in TABLE}
SIZES_ALONE = {
    "float8(e5m2,message)",
    "int8(nearest,minmax,message)",
    "int4(nearest,symmetric,message)",
    "int2(nearest,minmax)",
    "ternary(stochastic,message)",
    "sign(message)",
    "topk(1.0)",
    "low_rank(2)+bfloat16",
    "difference",
    "error_feedback",
    "error_feedback+error_feedback+int8",
}
"""Their numbers cross by the same code as those of others in the table."""
SENT = {text: spec for text, spec in EVERY.items() if text not in SIZES_ALONE}
every = pytest.mark.parametrize("spec", SENT.values(), ids=SENT)
VARIABLE = [spec for spec in EVERY.values() if build(spec).wire is not None]

SPREADS = ("message", "low_rank", "difference")
"""What is not finite spreads to other rows where rows have a scale, or a matrix, in common."""
READS = ("randomk", "random_projection", "low_rank", "vq")
"""These have a seed or a codebook that an evaluation reads too."""


@functools.cache
def measured(codec):
    return jax.jit(codec.wire.size)


def names(spec):
    return " ".join(f"{name} {args}" for name, args in spec)


def floats(shape, **limits):
    return hnp.arrays(np.float32, shape, elements=st.floats(width=32, **limits))


wild = floats(SHAPE)
tame = floats(SHAPE, min_value=-10, max_value=10)


def test_the_table_has_every_codec():
    assert {name for spec in EVERY.values() for name, _ in spec} == set(CODECS)
    assert {name for spec in VARIABLE for name, _ in spec} >= {"difference", "every", "deflate"}


@pytest.mark.parametrize("spec", EVERY.values(), ids=EVERY)
@pytest.mark.parametrize("shape", SHAPES)
def test_sizes_are_those_of_the_formats_and_shape_and_dtype_come_back(spec, shape):
    codec, seen = build(spec), Spec(shape, jnp.dtype(jnp.float32))
    n = shape[-1] if shape else 1
    packet = packet_spec(codec, seen)
    assert nbytes(packet) == TABLE[next(text for text in EVERY if EVERY[text] == spec)](int(np.prod(shape)) // n, n)
    index = Spec(shape[:1] or (0,), jnp.int32)
    for training in (True, False):
        packet = packet_spec(codec, seen, training)
        y = jax.eval_shape(lambda p, i, t=training: codec.decode(p, blank(codec, seen)[1], seen, Context(i, t))[0], packet, index)
        assert (y.shape, y.dtype) == (shape, seen.dtype)


@every
@few
@given(x=wild)
def test_a_frame_has_the_size_that_the_program_says_and_gives_the_packet_back(spec, cross, x):
    codec, planned = build(spec), packet_spec(build(spec), Spec(x.shape, x.dtype))
    packet, y, _ = cross(spec, x)
    data = frame(ADDRESS, packet, codec.wire)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    assert nbytes(planned) == nbytes(packet)
    assert len(data) - HEADER_BYTES == (nbytes(packet) if codec.wire is None else measured(codec)(packet))
    assert len(data) - HEADER_BYTES <= nbytes(packet)
    back = unframe(data, planned, codec.wire)
    assert [(part.tobytes(), part.dtype, part.shape) for part in back] == [(p.tobytes(), p.dtype, p.shape) for p in packet]


@every
@pytest.mark.parametrize("dtype", [np.int32, np.bool_])
def test_what_is_no_float_crosses_untouched(spec, dtype):
    x = np.array([[0, 1, 2], [9, 7, 1]]).astype(dtype)
    packet, y, _ = whole(build(spec), jnp.asarray(x))
    assert y.dtype == dtype
    assert np.array_equal(x, y)
    assert nbytes(packet) == (x.nbytes if spec[-1][0] != "packed" else 1 if dtype == np.bool_ else 3)


@every
@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 3)])
def test_what_is_empty_crosses_empty(spec, shape):
    codec = build(spec)
    x = jnp.zeros(shape)
    packet, _ = codec.encode(x, blank(codec, x)[0], Context(jnp.zeros(shape[:1], jnp.int32)))
    y, _ = codec.decode(packet, blank(codec, x)[1], x, Context(jnp.zeros(shape[:1], jnp.int32)))
    assert (y.shape, nbytes(packet)) == (shape, 0)
    assert len(frame(ADDRESS, packet, codec.wire)) == HEADER_BYTES


@every
def test_one_number_and_zeros(spec, cross):
    """One number is its own scale, mean and nearest integer; nothing is made of zeros."""
    memory = None
    for _ in range(2 + 1):  # a delay of two
        _, y, memory = cross(spec, np.array([2.5], np.float32), memory)
    if "vq" not in names(spec):
        assert y[0] == pytest.approx(2.5, rel=1e-2, abs=0.1)
        assert not np.any(cross(spec, np.zeros(SHAPE, np.float32))[1])


@every
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_shows_at_the_other_end_and_is_over_with_its_message(spec, cross, bad):
    good = np.linspace(-1, 1, 210, dtype=np.float32).reshape(SHAPE)
    x = good.copy()
    x[0, 0] = bad
    arrived, memory = [], None
    for k, message in enumerate((x, good, good, good)):
        _, y, memory = cross(spec, message, memory, index=len(x) * k + np.arange(len(x)))
        arrived.append(y)
    shown = np.array(arrived)
    assert not np.isfinite(shown[:, 0]).all()
    assert np.isfinite(shown[-1]).all()
    if not any(word in names(spec) for word in SPREADS):
        assert np.isfinite(shown[:, 1:]).all()


@every
def test_narrow_floats_come_back_as_such(spec, cross):
    x = np.linspace(-3, 3, 210).reshape(SHAPE).astype(jnp.bfloat16)
    codec = build(spec)
    _, y, _ = jax.eval_shape(functools.partial(whole, codec), jnp.asarray(x))
    assert y.dtype == jnp.bfloat16
    if spec in (parsed("exact"), parsed("int8"), parsed("float8")):
        np.testing.assert_allclose(cross(spec, x)[1].astype(np.float32), x.astype(np.float32), atol=0.02, rtol=0.07)


def whole(codec, x):
    packet, sender = codec.encode(x, blank(codec, x)[0], Context(jnp.arange(x.shape[0])))
    y, receiver = codec.decode(packet, blank(codec, x)[1], Spec(x.shape, x.dtype), Context(jnp.arange(x.shape[0])))
    return packet, y, (sender, receiver)


@every
@few
@given(x=tame)
def test_an_evaluation_uses_no_other_message_and_leaves_the_memory_alone(spec, cross, x):
    used = cross(spec, x + np.float32(0.3), cross(spec, x[::-1] + np.float32(0.1))[2])[2]
    with_memory, without = cross(spec, x, used, training=False), cross(spec, x, training=False)
    for before, after in zip(jax.tree.leaves(used), jax.tree.leaves(with_memory[2]), strict=True):
        assert np.array_equal(before, after)
    if not any(word in names(spec) for word in ("low_rank", "vq")):
        assert with_memory[1].tobytes() == without[1].tobytes()


@every
def test_an_evaluation_may_have_other_rows_than_training(spec):
    """Its batches are of another size; what is kept for each row is of no use to it."""
    codec, seen, index = build(spec), Spec((11, 70), jnp.dtype(jnp.float32)), Spec((11,), jnp.int32)

    def evaluated(x, index, memory):
        context = Context(index, training=False)
        packet, sender = codec.encode(x, memory[0], context)
        y, receiver = codec.decode(packet, memory[1], seen, context)
        return y, (sender, receiver)

    memory = jax.eval_shape(lambda: blank(codec, Spec(SHAPE, seen.dtype)))
    y, after = jax.eval_shape(evaluated, seen, index, memory)
    assert (y.shape, after) == (seen.shape, memory)


def test_the_same_spec_builds_the_same_codec():
    spec = (("error_feedback", ()), ("int8", ()))
    assert build(spec) is build((("error_feedback", ()), ("int8", ())))
    assert build((("exact", ()),)) is exact()
    assert build((("int8", ()),)) is not build((("bfloat16", ()),))


@pytest.mark.parametrize("name", sorted(COMBINATORS))
def test_a_wrapper_with_nothing_in_it_wraps_exact(name):
    spec = Spec((4, 90), jnp.dtype(jnp.float32))
    assert packet_spec(build(((name, ()),)), spec) == packet_spec(build(((name, ()), ("exact", ()))), spec)


@pytest.mark.parametrize("name", sorted(set(CODECS) - COMBINATORS))
def test_a_codec_that_wraps_nothing_must_stand_last(name):
    with pytest.raises(ValueError, match=f"`{name}` wraps nothing, so it must stand last"):
        build(((name, ()), ("exact", ())))


@pytest.mark.parametrize("inner", ["vq", "low_rank(1)", "error_feedback+int8", "sign(message)", "every(2)", "random_projection(3)"])
def test_a_threshold_refuses_codecs_that_do_not_treat_rows_apart(inner):
    with pytest.raises(ValueError, match="needs a codec after it that treats each row by itself"):
        build((("difference", (0.1,)), *parsed(inner)))


@pytest.mark.parametrize("name", CODECS)
def test_every_codec_says_what_it_suits_its_size_and_its_error(name):
    doc = " ".join(CODECS[name].__doc__.split()) + " "
    assert "Suits" in doc
    assert name in ("exact", "bfloat16", "float16") or " size" in doc.lower()
    assert any(word in doc for word in ("error", "bound", "ossless"))
