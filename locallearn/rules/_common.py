"""What several rules share word for word, under its name in the literature."""

from __future__ import annotations

from typing import NamedTuple

import jax
import optax

from locallearn.block import Block


class Top(NamedTuple):
    """The loss at the top and its gradient by the class scores."""

    loss: jax.Array
    error: jax.Array


def cross_entropy(h: jax.Array, y: jax.Array) -> jax.Array:
    """Softmax cross-entropy, mean over the batch. h: [batch, classes], y: [batch] int."""
    return optax.softmax_cross_entropy_with_integer_labels(h, y).mean()


def output_error(block: Block, h: jax.Array, y: jax.Array) -> Top:
    """The loss, and e_out = (softmax(h) - onehot(y)) / batch."""
    return Top(*jax.value_and_grad(cross_entropy)(h, y))
