"""Replicas step by step, with real frames: the ring between their sessions, and all of them in one process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from locallearn.chain import ABSENT, Row
from locallearn.runtime.averaging import Shared, agree, mean_gradients
from locallearn.runtime.diagnostics import Diagnosis
from locallearn.runtime.frame import AVERAGE, Address, frame, machines, unframe
from locallearn.runtime.framed import EagerSession, FramedSession
from locallearn.runtime.ring import Ring, further
from locallearn.runtime.session import Session
from locallearn.runtime.setup import Setup, Stage
from locallearn.traffic import HEADER_BYTES, Traffic

TOGETHER = 8
"""Blocks whose frames leave together: fewer than half of what any link has room for."""


class Copies:
    """One value for each replica that is here; attributes of it are those of each."""

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[int, Any]):
        self._values = values

    def __getattr__(self, name: str) -> Copies:
        if name.startswith("__"):
            raise AttributeError(name)
        return Copies({replica: getattr(value, name) for replica, value in self._values.items()})

    def __getitem__(self, replica: int) -> Any:
        return self._values[replica]


class FramedRing(Ring):
    """Replicas of which this process holds some, each in a session of its own, which carries its frames. step: the frames' number."""

    def __init__(self, members: Mapping[int, FramedSession], step: int):
        first = next(iter(members.values()))
        count = len(first.present)
        self._members, self._step = members, step
        rings = {r: member.shared.ring for r, member in members.items() if member.shared is not None}
        memory = {i: Copies({r: ring[i] for r, ring in rings.items()}) for i in rings[first.replica]}
        super().__init__(first.stage.wiring, first.setup.deal(first.stage, count), memory, first.present)
        self._packets = first.setup.ring_packets(first.stage, count)

    def each(self, i: int, fn: Callable[..., Any], owner: Any, *args: Any, **options: Any) -> Any:
        """Left for the next program of each replica's shard."""
        shard = self.placement[i]
        if not all(shard in member.shards for member in self._members.values()):
            return ABSENT
        own = {r: [arg[r] if isinstance(arg, Copies) else arg for arg in args] for r in self._members}
        return Copies({r: member.segments[shard].defer(fn, owner, own[r], options) for r, member in self._members.items()})

    def everywhere(self, number: Any) -> Any:
        """The number."""
        return np.int32(number)

    def numbers(self) -> Any:
        """Each member's."""
        return Copies({r: np.int32(self.present.index(r)) for r in self._members})

    def repeat(self, times: int, body: Callable[[Any, Any], Any], carry: Any) -> Any:
        """Hop after hop."""
        for hop in range(times):
            carry = body(hop, carry)
        return carry

    def shift(self, packets: dict[int, Any], hop: Any) -> dict[int, Any]:
        """A few frames leave before the first is waited for: were it all, replicas might wait for each other to make room."""
        ready, arrived = {r: self._computed(member, r, packets) for r, member in self._members.items()}, {}
        for first in range(0, len(packets), TOGETHER):
            some = list(packets)[first : first + TOGETHER]
            for r, member in self._members.items():
                for i in some:
                    self._send(member, r, i, ready[r][i], hop)
            arrived |= {i: Copies({r: self._receive(member, r, i, hop) for r, member in self._members.items()}) for i in some}
        return arrived

    def _computed(self, member: FramedSession, replica: int, packets: dict[int, Any]) -> dict[int, Any]:
        """A replica's packets, those of each shard in one program."""
        found = {}
        for shard in member.shards:
            own = {i: packet[replica] for i, packet in packets.items() if self.placement[i] == shard}
            found |= zip(own, member.segments[shard].force(tuple(own.values())), strict=True)
        return found

    def _send(self, member: FramedSession, replica: int, i: int, packet: Any, hop: int) -> None:
        address = self._address(i, replica, hop)
        data = frame(address, packet, self.deal.codec.wire)
        member.traffic += Traffic.of(self.channel(i, replica), len(data) - HEADER_BYTES)
        member.post(address, data)

    def _receive(self, member: FramedSession, replica: int, i: int, hop: int) -> tuple[np.ndarray, ...]:
        data = member.take(self._address(i, further(self.present, replica, -1), hop), self.channel(i, replica).message)
        return unframe(data, self._packets[i], self.deal.codec.wire)

    def _address(self, i: int, replica: int, hop: int) -> Address:
        return Address(AVERAGE, *machines(self.channel(i, replica), self.wiring.shards), i, self._step, hop)


