"""Links over sockets: each shard listens on its node's own address, and whoever sends to it connects.

On the wire: a handshake, then frames, each after its length (4 bytes, big-endian). The handshake proves at both ends, by HMAC-SHA256
over fresh random numbers of both, that the other knows the secret of the run, which travels by the control plane alone; what is not
proven is hung up on before a byte of it is interpreted. Frames are `frame.py`'s; nothing is ever unpickled.

The thread that waits for a frame reads the socket itself: no other thread stands between two shards, which is most of what makes this
several times as quick as a call of Ray for each frame. A link is read only by those who wait for something on it; what is not read
fills the kernel's buffers and then holds the sender back. A dead process closes its links at once, a dead machine within half a minute.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import socket
import struct
import threading
from collections import deque
from collections.abc import Sequence

from locallearn.errors import LocallearnError
from locallearn.runtime.frame import Address, FrameError, address_of

Place = tuple[str, int]
"""Host and port."""

QUEUE = 32
"""Frames of one link that wait for the kernel to take them, before their sender waits too."""
LIMIT = 2**30
"""Bytes; a longer frame is refused unread."""
PATIENCE = 10.0
"""Seconds for a connection and its handshake."""
_HELLO = struct.Struct(">8sIHH16s")
_MAGIC = b"llearn01"
_LENGTH = struct.Struct(">I")


class LinkLost(LocallearnError):
    """The other end of a link is gone. shard: which."""

    def __init__(self, shard: int, reason: str):
        super().__init__(f"the link with shard {shard} ended: {reason}")
        self.shard = shard


class _Sending:
    """This shard's end of a link to another. What the kernel does not take at once is left to a thread, in order."""

    def __init__(self, shard: int, wire: socket.socket):
        self._shard, self._wire = shard, wire
        self._left: deque[memoryview] = deque()
        self._changed = threading.Condition()
        self._writer: threading.Thread | None = None
        self._error: OSError | None = None

    def send(self, data: bytes) -> None:
        """Hand over a frame; wait only where QUEUE are waiting already."""
        with self._changed:
            self._changed.wait_for(lambda: self._error or len(self._left) < QUEUE)
            if self._error:
                raise LinkLost(self._shard, str(self._error))
            sent = 0 if self._left else self._at_once(data)
            rest = memoryview(_LENGTH.pack(len(data)) + data)[sent:]
            if rest:
                self._left.append(rest)
                self._changed.notify_all()
                if self._writer is None:
                    self._writer = threading.Thread(target=self._write, daemon=True, name=f"link to shard {self._shard}")
                    self._writer.start()

    def close(self) -> None:
        """Hang up."""
        with self._changed:
            self._error = self._error or OSError("the run was given up")
            self._changed.notify_all()
        hang_up(self._wire)

    def _at_once(self, data: bytes) -> int:
        """How many bytes the kernel took without waiting."""
        try:
            return self._wire.sendmsg([_LENGTH.pack(len(data)), data], [], socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise LinkLost(self._shard, str(error)) from error

    def _write(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._error or self._left)
                if self._error:
                    return
                rest = self._left[0]
            try:
                self._wire.sendall(rest)
            except OSError as error:
                with self._changed:
                    self._error = self._error or error
                    self._changed.notify_all()
                return
            with self._changed:
                self._left.popleft()
                self._changed.notify_all()


class _Receiving:
    """This shard's end of a link from another; one thread at a time reads it."""

    def __init__(self, shard: int, wire: socket.socket):
        self._shard, self._wire = shard, wire
        self._buffer = b""

    def receive(self) -> bytearray:
        """The next frame, waited for."""
        try:
            while len(self._buffer) < _LENGTH.size:
                self._buffer += self._some()
            (size,) = _LENGTH.unpack_from(self._buffer)
            if size > LIMIT:
                raise FrameError(f"a frame of {size} bytes from shard {self._shard} is longer than the limit of {LIMIT}")
            return self._body(size)
        except OSError as error:
            raise LinkLost(self._shard, str(error)) from error

    def close(self) -> None:
        """Hang up; a thread that reads ends with `LinkLost`."""
        hang_up(self._wire)

    def _body(self, size: int) -> bytearray:
        data, view = bytearray(size), self._buffer[_LENGTH.size : _LENGTH.size + size]
        have = len(view)
        data[:have] = view
        self._buffer = self._buffer[_LENGTH.size + have :]
        rest = memoryview(data)
        while have < size:
            got = self._wire.recv_into(rest[have:])
            have += got or len(self._some())
        return data

    def _some(self) -> bytes:
        part = self._wire.recv(1 << 16)
        if not part:
            raise OSError("it was closed at the other end")
        return part


class Links:
    """One shard's links: `post` and `take` for the shard's threads, one for each microbatch.

    waiting: what the shard waits for at this moment, by microbatch; None where it computes. place: where this shard listens.
    """

    def __init__(self, shard: int, host: str, run: int, secret: bytes):
        self._shard, self._run, self._secret = shard, run, secret
        self._listener = socket.create_server((host, 0))
        self.place: Place = self._listener.getsockname()[:2]
        self._places: Sequence[Place] = ()
        self._to: dict[int, _Sending] = {}
        self._from: dict[int, _Receiving] = {}
        self._reading: set[int] = set()
        self._early: dict[Address, bytearray] = {}
        self._changed = threading.Condition(threading.Lock())
        self._connecting = threading.Lock()
        self._closed = False
        self.waiting: dict[int, tuple[Address, str] | None] = {}
        threading.Thread(target=self._accept, daemon=True, name="listener").start()

    def connect(self, places: Sequence[Place]) -> None:
        """Where every shard listens; connections are made when they are first needed."""
        self._places = places

    def post(self, address: Address, data: bytes) -> None:
        """Send a frame; hold the sender back where the receiver is far behind."""
        end = self._to.get(address.dst) or self._dial(address.dst)
        end.send(data)

    def take(self, address: Address, name: str) -> bytearray:
        """Wait for exactly this frame, as long as it takes: a neighbour that compiles is slow, not dead.

        Raises FrameError for a frame that was damaged or came twice, LinkLost when the neighbour is gone.
        """
        with self._changed:
            while address not in self._early:
                self.waiting[address.micro] = address, name
                if self._closed:
                    raise FrameError("the run was given up")
                link = self._from.get(address.src)
                if link is None or address.src in self._reading:
                    self._changed.wait()
                else:
                    self._read(address.src, link)
            self.waiting[address.micro] = None
            return self._early.pop(address)

    def close(self) -> None:
        """End every wait, now and later: the run is over."""
        with self._changed:
            self._closed = True
            ends = [*self._to.values(), *self._from.values()]
            self._changed.notify_all()
        hang_up(self._listener)
        for end in ends:
            end.close()

    def _read(self, src: int, link: _Receiving) -> None:
        """Read one frame of a link, for whoever waits for it; the lock is free meanwhile."""
        self._reading.add(src)
        self._changed.release()
        try:
            data = link.receive()
            address = address_of(data)
        finally:
            self._changed.acquire()
            self._reading.discard(src)
            self._changed.notify_all()
        if address in self._early:
            raise FrameError(f"the frame {address} arrived twice")
        self._early[address] = data

    def _dial(self, dst: int) -> _Sending:
        with self._connecting:
            if dst not in self._to:
                try:
                    wire = self._call(dst)
                except OSError as error:
                    raise LinkLost(dst, str(error)) from error
                self._add(self._to, dst, _Sending(dst, quick(wire)))
        return self._to[dst]

    def _call(self, dst: int) -> socket.socket:
        wire = socket.create_connection(self._places[dst], timeout=PATIENCE)
        try:
            greet(wire, self._secret, self._run, self._shard, dst)
        except OSError:
            wire.close()
            raise
        return wire

    def _accept(self) -> None:
        while True:
            try:
                wire, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._welcome, args=(wire,), daemon=True, name="handshake").start()

    def _welcome(self, wire: socket.socket) -> None:
        try:
            wire.settimeout(PATIENCE)
            src = welcome(wire, self._secret, self._run, self._shard)
        except OSError:
            return hang_up(wire)
        self._add(self._from, src, _Receiving(src, quick(wire)))

    def _add(self, ends: dict[int, _Sending] | dict[int, _Receiving], shard: int, end: _Sending | _Receiving) -> None:
        with self._changed:
            if self._closed or shard in ends:
                return end.close()
            ends[shard] = end  # type: ignore[assignment]
            self._changed.notify_all()


