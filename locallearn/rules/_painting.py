"""Labels painted on examples, as forward-forward shows them: one-hot in place of the first values of the flattened input."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from locallearn.block import Block
from locallearn.rules._goodness import normalised, wrong_labels

NEUTRAL = 0.1


def paint(x: jax.Array, mark: Any) -> jax.Array:
    """x with `mark`, [classes] or [batch, classes], in place of the first values of each flattened example."""
    flat, classes = x.reshape(x.shape[0], -1), mark.shape[-1]
    mark = jnp.broadcast_to(jnp.asarray(mark, x.dtype), (x.shape[0], classes))
    return jnp.concatenate([mark, flat[:, classes:]], 1).reshape(x.shape)


def show(block: Block, x: jax.Array, *, neutral: bool) -> jax.Array:
    """a_0 of x with the neutral label, or with each label in turn: [classes x batch, *in_shape], class by class."""
    marks = np.full((1, block.classes), NEUTRAL) if neutral else np.eye(block.classes)
    return jnp.concatenate([normalised(paint(x, mark)) for mark in marks])


def presentations(block: Block, x: jax.Array, y: jax.Array, wrong: jax.Array | None, key: jax.Array) -> jax.Array:
    """a_0 of all x⁺, then of all x⁻, with the wrong labels or, where there are none, with some drawn uniformly."""
    y = y.astype(jnp.int32)
    wrong = wrong_labels(y, block.classes, jax.random.fold_in(key, block.index)) if wrong is None else wrong
    return jnp.concatenate([normalised(paint(x, jax.nn.one_hot(labels, block.classes))) for labels in (y, wrong)])
