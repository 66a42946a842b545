"""Vector quantisation with a codebook that is learned as messages go by."""

from __future__ import annotations

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp

from locallearn.codec.base import Codec, Context, Packet, Spec, floats_only, row_specs, width
from locallearn.codec.bits import pack_bits, unpack_bits
from locallearn.fields import Count

FADE = 0.95
"""What a message's share in the statistics becomes with each later one."""


def vq(bits: Literal[2, 4, 8] = 8, size: Count = 8, updates: Count = 4) -> Codec:
    """Each run of `size` numbers of a row as the nearest of 2^bits - 1 vectors; `updates` vectors of the codebook cross with each message.

    Suits activations, whose distribution changes slowly. Size: bits / 8 bytes for each run, and 2 updates size for the codebook, whose
    vectors are sent in turn as bfloat16: so many messages pass until all of them are the data's that (2^bits - 1) / updates tells. The
    sender moves each vector to the mean of the runs that were nearest to it, or to the run that was served worst if there were none.
    No bound but the codebook's: what arrives is the nearest vector of it. Runs that are not finite decode to NaN. An evaluation uses the
    codebook as it is and sends none of it.

    van den Oord et al. (2017), "Neural discrete representation learning", arXiv:1711.00937; for local learning, Belilovsky et al. (2021),
    "Decoupled greedy learning", arXiv:2106.06401.
    """
    codes = 2**bits - 1

    def init(spec: Spec, key: jax.Array) -> tuple[Any, Any]:
        book, turn = jax.random.normal(key, (codes, size)), jnp.zeros((), jnp.int32)
        return (book, turn, jnp.zeros((codes, size)), jnp.zeros(codes)), (book, turn)

    def encode(x: jax.Array, sender: Any, context: Context) -> tuple[Packet, Any]:
        book, turn, sums, counts = sender
        runs = _runs(x.astype(jnp.float32), size)
        finite = jnp.all(jnp.isfinite(runs), -1)
        runs = jnp.where(finite[:, None], runs, 0)
        nearest, distance = _nearest(runs, book)
        codes_sent = pack_bits(jnp.where(finite, nearest, codes).astype(jnp.uint8), bits)
        if not context.training:
            return (codes_sent,), sender
        mine = (nearest[:, None] == jnp.arange(codes)) & finite[:, None]
        sums, counts = FADE * sums + mine.astype(jnp.float32).T @ runs, FADE * counts + jnp.sum(mine, 0)
        turns = _turn(turn, runs.shape[0])
        worst, where = jax.lax.top_k(jnp.where(finite, distance, -1), len(turns))
        spare = jnp.where((worst >= 0)[:, None], runs[where], book[turns])
        used = counts[turns, None] > 0.5
        fresh = jnp.where(used, sums[turns] / jnp.where(used, counts[turns, None], 1), spare).astype(jnp.bfloat16)
        book = book.at[turns].set(fresh.astype(jnp.float32))
        return (codes_sent, fresh), (book, (turn + len(turns)) % codes, sums, counts)

    def decode(packet: Packet, receiver: Any, spec: Spec, context: Context) -> tuple[jax.Array, Any]:
        book, turn = receiver
        n = width(spec)
        count = math.prod(spec.shape) // n * -(-n // size)
        known = jnp.concatenate([book, jnp.full((1, size), jnp.nan)])
        runs = known[unpack_bits(packet[0], bits, count)]
        rows = runs.reshape(row_specs(spec, 1).shape[0], -1)[:, :n]
        if context.training:  # for the next message
            turns = _turn(turn, count)
            book, turn = book.at[turns].set(packet[1].astype(jnp.float32)), (turn + len(turns)) % codes
        return rows.astype(spec.dtype).reshape(spec.shape), (book, turn)

    def _turn(turn: jax.Array, count: int) -> jax.Array:
        """Which vectors are renewed with a message of so many runs."""
        return (turn + jnp.arange(min(updates, codes, count))) % codes

    return floats_only(Codec(init, encode, decode))


def _runs(x: jax.Array, size: int) -> jax.Array:
    """[runs, size]: the runs of each row, the last one of a row padded with zeros."""
    rows = x.reshape(-1, width(x))
    return jnp.pad(rows, ((0, 0), (0, -rows.shape[1] % size))).reshape(-1, size)


def _nearest(runs: jax.Array, book: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Number of the nearest vector for each run, the first of equals, and the squared distance."""
    distance = jnp.sum(book**2, -1)[:, None] - 2 * book @ runs.T
    least = jnp.min(distance, 0)
    downward = jnp.arange(len(book), 0, -1, dtype=jnp.int32)
    best = len(book) - jnp.max(jnp.where(distance == least, downward[:, None], 1), 0)  # on CPU much faster than argmin
    return best, jnp.maximum(least + jnp.sum(runs**2, -1), 0)