def greet(wire: socket.socket, secret: bytes, run: int, src: int, dst: int) -> None:
    """The caller's side of the handshake. Raises OSError where the other does not know the secret."""
    hello = _HELLO.pack(_MAGIC, run, src, dst, os.urandom(16))
    wire.sendall(hello)
    theirs = _exactly(wire, 16 + 32)
    if not hmac.compare_digest(theirs[16:], _proof(secret, b"here", hello, theirs[:16])):
        raise ConnectionRefusedError("the other end does not know the secret of the run")
    wire.sendall(_proof(secret, b"there", hello, theirs[:16]))


def welcome(wire: socket.socket, secret: bytes, run: int, dst: int) -> int:
    """The listener's side: which shard calls. Raises OSError for anybody else."""
    hello = _exactly(wire, _HELLO.size)
    magic, their_run, src, asked, _ = _HELLO.unpack(hello)
    if (magic, their_run, asked) != (_MAGIC, run, dst):
        raise ConnectionRefusedError("not a link of this run")
    nonce = os.urandom(16)
    wire.sendall(nonce + _proof(secret, b"here", hello, nonce))
    if not hmac.compare_digest(_exactly(wire, 32), _proof(secret, b"there", hello, nonce)):
        raise ConnectionRefusedError("the other end does not know the secret of the run")
    return src


def quick(wire: socket.socket) -> socket.socket:
    """A socket that sends small frames at once, and that notices when the other machine is gone."""
    wire.settimeout(None)
    wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    wire.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):
            wire.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return wire


def hang_up(wire: socket.socket) -> None:
    """Close, and wake whoever waits on it."""
    with contextlib.suppress(OSError):
        wire.shutdown(socket.SHUT_RDWR)
    wire.close()


def _proof(secret: bytes, who: bytes, hello: bytes, nonce: bytes) -> bytes:
    return hmac.digest(secret, who + hello + nonce, hashlib.sha256)


def _exactly(wire: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = wire.recv(size - len(data))
        if not part:
            raise ConnectionAbortedError("closed during the handshake")
        data += part
    return data
