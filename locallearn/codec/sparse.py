"""Few of the numbers: the largest, or some at random. What was chosen crosses through the codec after it."""

from __future__ import annotations

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp

from locallearn.codec.base import Codec, Context, Packet, Spec, as_rows, counted, drawn_key, first_count, floats_only, row_specs, width
from locallearn.codec.bits import pack_bits, packed_width, running_count, unpack_bits
from locallearn.fields import Fraction

Estimate = Literal["unbiased", "nearest"]


def topk(inner: Codec, fraction: Fraction = 0.1, among: Literal["row", "message"] = "row") -> Codec:
    """The largest of each row (or of the message), with their places; the others arrive as zeros.

    Suits gradients and weights with `error_feedback`, errors, and activations of which most are near zero. Size, for k = round(fraction n),
    at least 1, of the n numbers of a row: those of the codec after it for k numbers, and the places: k whole numbers of 1, 2 or 4 bytes, or
    ceil(n / 8) bytes where that is less. The squared error of a row is that of what is left out: at most 1 - k / n of the row's own.

    Aji, Heafield (2017), "Sparse communication for distributed gradient descent", arXiv:1704.05021; Stich et al. (2018), arXiv:1809.07599.
    """

    def rows_of(x: Any) -> Any:
        return as_rows(x) if among == "row" else x.reshape(1, -1)

    def chosen(spec: Any) -> tuple[Spec, int]:
        """What the codec inside sees, and the numbers that it is chosen from."""
        n = width(spec) if among == "row" else math.prod(spec.shape)
        return Spec((math.prod(spec.shape) // n, how_many(fraction, n)), spec.dtype), n

    def init(spec: Spec, key: jax.Array) -> tuple[Any, Any]:
        return inner.init(chosen(spec)[0], key)

    def encode(x: jax.Array, sender: Any, context: Context) -> tuple[Packet, Any]:
        (_, k), n = chosen(x)[0].shape, chosen(x)[1]
        rows = rows_of(x)
        size = jnp.where(jnp.isnan(rows), jnp.inf, jnp.abs(rows))
        places = jnp.sort(jax.lax.top_k(size, k)[1], axis=-1)
        packet, sender = inner.encode(jnp.take_along_axis(rows, places, -1), sender, context)
        return (*_sent_places(places, n), *packet), sender

    def decode(packet: Packet, receiver: Any, spec: Spec, context: Context) -> tuple[jax.Array, Any]:
        seen, n = chosen(spec)
        count = 0 if seen.shape[1] == n else 1
        values, receiver = inner.decode(packet[count:], receiver, seen, context)
        return (_spread(packet[0], values, n) if count else values).reshape(spec.shape), receiver

    return floats_only(Codec(init, encode, decode, inner.wire))


def randomk(inner: Codec, fraction: Fraction = 0.1, estimate: Estimate = "unbiased") -> Codec:
    """Some columns at random, others at each message: both ends draw them from one seed, so places cost nothing.

    Suits gradients and weights: `unbiased` ones (scaled by n / k) by themselves, `nearest` ones (not scaled) with `error_feedback`. Size:
    that of the codec after it for k = round(fraction n), at least 1, of the n numbers of each row. Unbiased: the mean over messages is x,
    the mean squared error n / k - 1 times x's; nearest: 1 - k / n times. At evaluations the columns are always the same ones.

    Konečný et al. (2016), "Federated learning: strategies for improving communication efficiency", arXiv:1610.05492.
    """

    def places(memory: Any, n: int, context: Context) -> jax.Array:
        return jnp.sort(jax.random.permutation(drawn_key(memory, context.training), n)[: how_many(fraction, n)])

    def inside(spec: Spec) -> Spec:
        return row_specs(spec, how_many(fraction, width(spec)))

    def init(spec: Spec, key: jax.Array) -> tuple[Any, Any]:
        sender, receiver = inner.init(inside(spec), jax.random.fold_in(key, 1))
        return (first_count(key), sender), (first_count(key), receiver)

    def encode(x: jax.Array, sender: Any, context: Context) -> tuple[Packet, Any]:
        memory, within = sender
        rows, n = as_rows(x), width(x)
        factor = n / how_many(fraction, n) if estimate == "unbiased" else 1
        values = rows[:, places(memory, n, context)] * jnp.asarray(factor, x.dtype)
        values = jnp.where(jnp.all(jnp.isfinite(rows), -1, keepdims=True), values, jnp.nan)
        packet, within = inner.encode(values, within, context)
        return packet, (counted(memory), within) if context.training else sender

    def decode(packet: Packet, receiver: Any, spec: Spec, context: Context) -> tuple[jax.Array, Any]:
        memory, within = receiver
        values, within = inner.decode(packet, within, inside(spec), context)
        rows = jnp.zeros((values.shape[0], width(spec)), spec.dtype).at[:, places(memory, width(spec), context)].set(values)
        return rows.reshape(spec.shape), (counted(memory), within) if context.training else receiver

    return floats_only(Codec(init, encode, decode, inner.wire))


def how_many(fraction: float, n: int) -> int:
    """Numbers that a fraction of n are: at least one."""
    return max(1, round(fraction * n))


def place_type(n: int) -> Any:
    """The narrowest type for places among n."""
    return jnp.uint8 if n <= 2**8 else jnp.uint16 if n <= 2**16 else jnp.uint32


def _as_bitmap(k: int, n: int) -> bool:
    return packed_width(n, 1) <= k * jnp.dtype(place_type(n)).itemsize


def _sent_places(places: Any, n: int) -> tuple[jax.Array, ...]:
    """places: [rows, k], rising. Nothing where all are chosen, else whole numbers or a bit for each place, whichever is shorter."""
    rows, k = places.shape
    if k == n:
        return ()
    if not _as_bitmap(k, n):
        return (places.astype(place_type(n)),)
    chosen = jnp.zeros((rows, n), jnp.uint8).at[jnp.arange(rows)[:, None], places].set(1)
    return (pack_bits(chosen, 1),)


def _spread(places: jax.Array, values: jax.Array, n: int) -> jax.Array:
    """[rows, n] with the values at their places, zeros elsewhere."""
    rows, k = values.shape
    if _as_bitmap(k, n):
        chosen = unpack_bits(places, 1, n) > 0
        rank = jnp.clip(running_count(chosen) - 1, 0, k - 1)
        return jnp.where(chosen, jnp.take_along_axis(values, rank, -1), 0)
    where = jnp.arange(rows)[:, None], places.astype(jnp.int32)
    return jnp.zeros((rows, n), values.dtype).at[where].set(values)
