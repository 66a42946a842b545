"""Event files for TensorBoard, written without it.

A file is a list of records (length, masked CRC-32C of the length, data, masked CRC-32C of the data: TFRecord); each record is an `Event`
in the wire format of Protocol Buffers (tensorboard/compat/proto/event.proto and summary.proto). No library that is installed anyway writes
them.
"""

from __future__ import annotations

import datetime
import functools
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from locallearn.experiment.files import make_folder, write_whole
from locallearn.report.material import Material
from locallearn.report.table import DIAGNOSTIC, Row

NAME = "events.out.tfevents.0.locallearn"
SCALARS = ("train_loss", "validation_accuracy", "validation_accuracy_lossless", "test_accuracy", "test_accuracy_lossless")
COSTS = ("bytes", "payload_bytes", "bytes_worst_link", "messages", "hops", "seconds")
_VARINT, _DOUBLE, _BYTES, _FLOAT = 0, 1, 2, 5


def write_events(material: Material, folder: Path) -> list[Path]:
    """A folder with an event file for each run that was evaluated, under the run's own name. What was there is replaced."""
    written = []
    for run, rows in material.courses.items():
        path = folder / run / NAME
        make_folder(path.parent)
        started = material.metas[run].get("started")
        begin = datetime.datetime.fromisoformat(started).timestamp() if started else 0.0
        data = b"".join(map(record, events(rows, begin)))
        write_whole(path, lambda file, data=data: file.write(data))
        written.append(path)
    return written


def events(rows: Sequence[Row], begin: float) -> Iterator[bytes]:
    """The messages of one run: its numbers by step, and its accuracies once more with bytes in the place of steps. begin: seconds since
    1970."""
    yield _event(begin, version="brain.Event:2")
    for row in rows:
        at = begin + (row.get("seconds") or 0.0)
        yield _event(at, row["step"], scalars(row))
    for row in rows:
        at = begin + (row.get("seconds") or 0.0)
        by_bytes = {f"against_bytes/{name}": row[name] for name in SCALARS if row.get(name) is not None}
        if by_bytes and row.get("bytes") is not None:
            yield _event(at, row["bytes"], by_bytes)


def scalars(row: Row) -> dict[str, float]:
    """What of a row is shown, by tag."""
    told = {name: row.get(name) for name in SCALARS} | {f"cost/{name}": row.get(name) for name in COSTS}
    told |= {f"bytes/{key.removeprefix('bytes_')}": row[key] for key in row if key.startswith("bytes_") and key not in COSTS}
    for key in (key for key in row if key.startswith(DIAGNOSTIC)):
        name, _, block = key.removeprefix(DIAGNOSTIC).rpartition("_")
        told[f"{name}/block_{block}"] = row[key]
    return {tag: float(value) for tag, value in told.items() if isinstance(value, int | float)}


def record(data: bytes) -> bytes:
    """One record of a file."""
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked(length)) + data + struct.pack("<I", masked(data))


def masked(data: bytes) -> int:
    """The checksum as these files have it: rotated by 15 bits, plus a constant."""
    crc = crc32c(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli), as RFC 3720 has it."""
    crc, known = 0xFFFFFFFF, _remainders()
    for byte in data:
        crc = known[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


@functools.cache
def _remainders() -> tuple[int, ...]:
    found = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        found.append(value)
    return tuple(found)


def _event(wall_time: float, step: int = 0, values: Mapping[str, float] | None = None, version: str = "") -> bytes:
    message = _field(1, _DOUBLE, struct.pack("<d", wall_time)) + _field(2, _VARINT, _varint(int(step)))
    if version:
        return message + _sized(3, version.encode())
    summary = [_sized(1, _sized(1, tag.encode()) + _field(2, _FLOAT, struct.pack("<f", value))) for tag, value in (values or {}).items()]
    return message + _sized(5, b"".join(summary))


def _field(number: int, wire: int, payload: bytes) -> bytes:
    return _varint(number << 3 | wire) + payload


def _sized(number: int, payload: bytes) -> bytes:
    return _field(number, _BYTES, _varint(len(payload)) + payload)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
