"""What changed since the last message, of the channel or about the same example."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from locallearn.codec.base import Codec, Context, Packet, Spec, blank, exact, floats_only, nbytes, packet_spec, spec_of
from locallearn.codec.bits import as_bytes, of_bytes, pack_bits, packed_width, running_count, unpack_bits
from locallearn.codec.sparse import place_type
from locallearn.codec.wires import TRIMMED
from locallearn.errors import RuleError
from locallearn.fields import Count, NonNegative

BLOCK = 64
"""Changes that cross together through the codec inside, as one row; the last row's unused end is not sent."""


class Known(NamedTuple):
    """What a receiver has. about: which example each row of `values` is about, int32, -1 for none; empty where no row is about one."""

    values: jax.Array
    about: jax.Array


def difference(inner: Codec, threshold: NonNegative | None = None, since: Literal["batch", "message"] | Count = "batch") -> Codec:
    """The difference to what the receiver has, through the codec after it; with `exact` the value itself.

    Suits messages that repeat: rounds of relaxation, weights, feedback. What the codec inside loses is made up for by later messages. Size:
    that of the codec inside. With a threshold only the numbers that changed by more than it cross (event-driven), of variable size: nothing
    if there are none; else, for k of n numbers, 4 bytes, their places (k whole numbers of 1, 2 or 4 bytes, or ceil(n / 8) bytes, whichever
    is less), and the codec inside for ceil(k / 64) rows of 64 numbers, zeros at the end left out. |error| <= threshold, or for what is sent
    that of the codec inside, which a value that is not finite spoils for its row of 64. A threshold of 0 sends what changed at all. To an
    energy rule a correction is a change: keep the threshold above what the codec inside loses of a batch's first message.

    What it is the difference to: with `batch` the last message about the same examples, row by row, so that rounds of relaxation begin anew
    with each batch; the last message of the channel with `message`, and for arrays that have no row for each example (but weights with as
    many rows as the batch has examples must have `message`). With a number, the last message about each example, however long ago: AQ-SGD,
    for activations that are seen once an epoch. Both ends then keep a row for that many examples, by their place in the training set; if it
    has more, some share a place, and begin anew. Evaluations send the values, not differences, through the codec inside.

    Wang et al. (2022), "Fine-tuning language models over slow networks using activation compression with guarantees", arXiv:2206.01299.
    """
    sends_values = inner == exact()
    if threshold is not None:
        _check_rows(inner)

    def init(spec: Spec, key: jax.Array) -> tuple[Any, Any]:
        sender, receiver = inner.init(spec if threshold is None else _blocks(spec), key)
        rows = spec.shape[:1] if isinstance(since, str) else (since,) * len(spec.shape[:1])
        about = (0,) if since == "message" or not rows else rows
        known = Known(jnp.zeros((*rows, *spec.shape[1:]), spec.dtype), jnp.full(about, -1, jnp.int32))
        return (known, sender, receiver), (known, receiver)

    def encode(x: jax.Array, sender: Any, context: Context) -> tuple[Packet, Any]:
        known, within, mirror = sender
        if not context.training:
            return inner.encode(x, within, context)[0], sender
        base = _recall(known, x, since, context)
        change = x if sends_values else x - base
        if threshold is None:
            packet, within = inner.encode(change, within, context)
        else:
            moved = ~(jnp.abs(x - base) <= threshold)
            packet, within = _gather(inner, moved, change, within, context)
        value, mirror = arrives(packet, base, mirror, spec_of(x), context)
        return packet, (_remember(known, value, since, context), within, mirror)

    def decode(packet: Packet, receiver: Any, spec: Spec, context: Context) -> tuple[jax.Array, Any]:
        known, within = receiver
        if not context.training:
            return inner.decode(packet, within, spec, context)[0], receiver
        value, within = arrives(packet, _recall(known, spec, since, context), within, spec, context)
        return value, (_remember(known, value, since, context), within)

    def arrives(packet: Packet, base: jax.Array, within: Any, spec: Spec, context: Context) -> tuple[jax.Array, Any]:
        """What the receiver has after the message, worked out at both ends."""
        if threshold is None:
            moved: Any = True
            change, within = inner.decode(packet, within, spec, context)
        else:
            moved, change, within = _scatter(inner, packet, within, spec, context)
        change = jax.lax.optimization_barrier(change)  # so that both ends round alike, whatever the program around it
        return jnp.where(moved, change if sends_values else base + change, base), within

    return floats_only(Codec(init, encode, decode, inner.wire if threshold is None else inner.wire or TRIMMED))


def _recall(known: Known, like: Any, since: str | int, context: Context) -> jax.Array:
    """What the receiver has of the message to come; zeros where it has nothing, or nothing finite."""
    values, index = known.values, _index(like, since, context)
    if known.about.size and index is not None:
        place = jnp.arange(len(index)) if since == "batch" else index % known.about.size
        mine = (known.about[place] == index).reshape(-1, *(1,) * (values.ndim - 1))
        values = jnp.where(mine, values[place], 0)
    return jnp.where(jnp.isfinite(values), values, 0)


def _remember(known: Known, value: jax.Array, since: str | int, context: Context) -> Known:
    index = _index(value, since, context)
    if not known.about.size or index is None:
        return Known(value, known.about)
    if since == "batch":
        return Known(value, index)
    place, order = index % known.about.size, jnp.arange(len(index))
    last = jnp.full(known.about.shape, -1).at[place].max(order)[place] == order  # of several rows for one place the last one stays
    where = jnp.where(last, place, known.about.size)
    return Known(known.values.at[where].set(value, mode="drop"), known.about.at[where].set(index, mode="drop"))