def train_step(members: Mapping[int, FramedSession], step: int) -> list[Any]:
    """One step of the replicas that are here, with the average that belongs to it or follows it; the loss of each, where its top is."""
    first = next(iter(members.values()))
    setup, stage = first.setup, first.stage
    if setup.replicas.average == "gradients":
        return _with_mean_gradients(members, step)
    losses = [member.one(step) for member in members.values()]
    if setup.due(stage, step):
        ring = FramedRing(members, step)
        state, agreement = agree(
            stage.blocks,
            ring,
            _copies({r: member.state for r, member in members.items()}),
            _copies({r: member.shared.agreement for r, member in members.items() if member.shared is not None}),
            setup.replicas.outer,
        )
        for r, member in members.items():
            member.state, agreed, memory = member.settle((_own(state, r), _own(agreement, r), _memory(ring, r)))
            member.shared = Shared(agreed, {i: memory[i] for i in ring.memory})
    return losses


def _with_mean_gradients(members: Mapping[int, FramedSession], step: int) -> list[Any]:
    stage = next(iter(members.values())).stage
    halves = {r: member.halves(step) for r, member in members.items()}
    grads = _copies({r: next(half) for r, half in halves.items()})
    ring, losses = FramedRing(members, step), []
    mean = mean_gradients(stage.blocks, ring, grads)
    for r, member in members.items():
        assert member.shared is not None
        try:
            halves[r].send(_own(mean, r))
        except StopIteration as end:
            losses.append(end.value)
        (memory,) = member.settle((_memory(ring, r),))
        member.shared = member.shared._replace(ring={i: memory[i] for i in ring.memory})
    return losses


def _copies(rows: Mapping[int, Row]) -> Row:
    """A row for each replica as one row."""
    first = next(iter(rows.values()))
    return Row(ABSENT if first[i] is ABSENT else Copies({r: row[i] for r, row in rows.items()}) for i in range(len(first)))


def _own(row: Row, replica: int) -> Row:
    return Row(value[replica] if isinstance(value, Copies) else value for value in row)


def _memory(ring: FramedRing, replica: int) -> Row:
    """What a replica's ends remember, as a row."""
    return Row(ring.memory[i][replica] if i in ring.memory else ABSENT for i in range(len(ring.placement)))


class EagerReplicas(Session):
    """All replicas in one process, message by message; or some of them, as if the others were lost."""

    def __init__(self, setup: Setup, present: Sequence[int] = ()):
        self.setup, self.traffic, drawer = setup, Traffic(), {}
        self.sessions = {r: EagerSession(setup, r, drawer, present) for r in present or setup.everyone}
        self._first = next(iter(self.sessions.values()))

    def enter(self, stage: Stage) -> None:
        """All compile once: their programs are the same."""
        self.stage = stage
        for session in self.sessions.values():
            session.enter(stage)
            for shard, segments in session.segments.items():
                segments.programs = self._first.segments[shard].programs

    def advance(self, start: int, stop: int) -> float:
        """Step by step; the mean loss of the first."""
        losses = [train_step(self.sessions, step)[0] for step in range(start, stop)]
        self._count()
        return float(np.mean(np.asarray(losses), dtype=np.float64))

    def correct(self, part: Any, lossless: bool) -> int | None:
        """In the first."""
        count = self._first.correct(part, lossless)
        self._count()
        return count

    def diagnose(self, step: int) -> Diagnosis:
        """Of the first."""
        return self._first.diagnose(step)

    def decide(self, choice: int) -> int:
        """From the first to all others."""
        choices = [session.decide(choice) for session in self.sessions.values()]
        self._count()
        return choices[-1]

    def conclude(self) -> None:
        """All with what they agreed on."""
        for session in self.sessions.values():
            session.conclude()

    def snapshot(self) -> list[list[np.ndarray]]:
        """One after the other."""
        return [shard for session in self.sessions.values() for shard in session.snapshot()]

    def restore(self, shards: Sequence[Sequence[np.ndarray]]) -> None:
        """The inverse."""
        count = self.stage.wiring.shards
        for place, session in enumerate(self.sessions.values()):
            session.restore(shards[place * count : (place + 1) * count])

    def _count(self) -> None:
        for session in self.sessions.values():
            self.traffic, session.traffic = self.traffic + session.traffic, Traffic()
