"""What was said of an example once is kept at the receiver."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from locallearn.codec.base import Codec, Context, Packet, Spec, blank, nbytes, packet_spec
from locallearn.codec.bits import as_bytes, of_bytes
from locallearn.codec.wires import TRIMMED
from locallearn.fields import Count, NonNegativeInt


class Told(NamedTuple):
    """Which example each place of the memory is about, int32, -1 for none, and how often its row has been taken since it crossed."""

    about: jax.Array
    taken: jax.Array


def reuse(inner: Codec, examples: Count = 65536, uses: NonNegativeInt = 0) -> Codec:
    """A row about an example crosses once, through the codec after it; the receiver keeps it, and takes it again when the example returns.

    Suits labels, and activations of blocks that no longer learn (greedy training, one block after the other): every epoch but the first is
    free. Where a block learns whose work is in the rows, a run is refused that would keep them for ever. With `uses` a row crosses again
    when it was taken so often: several steps at the receiver for each message, for blocks that still learn; or the rounds of a
    relaxation, whose activities hardly move: `reuse(60000, 5)` for a forward pass and four rounds. Size: that of the codec after it for the
    rows that are new, nothing else, and no frame where none is. The receiver keeps a row for so many examples, as it crossed, by their
    place in the training set; if it has more, some share a place, and cross again. Evaluations send every row, and messages without a
    row for each example of the batch cross as ever. The error is that of the codec after it, which treats each row by itself and remembers
    nothing (`exact`, `int4`, `packed`, ...), and how much the row changed since it crossed: of random views, all are the first.
    """
    one = Spec((3, 8), jnp.float32)
    if jax.tree.leaves(jax.eval_shape(lambda: blank(inner, one))):
        raise ValueError("`reuse` needs a codec after it that remembers nothing, such as `exact`, `int8` or `packed`")
    if any(part.shape[:1] != one.shape[:1] for part in packet_spec(inner, one)):
        raise ValueError("`reuse` needs a codec after it that treats each row by itself, such as `exact`, `int8` or `packed`")

    def init(spec: Spec, key: jax.Array) -> tuple[Any, Any]:
        told = Told(jnp.full(examples, -1, jnp.int32), jnp.zeros(examples, jnp.int32))
        return (told,), (told, tuple(jnp.zeros((examples, *part.shape[1:]), part.dtype) for part in kept(spec)))

    def kept(spec: Spec) -> tuple[Spec, ...]:
        """What is kept of a message: the rows of the packet, or those of the message where a packet has none of their own."""
        parts = packet_spec(inner, spec) if spec.shape and spec.size else ()
        return parts if parts and _apart(parts, spec.shape[0]) else (spec,)

    def silent(told: Told, context: Context) -> Any:
        return ~_fresh(told, context.index, uses).any()

    def encode(x: jax.Array, sender: Any, context: Context) -> tuple[Packet, Any]:
        if not (context.training and x.shape and x.size):
            return inner.encode(x, (), context)[0], sender
        (told,), known = sender, _about_examples(x, context)
        fresh = _crossing(told, context.index, uses)[0] if known else jnp.ones(len(x), bool)
        first = jnp.argsort(~fresh, stable=True)
        new = (jnp.arange(len(x)) < fresh.sum()).reshape(-1, *(1,) * (x.ndim - 1))
        packet = inner.encode(jnp.where(new, x[first], jnp.zeros((), x.dtype)), (), context)[0]
        if _apart(packet, len(x)):
            rows = jnp.concatenate([as_bytes(part).reshape(len(x), -1) for part in packet], -1)
            packet = (jnp.where(new.reshape(-1, 1), rows, 0).reshape(-1),)
        return packet, (_tell(told, context.index, fresh),) if known else sender

    def decode(packet: Packet, receiver: Any, spec: Spec, context: Context) -> tuple[jax.Array, Any]:
        if not (context.training and spec.shape and spec.size):
            return inner.decode(packet, (), spec, context)[0], receiver
        parts = packet_spec(inner, spec)
        apart = _apart(parts, spec.shape[0])
        packet = _parted(packet[0], parts) if apart else packet
        if not _about_examples(spec, context):
            return inner.decode(packet, (), spec, context)[0], receiver
        (told, known), index = receiver, context.index
        fresh, first = _crossing(told, index, uses)
        sent, where = jnp.cumsum(fresh)[first] - 1, _where(told, index, fresh)

        def chosen(came: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(fresh[first].reshape(-1, *(1,) * (came.ndim - 1)), came[sent], old)

        came = packet if apart else inner.decode(packet, (), spec, context)[:1]
        before = tuple(old[index % len(old)] for old in known)
        rows = tuple(map(chosen, came, before))
        known = tuple(old.at[where].set(row, mode="drop") for old, row in zip(known, rows, strict=True))
        # Chosen after decoding: nothing that follows is contracted with that, and a row has the same bits at each use.
        value = chosen(*(inner.decode(each, (), spec, context)[0] for each in (came, before))) if apart else rows[0]
        return value, (_tell(told, index, fresh), known)

    return Codec(init, encode, decode, inner.wire or TRIMMED, silent)


def _about_examples(like: Any, context: Context) -> bool:
    """Whether a message has one row for each example of the batch."""
    return jnp.shape(context.index) == like.shape[:1]


def _crossing(told: Told, index: jax.Array, uses: int) -> tuple[jax.Array, jax.Array]:
    """Which rows of a batch cross, and for each row where its example comes first: of one that comes twice a single row crosses."""
    place, by = jnp.arange(len(index)), jnp.argsort(index, stable=True)
    begins = jnp.concatenate([jnp.ones(1, bool), index[by][1:] != index[by][:-1]])
    first = place.at[by].set(by[jax.lax.cummax(jnp.where(begins, place, 0))])
    return _fresh(told, index, uses) & (first == place), first


def _fresh(told: Told, index: Any, uses: int) -> Any:
    """Which rows of a batch are of examples that are not kept, or were taken too often. Works on arrays of either library."""
    place = index % len(told.about)
    known = told.about[place] == index
    return ~(known & (told.taken[place] < uses)) if uses else ~known


def _tell(told: Told, index: jax.Array, fresh: jax.Array) -> Told:
    where = _where(told, index, fresh)
    taken = told.taken.at[index % len(told.about)].add(1).at[where].set(1, mode="drop")
    return Told(told.about.at[where].set(index, mode="drop"), taken)


def _where(told: Told, index: jax.Array, fresh: jax.Array) -> jax.Array:
    """The place of each row that crosses, none for the others; of several for one place the last one stays."""
    size, order = len(told.about), jnp.arange(len(index))
    place = jnp.where(fresh, index % size, size)
    last = jnp.full(size, -1).at[place].max(order, mode="drop")[place % size] == order
    return jnp.where(fresh & last, place, size)


def _parted(flat: jax.Array, parts: Sequence[Spec]) -> Packet:
    """The parts of a packet, from their bytes row by row."""
    rows, start, found = flat.reshape(parts[0].shape[0], -1), 0, []
    for part in parts:
        size = nbytes([part]) // len(rows)
        found.append(of_bytes(rows[:, start : start + size].reshape(-1), part))
        start += size
    return tuple(found)


def _apart(packet: Any, rows: int) -> bool:
    """Whether each part has a row for each of the message's; labels packed by bits lie one after the other."""
    return all(part.shape[:1] == (rows,) for part in packet)
