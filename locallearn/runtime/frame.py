"""Frames: a packet as bytes, with the address that says where in the choreography it belongs. Nothing is ever unpickled."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from locallearn.codec import Spec, Wire
from locallearn.errors import LocallearnError
from locallearn.traffic import HEADER_BYTES, Channel

VERSION = 1
_HEADER = struct.Struct("<BBHHHIII")
assert _HEADER.size == HEADER_BYTES

MICROS = 2**16
"""So many microbatches in flight have numbers of their own in the header."""

TRAIN, EVALUATE, CONTROL, AVERAGE = range(4)
"""Streams: each numbers its frames by itself."""
STEPWISE = TRAIN, AVERAGE
"""Those numbered by training steps; the others number evaluations' batches and decisions."""


class FrameError(LocallearnError):
    """A frame is damaged, or not the one that was waited for."""


class Address(NamedTuple):
    """Names a frame. src, dst: machines. place: how many exchanges of this step came before it, the same at both ends by construction.

    Of an average of replicas `micro` is the block and `place` the hop.
    """

    stream: int
    src: int
    dst: int
    micro: int
    step: int
    place: int


def machine(shard: int, replica: int, shards: int) -> int:
    """The number of whoever holds this shard of this replica, of a chain of so many shards."""
    return replica * shards + shard


def machines(channel: Channel, shards: int) -> tuple[int, int]:
    """Those at the ends of a channel."""
    return machine(channel.src, channel.src_replica, shards), machine(channel.dst, channel.dst_replica, shards)


def frame(address: Address, packet: Sequence[Any], wire: Wire | None = None) -> bytes:
    """Header and the arrays' bytes, one after the other, as the wire packs them. `len` of it is what a link carries."""
    body = b"".join(np.asarray(part).tobytes() for part in packet)
    body = body if wire is None else wire.pack(body)
    head = (VERSION, *address)
    check = zlib.crc32(body, zlib.crc32(_HEADER.pack(*head, 0)))
    return _HEADER.pack(*head, check) + body


def address_of(data: bytes | bytearray) -> Address:
    """Read and check a frame's header; the whole frame is checked against its sum.

    Raises FrameError for a frame that is truncated, of another version, or altered.
    """
    if len(data) < HEADER_BYTES:
        raise FrameError(f"a frame of {len(data)} bytes is shorter than its header of {HEADER_BYTES}")
    version, *address, check = _HEADER.unpack_from(data)
    if version != VERSION:
        raise FrameError(f"a frame of version {version}; this program speaks version {VERSION}: run the same version everywhere")
    body = memoryview(data)[HEADER_BYTES:]
    if zlib.crc32(body, zlib.crc32(_HEADER.pack(version, *address, 0))) != check:
        raise FrameError(f"the frame {Address(*address)} was altered on its way: its checksum does not match")
    return Address(*address)


def unframe(data: bytes | bytearray, specs: Sequence[Spec], wire: Wire | None = None) -> tuple[np.ndarray, ...]:
    """The packet's arrays, views of the frame, or of what the wire makes of it."""
    sizes = [math.prod(spec.shape) * spec.dtype.itemsize for spec in specs]
    planned, came = HEADER_BYTES + sum(sizes), len(data)
    if wire is not None and came < planned:
        data = data[:HEADER_BYTES] + wire.unpack(bytes(data[HEADER_BYTES:]), sum(sizes))
    if planned != len(data):
        most = "" if wire is None else " at most"
        raise FrameError(f"a frame of {came} bytes where {planned}{most} were planned: {Address(*_HEADER.unpack_from(data)[1:-1])}")
    parts, start = [], HEADER_BYTES
    for spec, size in zip(specs, sizes, strict=True):
        parts.append(np.frombuffer(data, spec.dtype, math.prod(spec.shape), start).reshape(spec.shape))
        start += size
    return tuple(parts)
