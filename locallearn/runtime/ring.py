"""The ring on which the replicas of each shard average what they hold: one all-reduce, for every codec.

The numbers of each block are dealt out into R equal segments, one for each replica, and go round in two turns of R - 1 hops:

    reduce   each replica sends one segment of its running sum to the next, and adds what arrives to its own: after the last hop each has
             the whole sum of one segment
    gather   it divides that by R and sends it on; the packets go round as they are, and all replicas decode the same bits

A hop of the first turn encodes anew, of the second only whoever begins. So a block costs each replica 2 (R - 1) messages of an R-th of its
numbers: with `exact` 2 (R - 1) / R times its parameters, the least there is (Patarasuk, Yuan 2009). What a codec remembers belongs to one
segment on one link: `error_feedback` sends at the next average what was lost at this hop of this one.

With `exact` a block is one row of numbers. Other codecs see matrices: of each array of two axes or more the rows are dealt out (so a scale,
a choice of the largest, a product of thin matrices is one of a matrix of the same columns), and all other arrays make one row. Zeros
fill what does not divide. One packet, and so one frame, holds a block's segments of all its arrays.
"""

from __future__ import annotations

import abc
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from locallearn.block import Block
from locallearn.chain import Fabric, Move, Row
from locallearn.codec import Codec, Context, Packet, Spec, exact, nbytes, packet_spec
from locallearn.errors import RuleError
from locallearn.replicas import AVERAGE
from locallearn.rule import Message
from locallearn.runtime.wiring import Wiring
from locallearn.traffic import Channel, Traffic

MESSAGES = {AVERAGE: Message("weight", "ring", "what the replicas of a block average, segment by segment")}

CONTEXT = Context(np.zeros(0, np.int32))
"""These messages are about no example."""


class Deal(NamedTuple):
    """How a block's numbers are dealt out to so many replicas, and the codec of each segment."""

    codec: Codec
    replicas: int


class Memory(NamedTuple):
    """What one replica's ends remember of one block, each a tuple with an entry for every array.

    senders, receivers: of the first turn, stacked over its hops. sharer: of the segment that it shares in the second turn. sharers: the
    receiving ends of all segments' second turn, stacked.
    """

    senders: Any
    receivers: Any
    sharer: Any
    sharers: Any


class Sent(NamedTuple):
    """A packet, and the memory after it."""

    packet: Packet
    memory: Memory


class Held(NamedTuple):
    """The arrays of a block, each [R, segment...], and the memory."""

    parts: tuple[jax.Array, ...]
    memory: Memory


# What one replica does for one block. `number` is the replica's, `hop` of the turn; both are traced.


