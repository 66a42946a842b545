"""Frames: what is packed comes back, and whatever is not whole is refused."""

import struct

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from locallearn.codec import nbytes, spec_of
from locallearn.runtime.frame import MICROS, Address, FrameError, address_of, frame, unframe
from locallearn.traffic import HEADER_BYTES

addresses = st.builds(
    Address,
    stream=st.integers(0, 2),
    src=st.integers(0, 2**16 - 1),
    dst=st.integers(0, 2**16 - 1),
    micro=st.integers(0, 2**16 - 1),
    step=st.integers(0, 2**32 - 1),
    place=st.integers(0, 2**32 - 1),
)
arrays = hnp.arrays(st.sampled_from([np.float32, np.int8, np.uint8, np.int32, np.bool_]), hnp.array_shapes(min_dims=0, max_side=4))
packets = st.lists(arrays, max_size=3).map(tuple)
SAMPLE = frame(Address(0, 1, 2, 0, 7, 3), (np.arange(6, dtype=np.float32), np.arange(3, dtype=np.int8)))


@given(addresses, packets)
def test_a_frame_is_header_and_bytes_and_comes_back(address, packet):
    data = frame(address, packet)
    assert len(data) == HEADER_BYTES + nbytes(packet)
    assert address_of(data) == address
    back = unframe(data, [spec_of(part) for part in packet])
    assert [(p.shape, p.dtype, p.tobytes()) for p in back] == [(p.shape, p.dtype, p.tobytes()) for p in packet]


def test_so_many_microbatches_have_numbers_of_their_own():
    assert address_of(frame(Address(0, 0, 1, MICROS - 1, 0, 0), ())).micro == MICROS - 1
    with pytest.raises(struct.error):
        frame(Address(0, 0, 1, MICROS, 0, 0), ())


def test_formats_that_numpy_does_not_know_come_back():
    x = jnp.array([1.5, -2, jnp.nan], jnp.bfloat16)
    (back,) = unframe(frame(Address(0, 0, 1, 0, 0, 0), (x,)), [spec_of(x)])
    assert back.dtype == jnp.bfloat16
    assert back.tobytes() == np.asarray(x).tobytes()


def test_empty_arrays_take_no_bytes():
    x = np.zeros((0, 3), np.float32)
    data = frame(Address(0, 0, 1, 0, 0, 0), (x,))
    assert len(data) == HEADER_BYTES
    assert unframe(data, [spec_of(x)])[0].shape == (0, 3)


def test_arrays_in_any_memory_order_are_framed_row_by_row():
    x = np.arange(6, dtype=np.int32).reshape(2, 3)
    assert frame(Address(0, 0, 1, 0, 0, 0), (x.T,)) == frame(Address(0, 0, 1, 0, 0, 0), (x.T.copy(),))


@given(st.integers(0, len(SAMPLE) - 1))
def test_a_truncated_frame_is_refused(length):
    with pytest.raises(FrameError):
        address_of(SAMPLE[:length])


@given(st.integers(0, 8 * len(SAMPLE) - 1))
def test_a_flipped_bit_is_refused(bit):
    data = bytearray(SAMPLE)
    data[bit // 8] ^= 1 << bit % 8
    with pytest.raises(FrameError):
        address_of(bytes(data))


@given(st.binary(max_size=64))
def test_anything_else_is_refused(data):
    with pytest.raises(FrameError):
        address_of(data)


@given(st.binary(min_size=1, max_size=9))
def test_a_frame_with_something_behind_it_is_refused(more):
    with pytest.raises(FrameError):
        address_of(SAMPLE + more)


def test_another_version_is_named():
    with pytest.raises(FrameError, match=r"version 9; this program speaks version 1.*same version everywhere"):
        address_of(bytes([9]) + SAMPLE[1:])


def test_a_frame_of_another_size_than_planned_is_refused():
    with pytest.raises(FrameError, match=f"{len(SAMPLE)} bytes where {HEADER_BYTES + 24} were planned.*step=7, place=3"):
        unframe(SAMPLE, [spec_of(np.zeros(6, np.float32))])
