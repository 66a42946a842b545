"""The fabric of actors: each process holds one shard and sends frames to the others directly."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any, Protocol

import numpy as np

from locallearn.block import Block
from locallearn.chain import ABSENT, Chain, Row
from locallearn.codec import Codec, Context, Spec
from locallearn.networks import AHEAD
from locallearn.rule import Batch, descended, split_batch
from locallearn.runtime.cuts import Cuts
from locallearn.runtime.endpoint import Endpoint
from locallearn.runtime.frame import TRAIN, Address
from locallearn.runtime.framed import FramedSession
from locallearn.runtime.handshake import Position
from locallearn.runtime.local import Framed
from locallearn.runtime.overlap import Flight, Memories, Overlapped
from locallearn.runtime.parts import settle_all
from locallearn.runtime.replicated import train_step
from locallearn.runtime.segments import Later
from locallearn.runtime.session import Delays, Together, batch_gradients
from locallearn.runtime.setup import Setup, Stage
from locallearn.runtime.wiring import Wiring
from locallearn.traffic import Channel, Traffic

UNREAD = 32_768
"""Bytes that a socket surely takes before anybody reads them."""

Early = frozenset[tuple[int, Channel]]


class Transport(Protocol):
    """What carries the frames of one shard: `links.Links` (sockets) or `mailbox.Calls` (calls of Ray).

    buffered: whether a receiver has room for UNREAD bytes that nobody waits for yet, or only for so many frames.
    """

    buffered: bool

    def post(self, address: Address, data: bytes) -> None:
        """Send a frame; wait where the receiver is far behind."""

    def take(self, address: Address, name: str) -> bytes | bytearray:
        """Wait for exactly this frame."""
        ...


class Peers(Framed):
    """One shard's part of a choreography. Sends and receives come from the same line of the rule at both ends, so none can deadlock.

    early: messages that `Ahead` has sent already.
    """

    def __init__(self, framed: tuple[Any, ...], transport: Transport, early: Early = frozenset()):
        super().__init__(*framed)
        self._transport, self._early = transport, early

    def post(self, address: Address, data: bytes) -> None:
        """To the neighbour."""
        self._transport.post(address, data)

    def take(self, address: Address, channel: Channel) -> bytes | bytearray:
        """From the neighbour."""
        return self._transport.take(address, channel.message)

    def send(self, codec: Codec, end: Endpoint, leaving: Mapping[Channel, Any]) -> None:
        """What has not left yet."""
        super().send(codec, end, {c: value for c, value in leaving.items() if (self.place, c) not in self._early})


class Ahead(Framed):
    """The part of a later step that follows from its batch alone: it sends those messages, and all else is absent.

    Labels come from the top block. Without this a shard could finish no step before the top has begun it, and nothing would overlap.
    """

    def __init__(self, framed: tuple[Any, ...], transport: Transport, early: Early):
        super().__init__(*framed)
        self._transport, self._early = transport, early

    def compute(self, i: int, fn: Callable[..., Any], block: Block, *args: Any, **options: Any) -> Any:
        """Absent unless every argument is here."""
        return ABSENT if any(arg is ABSENT for arg in args) else super().compute(i, fn, block, *args, **options)

    def post(self, address: Address, data: bytes) -> None:
        """To the neighbour, where it waits for its step."""
        self._transport.post(address, data)

    def take(self, address: Address, channel: Channel) -> bytes | bytearray:
        """Never: what others send is absent."""
        raise AssertionError(address)

    def send(self, codec: Codec, end: Endpoint, leaving: Mapping[Channel, Any]) -> None:
        """Only what follows from the batch."""
        super().send(codec, end, {c: value for c, value in leaving.items() if (self.place, c) in self._early})

    def receive(self, codec: Codec, channel: Channel) -> Any:
        """Absent."""
        return ABSENT


class PeersSession(FramedSession):
    """One shard's part of a run. Microbatches run at once, each its own choreography, so that the pipeline fills."""

    whole = False

    def __init__(
        self,
        setup: Setup,
        shard: int,
        transport: Transport,
        cuts: Cuts | None = None,
        asides: int = 0,
        replica: int = 0,
        present: Sequence[int] = (),
    ):
        super().__init__(setup, [shard], replica)
        self._pool: ThreadPoolExecutor | None = None
        self._flight: Flight | None = None
        self.rewind(transport, cuts or Cuts(), asides, present)

    def rewind(self, transport: Transport, cuts: Cuts, asides: int = 0, present: Sequence[int] = ()) -> None:
        """Ready to be driven from a snapshot, or from the beginning, with all that was compiled; whoever drove it before has ended.

        present: the replicas that are there, if not all are.
        """
        if self._pool is not None:
            self._pool.shutdown()
        self._land()
        microbatches = self.setup.microbatches
        self._pool = ThreadPoolExecutor(microbatches, "microbatch") if microbatches > 1 else None
        self._transport, self._cuts = transport, cuts
        self._reached: Callable[[Position], None] = getattr(transport, "reached", lambda position: None)
        self._state, self.traffic, self.asides, self.step = None, Traffic(), asides, 0
        self.present = tuple(present) or self.setup.everyone
        self._decisions, self.delays = 0, ()

    def enter(self, stage: Stage) -> None:
        """Find what may leave early."""
        self._land()
        super().enter(stage)
        self._sent_ahead: dict[int, Traffic] = {}
        self._early = frozenset(one for one in self.setup.plan_step(stage).early if one[1].src == self.shards[0])
        self._reach = self._ahead_at_most(Counter(channel.dst for _, channel in self._early))
        self._left = stage.start

    def _ahead_at_most(self, frames: Counter[int]) -> int:
        """How many steps ahead of its step may leave what follows from a batch. frames: of one microbatch, by the shard they go to.

        The longer the chain, the further its bottom is ahead of its top. But what is not read yet must find room at the receiver: shards
        that wait for each other to make room would wait for ever.
        """
        least = max(1, AHEAD // max(frames.values(), default=1))
        if not frames or not self._transport.buffered:
            return least
        sent = self.setup.plan_step(self.stage).traffic
        size = max(sum(sent.framed(c) for c in {c for _, c in self._early} if c.dst == shard) for shard in frames)
        return max(least, min(AHEAD * self.stage.wiring.shards, UNREAD // size))

    def fabric(self, wiring: Wiring, slot: int, specs: Mapping[Channel, Spec], context: Context, stream: tuple[int, int]) -> Framed:
        """The neighbours are elsewhere."""
        if stream[0] != TRAIN:
            self._reached(Position(self.step + 1, stream[1]))
        early = self._early if stream[0] == TRAIN else frozenset()
        return Peers((wiring, self._ends[slot], specs, context, (*stream, slot), self.replica), self._transport, early)

    def post(self, address: Address, data: bytes) -> None:
        """To the neighbour on the ring."""
        self._transport.post(address, data)

    def take(self, address: Address, name: str) -> bytes | bytearray:
        """From the neighbour on the ring."""
        return self._transport.take(address, name)

    def advance(self, start: int, stop: int) -> float | None:
        """Step by step, with what replicas average, or with the next ones begun."""
        if self.stage.ahead:
            losses = self._overlapping(start, stop)
        elif self.setup.replicas.count > 1:
            losses = [train_step({self.replica: self}, step)[0] for step in range(start, stop)]
        else:
            losses = [self.one(step) for step in range(start, stop)]
        return float(np.mean(np.asarray(losses), dtype=np.float64)) if self._top else None

    def begin(self, step: int) -> tuple[Batch, list[Framed], list[Chain], Together]:
        """What may leave early leaves first."""
        self.step = step
        self._reached(Position(step, self.asides + 1))
        self._send_early(step)
        return super().begin(step)

    def _send_early(self, step: int) -> None:
        """Up to the next evaluation or cut; it counts when its step comes."""
        if self._early:
            goal = self._cuts.claim(step, min(self.setup.evaluation_after(step), step + 1 + self._reach))
            for later in range(max(step, self._left), goal):
                self._ahead(later)
            self.traffic += self._sent_ahead.pop(step)

    def together(self, jobs: list[Callable[[], Any]]) -> list[Any]:
        """The microbatches' jobs at the same time, their results in order."""
        assert self._pool is not None
        futures = [self._pool.submit(job) for job in jobs]
        wait(futures, return_when=FIRST_EXCEPTION)
        failed = [future for future in futures if future.done() and future.exception()]
        return [future.result() for future in (failed or futures)]

    def _ahead(self, step: int) -> None:
        stage, batch = self.stage, self.batch(step)
        parts = zip(split_batch(batch, self.setup.microbatches), self.contexts(batch), strict=True)
        for slot, (part, context) in enumerate(parts):
            framed = stage.wiring, self._ends[slot], self._specs, context, (TRAIN, step, self._slot(step, slot)), self.replica
            fabric = Ahead(framed, self._transport, self._early)
            stage.rule.step(Chain(stage.blocks, fabric), Row([ABSENT] * len(stage.blocks)), part)
            self._sent_ahead[step] = self._sent_ahead.get(step, Traffic()) + fabric.traffic
        self._left = step + 1

    def _slot(self, step: int, microbatch: int) -> int:
        """Frames of steps that are in flight at the same time are apart, as those of microbatches are."""
        return step % (self.stage.ahead + 1) * self.setup.microbatches + microbatch

    # Steps that overlap.

    def _overlapping(self, start: int, stop: int) -> list[Any]:
        """The losses; what was begun of later steps goes on."""
        if self._flight is None:
            self._flight = Flight(start, self.stage.ahead, self.setup.microbatches, self._fly)
            sent, early = self.setup.plan_step(self.stage).traffic.messages, Counter(channel for _, channel in self._early)
            uses = {channel: count // self.setup.microbatches for channel, count in sent.items()}
            both = {channel: count - early[channel] for channel, count in uses.items()}, uses
            self._channels = [Memories(ends[self.shards[0]], both, self._flight) for ends in self._ends]
        losses = []
        for step in range(start, stop):
            limit = self._cuts.claim(step, min(self.setup.evaluation_after(step), step + 1 + self.stage.ahead))
            losses.append(self._flight.result(step, limit))
        return losses

    def _fly(self, step: int) -> Any:
        """One step of several in flight; the loss, where the top block is."""
        assert self._flight is not None
        flight, stage, (shard,) = self._flight, self.stage, self.shards
        self._reached(Position(flight.ended, self.asides + 1))
        self._send_early(step)
        batch, ends = self.batch(step), [{shard: memories.copy()} for memories in self._channels]
        fabrics = [self._overlapped(step, k, context, ends[k]) for k, context in enumerate(self.contexts(batch))]
        chains = [Chain(stage.blocks, fabric) for fabric in fabrics]

        def settled(jobs: list[Callable[[], Any]]) -> list[Any]:
            each = [lambda own=own, job=job: settle_all(stage.wiring.placement, own, job()) for own, job in zip(ends, jobs, strict=True)]
            return flight.together(step, each)

        begun = self._begun(step)
        found = batch_gradients(stage, chains, begun, batch, settled)
        grads, memory, info = settle_all(stage.wiring.placement, ends[0], found)
        flight.in_order(step)
        state = descended(stage.rule, chains[0], self._state, begun, grads, memory, info)
        self._state, loss = settle_all(stage.wiring.placement, ends[0], (state, info.loss))
        self.traffic += sum((fabric.traffic for fabric in fabrics), start=Traffic())
        for own in self._ends:
            own[shard].settle(())  # what left early
        self.step, flight.ended = step, step + 1
        self._reached(Position(flight.ended, self.asides + 1))
        return loss

    def _begun(self, step: int) -> Row:
        """The states with the weights that this shard has when it first needs them for a step."""
        flight, found = self._flight, list[Row]()
        assert flight is not None

        def states() -> Row:
            if not found:
                found.append(self._state)
                self.delays = _noted(self.delays, step - flight.ended)
            return found[0]

        return Row(ABSENT if value is ABSENT else Later(lambda i=i: states()[i]) for i, value in enumerate(self._state))

    def _overlapped(self, step: int, k: int, context: Context, ends: dict[int, Endpoint]) -> Overlapped:
        assert self._flight is not None
        framed = self.stage.wiring, ends, self._specs, context, (TRAIN, step, self._slot(step, k)), self.replica
        order = (step, k) if self.setup.microbatches > 1 else self._flight.order(step)
        return Overlapped(framed, self._transport, self._early, self._channels[k], self._flight, order)

    def _land(self) -> None:
        """No step is in flight any more."""
        if self._flight is not None:
            self._flight.close()
        self._flight = None


def _noted(delays: Delays, age: int) -> Delays:
    """One shard's count of steps by the age of their weights, with one more."""
    (own,) = delays or ((),)
    own += (0,) * (age + 1 - len(own))
    return ((*own[:age], own[age] + 1, *own[age + 1 :]),)


class Worker(threading.Thread):
    """The thread in which an actor trains; what it raises is kept for whoever asks."""

    def __init__(self, work: Callable[[], None]):
        super().__init__(daemon=True, name="training")
        self._work = work
        self.error: BaseException | None = None

    def run(self) -> None:
        """Thread body."""
        try:
            self._work()
        except BaseException as error:
            self.error = error
