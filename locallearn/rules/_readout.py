"""Forward-forward's linear read-out: softmax regression on the activities of several blocks, each of which holds its own part of it."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from locallearn.block import Block, State, WithHead
from locallearn.chain import Row
from locallearn.rules._common import flat, label


class Read(NamedTuple):
    """What every block read, the loss and its gradient by the class scores in every block, and a wrong label for each example or none."""

    x: Row
    loss: Any
    error: Row
    wrong: Any


def reader(block: Block, params: Any, *, skip: int) -> WithHead:
    """The block's parameters with V_l, which reads a_{l-1}, at zero; none where that is an activity below `skip`, or at the top."""
    reads = skip < block.index and not block.top
    return WithHead(params, jnp.zeros((math.prod(block.in_shape), block.classes)) if reads else ())


def part(block: Block, params: WithHead, a: jax.Array) -> jax.Array:
    """This block's share of the class scores: [batch, classes]. a: a_{l-1}."""
    if block.top:
        return block.apply(params.block, a)
    return flat(a) @ params.head if isinstance(params.head, jax.Array) else jnp.zeros((a.shape[0], block.classes), a.dtype)


def share(block: Block, state: State, a: jax.Array) -> jax.Array:
    """`part` of a state."""
    return part(block, state.params, a)


def regress(block: Block, state: State, a: jax.Array, error: jax.Array, grads: Any) -> WithHead:
    """`grads` of the block, and the gradient of its part of the read-out."""
    (own,) = jax.vjp(lambda params: part(block, params, a), state.params)[1](error)
    return own if grads is None else jax.tree.map(jnp.add, own, grads)


def hard_labels(block: Block, scores: jax.Array, y: jax.Array, key: jax.Array) -> jax.Array:
    """One of the other labels for each example, as likely as the read-out holds it to be."""
    others = jnp.where(jax.nn.one_hot(y, block.classes, dtype=bool), -jnp.inf, scores)
    return label(block, jax.random.categorical(jax.random.fold_in(key, block.index), others))
