"""Fabrics that need no other process: `Plan` runs a step on shapes, `Fused` traces it into one program, `Eager` runs it frame by frame."""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from locallearn.block import Block
from locallearn.chain import ABSENT, Fabric, Move, Row
from locallearn.codec import Codec, Context, Spec, blank, is_silent, nbytes, packet_spec, spec_of
from locallearn.errors import RuleError
from locallearn.rule import Batch, Rule, init_shapes
from locallearn.runtime.endpoint import Endpoint
from locallearn.runtime.frame import Address, address_of, machines
from locallearn.runtime.wiring import Wiring
from locallearn.traffic import HEADER_BYTES, Channel, Traffic


class Planned:
    """The shape of a value, the block that holds it, and the messages that it waited for, one after the other.

    early: whether it follows from the batch alone, so that whoever holds it can send it before the step begins.
    """

    __slots__ = ("_early", "_hops", "_owner", "_spec")

    def __init__(self, spec: Any, owner: int | None, hops: int = 0, early: bool = False):
        self._spec, self._owner, self._hops, self._early = spec, owner, hops, early

    def __getattr__(self, name: str) -> Planned:
        if name.startswith("__"):
            raise AttributeError(name)
        return Planned(getattr(self._spec, name), self._owner, self._hops, self._early)


def planned(rule: Rule, blocks: Sequence[Block], x: Spec) -> tuple[Row, Batch]:
    """(states, batch) as a step begins with them. x: a batch of examples, which the bottom has; the top has their labels."""
    y, key = Spec(x.shape[:1], jnp.int32), Spec((2,), jnp.uint32)
    held = Batch((x, 0), (y, len(blocks) - 1), (y, None), (key, None))
    batch = Batch(*(Planned(spec, owner, early=True) for spec, owner in held))
    return Row(Planned(state, i) for i, state in enumerate(init_shapes(rule, blocks))), batch