def _index(like: Any, since: str | int, context: Context) -> jax.Array | None:
    """The example that each row is about; None where rows are about none."""
    if jnp.shape(context.index) == like.shape[:1]:
        return jnp.asarray(context.index, jnp.int32)
    if not like.shape or isinstance(since, str):
        return None
    rows = f"`difference` by example takes messages with one row for each of the batch's {jnp.shape(context.index)[0]} examples"
    raise RuleError(f"{rows}, not of shape {like.shape}: choose another codec for them, by the message's name or kind")


def _blocks(spec: Spec) -> Spec:
    """The changes of a message as the codec inside sees them: [rows, BLOCK]; one number a row if they are fewer than BLOCK."""
    n = math.prod(spec.shape)
    return Spec((-(-n // BLOCK), BLOCK), spec.dtype) if n >= BLOCK else Spec((1, n), spec.dtype)


def _gather(inner: Codec, moved: jax.Array, change: jax.Array, within: Any, context: Context) -> tuple[Packet, Any]:
    """One array of bytes: how many changed, their places, their changes; zeros after that."""
    n, seen = change.size, _blocks(spec_of(change))
    moved, change = moved.reshape(-1), change.reshape(-1)
    so_far = running_count(moved)
    rank, count = jnp.where(moved, so_far - 1, math.prod(seen.shape)), so_far[-1]
    chosen = jnp.zeros(math.prod(seen.shape), change.dtype).at[rank].set(change, mode="drop")
    packet, within = inner.encode(chosen.reshape(seen.shape), within, context)
    rows = jnp.concatenate([as_bytes(part).reshape(seen.shape[0], -1) for part in _small_first(packet)], -1)
    used = jnp.arange(seen.shape[0])[:, None] * seen.shape[1] < count
    values = jnp.where(used, rows, 0).reshape(-1)
    listed = jnp.zeros(n, place_type(n)).at[rank].set(jnp.arange(n).astype(place_type(n)), mode="drop")
    places = jnp.where(_listed(count, n), as_bytes(listed)[: packed_width(n, 1)], pack_bits(moved, 1))
    body = jnp.concatenate([as_bytes(count[None]), places, jnp.zeros_like(values)])
    return (jax.lax.dynamic_update_slice(body, values, (4 + _places_bytes(count, n),)),), within


def _scatter(inner: Codec, packet: Packet, within: Any, spec: Spec, context: Context) -> tuple[jax.Array, jax.Array, Any]:
    """(which changed, their changes, memory of the codec inside)."""
    n, seen = math.prod(spec.shape), _blocks(spec)
    parts = packet_spec(inner, seen)
    body, room = packet[0], packed_width(n, 1)
    count = of_bytes(body[:4], Spec((1,), jnp.int32))[0]
    values = jax.lax.dynamic_slice(body, (4 + _places_bytes(count, n),), (nbytes(parts),)).reshape(seen.shape[0], -1)
    found, start = {}, 0
    for k in _small_first_order(parts):
        each = nbytes([parts[k]]) // seen.shape[0]
        found[k] = of_bytes(values[:, start : start + each].reshape(-1), parts[k])
        start += each
    changes, within = inner.decode(tuple(found[k] for k in range(len(parts))), within, seen, context)
    itemsize = jnp.dtype(place_type(n)).itemsize
    listed = of_bytes(body[4 : 4 + room // itemsize * itemsize], Spec((room // itemsize,), jnp.dtype(place_type(n))))
    listed = jnp.where(jnp.arange(room // itemsize) < count, listed.astype(jnp.int32), n)
    from_list = jnp.zeros(n, bool).at[listed].set(True, mode="drop")
    moved = jnp.where(_listed(count, n), from_list, unpack_bits(body[4 : 4 + room], 1, n) > 0)
    rank = jnp.maximum(running_count(moved) - 1, 0)
    return moved.reshape(spec.shape), changes.reshape(-1)[rank].reshape(spec.shape), within


def _listed(count: jax.Array, n: int) -> jax.Array:
    """Whether places are sent as numbers; else as a bit for each place."""
    return count * jnp.dtype(place_type(n)).itemsize < packed_width(n, 1)


def _places_bytes(count: jax.Array, n: int) -> jax.Array:
    return jnp.minimum(count * jnp.dtype(place_type(n)).itemsize, packed_width(n, 1))


def _small_first_order(parts: Any) -> list[int]:
    """Scales before what they scale, so that zeros are at the end."""
    return sorted(range(len(parts)), key=lambda k: nbytes([parts[k]]))


def _small_first(packet: Packet) -> list[jax.Array]:
    return [packet[k] for k in _small_first_order(packet)]


def _check_rows(inner: Codec) -> None:
    """Refuse a codec that does not treat rows apart, or whose memory belongs to messages of one shape."""
    shapes = Spec((3, BLOCK), jnp.float32), Spec((5, BLOCK // 2), jnp.float32)
    apart = all(part.shape[:1] == (3,) for part in packet_spec(inner, shapes[0]))
    memories = [jax.tree.map(jnp.shape, jax.eval_shape(lambda spec=spec: blank(inner, spec))) for spec in shapes]
    if not apart or memories[0] != memories[1]:
        raise ValueError("`difference` with a threshold needs a codec after it that treats each row by itself, such as `exact` or `int8`")