def cut(deal: Deal, tree: Any) -> tuple[jax.Array, ...]:
    """The arrays of a tree, dealt out: [R, rows, columns] of each matrix and [R, numbers] of all the rest."""
    leaves = jax.tree.leaves(tree)
    whole, rest = _sorted_out(deal, leaves)
    rows = [leaves[k].reshape(-1, leaves[k].shape[-1]) for k in whole]
    rows += [jnp.concatenate([leaves[k].reshape(-1) for k in rest])] if rest else []

    def dealt(array: jax.Array) -> jax.Array:
        each = -(-array.shape[0] // deal.replicas)
        padded = jnp.pad(array, [(0, each * deal.replicas - array.shape[0])] + [(0, 0)] * (array.ndim - 1))
        return padded.reshape(deal.replicas, each, *array.shape[1:])

    return tuple(map(dealt, rows))


def joined(deal: Deal, parts: Sequence[jax.Array], like: Any) -> Any:
    """The inverse of `cut`: a tree as `like`."""
    leaves, tree = jax.tree.flatten(like)
    whole, rest = _sorted_out(deal, leaves)
    found = {k: part.reshape(-1)[: leaves[k].size] for k, part in zip(whole, parts, strict=False)}
    start = 0
    for k in rest:
        found[k] = parts[-1].reshape(-1)[start : start + leaves[k].size]
        start += leaves[k].size
    return jax.tree.unflatten(tree, [found[k].reshape(leaf.shape).astype(leaf.dtype) for k, leaf in enumerate(leaves)])


def send(deal: Deal, number: Any, hop: Any, parts: Sequence[jax.Array], memory: Memory) -> Sent:
    """First turn: the running sum of one segment."""
    packet, senders = _encode(deal, [part[(number - hop) % deal.replicas] for part in parts], _at(memory.senders, hop))
    return Sent(packet, memory._replace(senders=_set(memory.senders, hop, senders)))


def add(deal: Deal, number: Any, hop: Any, parts: Sequence[jax.Array], packet: Packet, memory: Memory) -> Held:
    """First turn: what arrives is added to one's own."""
    place = (number - 1 - hop) % deal.replicas
    values, receivers = _decode(deal, packet, _at(memory.receivers, hop), parts)
    parts = tuple(part.at[place].add(value) for part, value in zip(parts, values, strict=True))
    return Held(parts, memory._replace(receivers=_set(memory.receivers, hop, receivers)))


def share(deal: Deal, number: Any, parts: Sequence[jax.Array], memory: Memory) -> Sent:
    """Second turn: the mean of the segment whose whole sum is here."""
    packet, sharer = _encode(deal, [part[(number + 1) % deal.replicas] / deal.replicas for part in parts], memory.sharer)
    return Sent(packet, memory._replace(sharer=sharer))


def place(deal: Deal, number: Any, hop: Any, parts: Sequence[jax.Array], packet: Packet, memory: Memory) -> Held:
    """Second turn: the mean that arrives after so many hops, decoded by all alike, by whoever shares it (hop 0) too."""
    where = (number + 1 - hop) % deal.replicas
    values, sharers = _decode(deal, packet, _at(memory.sharers, where), parts)
    values = jax.lax.optimization_barrier(values)  # so that all replicas have the same bits, whatever the program around it
    parts = tuple(part.at[where].set(value) for part, value in zip(parts, values, strict=True))
    return Held(parts, memory._replace(sharers=_set(memory.sharers, where, sharers)))


def _sorted_out(deal: Deal, leaves: Sequence[Any]) -> tuple[list[int], list[int]]:
    """(which arrays have their rows dealt out, which make one row)."""
    whole = [k for k, leaf in enumerate(leaves) if len(leaf.shape) > 1 and deal.codec != exact()]
    return whole, [k for k in range(len(leaves)) if k not in whole]


def _encode(deal: Deal, values: Sequence[jax.Array], senders: Any) -> tuple[Packet, Any]:
    sent = [deal.codec.encode(value, sender, CONTEXT) for value, sender in zip(values, senders, strict=True)]
    return tuple(array for packet, _ in sent for array in packet), tuple(sender for _, sender in sent)


def _decode(deal: Deal, packet: Packet, receivers: Any, parts: Sequence[jax.Array]) -> tuple[tuple[jax.Array, ...], Any]:
    """parts: arrays of [R, segment...], for their shapes."""
    values, left = [], list(packet)
    for part, receiver in zip(parts, receivers, strict=True):
        spec = Spec(part.shape[1:], part.dtype)
        own = len(packet_spec(deal.codec, spec))
        values.append(deal.codec.decode(tuple(left[:own]), receiver, spec, CONTEXT))
        left = left[own:]
    return tuple(value for value, _ in values), tuple(receiver for _, receiver in values)


def _at(memory: Any, place: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[place], memory)


def _set(memory: Any, place: Any, new: Any) -> Any:
    return jax.tree.map(lambda leaf, value: leaf.at[place].set(value), memory, new)


def segments(deal: Deal, tree: Any) -> tuple[Spec, ...]:
    """Shapes of one replica's segment of each array; nothing is computed."""
    return tuple(Spec(part.shape[1:], part.dtype) for part in jax.eval_shape(functools.partial(cut, deal), tree))


def packet_specs(deal: Deal, tree: Any) -> tuple[Spec, ...]:
    """Shapes of a block's packet."""
    return tuple(part for spec in segments(deal, tree) for part in packet_spec(deal.codec, spec))


def initial_memory(deal: Deal, tree: Any, key: jax.Array) -> Memory:
    """Of all replicas' ends for one block, stacked over the replicas. Both ends of a link begin with the same key."""
    count, specs = deal.replicas, segments(deal, tree)
    turn, shared = jax.random.split(key)

    def begun(root: jax.Array, shape: tuple[int, ...]) -> list[tuple[Any, Any]]:
        keys = [jax.random.split(jax.random.fold_in(root, k), math.prod(shape)) for k in range(len(specs))]
        ends = [jax.vmap(functools.partial(deal.codec.init, spec))(key) for spec, key in zip(specs, keys, strict=True)]
        return jax.tree.map(lambda leaf: leaf.reshape(*shape, *leaf.shape[1:]), ends)

    def rolled(ends: Any, by: int) -> Any:
        return jax.tree.map(lambda leaf: jnp.roll(leaf, by, 0), ends)

    links, shares = begun(turn, (count, count - 1)), begun(shared, (count,))
    return Memory(
        senders=tuple(sender for sender, _ in links),
        receivers=rolled(tuple(receiver for _, receiver in links), 1),
        sharer=rolled(tuple(sender for sender, _ in shares), -1),
        sharers=jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape)), tuple(receiver for _, receiver in shares)),
    )


