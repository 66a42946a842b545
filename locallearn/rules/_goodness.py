"""What the rules of the forward-forward family share: goodness, its normalisation, and negative labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from locallearn.block import Block, State
from locallearn.rules._common import cross_entropy


class Learnt(NamedTuple):
    """A block's own loss, its gradient by the block's parameters, what it remembers, and how far goodness tells right from wrong."""

    loss: jax.Array
    grads: Any
    memory: Any
    margin: Any = 0.0


def normalised(a: jax.Array) -> jax.Array:
    """Each example divided by its root mean square. a: [batch, ...]."""
    return a * jax.lax.rsqrt(jnp.mean(a**2, tuple(range(1, a.ndim)), keepdims=True) + 1e-12)


def goodness(h: jax.Array) -> jax.Array:
    """Sum of squares of each example: [batch]. h: [batch, ...]."""
    return jnp.sum(h**2, tuple(range(1, h.ndim)))


def wrong_labels(y: jax.Array, classes: int, key: jax.Array) -> jax.Array:
    """One of the other labels for each example, uniformly."""
    return (y + jax.random.randint(key, y.shape, 1, classes)) % classes


def by_label(goodness: jax.Array, classes: int) -> jax.Array:
    """Goodness of each label less their mean, so that a coarse codec keeps the differences: [batch, classes]. goodness: class by class."""
    each = goodness.reshape(classes, -1).T
    return each - each.mean(1, keepdims=True)


def idle(block: Block, state: State) -> Learnt:
    """A top block that receives the sum of goodness, and learns nothing."""
    return Learnt(jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.params), state.memory, jnp.zeros(()))


def add(block: Block, total: jax.Array, own: Any) -> jax.Array:
    """The sum so far; a top block that is idle has nothing to add."""
    return total if own is None else total + own


def no_hidden_block(blocks: Sequence[Block], skip: int = 0) -> list[str]:
    """Whether no block is left to say how good a label is, in a sentence."""
    if len(blocks) < 2:
        return ["needs a hidden block: the top one does not learn by goodness"]
    hidden = len(blocks) - 1
    return [f"skips {skip} blocks from the bottom, but only {hidden} are hidden, of which one must be left"] if skip >= hidden else []


def by_class(h: jax.Array, classes: int) -> jax.Array:
    """Activities of each group of channels, a group for each class in turn: [batch, classes, n]. h: [batch, ..., channels]."""
    groups = h.reshape(h.shape[0], -1, classes, h.shape[-1] // classes)
    return groups.swapaxes(1, 2).reshape(h.shape[0], classes, -1)


def no_group_for_each_class(blocks: Sequence[Block]) -> list[str]:
    """Whether the channels of some hidden block cannot be dealt to the classes, in a sentence."""
    odd = [block for block in blocks[:-1] if block.classes and block.out_shape[-1] % block.classes]
    told = f"block {odd[0].index} has {odd[0].out_shape[-1]}" if odd else ""
    return [f"deals channels to {odd[0].classes} classes, as many to each: {told}; take a multiple of {odd[0].classes}"] if odd else []


def classify(block: Block, state: State, a: jax.Array, y: jax.Array) -> Learnt:
    """A top block that reads out: softmax regression on what the block below passes up."""
    loss, grads = jax.value_and_grad(lambda params: cross_entropy(block.apply(params, a), y))(state.params)
    return Learnt(loss, grads, state.memory)


def between(goodness: jax.Array, y: jax.Array) -> jax.Array:
    """Goodness of the right class less the mean over the others, mean over the batch. goodness: [batch, classes]."""
    right = jnp.take_along_axis(goodness, y.astype(jnp.int32)[:, None], 1)[:, 0]
    return jnp.mean((right * goodness.shape[1] - goodness.sum(1)) / (goodness.shape[1] - 1))
