"""What several rules share word for word, under its name in the literature."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from locallearn.block import Block, State


class Top(NamedTuple):
    """The loss at the top and its gradient by the class scores."""

    loss: jax.Array
    error: jax.Array


def cross_entropy(h: jax.Array, y: jax.Array) -> jax.Array:
    """Softmax cross-entropy, mean over the batch. h: [batch, classes], y: [batch] int."""
    import optax

    return optax.softmax_cross_entropy_with_integer_labels(h, y).mean()


def output_error(block: Block, h: jax.Array, y: jax.Array) -> Top:
    """The loss, and e_out = (softmax(h) - onehot(y)) / batch."""
    return Top(*jax.value_and_grad(cross_entropy)(h, y))


class Pulled(NamedTuple):
    """∇θ_l, and the δ that travels on."""

    grads: Any
    down: Any


class Local(NamedTuple):
    """A block's own loss, and its gradient by the block's own parameters."""

    loss: jax.Array
    grads: Any


def forward_body(block: Block, state: State, x: jax.Array) -> jax.Array:
    """The block's output, where its parameters are a `WithHead`."""
    return block.apply(state.params.block, x)


def flat(h: jax.Array) -> jax.Array:
    """What a local head sees. h: [batch, ...] -> [batch, n]."""
    return h.reshape(h.shape[0], -1)


def label(block: Block, y: jax.Array) -> jax.Array:
    """Labels as they cross: one byte each, up to 256 classes."""
    return y.astype(jnp.uint8 if block.classes <= 256 else jnp.int32)


def head_key(key: jax.Array) -> jax.Array:
    """The key of a block's head; the block itself begins as under every other rule."""
    return jax.random.fold_in(key, 0x4EAD)


def feedback_key(key: jax.Array) -> jax.Array:
    """The key of a block's feedback weights."""
    return jax.random.fold_in(key, 0xFEEDB)


def unknown_classes(blocks: Sequence[Block]) -> list[str]:
    """Whether a block below the top lacks the number of classes, in a sentence."""
    classes = math.prod(blocks[-1].out_shape)
    known = all(block.classes == classes for block in blocks)
    return [] if known else [f"needs blocks that know the number of classes, {classes}: the model must give it to each of them"]


def too_short(name: str, rounds: int, least: int, blocks: Sequence[Block]) -> list[str]:
    """Whether news from the top cannot reach the bottom in so many rounds, in a sentence."""
    if rounds >= least:
        return []
    return [f"needs `{name}` of at least {least} for {len(blocks)} blocks: news from the top moves down one block in a round"]
