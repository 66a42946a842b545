"""CLAPP: a block predicts how it will answer to the next glance at the same thing, and not how it answers to another thing.

Illing, Ventura, Bellec & Gerstner (2021), "Local plasticity rules can learn deep representations using self-supervised contrastive
predictions", NeurIPS. https://arxiv.org/abs/2010.08262

Contrastive, local and predictive plasticity. With c_l and z_l a block's answers to two glances, sg the stop of the gradient, and y = +1 if
the eyes stay on the same thing (a fixation), -1 if they go to another one (a saccade):

    L(u)   = max(0, 1 - y u)
    loss_l = L(z_lᵀ W_pred sg[c_l]) + L(sg[z_l]ᵀ W_ret c_l)                 mean over examples
    Δθ_l   ∝ y · [y u < 1] · (W_pred c_l) · ∂z_l/∂θ_l                       and likewise by c_l, through W_ret

In a dense layer: what predicts a unit, times its derivative, times its input, times a factor that all units share. With
`retrodiction: false` one matrix serves both ways, loss_l = L(z_lᵀ W_pred c_l). The top block is a softmax classifier of the first glance,
trained by the labels, which go no further.

A boundary carries both glances up, 2 x batch x width numbers; nothing comes down. Whether there is a saccade, and whereto, follows from the
step's key in every block alike: the one bit for each example that the paper broadcasts need not be sent.

As in the paper: loss, matrices, and with `synchronous: false` a coin for each example; a fixation and a saccade in each step are its
CLAPP-s. Changed: its glances are patches of a large photograph, and it predicts up to five of them down; ours are two views of a whole
small image, the second moved and masked (`views`), predicted once, and a saccade goes to another example of the batch. Features with
positions are averaged over `cells` parts of each axis, as over a patch there. The paper trains its classifier afterwards: a phase for that.

What makes it work: views that differ as much as the things of a class do, and more steps than labels would need.
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
from locallearn.fields import Count
from locallearn.rule import Batch, Info, Message, Rule
from locallearn.rules._common import flat, forward_body, head_key
from locallearn.rules._heads import average_pool
from locallearn.rules._views import VIEWS, Views, all_gradients, lacking, own_gradient, read_out, show, untold

SACCADE = 0x5ACC
"""Folded into the step's key for where the eyes go."""


class Predictors(NamedTuple):
    """W_pred and W_ret, [n, n]; the latter empty where one matrix does both."""

    forth: jax.Array
    back: Any


class Scores(NamedTuple):
    """u of a fixation and of a saccade: [batch] each."""

    stays: jax.Array
    leaves: jax.Array


def answer(block: Block, body: Any, x: jax.Array, cells: int) -> jax.Array:
    """What a block says of a glance: [batch, n]."""
    h = block.apply(body, x)
    return flat(average_pool(h, [cells] * (h.ndim - 2)))


def scores(z: jax.Array, c: jax.Array, w: jax.Array, away: jax.Array) -> Scores:
    """zᵀ W c, with z of the same example and with that of the one `away` places further on."""
    predicted = c @ w.T
    return Scores(jnp.sum(z * predicted, -1), jnp.sum(jnp.roll(z, -away, 0) * predicted, -1))


def hinge(u: Scores, coin: jax.Array | None) -> jax.Array:
    """L, mean over examples: of both kinds of glance, or where there is a coin of the one that it chooses."""
    stays, leaves = jnp.maximum(0, 1 - u.stays), jnp.maximum(0, 1 + u.leaves)
    return jnp.mean(stays + leaves if coin is None else jnp.where(coin, stays, leaves))


def eyes(key: jax.Array, count: int, *, synchronous: bool) -> tuple[jax.Array, jax.Array | None]:
    """(how many places further a saccade goes, whether each example is fixated), the same in every block."""
    far, which = jax.random.split(jax.random.fold_in(key, SACCADE))
    return jax.random.randint(far, (), 1, count), None if synchronous else jax.random.bernoulli(which, 0.5, (count,))