class Ring(Fabric):
    """The replicas of all blocks: a value of a block is one for each of its replicas, and the only message is `average`. Rings are abstract
    or final.

    deal: how each block's numbers cross. memory: by block, of those that take part. present: the replicas in the ring, if not all are.
    """

    def __init__(self, wiring: Wiring, deal: Deal, memory: Mapping[int, Any], present: Sequence[int] = ()):
        self.wiring, self.placement, self.deal = wiring, wiring.placement, deal
        self.memory, self.present = dict(memory), tuple(present) or tuple(range(deal.replicas))

    @abc.abstractmethod
    def each(self, i: int, fn: Callable[..., Any], owner: Any, *args: Any, **options: Any) -> Any:
        """`fn(owner, *args, **options)` in every replica of block i, with what is its own of the arguments."""

    @abc.abstractmethod
    def everywhere(self, number: Any) -> Any:
        """A number that every replica knows."""

    @abc.abstractmethod
    def numbers(self) -> Any:
        """Each replica's place in the ring."""

    @abc.abstractmethod
    def shift(self, packets: dict[int, Any], hop: Any) -> dict[int, Any]:
        """Every replica's packet of every block to the next replica. hop: how many went before it in this average."""

    def compute(self, i: int, fn: Callable[..., Any], block: Block, *args: Any, **options: Any) -> Any:
        """In every replica."""
        return self.each(i, fn, block, *args, **options)

    def exchange(self, name: str, moves: Sequence[Move]) -> list[Any]:
        """Never: between blocks it is for each replica's own chain."""
        raise RuleError(f"`{name}` goes from block to block, which replicas do each for themselves")

    def average(self, row: Row) -> Row:
        """Each entry, a tree of numbers, as its mean over the replicas, of every block that has a memory; the others are as they were."""
        deal, number, turn = self.deal, self.numbers(), self.deal.replicas - 1
        own = {i: row[i] for i in self.memory}

        def reduce(hop: Any, carry: Any) -> Any:
            parts, memory = carry
            here = self.everywhere(hop)
            sent = {i: self.each(i, send, deal, number, here, parts[i], memory[i]) for i in own}
            came = self.shift({i: one.packet for i, one in sent.items()}, hop)
            held = {i: self.each(i, add, deal, number, here, parts[i], came[i], sent[i].memory) for i in own}
            return {i: one.parts for i, one in held.items()}, {i: one.memory for i, one in held.items()}

        def gather(hop: Any, carry: Any) -> Any:
            packets, parts, memory = carry
            packets = self.shift(packets, hop + turn)
            return packets, *placed(hop + 1, packets, parts, memory)

        def placed(hop: Any, packets: Any, parts: Any, memory: Any) -> Any:
            here = self.everywhere(hop)
            held = {i: self.each(i, place, deal, number, here, parts[i], packets[i], memory[i]) for i in own}
            return {i: one.parts for i, one in held.items()}, {i: one.memory for i, one in held.items()}

        parts, memory = self.repeat(turn, reduce, ({i: self.each(i, cut, deal, value) for i, value in own.items()}, self.memory))
        shared = {i: self.each(i, share, deal, number, parts[i], memory[i]) for i in own}
        packets = {i: one.packet for i, one in shared.items()}
        carry = packets, *placed(0, packets, parts, {i: one.memory for i, one in shared.items()})
        _, parts, self.memory = self.repeat(turn, gather, carry)
        return Row(self.each(i, joined, deal, parts[i], row[i]) if i in own else row[i] for i in range(len(row)))

    def channel(self, i: int, replica: int) -> Channel:
        """That of block i's shard from a replica to the next."""
        shard = self.placement[i]
        return Channel(AVERAGE, MESSAGES[AVERAGE].kind, shard, shard, replica, further(self.present, replica))


