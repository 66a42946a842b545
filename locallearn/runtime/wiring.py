"""Which block lives in which shard, and which codec each message crosses with: what every fabric shares."""

from __future__ import annotations

import difflib
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from locallearn.codec import Codec, Spec, exact
from locallearn.errors import RuleError
from locallearn.rule import Message
from locallearn.traffic import Channel


class Wiring(NamedTuple):
    """placement[i]: shard of block i. messages: what the rule declares. codecs: one for each message."""

    placement: tuple[int, ...]
    messages: Mapping[str, Message]
    codecs: Mapping[str, Codec]

    @property
    def shards(self) -> int:
        """Number of shards."""
        return self.placement[-1] + 1

    def channel(self, name: str, src: int, dst: int) -> Channel | None:
        """The channel from block `src` to block `dst`; None within a shard."""
        if name not in self.messages:
            near = difflib.get_close_matches(name, self.messages, 1)
            hint = f"; did you mean `{near[0]}`?" if near else f" (declared: {', '.join(self.messages)})"
            raise RuleError(f"the rule sends `{name}` but does not declare it under `messages`{hint}")
        here, there = self.placement[src], self.placement[dst]
        return None if here == there else Channel(name, self.messages[name].kind, here, there)

    def metered(self, channels: Iterable[Channel]) -> tuple[Channel, ...]:
        """Those of the channels whose frames vary in size, in order: their bytes are known only when they were sent."""
        return tuple(sorted(channel for channel in channels if self.codecs[channel.message].wire is not None))


def deal(blocks: int, shards: int) -> tuple[int, ...]:
    """Blocks dealt out evenly, contiguous, the lower shards first to get one more: deal(5, 2) = (0, 0, 0, 1, 1)."""
    if not 1 <= shards <= blocks:
        raise RuleError(f"{shards} shards for {blocks} blocks: a shard holds at least one block")
    size, extra = divmod(blocks, shards)
    return tuple(s for s in range(shards) for _ in range(size + (s < extra)))


def cut(blocks: int, cuts: Sequence[int]) -> tuple[int, ...]:
    """A new shard begins at each block in `cuts`: cut(4, [1, 3]) = (0, 1, 1, 2)."""
    if any(b <= a for a, b in zip([0, *cuts], cuts, strict=False)) or any(c >= blocks for c in cuts):
        raise RuleError(f"cuts {list(cuts)} must rise strictly, from 1 to {blocks - 1} at most, for {blocks} blocks")
    return tuple(sum(c <= i for c in cuts) for i in range(blocks))


def choose_codecs(messages: Mapping[str, Message], chosen: Mapping[str, Codec], default: Codec) -> dict[str, Codec]:
    """One codec for each message. Keys of `chosen` are message names or kinds; a name beats its kind."""
    return {name: chosen.get(name, chosen.get(message.kind, default)) for name, message in messages.items()}


def lossless(messages: Mapping[str, Message], placement: Sequence[int]) -> Wiring:
    """The wiring in which every message arrives as it was sent."""
    return Wiring(tuple(placement), messages, {name: exact() for name in messages})


def initial_memory(wiring: Wiring, channels: Mapping[Channel, Spec], seed: int, replica: int = 0) -> dict[Channel, tuple[Any, Any]]:
    """(sender, receiver) of every channel of a replica before training, a function of the seed and the channel's name alone."""
    root = jax.random.fold_in(jax.random.PRNGKey(seed), 0xC0DEC)
    root = jax.random.fold_in(root, replica) if replica else root

    def begin(channel: Channel, spec: Spec) -> tuple[Any, Any]:
        key = jax.random.fold_in(root, zlib.crc32(repr(channel[:4]).encode()))
        return wiring.codecs[channel.message].init(spec, key)

    return {channel: begin(channel, spec) for channel, spec in channels.items()}