def local_loss(
    block: Block, params: WithHead, first: jax.Array, second: jax.Array, key: jax.Array, *, cells: int, synchronous: bool
) -> jax.Array:
    """loss_l of two glances, [batch, *in_shape] each."""
    c, z = (answer(block, params.block, x, cells) for x in (first, second))
    away, coin = eyes(key, len(c), synchronous=synchronous)
    forth, back = params.head
    if not len(back):
        return hinge(scores(z, c, forth, away), coin)
    still = jax.lax.stop_gradient
    return hinge(scores(z, still(c), forth, away), coin) + hinge(scores(still(z), c, back, away), coin)


def learn(block: Block, state: State, first: jax.Array, second: jax.Array, key: jax.Array, **how: Any) -> Any:
    """The gradient of loss_l by θ_l, W_pred and W_ret."""
    return own_gradient(block, state, lambda params: local_loss(block, params, first, second, key, **how))


def told_apart(block: Block, state: State, first: jax.Array, second: jax.Array, key: jax.Array, *, cells: int) -> jax.Array:
    """Share of fixations with u > 0 and of saccades with u < 0, mean of both."""
    c, z = (answer(block, state.params.block, x, cells) for x in (first, second))
    u = scores(z, c, state.params.head.forth, eyes(key, len(c), synchronous=True)[0])
    return (jnp.mean(u.stays > 0) + jnp.mean(u.leaves < 0)) / 2


@dataclass(frozen=True)
class CLAPP(Rule):
    """Contrastive, local and predictive plasticity.

    views: how the second glance differs from the first. synchronous: a fixation and a saccade of every example in each step, not one of
    them by a coin. retrodiction: the first glance learns through a matrix of its own. cells: parts of each axis over which positions are
    averaged.
    """

    views: Views = VIEWS
    synchronous: bool = True
    retrodiction: bool = True
    cells: Count = 1

    messages: ClassVar = {
        "activation": Message("activation", "up", "c_l, of the first glance"),
        "view": Message("activation", "up", "z_l, of the second glance"),
    }
    family: ClassVar = "self-supervised"
    assumes: ClassVar = "labels at the top only; two views of every example, others of the batch; only forward locked"

    @property
    def additive_over_batch(self) -> bool:
        """A saccade goes to another example of the batch."""
        return False

    def problems(self, blocks: Sequence[Block]) -> list[str]:
        """Something that learns, and something to look away to."""
        return super().problems(blocks) + lacking(blocks)

    def init(self, block: Block, key: jax.Array) -> State:
        """W_pred and W_ret uniform within 1/√n."""
        if block.top:
            return block.state(WithHead(block.init(key), ()))
        *space, channels = block.out_shape
        n = channels * math.prod(min(self.cells, size) for size in space)
        forth, back = jax.random.uniform(head_key(key), (2, n, n), minval=-1, maxval=1) / math.sqrt(n)
        return block.state(WithHead(block.init(key), Predictors(forth, back if self.retrodiction else ())))

    def gradients(self, chain: Chain, state: Row, batch: Batch) -> tuple[Row, Row, Info]:
        """The whole algorithm."""
        first, second, learners = show(chain, state, batch, self.views)
        own = learners.map(learn, state, first, second, batch.key, cells=self.cells, synchronous=self.synchronous)
        top = chain.at_top(read_out, state, first, batch.y)
        return all_gradients(chain, state, own, top.grads), state.memory, Info(top.loss, first)

    def diagnose(self, chain: Chain, state: Row, batch: Batch) -> dict[str, Row]:
        """told_apart: share of the batch's fixations and saccades that a block takes for what they are."""
        first, second, learners = show(chain, state, batch, self.views)
        told = learners.map(told_apart, state, first, second, batch.key, cells=self.cells)
        return {"told_apart": untold(chain, told)}

    def predict(self, chain: Chain, state: Row, x: Any) -> Any:
        """The read-out's class scores."""
        return chain.sweep_up("activation", forward_body, state, first=x)[1][-1]
