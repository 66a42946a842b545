"""The two ends of a link. A sender keeps what it sent, up to a bound, and sends it again when the connection is made anew. What every shard
has in its part of a snapshot nobody will ask for, and it is kept no longer.

On the wire each frame follows a record of 12 bytes: its length, its number on this connection, and a checksum of both. A record of length
0 is a heartbeat, with the number of the next frame. So a receiver notices whatever goes wrong: frames that were lost, came twice, changed
places, were cut or altered. It hangs up then, the sender calls again, and is told from where on to repeat itself.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable

from locallearn.errors import LocallearnError
from locallearn.runtime.frame import STEPWISE, Address, FrameError
from locallearn.runtime.handshake import Position, hang_up
from locallearn.traffic import PREFIX_BYTES

QUEUE = 32
"""Frames of one link that wait for the kernel to take them, before their sender waits too."""
LIMIT = 2**30
"""Bytes; a longer frame is refused unread."""
REPLAY = 2**28
"""Bytes of frames that a sender keeps for each link at most, to send them again: 5 s, the time between snapshots, of 50 MB a second."""
SILENCE_SECONDS = 15.0
"""Without a heartbeat or anything else: the other end is gone. Heartbeats have a thread of their own, so who compiles is not silent."""
REDIAL_SECONDS = 0.3
"""Between calls to a shard that does not answer."""
_PAIR, _RECORD = struct.Struct(">II"), struct.Struct(">III")
RECORD_BYTES = _RECORD.size
assert RECORD_BYTES == PREFIX_BYTES


class LinkLost(LocallearnError):
    """A link cannot be mended by those at its ends. shard: the one at the other end."""

    def __init__(self, shard: int, reason: str):
        super().__init__(f"the link with shard {shard} ended: {reason}")
        self.shard = shard


def record(size: int, number: int) -> bytes:
    """What precedes a frame on the wire; size 0: a heartbeat."""
    return _RECORD.pack(size, number, zlib.crc32(_PAIR.pack(size, number)))


def read_record(data: bytes, src: int) -> tuple[int, int]:
    """Size and number. FrameError if they were altered, or the frame is too long."""
    size, number, check = _RECORD.unpack_from(data)
    if zlib.crc32(_PAIR.pack(size, number)) != check:
        raise FrameError(f"the link from shard {src} was altered on its way: the checksum of a record does not match")
    if size > LIMIT:
        raise FrameError(f"a frame of {size} bytes from shard {src} is longer than the limit of {LIMIT}")
    return size, number


class Sending:
    """This shard's end of a link to another, over one connection after the other.

    dial: makes a connection, and says from where on the other wants to be told; OSError where it cannot. start: before that this shard sent
    nothing that it could send again. broken: why there is no connection at this moment, if there was one. error: why there
    never will be. beats: heartbeats sent.
    """

    def __init__(self, shard: int, dial: Callable[[], tuple[socket.socket, Position]], start: Position, replay: int = REPLAY):
        self._shard, self._dial, self._replay = shard, dial, replay
        self._wire: socket.socket | None = None
        self._number, self._unsent, self._heard = 0, 0, 0.0
        self._left: deque[memoryview] = deque()
        self._kept: deque[tuple[Address, bytes]] = deque()
        self._bytes, self._forgotten = 0, start
        self._changed = threading.Condition()
        self.error: LocallearnError | None = None
        self.broken: str | None = None
        self.beats = 0
        threading.Thread(target=self._work, daemon=True, name=f"link to shard {shard}").start()

    def send(self, address: Address, data: bytes) -> None:
        """Hand over a frame; wait only where QUEUE are waiting already."""
        with self._changed:
            while not self.error and len(self._left) + self._unsent >= QUEUE:
                self._changed.wait()
            if self.error:
                raise self.error
            self._keep(address, data)
            if self._wire is None:
                self._unsent += 1
                self._changed.notify_all()
            else:
                self._push(data)

    def beat(self) -> None:
        """Say that this shard lives, and how much it has sent; find out whether the other does."""
        with self._changed:
            if self._wire is None or self.error:
                return
            if not self._left:
                self.beats += 1
                self._push(b"")
            try:
                heard = self._wire and self._wire.recv(1 << 12, socket.MSG_DONTWAIT)
                if heard == b"":
                    self._lose("it was closed at the other end")
                self._heard = time.monotonic()
            except BlockingIOError:
                if time.monotonic() - self._heard > SILENCE_SECONDS:
                    self._lose(f"nothing was heard for {SILENCE_SECONDS:.0f} s")
            except OSError as error:
                self._lose(str(error))

    def call_again(self) -> None:
        """The other end may have moved."""
        with self._changed:
            if self._wire is not None:
                self._lose("it moved")
            self._changed.notify_all()

    def forget(self, before: Position) -> None:
        """Nobody will ask for what came before this."""
        with self._changed:
            while len(self._kept) > self._unsent and _precedes(self._kept[0][0], before):
                self._drop()

    def close(self, error: LocallearnError) -> None:
        """Hang up for good."""
        with self._changed:
            self.error = self.error or error
            if self._wire is not None:
                hang_up(self._wire)
            self._changed.notify_all()

    def _keep(self, address: Address, data: bytes) -> None:
        self._kept.append((address, data))
        self._bytes += len(data)
        while self._bytes > self._replay and len(self._kept) > 1 + self._unsent:
            self._drop()

    def _drop(self) -> None:
        old, dropped = self._kept.popleft()
        self._bytes -= len(dropped)
        (step, aside), after = self._forgotten, old.step + 1
        self._forgotten = Position(max(step, after), aside) if old.stream in STEPWISE else Position(step, max(aside, after))

    def _push(self, data: bytes) -> None:
        """A frame, or a heartbeat; what the kernel does not take at once is left to the thread, in order."""
        assert self._wire is not None
        head = record(len(data), self._number)
        self._number += bool(data)
        try:
            sent = 0 if self._left else self._wire.sendmsg([head, data], [], socket.MSG_DONTWAIT)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            return self._lose(str(error))
        rest = memoryview(head + data)[sent:]
        if rest:
            self._left.append(rest)
            self._changed.notify_all()

    def _lose(self, reason: str) -> None:
        if self._wire is not None:
            hang_up(self._wire)
        self._wire, self.broken = None, reason
        self._left.clear()
        self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self.error or self._left or (self._wire is None and self._kept))
                if self.error:
                    return
                wire, rest = self._wire, self._left[0] if self._left else None
            if wire is None:
                self._call()
            elif rest is not None:
                self._write(wire, rest)

    def _write(self, wire: socket.socket, rest: memoryview) -> None:
        failure = None
        try:
            wire.sendall(rest)
        except OSError as error:
            failure = str(error)
        with self._changed:
            if wire is self._wire:
                if failure is not None:
                    self._lose(failure)
                else:
                    self._left.popleft()
                    self._changed.notify_all()

    def _call(self) -> None:
        try:
            wire, wanted = self._dial()
        except PermissionError as error:
            return self.close(LinkLost(self._shard, str(error)))
        except OSError as error:
            with self._changed:
                self.broken = str(error)
                self._changed.wait(REDIAL_SECONDS)
            return
        if wanted.step < self._forgotten.step or wanted.aside < self._forgotten.aside:
            hang_up(wire)
            return self.close(LinkLost(self._shard, f"it asks for step {wanted.step}, and what was sent then is not kept any more"))
        with self._changed:
            if self.error:
                return hang_up(wire)
            again = [data for address, data in self._kept if not _precedes(address, wanted)]
            self._left = deque(memoryview(record(len(data), number) + data) for number, data in enumerate(again))
            self._wire, self._number, self._unsent, self._heard, self.broken = wire, len(again), 0, time.monotonic(), None
            self._changed.notify_all()


def _precedes(address: Address, position: Position) -> bool:
    return address.step < (position.step if address.stream in STEPWISE else position.aside)


class Receiving:
    """This shard's end of a connection from another; one thread at a time reads it. doubled: frames that came again and were dropped."""

    def __init__(self, shard: int, wire: socket.socket):
        self._shard, self._wire = shard, wire
        self._buffer, self._next, self.doubled = b"", 0, 0
        seconds = int(SILENCE_SECONDS)
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", seconds, int((SILENCE_SECONDS - seconds) * 1e6)))

    def receive(self) -> bytearray:
        """The next frame, waited for. FrameError where one is missing or altered, OSError where the connection is."""
        while True:
            while len(self._buffer) < RECORD_BYTES:
                self._buffer += self._some()
            size, number = read_record(self._buffer, self._shard)
            if number > self._next:
                raise FrameError(f"{number - self._next} frames from shard {self._shard} were lost on their way")
            data = self._body(size)
            if size and number == self._next:
                self._next += 1
                return data
            self.doubled += bool(size)

    def beat(self) -> None:
        """Let the sender know that this shard lives."""
        with contextlib.suppress(OSError):
            self._wire.send(b"\0", socket.MSG_DONTWAIT)

    def close(self) -> None:
        """Hang up; a thread that reads is woken."""
        hang_up(self._wire)

    def _body(self, size: int) -> bytearray:
        data, view = bytearray(size), self._buffer[RECORD_BYTES : RECORD_BYTES + size]
        have = len(view)
        data[:have] = view
        self._buffer = self._buffer[RECORD_BYTES + have :]
        rest = memoryview(data)
        while have < size:
            got = self._wire.recv_into(rest[have:])
            if not got:
                raise ConnectionResetError("it was closed at the other end")
            have += got
        return data

    def _some(self) -> bytes:
        try:
            part = self._wire.recv(1 << 16)
        except BlockingIOError as error:
            raise TimeoutError(f"nothing was heard for {SILENCE_SECONDS:.0f} s") from error
        if not part:
            raise ConnectionResetError("it was closed at the other end")
        return part
