"""Traffic: what crosses from shard to shard, counted in bytes and messages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

HEADER_BYTES = 20
"""Our own frame header: `framed` bytes are the payload and one header for each message."""

Level = Literal["payload", "framed", "wire"]
"""What counts as a byte: of packets; with our headers; with those of TCP over IPv4 and Ethernet, as frames cross sockets."""
PREFIX_BYTES = 12
"""A frame's length, its number and a checksum of both, before it on a socket."""
PACKET_BYTES, PACKET_HEADERS = 1448, 66
"""What of a frame a packet of 1500 bytes carries next to the headers of IPv4 (20) and TCP (32, with its time stamps), and those with
Ethernet's (14). As much comes back for each message as its acknowledgement, and is counted where the message is. All of it is measured by
`tests/fabrics/namespaces.py`."""

ASIDE = ("evaluation", "checkpoint")
"""Kinds that stand beside the headline and do not count in it."""


class Channel(NamedTuple):
    """One message on one link. src, dst: shards; src_replica, dst_replica: of which replica of the chain, the same one but on a ring."""

    message: str
    kind: str
    src: int
    dst: int
    src_replica: int = 0
    dst_replica: int = 0

    def counted(self, training: bool) -> Channel:
        """As what its messages count: of their own kind in training, else as `evaluation`."""
        return self if training else self._replace(kind="evaluation")

    def of(self, replica: int) -> Channel:
        """The same channel within another replica of the chain."""
        return self._replace(src_replica=replica, dst_replica=replica)

    @property
    def link(self) -> tuple[int, ...]:
        """(src, dst), of the first replica; of others, and between them, (src, dst, src_replica, dst_replica)."""
        return self[2:] if any(self[4:]) else self[2:4]


@dataclass
class Traffic:
    """Bytes of payload and number of messages by channel. Python integers: they do not overflow.

    level: what `bytes` and its groups count.
    """

    payload: Counter[Channel] = field(default_factory=Counter)
    messages: Counter[Channel] = field(default_factory=Counter)
    level: Level = "framed"

    def count(self, channel: Channel, payload: int, messages: int = 1) -> None:
        """Add messages of `payload` bytes in all."""
        self.payload[channel] += payload
        self.messages[channel] += messages

    @classmethod
    def of(cls, channel: Channel, payload: int) -> Traffic:
        """One message."""
        return cls(Counter({channel: payload}), Counter({channel: 1}))

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.payload + other.payload, self.messages + other.messages, self.level)

    def __mul__(self, times: int) -> Traffic:
        return Traffic(
            Counter({c: n * times for c, n in self.payload.items()}),
            Counter({c: n * times for c, n in self.messages.items()}),
            self.level,
        )

    def copied(self, replicas: int) -> Traffic:
        """What so many replicas of the chain send, each the same."""
        copies = [(channel, channel.of(replica)) for channel in self.messages for replica in range(replicas)]
        payload, messages = ({c: amount[one] for one, c in copies} for amount in (self.payload, self.messages))
        return Traffic(Counter(payload), Counter(messages), self.level)

    def measured(self, sent: Mapping[Channel, tuple[int, int]]) -> Traffic:
        """The same, but with so many bytes of payload in so many messages on these channels: what a plan only has bounds of."""
        payload, messages = ({channel: both[k] for channel, both in sent.items()} for k in (0, 1))
        return Traffic(Counter({**self.payload, **payload}), Counter({**self.messages, **messages}), self.level)

    def at(self, level: Level) -> Traffic:
        """The same traffic, counted otherwise."""
        return replace(self, level=level)

    def framed(self, channel: Channel) -> int:
        """Bytes of one channel, frame headers included."""
        return self.payload[channel] + HEADER_BYTES * self.messages[channel]

    def wire(self, channel: Channel) -> int:
        """Bytes of one channel as frames cross sockets, in packets of 1500 bytes; where they vary in size, all of the mean size."""
        count = self.messages[channel]
        if not count:
            return 0
        packets = -(-(self.framed(channel) + PREFIX_BYTES * count) // (PACKET_BYTES * count))
        return self.framed(channel) + (PREFIX_BYTES + PACKET_HEADERS * (packets + 1)) * count

    def counted(self, channel: Channel) -> int:
        """Bytes of one channel, by the level."""
        return {"payload": self.payload.__getitem__, "framed": self.framed, "wire": self.wire}[self.level](channel)

    @property
    def training(self) -> list[Channel]:
        """The channels that the headline counts."""
        return [channel for channel in self.messages if channel.kind not in ASIDE]

    @property
    def bytes(self) -> int:
        """The headline: bytes (framed, unless the level says otherwise) of every kind but evaluation and checkpoint."""
        return sum(map(self.counted, self.training))

    @property
    def payload_bytes(self) -> int:
        """The same without frame headers."""
        return sum(self.payload[channel] for channel in self.training)

    @property
    def message_count(self) -> int:
        """Messages of training."""
        return sum(self.messages[channel] for channel in self.training)

    def by_kind(self) -> dict[str, int]:
        """Bytes of each kind, evaluation and checkpoint among them."""
        return _grouped((channel.kind, self.counted(channel)) for channel in self.messages)

    def by_link(self) -> dict[tuple[int, ...], int]:
        """Bytes of training on each ordered pair of shards, named as `Channel.link` does."""
        return _grouped((channel.link, self.counted(channel)) for channel in self.training)

    @property
    def worst_link(self) -> int:
        """Bytes of training on the busiest link."""
        return max(self.by_link().values(), default=0)

    def rows(self) -> list[dict[str, Any]]:
        """One plain mapping for each channel, in order: for JSON and tables. Without replicas nothing is said of them."""
        fields = Channel._fields if any(any(channel[4:]) for channel in self.messages) else Channel._fields[:4]
        return [
            {
                **dict(zip(fields, channel, strict=False)),
                "messages": self.messages[channel],
                "payload": self.payload[channel],
                "framed": self.framed(channel),
            }
            for channel in sorted(self.messages)
        ]

    @classmethod
    def of_rows(cls, rows: Iterable[Mapping[str, Any]]) -> Traffic:
        """The inverse of `rows`."""
        traffic = cls()
        for row in rows:
            channel = Channel(*(row[name] for name in Channel._fields if name in row))
            traffic.count(channel, row["payload"], row["messages"])
        return traffic


def _grouped(pairs: Iterable[tuple[Any, int]]) -> dict[Any, int]:
    total: Counter[Any] = Counter()
    for key, amount in pairs:
        total[key] += amount
    return dict(sorted(total.items()))
