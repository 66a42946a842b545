"""What was sent of what was planned, where frames vary in size or stay away: shares of the plan, by channel.

They are means over some of a run's steps. Which of these steps sent more than others is not known, nor which round of a message that a
step sends several times.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from locallearn.traffic import ASIDE

Key = tuple[str, int, int]
"""A message, and from which shard to which it goes: in all replicas together."""


class Share(NamedTuple):
    """Of a channel's planned frames, and of their bytes."""

    frames: float = 1.0
    bytes: float = 1.0


Sent = Mapping[Key, Share]
"""The shares of all channels; none where all was sent as it was planned."""


class Amounts(NamedTuple):
    """Frames and framed bytes by channel."""

    frames: Mapping[Key, float]
    bytes: Mapping[Key, float]

    @classmethod
    def of(cls, parts: Iterable[tuple[float, Iterable[Mapping[str, Any]]]]) -> Amounts:
        """Rows of `Traffic.rows` of training, each part so many times."""
        frames, size = defaultdict[Key, float](float), defaultdict[Key, float](float)
        for times, rows in parts:
            for row in rows:
                if row["kind"] not in ASIDE:
                    key = row["message"], row["src"], row["dst"]
                    frames[key] += times * row["messages"]
                    size[key] += times * row["framed"]
        return cls(frames, size)


def shares(planned: Amounts, before: Amounts, after: Amounts) -> Sent:
    """What was sent of the plan between two counts."""

    def share(key: Key) -> Share:
        frames, size = (now.get(key, 0) - was.get(key, 0) for was, now in zip(before, after, strict=True))
        return Share(frames / planned.frames[key], size / planned.bytes[key])

    return {key: share(key) for key, count in planned.frames.items() if count}


def mean_of(parts: Sequence[tuple[int, Sent]]) -> Sent:
    """The shares over all of several intervals, each with its steps. All have the same channels."""
    steps = sum(count for count, _ in parts)

    def over(key: Key) -> Share:
        return Share(*(sum(count * sent[key][k] for count, sent in parts) / steps for k in range(2)))

    return {key: over(key) for key in parts[0][1]}


def share_of(sent: Sent, name: str, src: int, dst: int) -> Share:
    """Of a message between two shards; where they are none between which it goes, that of the nearest ones."""
    found = [(abs(key[1] - src), abs(key[2] - dst), share) for key, share in sent.items() if key[0] == name]
    return min(found, default=(0, 0, Share()))[-1]
