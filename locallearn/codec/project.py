"""A message as its image in few dimensions: by a random projection of each row, or as a product of two thin matrices."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from locallearn.codec.base import Codec, Context, Packet, Spec, as_rows, floats_only, row_specs, spec_of, width
from locallearn.codec.sparse import Estimate
from locallearn.fields import Count


def random_projection(inner: Codec, n: Count = 16, estimate: Estimate = "nearest") -> Codec:
    """Each row's n coordinates in a random subspace, which both ends draw from one seed: it costs nothing, and is the same at all messages.

    Suits activations and errors between blocks that learn with it: what is sent and what comes back lie in one subspace. Size: that of the
    codec after it for n numbers a row; rows of n numbers or fewer cross through that codec whole. With x of d numbers: `nearest` arrives as
    the nearest point of the subspace, its squared error at most x's and 1 - n / d of it in the mean over seeds; `unbiased` as d / n times
    that, right in the mean over seeds.

    Subspaces of a pipeline: Ramasinghe et al. (2025), "Protocol models", arXiv:2506.01260.
    """

    def init(spec: Spec, key: jax.Array) -> tuple[Any, Any]:
        d = width(spec)
        if d <= n:
            return inner.init(spec, key)
        basis = jnp.linalg.qr(jax.random.normal(key, (d, n)))[0]
        sender, receiver = inner.init(row_specs(spec, n), jax.random.fold_in(key, 1))
        return (basis, sender), (basis, receiver)

    def encode(x: jax.Array, sender: Any, context: Context) -> tuple[Packet, Any]:
        if width(x) <= n:
            return inner.encode(x, sender, context)
        basis, within = sender
        factor = width(x) / n if estimate == "unbiased" else 1.0
        packet, within = inner.encode(((as_rows(x) @ basis) * factor).astype(x.dtype), within, context)
        return packet, (basis, within)

    def decode(packet: Packet, receiver: Any, spec: Spec, context: Context) -> tuple[jax.Array, Any]:
        if width(spec) <= n:
            return inner.decode(packet, receiver, spec, context)
        basis, within = receiver
        image, within = inner.decode(packet, within, row_specs(spec, n), context)
        return (image @ basis.T).astype(spec.dtype).reshape(spec.shape), (basis, within)

    return floats_only(Codec(init, encode, decode, inner.wire))


def low_rank(inner: Codec, rank: Count = 2) -> Codec:
    """A matrix as the product of two thin ones, by one step of power iteration from where the last message ended: PowerSGD.

    Suits gradients and weights with `error_feedback`, whose main directions change slowly, and a batch's errors, which come from a few
    class scores (`[low_rank(11), "int8(nearest, symmetric, message)"]` for ten); batches of activations less. An array is a matrix of its
    rows (the last axis), [m, n]; both factors cross through the codec after it: its size for [m, r] and [r, n] numbers, or that of the
    array where they would be as many. Exact for matrices of rank r or less; the squared error is at most the matrix's own (with `exact`
    after it). A value that is not finite spreads over the message.

    Vogels, Karimireddy, Jaggi (2019), "PowerSGD", arXiv:1905.13727.
    """

    def factors(spec: Spec) -> tuple[Spec, Spec] | None:
        """Those of a matrix that is worth taking apart."""
        m, n = row_specs(spec, width(spec)).shape
        return (Spec((m, rank), spec.dtype), Spec((rank, n), spec.dtype)) if rank * (m + n) < m * n else None

    def init(spec: Spec, key: jax.Array) -> tuple[Any, Any]:
        m, n = row_specs(spec, width(spec)).shape
        parts = spec, Spec((m, min(rank, n)), spec.dtype), Spec((min(rank, n), n), spec.dtype)
        ends = [inner.init(part, jax.random.fold_in(key, k)) for k, part in enumerate(parts)]
        return (jax.random.normal(key, (n, min(rank, n))), *(end[0] for end in ends)), tuple(end[1] for end in ends)

    def encode(x: jax.Array, sender: Any, context: Context) -> tuple[Packet, Any]:
        start, whole_end, left_end, right_end = sender
        if factors(spec_of(x)) is None:
            packet, whole_end = inner.encode(x, whole_end, context)
            return packet, (start, whole_end, left_end, right_end)
        matrix = as_rows(x).astype(jnp.float32)
        left = jnp.linalg.qr(matrix @ start)[0]
        right = left.T @ matrix
        sent_left, left_end = inner.encode(left.astype(x.dtype), left_end, context)
        sent_right, right_end = inner.encode(right.astype(x.dtype), right_end, context)
        if context.training:
            usable = jnp.isfinite(right).all() & (jnp.abs(right).sum(-1) > 0).all()
            start = jnp.where(usable, right.T, start)
        return (*sent_left, *sent_right), (start, whole_end, left_end, right_end)

    def decode(packet: Packet, receiver: Any, spec: Spec, context: Context) -> tuple[jax.Array, Any]:
        thin = factors(spec)
        whole_end, left_end, right_end = receiver
        if thin is None:
            x, whole_end = inner.decode(packet, whole_end, spec, context)
            return x, (whole_end, left_end, right_end)
        half = len(packet) // 2
        left, left_end = inner.decode(packet[:half], left_end, thin[0], context)
        right, right_end = inner.decode(packet[half:], right_end, thin[1], context)
        product = left.astype(jnp.float32) @ right.astype(jnp.float32)
        return product.astype(spec.dtype).reshape(spec.shape), (whole_end, left_end, right_end)

    return floats_only(Codec(init, encode, decode, inner.wire))
