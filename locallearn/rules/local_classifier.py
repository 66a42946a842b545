"""Local classifiers: every block predicts the label, and matches which examples of a batch resemble each other (`pred`, `predsim`).

Nøkland & Eidnes (2019), "Training Neural Networks with Local Error Signals", ICML. https://arxiv.org/abs/1901.06656

With h_l = f_l(sg[h_{l-1}]; θ_l), where sg stops the gradient, a linear decoder D_l [n_l, classes] with bias b_l, a linear map g_l without
bias, and S(X) the matrix of cosine similarities between the centred rows of X, β = similarity:

    pred_l = cross-entropy(softmax(h_l D_l + b_l), y)
    sim_l  = mean over pairs of (S(g_l(h_l)) - S(onehot(y)))²
    loss_l = (1 - β) pred_l + β sim_l              Δ(θ_l, D_l, b_l, g_l) ∝ -∂loss_l

The top block is trained by the cross-entropy of its class scores alone, and predicts. β = 0 is `pred`, β = 0.99 the paper's `predsim`.
For features with spatial axes (the last axis are channels), g_l is a convolution over 3 positions along each of them, and S sees the
standard deviation of each channel of g_l(h_l) over the positions.

A boundary carries h_l up once, batch x width numbers, and the labels down to each shard once, one byte for each example. Nothing else
comes down: a shard may work on the next batch while those above are at this one.

What makes it work: decoders that begin at zero, and Adam with a falling rate, at 1e-3 for two or three dense layers. The paper normalises
every block over the batch (`norm: batch` of the model), which deep networks need; `norm: layer` changes little in shallow ones. S compares
all pairs of a batch, so with β > 0 the batch cannot be cut into microbatches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from locallearn.block import Block, State, WithHead
from locallearn.chain import Chain, Row
from locallearn.convolution import convolve
from locallearn.fields import Fraction
from locallearn.rule import Batch, Info, Message, Rule
from locallearn.rules._common import Local, cross_entropy, flat, forward_body, head_key, label, unknown_classes
from locallearn.search import Linear

TINY = 1e-8
"""Added to squared lengths: a row without any variation resembles nothing, and its gradient stays finite."""


class Head(NamedTuple):
    """decoder: D_l [n_l, classes], bias: b_l [classes], g: [3, ..., channels, channels], empty where β = 0."""

    decoder: jax.Array
    bias: jax.Array
    g: Any


def similarity_map(g: jax.Array, h: jax.Array) -> jax.Array:
    """g_l(h_l). h: [batch, ..., channels], g: [3, ..., channels, channels], a 3 for each spatial axis."""
    return h @ g if h.ndim == 2 else convolve(h, g)


def similarity(features: jax.Array) -> jax.Array:
    """S: cosine similarity of all pairs of centred rows, [batch, batch]. features: [batch, ..., channels]."""
    if features.ndim > 2:
        features = jnp.sqrt(jnp.var(features, tuple(range(1, features.ndim - 1))) + TINY)
    centred = features - features.mean(-1, keepdims=True)
    unit = centred * jax.lax.rsqrt(jnp.sum(centred**2, -1, keepdims=True) + TINY)
    return unit @ unit.T


def local_loss(block: Block, params: WithHead, x: jax.Array, y: jax.Array, beta: float) -> jax.Array:
    """loss_l. x: [batch, *in_shape], y: [batch] int."""
    h = block.apply(params.block, x)
    if block.top:
        return cross_entropy(h, y)
    pred = cross_entropy(flat(h) @ params.head.decoder + params.head.bias, y)
    if not beta:
        return pred
    wanted = similarity(jax.nn.one_hot(y, block.classes, dtype=h.dtype))
    sim = jnp.mean((similarity(similarity_map(params.head.g, h)) - wanted) ** 2)
    return (1 - beta) * pred + beta * sim


def learn(block: Block, state: State, x: jax.Array, y: jax.Array, *, beta: float) -> Local:
    """loss_l, and its gradient by the block's parameters and its head's."""
    return Local(*jax.value_and_grad(lambda params: local_loss(block, params, x, y, beta))(state.params))


@dataclass(frozen=True)
class LocalClassifier(Rule):
    """Local classifiers. similarity: β, the weight of the similarity loss; 0 is `pred`, 0.99 is `predsim`."""

    similarity: Fraction = 0.99

    space: ClassVar = {"similarity": Linear(0.0, 1.0)}
    messages: ClassVar = {
        "activation": Message("activation", "up", "h_l, once"),
        "label": Message("label", "broadcast", "y, from the top to every block"),
    }
    family: ClassVar = "local losses"
    assumes: ClassVar = "labels in every block; only forward locked"

    @property
    def additive_over_batch(self) -> bool:
        """The similarity loss is about pairs."""
        return self.similarity == 0

    def problems(self, blocks: Sequence[Block]) -> list[str]:
        """A decoder has a column for each class."""
        return super().problems(blocks) + unknown_classes(blocks)

    def init(self, block: Block, key: jax.Array) -> State:
        """Decoders at zero; g_l from N(0, 1/fan-in)."""
        if block.top:
            return block.state(WithHead(block.init(key), ()))
        *space, channels = block.out_shape
        shape = (*(3 for _ in space), channels, channels)
        g = jax.random.normal(head_key(key), shape) / math.sqrt(math.prod(shape[:-1])) if self.similarity else ()
        n = math.prod(block.out_shape)
        return block.state(WithHead(block.init(key), Head(jnp.zeros((n, block.classes)), jnp.zeros(block.classes), g)))

    def gradients(self, chain: Chain, state: Row, batch: Batch) -> tuple[Row, Row, Info]:
        """The whole algorithm."""
        x, _ = chain.sweep_up("activation", forward_body, state, first=batch.x)
        y = chain.broadcast("label", chain.at_top(label, batch.y))
        local = chain.map(learn, state, x, y, beta=self.similarity)
        return local.grads, state.memory, Info(local.loss[-1], x)

    def predict(self, chain: Chain, state: Row, x: Any) -> Any:
        """Class scores of the top block."""
        return chain.sweep_up("activation", forward_body, state, first=x)[1][-1]