class Plan(Fabric):
    """Runs a step on shapes alone: counts what will cross, finds the critical path, and refuses whatever breaks the contract.

    traffic: what the step sends. channels: shape and dtype on each channel. hops: messages on the critical path so far.
    early: (place, channel) of the messages that follow from the batch alone.
    """

    def __init__(self, wiring: Wiring, training: bool = True):
        self.wiring, self.placement, self.training = wiring, wiring.placement, training
        self.traffic = Traffic()
        self.channels: dict[Channel, Spec] = {}
        self.early: set[tuple[int, Channel]] = set()
        self.hops = 0
        self._place = 0
        self._seen: dict[Any, Any] = {}

    def compute(self, i: int, fn: Callable[..., Any], block: Block, *args: Any, **options: Any) -> Planned:
        """The shape of what `fn` returns; a value of another block among its arguments is an error."""
        planned = [arg for arg in args if isinstance(arg, Planned)]
        for arg in planned:
            if arg._owner not in (None, i):
                raise RuleError(f"block {i} reads a value of block {arg._owner} that was not sent to it by a message")
        specs = [arg._spec if isinstance(arg, Planned) else arg for arg in args]
        hops = max((arg._hops for arg in planned), default=0)
        return Planned(self._shape(fn, block, specs, options), i, hops, all(arg._early for arg in planned))

    def exchange(self, name: str, moves: Sequence[Move]) -> list[Planned]:
        """Count each message once."""
        self._place += 1
        sent: set[Channel] = set()
        arrived = []
        for src, dst, value in moves:
            if not isinstance(value, Planned) or value._owner not in (None, src):
                raise RuleError(f"block {src} sends `{name}`, a value that is not its own")
            channel = self.wiring.channel(name, src, dst)
            if channel is None:
                arrived.append(Planned(value._spec, dst, value._hops, value._early))
                continue
            if channel not in sent:
                sent.add(channel)
                self._count(channel, value)
            self.hops = max(self.hops, value._hops + 1)
            arrived.append(Planned(value._spec, dst, value._hops + 1))
        return arrived

    def repeat(self, times: int, body: Callable[[Any, Any], Any], carry: Any) -> Any:
        """Every round, so that the critical path is exact; shapes already seen cost nothing."""
        for _ in range(times):
            carry = body(Planned(Spec((), jnp.int32), None), carry)
        return carry

    def require(self, what: str, value: Any, owner: int) -> None:
        """Refuse a result of the step that is not its block's own."""
        for part in jax.tree.leaves(value):
            if not isinstance(part, Planned) or part._owner not in (None, owner):
                raise RuleError(f"{what} of block {owner} must be that block's own value, which nothing but a message can bring there")

    def _count(self, channel: Channel, value: Planned) -> None:
        spec = value._spec
        if not isinstance(spec, Spec):
            raise RuleError(f"message `{channel.message}` is {type(spec).__name__}, not one array")
        if self.channels.setdefault(channel, spec) != spec:
            raise RuleError(f"message `{channel.message}` has shape {spec} and {self.channels[channel]} on the same link")
        codec = self.wiring.codecs[channel.message]
        size = self._cached((codec, spec), lambda: nbytes(packet_spec(codec, spec, self.training)))
        self.traffic.count(channel.counted(self.training), size)
        if value._early:
            self.early.add((self._place, channel))

    def _shape(self, fn: Callable[..., Any], block: Block, specs: list[Any], options: dict[str, Any]) -> Any:
        leaves, tree = jax.tree.flatten(specs)
        key = (fn, block, tuple(options.items()), tree, tuple(jax.api_util.shaped_abstractify(x) for x in leaves))
        return self._cached(key, lambda: jax.eval_shape(functools.partial(fn, block, **options), *specs))

    def _cached(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._seen:
            self._seen[key] = make()
        return self._seen[key]


class Fused(Fabric):
    """Traces the rule into the program that calls it: encode and decode are part of the graph.

    memory: (sender, receiver) by channel, traced; read it back after the step. sizes: bytes of payload that crossed on those channels whose
    frames vary in size, and frames: int32[2], traced too. metered: which channels those are.
    """

    def __init__(self, wiring: Wiring, memory: dict[Channel, Any], context: Context, metered: Sequence[Channel] = ()):
        self.wiring, self.placement = wiring, wiring.placement
        self.memory, self.context = dict(memory), context
        self.sizes = {channel: jnp.zeros(2, jnp.int32) for channel in metered}

    def compute(self, i: int, fn: Callable[..., Any], block: Block, *args: Any, **options: Any) -> Any:
        """A plain call."""
        return fn(block, *args, **options)

    def exchange(self, name: str, moves: Sequence[Move]) -> list[Any]:
        """Encode and decode what crosses, once for each link."""
        crossed: dict[Channel | None, Any] = {}
        arrived = []
        for src, dst, value in moves:
            channel = self.wiring.channel(name, src, dst)
            if channel is not None and channel not in crossed:
                crossed[channel] = self._cross(channel, value)
            arrived.append(value if channel is None else crossed[channel])
        return arrived

    def repeat(self, times: int, body: Callable[[Any, Any], Any], carry: Any) -> Any:
        """One compiled loop, whatever the number of rounds.

        What every round passes on as it was before the first (data that are clamped) comes out as it went in, not out of the loop: XLA then
        knows it for the same, and computes nothing from it twice.
        """
        before, still = jax.tree.leaves(carry), []

        def turn(
            number: Any, now: tuple[Any, dict[Channel, Any], dict[Channel, Any]]
        ) -> tuple[Any, dict[Channel, Any], dict[Channel, Any]]:
            carry, self.memory, self.sizes = now[0], dict(now[1]), dict(now[2])
            after = body(number, carry)
            states = zip(before, jax.tree.leaves(carry), jax.tree.leaves(after), strict=True)
            still[:] = [new is first or new is old for first, old, new in states]
            return after, self.memory, self.sizes

        carry, self.memory, self.sizes = jax.lax.fori_loop(0, times, turn, (carry, self.memory, self.sizes))
        after, tree = jax.tree.flatten(carry)
        return jax.tree.unflatten(tree, [old if same else new for old, new, same in zip(before, after, still, strict=True)])

    def _cross(self, channel: Channel, value: Any) -> Any:
        codec = self.wiring.codecs[channel.message]
        sender, receiver = self.memory.get(channel) or blank(codec, spec_of(value))
        silent = is_silent(codec, sender, self.context)
        packet, sender = codec.encode(value, sender, self.context)
        if channel in self.sizes and codec.wire is not None:
            self.sizes[channel] += jnp.where(silent, 0, jnp.stack([codec.wire.size(packet), jnp.ones((), jnp.int32)]))
        value, receiver = codec.decode(packet, receiver, spec_of(value), self.context)
        if channel in self.memory:
            self.memory[channel] = sender, receiver
        return value


class Framed(Fabric):
    """A fabric that makes real frames, for the shards that this process holds; who carries the frames is left open.

    ends: this process's shards. specs: shape and dtype on each channel, from the plan. stream: (numbering, step, microbatch). replica:
    which of several chains this is. traffic: bytes and messages of the frames that left.
    """

    def __init__(
        self,
        wiring: Wiring,
        ends: Mapping[int, Endpoint],
        specs: Mapping[Channel, Spec],
        context: Context,
        stream: tuple[int, int, int],
        replica: int = 0,
    ):
        self.wiring, self.placement, self.ends, self.replica = wiring, wiring.placement, ends, replica
        self.specs, self.context, self.stream = specs, context, stream
        self.traffic = Traffic()
        self.place = 0

    @abc.abstractmethod
    def post(self, address: Address, data: bytes) -> None:
        """Send a frame on its way."""

    @abc.abstractmethod
    def take(self, address: Address, channel: Channel) -> bytes | bytearray:
        """Wait for exactly this frame."""

    def compute(self, i: int, fn: Callable[..., Any], block: Block, *args: Any, **options: Any) -> Any:
        """Left for the shard's next program, if the shard is here."""
        end = self.ends.get(self.placement[i])
        return ABSENT if end is None else end.segments.defer(fn, block, args, options)

    def exchange(self, name: str, moves: Sequence[Move]) -> list[Any]:
        """All frames leave before the first is waited for."""
        self.place += 1
        codec = self.wiring.codecs[name]
        channels = [self.wiring.channel(name, move.src, move.dst) for move in moves]
        crossing = {c: move.value for c, move in zip(channels, moves, strict=True) if c is not None}
        for shard, end in self.ends.items():
            self.send(codec, end, {c: value for c, value in crossing.items() if c.src == shard})
        arrived = {c: self.receive(codec, c) if c.dst in self.ends else ABSENT for c in crossing}
        return [move.value if c is None else arrived[c] for c, move in zip(channels, moves, strict=True)]

    def repeat(self, times: int, body: Callable[[Any, Any], Any], carry: Any) -> Any:
        """Round after round."""
        for number in range(times):
            carry = body(np.int32(number), carry)
        return carry

    def send(self, codec: Codec, end: Endpoint, leaving: Mapping[Channel, Any]) -> None:
        """Compute, frame, count and post what leaves one shard in this exchange; nothing where the receiver knows that nothing is said."""
        silent = {c for c in leaving if end.is_silent(codec, end.senders.get(c), self.context)}
        packed = {c: end.pack(codec, c, value, self.context) for c, value in leaving.items()}
        packets = {c: (self._address(c), packet) for c, packet in packed.items() if c not in silent}
        frames = end.frames(codec, list(packets.values()))
        for (channel, (address, _)), data in zip(packets.items(), frames, strict=True):
            self.traffic.count(channel.counted(self.context.training).of(self.replica), len(data) - HEADER_BYTES)
            self.post(address, data)

    def receive(self, codec: Codec, channel: Channel) -> Any:
        """The value of a message from another shard."""
        end = self.ends[channel.dst]
        silent = end.is_silent(codec, end.receivers.get(channel), self.context)
        data = None if silent else self.take(self._address(channel), channel)
        return end.unpack(codec, channel, data, self.specs[channel], self.context)

    def _address(self, channel: Channel) -> Address:
        numbering, step, micro = self.stream
        return Address(numbering, *machines(channel.of(self.replica), self.wiring.shards), micro, step, self.place)


class Eager(Framed):
    """Runs a step message by message in one process, exactly as actors do: real frames, and each shard's programs for itself."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self._frames: dict[Address, bytes] = {}

    def post(self, address: Address, data: bytes) -> None:
        """Into the drawer from which the receiver takes it."""
        self._frames[address_of(data)] = data

    def take(self, address: Address, channel: Channel) -> bytes:
        """Out of the drawer."""
        return self._frames.pop(address)
