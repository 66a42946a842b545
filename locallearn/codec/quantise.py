"""Fewer bits for each number: narrow floats, integers of 8, 4 and 2 bits, three values, two values.

All but the casts have a scale: one for each row (the last axis), or one for the whole message, which is cheaper where rows are short. With
a scale of `one` integers are for numbers from -1 to 1 (`minmax`: from 0 to 1): what is beyond becomes the nearest, and no scale crosses.
Otherwise a row (or message) with a value that is not finite decodes to NaN, so that a divergence shows at the other end too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from locallearn.codec.base import Codec, Context, Packet, Spec, counted, drawn_key, first_count, floats_only
from locallearn.codec.bits import pack_bits, pack_trits, unpack_bits, unpack_trits

Scale = Literal["row", "message"]
FixedScale = Literal["row", "message", "one"]
Rounding = Literal["nearest", "stochastic"]

_NEVER_INFINITE = np.nextafter(np.float32(np.finfo(np.float32).max), np.float32(0))


def bfloat16() -> Codec:
    """16 bits: float32's range, 8 bits of precision.

    Suits every kind. |error| <= 2^-8 |x|.
    """
    return _stateless(*_cast(jnp.bfloat16))


def float16() -> Codec:
    """16 bits: 11 bits of precision, up to 65504, down to 6e-8.

    Suits activations; small gradients underflow. |error| <= max(2^-11 |x|, 2^-25); what is beyond 65504 becomes 65504.
    """
    return _stateless(*_cast(jnp.float16))


def float8(form: Literal["e4m3", "e5m2"] = "e4m3", scale: FixedScale = "row") -> Codec:
    """8 bits: e4m3 has 4 bits of precision over 18 binades, e5m2 has 3 over 32; scaled so that the largest value is the format's.

    Suits errors and gradients, whose sizes differ within a row, more than activations, for which `int8` is finer. Size: n bytes and 4 for
    each scale. |error| <= max(2^-4 |x|, 2^-18 max|x|) for e4m3, max(2^-3 |x|, 2^-32 max|x|) for e5m2. With a scale of `one` it is a cast,
    limited to 448 or 57344.

    Micikevicius et al. (2022), "FP8 formats for deep learning", arXiv:2209.05433.
    """
    dtype = {"e4m3": jnp.float8_e4m3fn, "e5m2": jnp.float8_e5m2}[form]
    narrow, wide = _cast(dtype)
    if scale == "one":
        return _stateless(narrow, wide)
    top = float(jnp.finfo(dtype).max)

    def encode(x: jax.Array) -> Packet:
        x = _scaled_together(x, scale)
        unit, factor = _unit(x)
        return (*narrow(unit * top), factor)

    def decode(packet: Packet, spec: Spec) -> jax.Array:
        q, factor = packet
        return (q.astype(jnp.float32) / top * factor).astype(spec.dtype).reshape(spec.shape)

    return _stateless(encode, decode)


def int8(rounding: Rounding = "nearest", levels: Literal["symmetric", "minmax"] = "symmetric", scale: FixedScale = "row") -> Codec:
    """8 bits: x ~ step * q with whole q from -127 to 127, or 256 levels from the least to the largest value (`minmax`).

    Suits activations and errors; `minmax` messages of one sign. Size: n bytes, and for each scale 4 (symmetric) or 8 (minmax).
    |error| <= step / 2, step = max|x| / 127 or (max - min) / 255. With `stochastic` rounding |error| < step and the mean is x: suits
    gradients and weights; evaluations round to the nearest.
    """
    return _integers(8, rounding, levels, scale)


def int4(rounding: Rounding = "nearest", levels: Literal["symmetric", "minmax"] = "symmetric", scale: FixedScale = "row") -> Codec:
    """4 bits: as `int8`, with q from -7 to 7, or 16 levels from the least to the largest value (`minmax`).

    Suits activations (`minmax` after relu) and errors. Size: ceil(n / 2) bytes a row, and for each scale 4 (symmetric) or 8 (minmax).
    |error| <= step / 2, step = max|x| / 7 or (max - min) / 15; < step and right in the mean with `stochastic` rounding.
    """
    return _integers(4, rounding, levels, scale)


def int2(rounding: Rounding = "nearest", levels: Literal["symmetric", "minmax"] = "symmetric", scale: FixedScale = "row") -> Codec:
    """2 bits: as `int8`, with q of -1.5, -0.5, 0.5, 1.5 and so no zero, or 4 levels from the least to the largest value (`minmax`).

    Suits dense activations and errors; `ternary` those with many zeros. Size: ceil(n / 4) bytes a row, and for each scale 4 (symmetric) or
    8 (minmax). |error| <= step / 2, step = max|x| / 1.5 or (max - min) / 3; < step and right in the mean with `stochastic` rounding.
    """
    return _integers(2, rounding, levels, scale)


def ternary(rounding: Rounding = "nearest", scale: Scale = "row") -> Codec:
    """1.6 bits: minus a level, zero, or the level; five in a byte.

    Suits errors and gradients, and activations with many zeros. Size: ceil(n / 5) bytes a row and 4 for each scale. Nearest: zero up to
    0.7 mean|x|, else the mean of those beyond it: the sum of squared errors of a row is at most that of its numbers. Stochastic: the level
    is max|x|, reached with chance |x| / max|x|: right in the mean, |error| < max|x|; evaluations round to the nearest.

    Li et al. (2016), "Ternary weight networks", arXiv:1605.04711; Wen et al. (2017), "TernGrad", arXiv:1705.07878.
    """

    def encode(x: jax.Array, draw: Callable[..., jax.Array] | None) -> Packet:
        x = _scaled_together(x, scale)
        unit, largest = _unit(x)
        size = jnp.abs(unit)
        if draw is None:
            on = size > 0.7 * jnp.mean(size, axis=-1, keepdims=True)
            level = _mean_where(size, on)
        else:
            on, level = draw(x.shape) < size, jnp.ones_like(largest)
        trits = jnp.where(on, jnp.where(unit > 0, 2, 0), 1)
        return pack_trits(trits), level * largest

    def decode(packet: Packet, spec: Spec) -> jax.Array:
        q, level = packet
        trits = unpack_trits(q, _numbers(spec, scale)).astype(jnp.float32) - 1
        return (trits * level).astype(spec.dtype).reshape(spec.shape)

    return _drawing(encode, decode) if rounding == "stochastic" else _stateless(lambda x: encode(x, None), decode)


def sign(scale: Scale = "row") -> Codec:
    """1 bit: the sign, times the mean size.

    Suits errors and gradients, best with `error_feedback`; not messages of one sign. Size: ceil(n / 8) bytes a row and 4 for each scale.
    The sum of squared errors of a row is at most that of its numbers.

    Bernstein et al. (2018), "signSGD", arXiv:1802.04434; Karimireddy et al. (2019), arXiv:1901.09847.
    """

    def encode(x: jax.Array) -> Packet:
        unit, largest = _unit(_scaled_together(x, scale))
        return pack_bits(unit >= 0, 1), jnp.mean(jnp.abs(unit), axis=-1, keepdims=True) * largest

    def decode(packet: Packet, spec: Spec) -> jax.Array:
        q, size = packet
        signs = unpack_bits(q, 1, _numbers(spec, scale)).astype(jnp.float32) * 2 - 1
        return (signs * size).astype(spec.dtype).reshape(spec.shape)

    return _stateless(encode, decode)


def binary(scale: Scale = "row") -> Codec:
    """1 bit: above the row's mean or not; each side arrives as its own mean, so that the row's mean is kept.

    Suits messages of one sign, such as activations after relu. Size: ceil(n / 8) bytes a row and 8 for each pair of levels. The sum of
    squared errors of a row is at most that of its numbers about their mean.

    Seide et al. (2014), "1-bit stochastic gradient descent".
    """

    def encode(x: jax.Array) -> Packet:
        unit, largest = _unit(_scaled_together(x, scale))
        above = unit > jnp.mean(unit, axis=-1, keepdims=True)
        return pack_bits(above, 1), jnp.concatenate([_mean_where(unit, ~above), _mean_where(unit, above)], -1) * largest

    def decode(packet: Packet, spec: Spec) -> jax.Array:
        q, means = packet
        above = unpack_bits(q, 1, _numbers(spec, scale)) > 0
        return jnp.where(above, means[..., 1:], means[..., :1]).astype(spec.dtype).reshape(spec.shape)

    return _stateless(encode, decode)


def _integers(bits: int, rounding: Rounding, levels: str, scale: FixedScale) -> Codec:
    top, half = ((2 ** (bits - 1) - 1), 0.0) if bits > 2 else (1.5, 0.5)
    last = 2**bits - 1 if levels == "minmax" else round(2 * top)

    def symmetric(x: jax.Array, to_whole: Callable[[jax.Array], jax.Array]) -> Packet:
        largest = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
        step = jnp.minimum(largest / top, _largest_step(top))
        q = to_whole(_ratio(x, step) - half) + half
        return _packed(q, top, bits), jnp.where(jnp.isfinite(largest), step, jnp.nan)

    def minmax(x: jax.Array, to_whole: Callable[[jax.Array], jax.Array]) -> Packet:
        low, high = jnp.min(x, axis=-1, keepdims=True), jnp.max(x, axis=-1, keepdims=True)
        share = _ratio(x / 2 - low / 2, high / 2 - low / 2)
        q = jnp.clip(to_whole(share * last), 0, last).astype(jnp.uint8)
        ends = jnp.concatenate([low, high], -1)
        finite = jnp.all(jnp.isfinite(ends), axis=-1, keepdims=True)
        return pack_bits(q, bits), jnp.where(finite, ends, jnp.nan)

    def fixed(x: jax.Array, to_whole: Callable[[jax.Array], jax.Array]) -> Packet:
        if levels == "minmax":
            return (pack_bits(jnp.clip(to_whole(x * last), 0, last).astype(jnp.uint8), bits),)
        return (_packed(to_whole(x * top - half) + half, top, bits),)

    def encode(x: jax.Array, draw: Callable[..., jax.Array] | None) -> Packet:
        x = _scaled_together(x, scale)
        to_whole = jnp.round if draw is None else (lambda v: jnp.floor(v + draw(x.shape)))
        return (fixed if scale == "one" else minmax if levels == "minmax" else symmetric)(x, to_whole)

    def decode(packet: Packet, spec: Spec) -> jax.Array:
        q, found = packet if scale != "one" else (packet[0], jnp.array([0.0, 1.0]) if levels == "minmax" else jnp.array(1 / top))
        if levels == "minmax":
            share = jnp.minimum(unpack_bits(q, bits, _numbers(spec, scale)).astype(jnp.float32) / last, 1)  # XLA's reciprocals exceed it
            value = found[..., :1] * (1 - share) + found[..., 1:] * share
        else:
            whole = q if bits == 8 else unpack_bits(q, bits, _numbers(spec, scale)).astype(jnp.float32) - top
            value = whole * found
        return value.astype(spec.dtype).reshape(spec.shape)

    return _drawing(encode, decode) if rounding == "stochastic" else _stateless(lambda x: encode(x, None), decode)


def _packed(q: jax.Array, top: float, bits: int) -> jax.Array:
    q = jnp.clip(q, -top, top)
    return q.astype(jnp.int8) if bits == 8 else pack_bits((q + top).astype(jnp.uint8), bits)


def _largest_step(top: float) -> np.float32:
    """The largest float32 of which `top` times is still finite."""
    return np.nextafter(np.float32(np.finfo(np.float32).max / top), np.float32(0))


def _cast(dtype: Any) -> tuple[Callable[[jax.Array], Packet], Callable[[Packet, Spec], jax.Array]]:
    """Round to `dtype`; what is beyond its range becomes its largest finite value, so that one outlier stays one outlier."""
    top = float(jnp.finfo(dtype).max)

    def encode(x: jax.Array) -> Packet:
        return (jnp.where(jnp.isfinite(x), jnp.clip(x, -top, top), x).astype(dtype),)

    return encode, lambda packet, spec: packet[0].astype(spec.dtype)


def _stateless(encode: Callable[[jax.Array], Packet], decode: Callable[[Packet, Spec], jax.Array]) -> Codec:
    return floats_only(
        Codec(
            init=lambda spec, key: ((), ()),
            encode=lambda x, sender, context: (encode(x), sender),
            decode=lambda packet, receiver, spec, context: (decode(packet, spec), receiver),
        )
    )


def _drawing(encode: Callable[..., Packet], decode: Callable[[Packet, Spec], jax.Array]) -> Codec:
    """encode: (x, uniform numbers of a shape, or None at an evaluation). The sender keeps the channel's key and counts its messages."""

    def send(x: jax.Array, sender: Any, context: Context) -> tuple[Packet, Any]:
        if not context.training:
            return encode(x, None), sender
        key = drawn_key(sender)
        return encode(x, lambda shape: jax.random.uniform(key, shape)), counted(sender)

    def init(spec: Spec, key: jax.Array) -> tuple[Any, Any]:
        return first_count(key), ()

    return floats_only(Codec(init, send, lambda packet, receiver, spec, context: (decode(packet, spec), receiver)))


