"""What a codec is, and the one that changes nothing."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Spec = jax.ShapeDtypeStruct
Packet = tuple[jax.Array, ...]


class Context(NamedTuple):
    """What both ends of a channel know besides the message.

    index: [batch] int32, the examples that the message is about. training: static; false at an evaluation, where a codec may read what
    both ends have agreed on (a codebook, a projection) but neither delays, corrects nor refers to other messages, and leaves its memory
    untouched.
    """

    index: Any
    training: bool = True


class Wire(NamedTuple):
    """How the bytes of a packet become those of a frame, where their number varies.

    pack: the packet's bytes -> the frame's, never more. unpack: (the frame's bytes, how many the packet has) -> the packet's.
    size: the packet -> how many bytes `pack` leaves of it, inside a compiled program: int32 scalar.
    """

    pack: Callable[[bytes], bytes]
    unpack: Callable[[bytes, int], bytes]
    size: Callable[[Packet], jax.Array]


class Codec(NamedTuple):
    """How an array crosses a channel.

    wire: None where every message takes as many bytes as its packet. silent: (first part of an end's memory, context) -> whether the next
    message of training is empty and both ends know it, so that no frame is sent; None for never. It is asked inside and outside programs.
    """

    init: Callable[[Spec, jax.Array], tuple[Any, Any]]
    encode: Callable[[jax.Array, Any, Context], tuple[Packet, Any]]
    decode: Callable[[Packet, Any, Spec, Context], tuple[jax.Array, Any]]
    wire: Wire | None = None
    silent: Callable[[Any, Context], Any] | None = None


def is_silent(codec: Codec, memory: Any, context: Context) -> Any:
    """Whether no frame is needed for the next message, from the memory of either end: a truth value, or an array of one."""
    return False if codec.silent is None or not context.training or not memory else codec.silent(memory[0], context)


def spec_of(x: Any) -> Spec:
    """Shape and dtype of an array."""
    return Spec(x.shape, x.dtype)


def packet_spec(codec: Codec, spec: Spec, training: bool = True) -> tuple[Spec, ...]:
    """Shapes and dtypes of the packet that a message becomes; nothing is computed."""

    def send(x: jax.Array, key: jax.Array, index: jax.Array) -> Packet:
        return codec.encode(x, codec.init(spec, key)[0], Context(index, training))[0]

    return jax.eval_shape(send, spec, Spec((2,), jnp.uint32), Spec(spec.shape[:1], jnp.int32))


def blank(codec: Codec, spec: Spec) -> tuple[Any, Any]:
    """(sender, receiver) for a channel that training never used."""
    return codec.init(spec, jnp.zeros(2, jnp.uint32))


def nbytes(packet: Sequence[Any]) -> int:
    """Bytes of a packet, from its shapes: what its frame carries, or at most that where the codec has a `wire`."""
    return sum(math.prod(part.shape) * part.dtype.itemsize for part in packet)


def is_float(x: Any) -> bool:
    """Whether a codec may round this array."""
    return jnp.issubdtype(x.dtype, jnp.floating)


@functools.cache
def exact() -> Codec:
    """Native dtype, every bit: the default.

    Suits every kind. Lossless.
    """
    return Codec(
        init=lambda spec, key: ((), ()),
        encode=lambda x, sender, context: ((x,), sender),
        decode=lambda packet, receiver, spec, context: (packet[0], receiver),
    )


def only(takes: Callable[[Any], bool], codec: Codec) -> Codec:
    """The codec for the arrays that it takes, `exact` for all others. takes: of an array or its spec, by dtype and shape."""
    plain = exact()
    return Codec(
        init=lambda spec, key: (codec if takes(spec) else plain).init(spec, key),
        encode=lambda x, sender, context: (codec if takes(x) else plain).encode(x, sender, context),
        decode=lambda packet, receiver, spec, context: (codec if takes(spec) else plain).decode(packet, receiver, spec, context),
        wire=codec.wire,
        silent=codec.silent,
    )


def floats_only(codec: Codec) -> Codec:
    """The codec for arrays of floating-point numbers, `exact` for those of other types and for empty ones."""
    return only(lambda x: is_float(x) and x.size > 0, codec)


def width(spec: Any) -> int:
    """Numbers in a row: the last axis."""
    return spec.shape[-1] if spec.shape else 1


def as_rows(x: jax.Array) -> jax.Array:
    """The array as [rows, width]."""
    return x.reshape(-1, width(x))


def row_specs(spec: Spec, columns: int) -> Spec:
    """What `as_rows` makes of an array, with another width."""
    return Spec((math.prod(spec.shape) // width(spec), columns), spec.dtype)


def drawn_key(memory: tuple[jax.Array, jax.Array], training: bool = True) -> jax.Array:
    """The key of one message from (the channel's key, how many messages came before). An evaluation has one for all."""
    key, count = memory
    return jax.random.fold_in(key, count + 1 if training else 0)


def counted(memory: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """The memory (key, count) after one more message."""
    return memory[0], memory[1] + 1


def first_count(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The memory (key, count) before the first message."""
    return key, jnp.zeros((), jnp.int32)
