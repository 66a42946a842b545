"""Links over sockets: each shard listens on its node's own address, and whoever sends to it connects.

`handshake.py` has how the two know each other, `ends.py` what is on the wire and how a link mends itself. Frames are `frame.py`'s; nothing
is ever unpickled.

The thread that waits for a frame reads the socket itself: no other thread stands between two shards, which is most of what makes this
several times as quick as a call of Ray for each frame. A link is read only by those who wait for something on it; what is not read
fills the kernel's buffers and then holds the sender back. A dead process closes its links at once; a dead or frozen machine is silent, and
heartbeats, one a second from a thread of their own, tell it from one that is busy.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from locallearn.errors import LocallearnError
from locallearn.runtime.ends import RECORD_BYTES, REDIAL_SECONDS, REPLAY, LinkLost, Receiving, Sending
from locallearn.runtime.frame import Address, FrameError, address_of
from locallearn.runtime.handshake import PATIENCE, Position, caller, greet, hang_up, quick, welcome

__all__ = ["LinkLost", "Links", "Place"]

Place = tuple[str, int]
"""Host and port."""

BEAT_SECONDS = 1.0
BEGINNING = Position()
STRIKES = 3
"""So many damaged frames of one link in a row, none whole between them, are no accident."""
STRANGERS = 64
"""Handshakes at a time; whose is the oldest is hung up on when another one calls, so that nobody keeps a neighbour out."""

log = logging.getLogger("locallearn.links")


class Links:
    """One shard's links: `post` and `take` for the shard's threads, one for each microbatch.

    life: a number that both ends of a link must agree on. ports: the first and the last that may be listened at; any by default. replay:
    bytes of frames that are kept for each link. waiting: what the shard waits for at this moment, by microbatch; None where it computes.
    waited: seconds so far, by shard. place: where this shard listens.
    """

    buffered = True

    def __init__(self, shard: int, host: str, life: int, secret: bytes, ports: tuple[int, int] | None = None, replay: int = REPLAY):
        self._shard, self._life, self._secret, self._replay = shard, life, secret, replay
        self._listener = listen(host, ports)
        self.place: Place = self._listener.getsockname()[:2]
        self._places: list[Place] = []
        self._start = self._wanted = BEGINNING
        self._to: dict[int, Sending] = {}
        self._from: dict[int, Receiving] = {}
        self._reading: set[int] = set()
        self._early: dict[Address, bytearray] = {}
        self._taken: dict[tuple[int, int, int], tuple[int, int]] = {}
        self._silent: dict[int, str] = {}
        self._strikes: Counter[int] = Counter()
        self._changed = threading.Condition(threading.Lock())
        self._closed, self._connected = threading.Event(), threading.Event()
        self._strangers: dict[socket.socket, None] = {}
        self.waiting: dict[int, tuple[Address, str] | None] = {}
        self.waited: Counter[int] = Counter()
        for work, name in ((self._accept, "listener"), (self._beat, "heartbeats")):
            threading.Thread(target=work, daemon=True, name=name).start()

    def connect(self, places: Sequence[Place], start: Position = BEGINNING) -> None:
        """Where every shard listens; connections are made when they are first needed. start: from where on this shard wants to be told."""
        self._places, self._start, self._wanted = list(places), start, start
        self._connected.set()

    def reached(self, position: Position) -> None:
        """All frames before this have been taken."""
        self._wanted = position

    def moved(self, shard: int, place: Place) -> None:
        """A shard that was lost is there again, elsewhere. It calls when it has something to say, which may take it some compiling."""
        with self._changed:
            self._places[shard] = place
            self._silent.pop(shard, None)
            sending, receiving = self._to.get(shard), self._from.pop(shard, None)
        if receiving is not None:
            receiving.close()
        if sending is not None:
            sending.call_again()

    def forget(self, before: Position) -> None:
        """No shard will want to be told again what came before this."""
        for end in list(self._to.values()):
            end.forget(before)

    @property
    def lost(self) -> dict[int, str]:
        """The shards that were linked with this one and are not now, and why."""
        with self._changed:
            return {shard: end.broken for shard, end in self._to.items() if end.broken} | self._silent

    @property
    def fatal(self) -> LinkLost | None:
        """Why a link cannot be mended by those at its ends, if that is so. Who sends on it learns of it, who waits on others does not."""
        errors = [end.error for end in list(self._to.values())]
        return next((error for error in errors if isinstance(error, LinkLost)), None)

    @property
    def beat_bytes(self) -> int:
        """What the heartbeats of the links from here took. They follow the clock, and no traffic counts them."""
        return RECORD_BYTES * sum(end.beats for end in list(self._to.values()))

    def post(self, address: Address, data: bytes) -> None:
        """Send a frame; hold the sender back where the receiver is far behind. LinkLost where it can be reached no more."""
        end = self._to.get(address.dst) or self._end(address.dst)
        end.send(address, data)

    def take(self, address: Address, name: str) -> bytearray:
        """Wait for exactly this frame, as long as it takes: a neighbour that compiles is slow, not dead, and one that died is replaced.

        Raises FrameError where frames of a link are damaged again and again, or when the run is given up.
        """
        with self._changed:
            begun = 0.0 if address in self._early else time.perf_counter()
            while address not in self._early:
                self.waiting[address.micro] = address, name
                if self._closed.is_set():
                    raise FrameError("the run was given up")
                link = self._from.get(address.src)
                if link is None or address.src in self._reading:
                    self._changed.wait()
                else:
                    self._read(address.src, link)
            if begun:
                self.waiting[address.micro] = None
                self.waited[address.src] += time.perf_counter() - begun  # type: ignore[assignment]
            self._taken[address.src, address.stream, address.micro] = address.step, address.place
            return self._early.pop(address)

    def close(self) -> None:
        """End every wait, now and later: the run is over."""
        with self._changed:
            self._closed.set()
            self._changed.notify_all()
            sending, receiving = list(self._to.values()), list(self._from.values())
        hang_up(self._listener)
        for end in sending:
            end.close(FrameError("the run was given up"))
        for link in receiving:
            link.close()

    def _read(self, src: int, link: Receiving) -> None:
        """Read one frame of a link, for whoever waits for it; the lock is free meanwhile. A new connection mends whatever is wrong."""
        self._reading.add(src)
        self._changed.release()
        try:
            data = link.receive()
            address, failure = address_of(data), None
        except (OSError, FrameError) as error:
            data, address, failure = bytearray(), None, error
        finally:
            self._changed.acquire()
            self._reading.discard(src)
            self._changed.notify_all()
        if address is None:
            return self._hang_up(src, link, failure)
        self._strikes[src] = 0
        if (address.step, address.place) <= self._taken.get((src, address.stream, address.micro), (-1, -1)):
            return  # it came before the link was made anew
        known = self._early.setdefault(address, data)
        if known is not data and known != data:
            raise FrameError(f"the frame {address} arrived twice, and not the same")

    def _hang_up(self, src: int, link: Receiving, error: Exception | None) -> None:
        link.close()
        if self._from.get(src) is link:
            del self._from[src]
            self._silent[src] = str(error)
        if self._closed.is_set():
            return
        log.warning("shard %d: %s: the link from shard %d is to be made anew", self._shard, error, src)
        if isinstance(error, FrameError):
            self._strikes[src] += 1
            if self._strikes[src] > STRIKES:
                raise error

    def _end(self, dst: int) -> Sending:
        with self._changed:
            if dst not in self._to:
                self._to[dst] = Sending(dst, lambda: self._call(dst), self._start, self._replay)
                if self._closed.is_set():
                    self._to[dst].close(FrameError("the run was given up"))
            return self._to[dst]

    def _call(self, dst: int) -> tuple[socket.socket, Position]:
        wire = socket.create_connection(self._places[dst], timeout=PATIENCE)
        try:
            wanted = greet(wire, self._secret, self._life, self._shard, dst)
        except OSError:
            wire.close()
            raise
        return quick(wire), wanted

    def _accept(self) -> None:
        while True:
            try:
                wire, caller_at = self._listener.accept()
            except OSError as error:  # of who hung up at once, or of too many open files: others may call later
                if self._closed.wait(REDIAL_SECONDS):
                    return
                log.warning("shard %d: a caller was not heard: %s", self._shard, error)
                continue
            with self._changed:
                for oldest in list(self._strangers)[: len(self._strangers) - STRANGERS + 1]:
                    del self._strangers[oldest]
                    with contextlib.suppress(OSError):
                        oldest.shutdown(socket.SHUT_RDWR)  # whose own thread closes it
                self._strangers[wire] = None
            threading.Thread(target=self._welcome, args=(wire, caller_at), daemon=True, name="handshake").start()

    def _welcome(self, wire: socket.socket, caller_at: Any) -> None:
        try:
            wire.settimeout(PATIENCE)
            src, hello = caller(wire, self._life, self._shard)
            if not self._connected.wait(PATIENCE):
                raise TimeoutError("this shard does not know yet from where on it wants to be told")
            welcome(wire, self._secret, hello, self._wanted)
        except OSError as error:
            log.warning("shard %d: hung up on a stranger at %s:%d: %s", self._shard, *caller_at[:2], error)
            return hang_up(wire)
        finally:
            with self._changed:
                self._strangers.pop(wire, None)
        with self._changed:
            if self._closed.is_set():
                return hang_up(wire)
            old, self._from[src] = self._from.get(src), Receiving(src, quick(wire))
            self._silent.pop(src, None)
            if old is not None:
                old.close()  # who calls again has given the old connection up
            self._changed.notify_all()

    def _beat(self) -> None:
        while not self._closed.wait(BEAT_SECONDS):
            with self._changed:
                ends = [*self._to.values(), *self._from.values()]
            for end in ends:
                end.beat()


def listen(host: str, ports: tuple[int, int] | None) -> socket.socket:
    """A listener at a free port, within a range if one is given. LocallearnError if all of it is taken."""
    if ports is None:
        return socket.create_server((host, 0))
    for port in range(ports[0], ports[1] + 1):
        try:
            return socket.create_server((host, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    raise LocallearnError(f"every port from {ports[0]} to {ports[1]} is taken on {host}: a wider range is needed, one for each shard there")
