"""What belongs to which shard: taking a run's arrays apart by shard, and putting them together again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from locallearn.chain import ABSENT, Row
from locallearn.runtime.averaging import Shared
from locallearn.runtime.endpoint import Endpoint
from locallearn.runtime.wiring import Wiring
from locallearn.traffic import Channel


def settle_all(placement: Sequence[int], ends: Mapping[int, Endpoint], values: Any) -> Any:
    """Compute what a step left, each shard that is here by itself. What is no row belongs to the top shard."""

    def is_row(value: Any) -> bool:
        return isinstance(value, Row)

    def own(value: Any, shard: int) -> Any:
        if is_row(value):
            return of_shard(placement, value, shard)
        return value if shard == placement[-1] else ABSENT

    leaves, tree = jax.tree.flatten(values, is_leaf=is_row)
    settled = {shard: end.settle(tuple(own(leaf, shard) for leaf in leaves)) for shard, end in ends.items()}

    def merged(k: int) -> Any:
        if is_row(leaves[k]):
            return merge_rows(placement, {shard: part[k] for shard, part in settled.items()})
        return settled[placement[-1]][k] if placement[-1] in settled else ABSENT

    return jax.tree.unflatten(tree, [merged(k) for k in range(len(leaves))])


def of_shard(placement: Sequence[int], row: Row, shard: int) -> Row:
    """The row with only this shard's entries."""
    return Row(value if s == shard else ABSENT for s, value in zip(placement, row, strict=True))


def merge_rows(placement: Sequence[int], rows: Mapping[int, Row]) -> Row:
    """One row from the shards' rows, absent where a shard is not here."""
    return Row(rows[shard][i] if shard in rows else ABSENT for i, shard in enumerate(placement))


def shard_part(wiring: Wiring, state: Any, memory: Sequence[Any], ring: Row, shard: int) -> tuple[Row, list[Any], Row]:
    """What one shard holds: its states, for each microbatch its senders and its receivers, and its older weights."""
    ends = [
        (
            {c: both[0] for c, both in sorted(slot.items()) if c.src == shard},
            {c: both[1] for c, both in sorted(slot.items()) if c.dst == shard},
        )
        for slot in memory
    ]
    return of_shard(wiring.placement, state, shard), ends, of_shard(wiring.placement, ring, shard)


def machine_part(wiring: Wiring, held: Sequence[Any], shard: int) -> tuple[Any, ...]:
    """The same of one shard of one replica, with what it shares with the others, if there are any.

    held: the replica's states, channel memories, older weights, and what it shares or None.
    """
    state, memory, older, shared = held
    own = shard_part(wiring, state, memory, older, shard)
    if shared is None:
        return own
    ring = {i: memory for i, memory in shared.ring.items() if wiring.placement[i] == shard}
    return *own, of_shard(wiring.placement, shared.agreement, shard), ring


def merge_parts(placement: Sequence[int], parts: Mapping[int, Sequence[Any]]) -> tuple[Row, Row, Shared | None]:
    """(states, older weights, what it shares or None) of one replica, from its shards' `machine_part`s; channel memories are left out."""
    columns = [{shard: part[k] for shard, part in parts.items()} for k in range(len(next(iter(parts.values()))))]
    state, older = merge_rows(placement, columns[0]), merge_rows(placement, columns[2])
    if len(columns) == 3:
        return state, older, None
    agreements, rings = columns[3:]
    return state, older, Shared(merge_rows(placement, agreements), {i: own for ring in rings.values() for i, own in ring.items()})


def carried(old: Mapping[Channel, Any], new: dict[Channel, Any], before: Wiring | None, now: Wiring) -> dict[Channel, Any]:
    """What each channel's end remembers at the beginning of a stage: what it did at the end of the last one, if its codec is the same."""

    def same(channel: Channel) -> bool:
        if before is None or channel not in old or before.codecs[channel.message] != now.codecs[channel.message]:
            return False
        return _shapes(old[channel]) == _shapes(new[channel])

    return {channel: old[channel] if same(channel) else blank for channel, blank in new.items()}


def carried_ring(old: Mapping[int, Any], new: dict[int, Any], same: bool) -> dict[int, Any]:
    """The same for the ends of the replicas' rings. same: whether their codec is."""
    return {i: old[i] if same and i in old and _shapes(old[i]) == _shapes(blank) else blank for i, blank in new.items()}


def _shapes(memory: Any) -> Any:
    return jax.tree.map(lambda leaf: (jnp.shape(leaf), jnp.result_type(leaf)), memory)


def fill(like: Any, leaves: Sequence[np.ndarray]) -> Any:
    """The tree `like` with other leaves; dtypes that the disk does not know come back as they were."""
    old, tree = jax.tree.flatten(like)
    if len(old) != len(leaves) or any(np.shape(a) != np.shape(b) for a, b in zip(old, leaves, strict=False)):
        raise ValueError("the snapshot does not fit this run: its arrays have other shapes")
    new = [np.asarray(b).view(np.dtype(a.dtype)) for a, b in zip(old, leaves, strict=True)]
    return jax.tree.unflatten(tree, jax.device_put(new, may_alias=False))
