"""An endpoint: one shard's programs, and its ends of the channels. What `Eager` and `Peers` have in common."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from locallearn.codec import Codec, Context, Spec, blank, is_silent, packet_spec, spec_of
from locallearn.runtime.frame import frame, unframe
from locallearn.runtime.segments import Deferred, Segments
from locallearn.traffic import Channel

packet_specs = functools.lru_cache(maxsize=None)(packet_spec)


class Encoded(NamedTuple):
    """What a sender's program gives."""

    packet: Any
    memory: Any


class Decoded(NamedTuple):
    """What a receiver's program gives."""

    value: Any
    memory: Any


def encode(codec: Codec, x: Any, sender: Any, index: Any, *, training: bool) -> Encoded:
    """A codec's `encode`, as a call that a shard can note."""
    sender = blank(codec, spec_of(x))[0] if sender is None else sender
    return Encoded(*codec.encode(x, sender, Context(index, training)))


def decode(codec: Codec, packet: Any, receiver: Any, index: Any, *, spec: Spec, training: bool) -> Decoded:
    """A codec's `decode`, as a call that a shard can note."""
    receiver = blank(codec, spec)[1] if receiver is None else receiver
    return Decoded(*codec.decode(packet, receiver, spec, Context(index, training)))


class Endpoint:
    """senders, receivers: this shard's ends of the channels' memories."""

    def __init__(self, segments: Segments, senders: dict[Channel, Any], receivers: dict[Channel, Any]):
        self.segments, self.senders, self.receivers = segments, senders, receivers

    @classmethod
    def of(cls, segments: Segments, shard: int, memory: Mapping[Channel, tuple[Any, Any]]) -> Endpoint:
        """One shard's ends of all the channels' memories."""
        return cls(
            segments,
            {channel: both[0] for channel, both in memory.items() if channel.src == shard},
            {channel: both[1] for channel, both in memory.items() if channel.dst == shard},
        )

    def pack(self, codec: Codec, channel: Channel, value: Any, context: Context) -> Deferred:
        """The packet of a message, noted."""
        args = value, self.senders.get(channel), context.index
        sent = self.segments.defer(encode, codec, args, {"training": context.training})
        if context.training and channel in self.senders:
            self.senders[channel] = sent.memory
        return sent.packet

    def is_silent(self, codec: Codec, memory: Any, context: Context) -> bool:
        """Whether no frame is needed for a channel's next message."""
        if codec.silent is None or not context.training or memory is None:
            return False
        known = self.segments.force((memory,))[0][:1]
        return bool(is_silent(codec, jax.tree.map(np.asarray, known), context))

    def unpack(self, codec: Codec, channel: Channel, data: bytes | bytearray | None, spec: Spec, context: Context) -> Deferred:
        """The value of a message that arrived, or that said nothing, noted."""
        specs = packet_specs(codec, spec, context.training)
        packet = tuple(np.zeros(s.shape, s.dtype) for s in specs) if data is None else unframe(data, specs, codec.wire)
        options = {"spec": spec, "training": context.training}
        got = self.segments.defer(decode, codec, (packet, self.receivers.get(channel), context.index), options)
        if context.training and channel in self.receivers:
            self.receivers[channel] = got.memory
        return got.value

    def frames(self, codec: Codec, addressed: Sequence[tuple[Any, Deferred]]) -> list[bytes]:
        """Compute what is to be sent, all of it in one program, and frame it."""
        packets = self.segments.force(tuple(packet for _, packet in addressed))
        return [frame(address, packet, codec.wire) for (address, _), packet in zip(addressed, packets, strict=True)]

    def settle(self, values: Any) -> Any:
        """Compute the values of a step's end, with every memory of the channels."""
        values, senders, receivers = self.segments.force((values, self.senders, self.receivers))
        self.senders.update(senders)
        self.receivers.update(receivers)
        return values
