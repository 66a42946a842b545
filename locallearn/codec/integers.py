"""Labels and other small whole numbers in as few bits as they need."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from locallearn.codec.base import Codec, Context, Packet, Spec, is_float, only
from locallearn.codec.bits import pack_bits, unpack_bits
from locallearn.fields import Count

PACKED_VALUES = 10


def packed(values: Count = PACKED_VALUES) -> Codec:
    """Whole numbers from 0 to `values` - 1 in 1, 2, 4 or 8 bits, the fewest that hold them: 4 for ten classes. Lossless.

    Suits labels and other whole numbers; of more than 256 values, and of floating-point numbers, every bit is sent. Truth values take 1
    bit. Size: ceil(n bits / 8) bytes. A number outside becomes the nearest within; a configuration whose labels would not fit is refused.
    """

    def bits(spec: Spec | jax.Array) -> int:
        return 1 if spec.dtype == jnp.bool_ else label_bits(values)

    def encode(x: jax.Array, sender: tuple[()], context: Context) -> tuple[Packet, tuple[()]]:
        limit = min(values - 1, 1 if x.dtype == jnp.bool_ else jnp.iinfo(x.dtype).max)
        return (pack_bits(jnp.clip(x.reshape(-1).astype(jnp.int32), 0, limit), bits(x)),), sender

    def decode(packet: Packet, receiver: tuple[()], spec: Spec, context: Context) -> tuple[jax.Array, tuple[()]]:
        return unpack_bits(packet[0], bits(spec), math.prod(spec.shape)).astype(spec.dtype).reshape(spec.shape), receiver

    return only(lambda x: not is_float(x) and x.size > 0 and values <= 256, Codec(lambda spec, key: ((), ()), encode, decode))


def label_bits(values: int) -> int:
    """1, 2, 4 or 8: what so many values take; more than 256 do not fit."""
    return next((bits for bits in (1, 2, 4) if values <= 2**bits), 8)