def _scaled_together(x: jax.Array, scale: str) -> jax.Array:
    """The numbers in float32, those with a common scale along the last axis."""
    x = x.astype(jnp.float32)
    return x.reshape(-1) if scale == "message" else jnp.atleast_1d(x)


def _numbers(spec: Spec, scale: str) -> int:
    """How many numbers have a common scale."""
    return math.prod(spec.shape) if scale == "message" or not spec.shape else spec.shape[-1]


def _unit(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x / max|x| by row, so that no sum overflows, and max|x|: NaN for a row that is not finite."""
    largest = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
    unit = jnp.clip(_ratio(x, largest), -1, 1)
    finite = jnp.isfinite(largest)
    return jnp.where(finite, unit, 0), jnp.where(finite, jnp.minimum(largest, _NEVER_INFINITE), jnp.nan)


def _ratio(x: jax.Array, unit: jax.Array) -> jax.Array:
    """x / unit, or x where that is zero. XLA multiplies by reciprocals, and those of the largest numbers would be zero."""
    smaller = jnp.where(unit > 2.0**100, 2.0**-40, 1.0)
    return x * smaller / (jnp.where(unit > 0, unit, 1) * smaller)


def _mean_where(x: jax.Array, where: jax.Array) -> jax.Array:
    """The mean of some numbers of each row, [..., 1]; zero where there are none."""
    return jnp.sum(jnp.where(where, x, 0), -1, keepdims=True) / jnp.maximum(jnp.sum(where, -1, keepdims=True), 1)
