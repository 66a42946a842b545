"""A small causal transformer for text: from the characters so far to scores of the next one.

Vaswani et al. (2017), "Attention is all you need", https://arxiv.org/abs/1706.03762; normalisation before each part: Radford et al. (2019).

    h_0[t] = E[x_t] + P[t]
    h      = h + attention(norm(h))          position t sees positions 0 … t
    h      = h + W_2 gelu(W_1 norm(h))
    scores = U norm(h[T-1]) + b              of the character that follows the last one

Blocks: the embedding, `layers` pairs of attention and two-layer network (composite), the scores. All but the top send every position up.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from locallearn.block import Block
from locallearn.fields import Count
from locallearn.models.layers import Part, numbered


class Embedding(nnx.Module):
    """E[x_t] + P[t]."""

    def __init__(self, vocabulary: int, context: int, width: int, rngs: nnx.Rngs):
        start = nnx.initializers.normal(1 / math.sqrt(2))
        self.tokens = nnx.Embed(vocabulary, width, embedding_init=start, rngs=rngs)
        self.positions = nnx.Embed(context, width, embedding_init=start, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [batch, context] int -> [batch, context, width]."""
        return self.tokens(x) + self.positions(jnp.arange(x.shape[1]))


class Attention(nnx.Module):
    """Causal attention and a two-layer network, each beside a shortcut."""

    activation = "gelu"

    def __init__(self, width: int, heads: int, hidden: int, rngs: nnx.Rngs):
        self.heads = heads
        self.norm1, self.norm2 = nnx.LayerNorm(width, rngs=rngs), nnx.LayerNorm(width, rngs=rngs)
        self.qkv = nnx.Linear(width, 3 * width, use_bias=False, rngs=rngs)
        self.out = nnx.Linear(width, width, rngs=rngs)
        self.up, self.down = nnx.Linear(width, hidden, rngs=rngs), nnx.Linear(hidden, width, rngs=rngs)

    def __call__(self, h: jax.Array) -> jax.Array:
        """h: [batch, context, width]."""
        h = h + self.out(self.attend(self.norm1(h)))
        return h + self.down(nnx.gelu(self.up(self.norm2(h))))

    def attend(self, h: jax.Array) -> jax.Array:
        """softmax(Q Kᵀ / √d) V for each head, over the positions up to one's own."""
        batch, context, width = h.shape
        q, k, v = jnp.moveaxis(self.qkv(h).reshape(batch, context, 3, self.heads, -1), 2, 0)
        agreement = jnp.einsum("bthd,bshd->bhts", q, k) / math.sqrt(q.shape[-1])
        past = jnp.tril(jnp.ones((context, context), bool))
        share = jax.nn.softmax(jnp.where(past, agreement, -jnp.inf), axis=-1)
        return jnp.einsum("bhts,bshd->bthd", share, v).reshape(batch, context, width)


class Scores(nnx.Module):
    """Of the next character, from the last position."""

    def __init__(self, width: int, vocabulary: int, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.linear = nnx.Linear(width, vocabulary, rngs=rngs)

    def __call__(self, h: jax.Array) -> jax.Array:
        """h: [batch, context, width] -> [batch, vocabulary]."""
        return self.linear(self.norm(h[:, -1]))


@dataclass(frozen=True)
class Transformer:
    """Causal transformer for text.

    width: numbers at each position. layers: blocks between embedding and scores. hidden: width of their networks, 4 x `width` unless given.
    """

    name: ClassVar[str] = "transformer"

    width: Count = 64
    layers: Count = 2
    heads: Count = 4
    hidden: Count | None = None

    def problems(self, example_shape: tuple[int, ...], classes: int) -> list[tuple[str, str]]:
        """(field, what is wrong) where this model does not fit the data."""
        if self.width % self.heads:
            return [("heads", f"does not divide the width of {self.width}")]
        if len(example_shape) != 1:
            return [("", f"takes text, [context] characters; an example has shape {list(example_shape)}")]
        return []

    def blocks(self, example_shape: tuple[int, ...], classes: int) -> list[Block]:
        """The embedding, the layers, the scores. classes: characters that there are."""
        (context,), hidden = example_shape, self.hidden or 4 * self.width
        inner = (context, self.width)
        parts: list[Part] = [(functools.partial(Embedding, classes, context, self.width), (context,))]
        parts += [(functools.partial(Attention, self.width, self.heads, hidden), inner)] * self.layers
        return numbered([*parts, (functools.partial(Scores, self.width, classes), inner)], classes, jnp.int32)
