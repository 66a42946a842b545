"""The IDX reader against files made by hand."""

import struct

import numpy as np
import pytest

from locallearn.data.idx import parse_idx
from locallearn.errors import DataError


def test_labels_by_hand():
    content = bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 0, 255])
    assert parse_idx(content, "f").tolist() == [7, 0, 255]


def test_images_by_hand():
    content = b"\0\0\x08\x03" + struct.pack(">3I", 2, 1, 3) + bytes([1, 2, 3, 4, 5, 6])
    assert parse_idx(content, "f").tolist() == [[[1, 2, 3]], [[4, 5, 6]]]


@pytest.mark.parametrize(("code", "kind"), [(0x09, "b"), (0x0B, "h"), (0x0C, "i"), (0x0D, "f"), (0x0E, "d")])
def test_other_types_are_big_endian(code, kind):
    content = bytes([0, 0, code, 1]) + struct.pack(f">I3{kind}", 3, -2, 0, 100)
    assert parse_idx(content, "f").tolist() == [-2, 0, 100]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"labels.idx: not an IDX file \(first bytes missing\)"),
        (b"\x1f\x8b\x08\0", "not an IDX file"),
        (b"\0\0\x07\x01\0\0\0\0", "not an IDX file"),
        (b"\0\0\x08\x03\0\0\0\x01", "IDX header cut short: 8 bytes, expected 16"),
        (b"\0\0\x08\x01\0\0\0\x03ab", r"IDX array \[3\] needs 11 bytes, found 10"),
        (b"\0\0\x08\x01\0\0\0\x03abcd", r"IDX array \[3\] needs 11 bytes, found 12"),
        (b"\0\0\x08\x02\xff\xff\xff\xff\xff\xff\xff\xff", "needs 18446744065119617037 bytes"),
    ],
)
def test_damage_is_named(content, message):
    with pytest.raises(DataError, match=message):
        parse_idx(content, "labels.idx")


def test_shape_without_values():
    assert parse_idx(b"\0\0\x08\x02" + struct.pack(">2I", 0, 5), "f").shape == (0, 5)
    assert parse_idx(b"\0\0\x08\x00\x05", "f") == np.uint8(5)
