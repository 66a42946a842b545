"""Blockwise Barlow Twins: a block's answers to two views of an example agree, and its features say different things.

Siddiqui, Krueger, LeCun & Deny (2024), "Blockwise Self-Supervised Learning at Scale", TMLR. https://arxiv.org/abs/2302.01647
Zbontar, Jing, Misra, LeCun & Deny (2021), "Barlow Twins: Self-Supervised Learning via Redundancy Reduction", ICML.
https://arxiv.org/abs/2103.03230

With a_l and b_l the answers of block l to two views of its input (no gradient passes a boundary), a projector p_l of its own, and N the
normalisation of each feature over the batch, to mean 0 and deviation 1:

    C_l    = N(p_l(a_l))ᵀ N(p_l(b_l)) / batch                       [d, d]: correlations of the features between the views
    loss_l = scale · ( Σ_i (1 - C_ii)² + λ Σ_{i≠j} C_ij² )          Δ(θ_l, p_l) ∝ -∂loss_l
    a_l    = f_l(a_{l-1}; θ_l) + noise · std(f_l) · ε               in training, also on its way up; ε normal

p_l has layers of the widths `projector`: relu(N(W x) + c), the last one W x alone, d features. The first is applied at every position, and
its output averaged over the positions: the paper's 1x1 convolutional expansion with global pooling. The top block is a softmax classifier
of the first view, trained by the labels, which go no further.

A boundary carries a_l and b_l up, 2 x batch x width numbers; nothing comes down. Correlations are those of the whole batch.

The paper trains the four stages of a ResNet-50 on two crops of ImageNet with projectors 2048-8192-8192-8192, λ = 0.0039, scale 1/32, noise
0.25, LARS, 300 epochs of large batches, and a classifier afterwards (a phase for that). Changed: blocks are what the model says, as little
as one layer; the first view is what the run sees, the second is drawn from it (`views`), moved and masked; a projector normalises without a
factor, which the layer above can do as well; fewer features, and a larger λ for them.

What makes it work: batches of a hundred examples and more; views that differ as much as the things of a class do; a projector.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from locallearn.block import Block, State, WithHead
from locallearn.chain import Chain, Row
from locallearn.fields import Count, NonNegative, Positive
from locallearn.rule import Batch, Info, Message, Rule
from locallearn.rules._common import forward_body, head_key
from locallearn.rules._heads import Layer
from locallearn.rules._views import VIEWS, Views, all_gradients, lacking, output, own_gradient, read_out, show, untold
from locallearn.search import Log

EPSILON = 1e-5
"""Added to variances: a silent feature is normalised to 0."""


class Projector(NamedTuple):
    """Hidden layers W, c from the bottom up; last: [n, d]."""

    hidden: tuple[Layer, ...]
    last: jax.Array


def mean_over_positions(h: jax.Array) -> jax.Array:
    """h: [batch, ..., channels] -> [batch, channels]."""
    return h.mean(tuple(range(1, h.ndim - 1)))


def normalised(z: jax.Array) -> jax.Array:
    """N, over all axes but the last."""
    axes = tuple(range(z.ndim - 1))
    return (z - z.mean(axes)) / jnp.sqrt(z.var(axes) + EPSILON)


def project(p: Projector, h: jax.Array) -> jax.Array:
    """p_l: [batch, ..., channels] -> [batch, d]."""
    for kernel, bias in p.hidden:
        h = mean_over_positions(jax.nn.relu(normalised(h @ kernel) + bias))
    return mean_over_positions(h @ p.last)


def correlation(a: jax.Array, b: jax.Array) -> jax.Array:
    """C of two views' features, [batch, d] each."""
    return normalised(a).T @ normalised(b) / len(a)


def barlow(c: jax.Array, weight: float) -> jax.Array:
    """The loss of C, before `scale`."""
    own = jnp.diagonal(c)
    return jnp.sum((1 - own) ** 2) + weight * (jnp.sum(c**2) - jnp.sum(own**2))


def twins(block: Block, params: WithHead, first: jax.Array, second: jax.Array, key: jax.Array, noise: float) -> jax.Array:
    """C_l of two views, [batch, *in_shape] each."""
    views = enumerate((first, second))
    return correlation(*(project(params.head, output(block, params.block, x, key, number=k, noise=noise)) for k, x in views))


