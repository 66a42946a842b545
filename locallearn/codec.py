"""Codecs: how an array crosses a channel. What `encode` returns is what is sent, and its size is what is counted.

A codec is three pure functions in the manner of an optax transformation, with memory at both ends:

    init(spec, key)                        -> (sender, receiver)
    encode(x, sender, context)             -> (packet, sender)         packet: a tuple of arrays of fixed shape
    decode(packet, receiver, spec, context) -> (x, receiver)

Arrays that are not floating point (labels, flags) cross as they are, whatever the codec.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Spec = jax.ShapeDtypeStruct
Packet = tuple[jax.Array, ...]


class Context(NamedTuple):
    """What both ends of a channel know besides the message.

    index: [batch] int32, the examples that the message is about. training: static; false at an evaluation, where a codec works without
    its memory (no delay, no feedback) and leaves it untouched.
    """

    index: Any
    training: bool = True


class Codec(NamedTuple):
    """How an array crosses a channel."""

    init: Callable[[Spec, jax.Array], tuple[Any, Any]]
    encode: Callable[[jax.Array, Any, Context], tuple[Packet, Any]]
    decode: Callable[[Packet, Any, Spec, Context], tuple[jax.Array, Any]]


def spec_of(x: Any) -> Spec:
    """Shape and dtype of an array."""
    return Spec(x.shape, x.dtype)


def packet_spec(codec: Codec, spec: Spec, training: bool = True) -> tuple[Spec, ...]:
    """Shapes and dtypes of the packet that a message becomes; nothing is computed."""

    def send(x: jax.Array, key: jax.Array, index: jax.Array) -> Packet:
        return codec.encode(x, codec.init(spec, key)[0], Context(index, training))[0]

    return jax.eval_shape(send, spec, Spec((2,), jnp.uint32), Spec(spec.shape[:1], jnp.int32))


def blank(codec: Codec, spec: Spec) -> tuple[Any, Any]:
    """(sender, receiver) for a channel that training never used: at an evaluation a codec works without its memory."""
    return codec.init(spec, jnp.zeros(2, jnp.uint32))


def nbytes(packet: Sequence[Any]) -> int:
    """Bytes of a packet, from its shapes."""
    return sum(math.prod(part.shape) * part.dtype.itemsize for part in packet)


def is_float(x: Any) -> bool:
    """Whether a codec may round this array."""
    return jnp.issubdtype(x.dtype, jnp.floating)


@functools.cache
def exact() -> Codec:
    """Native dtype, every bit: the only lossless codec, and the default. Suits every kind."""
    return Codec(
        init=lambda spec, key: ((), ()),
        encode=lambda x, sender, context: ((x,), sender),
        decode=lambda packet, receiver, spec, context: (packet[0], receiver),
    )


def floats_only(codec: Codec) -> Codec:
    """The codec for floating-point arrays, `exact` for all others."""
    plain = exact()
    return Codec(
        init=lambda spec, key: (codec if is_float(spec) else plain).init(spec, key),
        encode=lambda x, sender, context: (codec if is_float(x) else plain).encode(x, sender, context),
        decode=lambda packet, receiver, spec, context: (codec if is_float(spec) else plain).decode(packet, receiver, spec, context),
    )


def _cast(dtype: Any) -> Codec:
    """Round to `dtype`; what is beyond its range becomes its largest finite value, so that one outlier stays one outlier."""
    top = float(jnp.finfo(dtype).max)

    def encode(x: jax.Array, sender: Any, context: Context) -> tuple[Packet, Any]:
        limited = jnp.where(jnp.isfinite(x), jnp.clip(x, -top, top), x)
        return (limited.astype(dtype),), sender

    def decode(packet: Packet, receiver: Any, spec: Spec, context: Context) -> tuple[jax.Array, Any]:
        return packet[0].astype(spec.dtype), receiver

    return floats_only(Codec(lambda spec, key: ((), ()), encode, decode))


def bfloat16() -> Codec:
    """16 bits: float32's range, 8 bits of precision. Suits every kind."""
    return _cast(jnp.bfloat16)


def float16() -> Codec:
    """16 bits: 11 bits of precision, up to 65504, down to 6e-8. Suits activations; small gradients underflow."""
    return _cast(jnp.float16)


_LARGEST_SCALE = np.nextafter(np.float32(np.finfo(np.float32).max / 127), np.float32(0))
"""The largest float32 of which 127 times is still finite."""


def int8() -> Codec:
    """8 bits and one float32 scale for each row (the last axis): x ~ scale * q, |error| <= scale / 2. Suits activations and errors.

    A row with a value that is not finite decodes to NaN, so that a divergence shows at the other end too.
    """

    def encode(x: jax.Array, sender: Any, context: Context) -> tuple[Packet, Any]:
        x = jnp.atleast_1d(x).astype(jnp.float32)
        largest = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
        scale = jnp.minimum(largest / 127, _LARGEST_SCALE)
        safe = jnp.where(scale > 0, scale, 1)
        q = jnp.clip(jnp.round(x / safe), -127, 127).astype(jnp.int8)
        return (q, jnp.where(jnp.isfinite(largest), scale, jnp.nan)), sender

    def decode(packet: Packet, receiver: Any, spec: Spec, context: Context) -> tuple[jax.Array, Any]:
        q, scale = packet
        return (q * scale).astype(spec.dtype).reshape(spec.shape), receiver

    return floats_only(Codec(lambda spec, key: ((), ()), encode, decode))


def error_feedback(inner: Codec) -> Codec:
    """What the inner codec loses is added to the next message of the same channel. Suits gradients and weights, not activations.

    Seide et al. (2014), "1-bit stochastic gradient descent"; Karimireddy et al. (2019), arXiv:1901.09847.
    """

    def init(spec: Spec, key: jax.Array) -> tuple[Any, Any]:
        sender, receiver = inner.init(spec, key)
        return (jnp.zeros(spec.shape, spec.dtype), sender, receiver), receiver

    def encode(x: jax.Array, sender: Any, context: Context) -> tuple[Packet, Any]:
        residual, outbox, mirror = sender
        if not context.training:
            return inner.encode(x, outbox, context)[0], sender
        packet, outbox = inner.encode(x + residual, outbox, context)
        arrives, mirror = inner.decode(packet, mirror, spec_of(x), context)
        return packet, (x + residual - arrives, outbox, mirror)

    return floats_only(Codec(init, encode, inner.decode))


CODECS: dict[str, Callable[..., Codec]] = {
    "exact": exact,
    "bfloat16": bfloat16,
    "float16": float16,
    "int8": int8,
    "error_feedback": error_feedback,
}
"""Every codec by its YAML name. One whose first parameter is `inner` wraps the codec that follows it in a list."""

COMBINATORS = frozenset({"error_feedback"})
"""The codecs that wrap another."""

CodecSpec = Sequence[tuple[str, tuple[Any, ...]]]


@functools.cache
def build(spec: tuple[tuple[str, tuple[Any, ...]], ...]) -> Codec:
    """A codec from ((name, arguments), ...), outermost first: (("error_feedback", ()), ("int8", ())).

    The same spec gives the same object, so that programs compiled for it are found again.
    """
    (name, args), *rest = spec
    if name in COMBINATORS:
        return CODECS[name](build(tuple(rest)) if rest else exact(), *args)
    if rest:
        raise ValueError(f"`{name}` wraps nothing, so it must stand last in a list of codecs")
    return CODECS[name](*args)
