"""What rules with a feedback network share: a layer that mirrors a block, from the shape of its output to that of its input."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from locallearn.block import Block
from locallearn.rules._common import feedback_key


def feedback_weights(block: Block, key: jax.Array) -> Any:
    """Fresh weights V, shaped as the block's parameters and scaled for the way down, where they sum over the block's outputs."""
    scale = math.sqrt(math.prod(block.in_shape) / math.prod(block.pre_shape))
    return jax.tree.map(lambda v: scale * v if v.ndim > 1 else v, block.init(feedback_key(key)))


def transposed(block: Block, weights: Any, h: jax.Array) -> jax.Array:
    """The block's linear part, transposed, with weights V: [batch, *out_shape] -> [batch, *in_shape]. What was pooled is spread out."""
    u, pull = jax.vjp(lambda x: block.pre(weights, x), jnp.zeros((h.shape[0], *block.in_shape), h.dtype))
    return pull(h if h.shape == u.shape else jax.image.resize(h, u.shape, "nearest"))[0]


def no_mirror(blocks: Sequence[Block]) -> list[str]:
    """Whether a block cannot be mirrored, in a sentence."""
    for block in blocks:
        if len(block.out_shape) != len(block.pre_shape):
            return [f"mirrors every block, but what block {block.index} does after its linear part changes the number of axes"]
    return []