def learn(
    block: Block, state: State, first: jax.Array, second: jax.Array, key: jax.Array, *, weight: float, scale: float, noise: float
) -> Any:
    """The gradient of loss_l by θ_l and p_l."""
    return own_gradient(block, state, lambda params: scale * barlow(twins(block, params, first, second, key, noise), weight))


def agreement(block: Block, state: State, first: jax.Array, second: jax.Array, key: jax.Array, *, noise: float) -> jax.Array:
    """Mean of C_ii."""
    return jnp.diagonal(twins(block, state.params, first, second, key, noise)).mean()


def redundancy(block: Block, state: State, first: jax.Array, second: jax.Array, key: jax.Array, *, noise: float) -> jax.Array:
    """Root of the mean of C_ij² between different features."""
    c = twins(block, state.params, first, second, key, noise)
    return jnp.sqrt((jnp.sum(c**2) - jnp.sum(jnp.diagonal(c) ** 2)) / max(1, c.size - len(c)))


@dataclass(frozen=True)
class BlockwiseBarlowTwins(Rule):
    """Barlow Twins in every block below the top.

    views: how the second view differs from the first. weight: λ, of the correlations between different features. projector: widths of its
    layers, the last is d. noise: in units of the deviation of a block's output. scale: of the loss.
    """

    views: Views = VIEWS
    weight: NonNegative = 0.02
    projector: tuple[Count, ...] = (512, 256)
    noise: NonNegative = 0.0
    scale: Positive = 0.03125

    space: ClassVar = {"weight": Log(0.003, 0.1)}
    messages: ClassVar = {
        "activation": Message("activation", "up", "a_l, of the first view"),
        "view": Message("activation", "up", "b_l, of the second view"),
    }
    family: ClassVar = "self-supervised"
    assumes: ClassVar = "labels at the top only; two views of every example, others of the batch; only forward locked"

    @property
    def additive_over_batch(self) -> bool:
        """Correlations are the whole batch's."""
        return False

    def problems(self, blocks: Sequence[Block]) -> list[str]:
        """Something that learns, a projector, and a batch to correlate over."""
        found = super().problems(blocks) + lacking(blocks)
        return found if self.projector else [*found, "needs at least one width in `projector`, that of the features"]

    def init(self, block: Block, key: jax.Array) -> State:
        """Projectors from N(0, 2/fan-in)."""
        if block.top:
            return block.state(WithHead(block.init(key), ()))
        shapes = itertools.pairwise((block.out_shape[-1], *self.projector))
        keys = jax.random.split(head_key(key), len(self.projector))
        kernels = [jax.random.normal(k, shape) * math.sqrt(2 / shape[0]) for k, shape in zip(keys, shapes, strict=True)]
        hidden = tuple(Layer(kernel, jnp.zeros(kernel.shape[1])) for kernel in kernels[:-1])
        return block.state(WithHead(block.init(key), Projector(hidden, kernels[-1])))

    def gradients(self, chain: Chain, state: Row, batch: Batch) -> tuple[Row, Row, Info]:
        """The whole algorithm."""
        first, second, learners = show(chain, state, batch, self.views, self.noise)
        options = {"weight": self.weight, "scale": self.scale, "noise": self.noise}
        own = learners.map(learn, state, first, second, batch.key, **options)
        top = chain.at_top(read_out, state, first, batch.y)
        return all_gradients(chain, state, own, top.grads), state.memory, Info(top.loss, first)

    def diagnose(self, chain: Chain, state: Row, batch: Batch) -> dict[str, Row]:
        """agreement: mean of C_ii; redundancy: root of the mean square of the others."""
        first, second, learners = show(chain, state, batch, self.views, self.noise)
        told = [(f.__name__, learners.map(f, state, first, second, batch.key, noise=self.noise)) for f in (agreement, redundancy)]
        return {name: untold(chain, row) for name, row in told}

    def predict(self, chain: Chain, state: Row, x: Any) -> Any:
        """The read-out's class scores."""
        return chain.sweep_up("activation", forward_body, state, first=x)[1][-1]
