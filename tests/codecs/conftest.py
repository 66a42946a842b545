"""What the tests of codecs share: one message, or a series of them, through a codec."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locallearn.codec import Context, Spec, build


@functools.cache
def program(spec, shape, dtype, training):
    codec, seen = build(spec), Spec(shape, jnp.dtype(dtype))

    def run(x, index, memory):
        context = Context(index, training)
        packet, sender = codec.encode(x, memory[0], context)
        y, receiver = codec.decode(packet, memory[1], seen, context)
        return packet, y, (sender, receiver)

    return jax.jit(run)


@functools.cache
def beginning(spec, shape, dtype):
    codec, seen = build(spec), Spec(shape, jnp.dtype(dtype))
    return jax.jit(lambda key: codec.init(seen, key))


@pytest.fixture(scope="session")
def cross():
    """`cross(spec, x, memory, training, index, key)`: (packet, what arrives, memory) of one message."""

    def send(spec, x, memory=None, training=True, index=None, key=(0, 0)):
        x = np.asarray(x)
        memory = beginning(spec, x.shape, x.dtype)(np.array(key, np.uint32)) if memory is None else memory
        index = np.arange(x.shape[0] if x.ndim else 0, dtype=np.int32) if index is None else np.asarray(index, np.int32)
        packet, y, memory = program(spec, x.shape, x.dtype, training)(x, index, memory)
        return jax.tree.map(np.asarray, packet), np.asarray(y), memory

    return send


@pytest.fixture(scope="session")
def series(cross):
    """`series(spec, messages, indices)`: what arrives of several messages of one channel, and the memory that stays."""

    def send(spec, messages, indices=None):
        memory, arrived = None, []
        for k, x in enumerate(messages):
            _, y, memory = cross(spec, x, memory, index=None if indices is None else indices[k])
            arrived.append(y)
        return np.stack(arrived), memory

    return send
