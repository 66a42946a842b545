"""The fabric of actors: each process holds one shard and sends frames to the others directly."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any

from locallearn.codec import Context, Spec
from locallearn.runtime.endpoint import Endpoint
from locallearn.runtime.frame import Address
from locallearn.runtime.local import Framed
from locallearn.runtime.mailbox import Mailbox, Outbox
from locallearn.runtime.session import FramedSession
from locallearn.runtime.setup import Setup
from locallearn.runtime.wiring import Wiring
from locallearn.traffic import Channel


class Peers(Framed):
    """One shard's part of a choreography. Sends and receives come from the same line of the rule at both ends, so none can deadlock."""

    def __init__(
        self,
        wiring: Wiring,
        ends: Mapping[int, Endpoint],
        specs: Mapping[Channel, Spec],
        context: Context,
        stream: tuple[int, int, int],
        mail: tuple[Mailbox, Outbox],
    ):
        super().__init__(wiring, ends, specs, context, stream)
        self._mailbox, self._outbox = mail

    def post(self, address: Address, data: bytes) -> None:
        """To the neighbour's mailbox."""
        self._outbox.post(address, data)

    def take(self, address: Address, channel: Channel) -> bytes:
        """From this shard's mailbox."""
        return self._mailbox.take(address, channel.message)


class PeersSession(FramedSession):
    """One shard's part of a run. Microbatches run at once, each its own choreography, so that the pipeline fills."""

    def __init__(self, setup: Setup, shard: int, mail: tuple[Mailbox, Outbox]):
        super().__init__(setup, [shard])
        self._mail = mail
        self._pool = ThreadPoolExecutor(setup.microbatches, "microbatch") if setup.microbatches > 1 else None
        self.step = 0

    def fabric(self, wiring: Wiring, slot: int, specs: Mapping[Channel, Spec], context: Context, stream: tuple[int, int]) -> Framed:
        """The neighbours are elsewhere."""
        self.step = stream[1]
        return Peers(wiring, self._ends[slot], specs, context, (*stream, slot), self._mail)

    def together(self, jobs: list[Callable[[], Any]]) -> list[Any]:
        """The microbatches' jobs at the same time, their results in order."""
        assert self._pool is not None
        futures = [self._pool.submit(job) for job in jobs]
        wait(futures, return_when=FIRST_EXCEPTION)
        failed = [future for future in futures if future.done() and future.exception()]
        return [future.result() for future in (failed or futures)]


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
