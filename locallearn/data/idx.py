"""The IDX format of MNIST and its relatives (Y. LeCun: two zero bytes, type, rank, sizes, values; big-endian)."""

from __future__ import annotations

import math

import numpy as np

from locallearn.errors import DataError

_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def parse_idx(content: bytes, where: str) -> np.ndarray:
    """The array in the bytes of an uncompressed IDX file, read-only; DataError naming `where` if they are not one."""
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _TYPES:
        raise DataError(f"{where}: not an IDX file (first bytes {content[:4].hex(' ') or 'missing'})")
    dtype, rank = np.dtype(_TYPES[content[2]]), content[3]
    start = 4 + 4 * rank
    if len(content) < start:
        raise DataError(f"{where}: IDX header cut short: {len(content)} bytes, expected {start}")
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", rank, 4))
    expected = start + math.prod(shape) * dtype.itemsize
    if len(content) != expected:
        raise DataError(f"{where}: IDX array {list(shape)} needs {expected} bytes, found {len(content)}")
    return np.frombuffer(content, dtype, offset=start).reshape(shape)