def further(present: Sequence[int], replica: int, places: int = 1) -> int:
    """The replica so many places further in the ring of those that are present."""
    return present[(present.index(replica) + places) % len(present)]


def ring_channels(wiring: Wiring, deal: Deal, memory: Mapping[int, Any]) -> dict[int, list[Channel]]:
    """The channels of each shard's ring, from replica to replica, if frames vary in size. memory: by block, of those that take part."""
    if deal.codec.wire is None:
        return {}
    kind = MESSAGES[AVERAGE].kind
    numbers = range(deal.replicas)
    shards = sorted({wiring.placement[i] for i in memory})
    return {s: [Channel(AVERAGE, kind, s, s, r, (r + 1) % deal.replicas) for r in numbers] for s in shards}


class StackedRing(Ring):
    """All replicas are here, their values stacked along a first axis."""

    def each(self, i: int, fn: Callable[..., Any], owner: Any, *args: Any, **options: Any) -> Any:
        """As one call over that axis."""
        return jax.vmap(functools.partial(fn, owner, **options))(*args)

    def everywhere(self, number: Any) -> Any:
        """As often as there are replicas."""
        return jnp.full(self.deal.replicas, number, jnp.int32)

    def numbers(self) -> Any:
        """In order."""
        return jnp.arange(self.deal.replicas, dtype=jnp.int32)


class FusedRing(StackedRing):
    """Traced into the program that calls it.

    metered: whether frames vary in size. sizes: int32[R, 2] by shard, bytes of payload and frames that each replica sent then, traced.
    """

    def __init__(self, wiring: Wiring, deal: Deal, memory: Mapping[int, Any]):
        super().__init__(wiring, deal, memory)
        self.sizes = {shard: jnp.zeros((deal.replicas, 2), jnp.int32) for shard in ring_channels(wiring, deal, memory)}

    def shift(self, packets: dict[int, Any], hop: Any) -> dict[int, Any]:
        """Along the first axis."""
        if self.deal.codec.wire is not None:
            for i, packet in packets.items():
                size = jax.vmap(self.deal.codec.wire.size)(packet)
                self.sizes[self.placement[i]] += jnp.stack([size, jnp.ones_like(size)], -1)
        return jax.tree.map(lambda array: jnp.roll(array, 1, 0), packets)

    def repeat(self, times: int, body: Callable[[Any, Any], Any], carry: Any) -> Any:
        """One compiled loop, whatever the number of hops."""

        def turn(number: Any, now: Any) -> Any:
            carry, self.sizes = now[0], dict(now[1])
            return body(number, carry), self.sizes

        carry, self.sizes = jax.lax.fori_loop(0, times, turn, (carry, self.sizes))
        return carry


class PlanRing(StackedRing):
    """On shapes alone, within `jax.eval_shape`: counts what will cross. hops: messages one after the other."""

    def __init__(self, wiring: Wiring, deal: Deal, memory: Mapping[int, Any]):
        super().__init__(wiring, deal, memory)
        self.traffic, self.hops, self._times = Traffic(), 0, 1

    def shift(self, packets: dict[int, Any], hop: Any) -> dict[int, Any]:
        """Count each block's message on each link of its shard's ring."""
        self.hops += self._times
        for i, packet in packets.items():
            size = nbytes(packet) // self.deal.replicas
            for replica in range(self.deal.replicas):
                self.traffic.count(self.channel(i, replica), size * self._times, self._times)
        return packets

    def repeat(self, times: int, body: Callable[[Any, Any], Any], carry: Any) -> Any:
        """One hop, counted so many times: all are alike."""
        self._times *= times
        carry = body(jnp.zeros((), jnp.int32), carry)
        self._times //= times
        return carry
