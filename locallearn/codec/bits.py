"""Small integers packed into bytes: several bits or five trits in each."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def packed_width(n: int, bits: int) -> int:
    """Bytes of n numbers."""
    return -(-n * bits // 8)


def pack_bits(q: jax.Array, bits: int) -> jax.Array:
    """q: [..., n] below 2^bits, bits in {1, 2, 4, 8} -> [..., ceil(n * bits / 8)] uint8, the first number in the lowest bits."""
    each = 8 // bits
    groups = _grouped(q, each).astype(jnp.uint8)
    return _joined(groups << np.arange(0, 8, bits, dtype=np.uint8))


def unpack_bits(packed: jax.Array, bits: int, n: int) -> jax.Array:
    """The inverse: [..., n] uint8."""
    parts = (packed[..., None] >> np.arange(0, 8, bits, dtype=np.uint8)) & np.uint8(2**bits - 1)
    return parts.reshape(*packed.shape[:-1], -1)[..., :n]


def pack_trits(q: jax.Array) -> jax.Array:
    """q: [..., n] in {0, 1, 2} -> [..., ceil(n / 5)] uint8."""
    return _joined(_grouped(q, 5).astype(jnp.uint8) * 3 ** np.arange(5, dtype=np.uint8))


def unpack_trits(packed: jax.Array, n: int) -> jax.Array:
    """The inverse: [..., n] uint8."""
    parts = packed[..., None] // 3 ** np.arange(5, dtype=np.uint8) % 3
    return parts.reshape(*packed.shape[:-1], -1)[..., :n]


def as_bytes(x: jax.Array) -> jax.Array:
    """The array's bytes in order, [nbytes] uint8, as a frame has them."""
    x = x.astype(jnp.uint8) if x.dtype == jnp.bool_ else x
    return jax.lax.bitcast_convert_type(x, jnp.uint8).reshape(-1)


def of_bytes(flat: jax.Array, spec: jax.ShapeDtypeStruct) -> jax.Array:
    """The array of this shape and dtype in [nbytes] uint8."""
    if spec.dtype == jnp.bool_:
        return flat.reshape(spec.shape).astype(bool)
    size = spec.dtype.itemsize
    return jax.lax.bitcast_convert_type(flat.reshape(*spec.shape, *((size,) if size > 1 else ())), spec.dtype)


def running_count(chosen: jax.Array) -> jax.Array:
    """[..., n] of truth values -> how many are true up to each, itself among them: int32. On CPU faster than cumsum."""
    groups = _grouped(chosen.astype(jnp.float32), 64)
    within = (groups @ np.triu(np.ones((64, 64), np.float32))).astype(jnp.int32)
    before = jnp.cumsum(within[..., -1], -1) - within[..., -1]
    return (within + before[..., None]).reshape(*chosen.shape[:-1], -1)[..., : chosen.shape[-1]]


def _grouped(q: jax.Array, each: int) -> jax.Array:
    """[..., n] -> [..., ceil(n / each), each], padded with zeros."""
    short = -q.shape[-1] % each
    q = jnp.pad(q, [(0, 0)] * (q.ndim - 1) + [(0, short)]) if short else q
    return q.reshape(*q.shape[:-1], -1, each)


def _joined(parts: jax.Array) -> jax.Array:
    return jnp.sum(parts, axis=-1, dtype=jnp.uint8)
