"""How two shards know each other: by HMAC-SHA256 over fresh random numbers of both, each proves that it knows the secret of this life.

The secret travels by the control plane alone. What is not proven is hung up on before a byte of it is interpreted.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import socket
import struct
import time
from typing import NamedTuple

PATIENCE = 10.0
"""Seconds for a connection, and for what the other end has to say in each part of the handshake, all of it together."""
_HELLO = struct.Struct(">8sIHH16s")
_REPLY = struct.Struct(">16sII")
_MAGIC = b"llearn02"


class Position(NamedTuple):
    """What a receiver still wants: frames of training from this step on, and of evaluations and decisions from this number on."""

    step: int = 0
    aside: int = 0


def greet(wire: socket.socket, secret: bytes, life: int, src: int, dst: int) -> Position:
    """The caller's side. PermissionError where the other does not know the secret, OSError where it hangs up."""
    hello = _HELLO.pack(_MAGIC, life, src, dst, os.urandom(16))
    wire.sendall(hello)
    theirs = _exactly(wire, _REPLY.size + 32)
    reply, proof = theirs[: _REPLY.size], theirs[_REPLY.size :]
    if not hmac.compare_digest(proof, _proof(secret, b"here", hello, reply)):
        raise PermissionError("the other end does not know the secret of the run")
    wire.sendall(_proof(secret, b"there", hello, reply))
    return Position(*_REPLY.unpack(reply)[1:])


def caller(wire: socket.socket, life: int, dst: int) -> tuple[int, bytes]:
    """The listener's side begins: which shard wants to be heard, and its hello. Nothing is proven yet."""
    hello = _exactly(wire, _HELLO.size)
    magic, their_life, src, asked, _ = _HELLO.unpack(hello)
    if (magic, their_life, asked) != (_MAGIC, life, dst):
        raise PermissionError("not a link of this run")
    return src, hello


def welcome(wire: socket.socket, secret: bytes, hello: bytes, position: Position) -> None:
    """The listener's side ends: from where on it wants to be told. PermissionError for anybody who does not know the secret."""
    reply = _REPLY.pack(os.urandom(16), *position)
    wire.sendall(reply + _proof(secret, b"here", hello, reply))
    if not hmac.compare_digest(_exactly(wire, 32), _proof(secret, b"there", hello, reply)):
        raise PermissionError("the other end does not know the secret of the run")


def quick(wire: socket.socket) -> socket.socket:
    """A socket that sends small frames at once."""
    wire.settimeout(None)
    wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return wire


def hang_up(wire: socket.socket) -> None:
    """Close, and wake whoever waits on it."""
    with contextlib.suppress(OSError):
        wire.shutdown(socket.SHUT_RDWR)
    wire.close()


def _proof(secret: bytes, who: bytes, hello: bytes, reply: bytes) -> bytes:
    return hmac.digest(secret, who + hello + reply, hashlib.sha256)


def _exactly(wire: socket.socket, size: int) -> bytes:
    data, end = b"", time.monotonic() + PATIENCE
    while len(data) < size:
        wire.settimeout(max(end - time.monotonic(), 1e-3))  # who sends byte by byte has no longer for it
        part = wire.recv(size - len(data))
        if not part:
            raise ConnectionAbortedError("closed during the handshake")
        data += part
    return data
