"""DeeperForward: goodness is the mean activity of a class's channels, and layer normalisation takes it away from what goes up.

Sun, Zhang, He, Wen, Shen & Xie (2025), "DeeperForward: Enhanced Forward-Forward Training for Deeper and Better Performance", ICLR.
https://openreview.net/forum?id=kOYnXVQCtA

With a_0 = N(x) over all of x, channels (of a dense block: units) dealt to the C classes in order, as many to each, and S_c the group of
class c at all positions; sg stops the gradient, f_l has activities that are not negative:

    h_l    = f_l(sg[a_{l-1}]; θ_l)           a_l = N(h_l), over each S_c by itself
    N(v)   = (v - mean v) / √(variance of v + 1e-5)
    G_lc   = mean over S_c of h_l            goodness of class c
    loss_l = cross-entropy(softmax(G_l), y)               Δθ_l ∝ -∂loss_l/∂θ_l

A mean, unlike a sum of squares, gives an active unit the same gradient however small it is, so that few die; and what the next block sees
has the same mean and variance in all groups, so that it cannot read the goodness off and must look at the pattern.

The top block is not one of these l. What it does is `inference`:

    goodness   the class with the largest sum of G_l over the hidden blocks wins, those below `skip` left out (the paper drops, by the
               accuracy on validation data, blocks from both ends). The top receives the sum and learns nothing.
    readout    the top is a softmax classifier of sg[a_{L-1}].

A boundary carries a_l up once, batch x width numbers, and the labels down to each shard once, one byte for each example; with `goodness`
also one number up, the losses so far, and at a prediction the sum, batch x classes. Nothing else comes down.

What makes it work: relu, and a high rate, since the softmax must tell means apart: Adam from 1e-2 on, cosine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from locallearn.block import Block, State
from locallearn.chain import Chain, Row
from locallearn.fields import NonNegativeInt
from locallearn.rule import Batch, Info, Message, Rule
from locallearn.rules._common import cross_entropy, label, unknown_classes
from locallearn.rules._goodness import Learnt, add, between, by_class, classify, idle, no_group_for_each_class, no_hidden_block

TINY = 1e-5


def standardised(v: jax.Array) -> jax.Array:
    """N over the last axis."""
    centred = v - v.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(centred**2, -1, keepdims=True) + TINY)


def enter(block: Block, x: jax.Array) -> jax.Array:
    """a_0. x: [batch, *in_shape]."""
    return standardised(x.reshape(x.shape[0], -1)).reshape(x.shape)


def normalised(h: jax.Array, classes: int) -> jax.Array:
    """a_l: N over each class's group. h: [batch, ..., channels]."""
    groups = standardised(by_class(h, classes)).reshape(h.shape[0], classes, -1, h.shape[-1] // classes)
    return groups.swapaxes(1, 2).reshape(h.shape)


def rise(block: Block, state: State, a: jax.Array) -> jax.Array:
    """a_l from a_{l-1}; at the top the class scores."""
    h = block.apply(state.params, a)
    return h if block.top else normalised(h, block.classes)


def goodness(block: Block, params: Any, a: jax.Array) -> jax.Array:
    """G_l: [batch, classes]. a: [batch, *in_shape]."""
    return by_class(block.apply(params, a), block.classes).mean(-1)


def learn(block: Block, state: State, a: jax.Array, y: jax.Array) -> Learnt:
    """loss_l, and its gradient."""

    def loss(params: Any) -> tuple[jax.Array, jax.Array]:
        each = goodness(block, params, a)
        return cross_entropy(each, y), between(each, y)

    (value, margin), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
    return Learnt(value, grads, state.memory, margin)


def scores(block: Block, state: State, a: jax.Array, *, skip: int) -> jax.Array:
    """G_l, or nothing below `skip`: [batch, classes]."""
    each = goodness(block, state.params, a)
    return each if block.index >= skip else jnp.zeros_like(each)


@dataclass(frozen=True)
class DeeperForward(Rule):
    """Mean goodness of a class's channels, with layer normalisation. skip: how many hidden blocks, from the bottom, have no say."""

    inference: Literal["goodness", "readout"] = "goodness"
    skip: NonNegativeInt = 0

    messages: ClassVar = {
        "activation": Message("activation", "up", "a_l, once"),
        "label": Message("label", "broadcast", "y, from the top to every block"),
        "loss": Message("scalar", "up", "the sum of the losses so far; with `goodness`"),
        "goodness": Message("evaluation", "up", "goodness of each class, summed so far; with `goodness`"),
    }
    family: ClassVar = "forward-forward"
    assumes: ClassVar = "labels in every block; activities that are not negative; only forward locked"

    def problems(self, blocks: Sequence[Block]) -> list[str]:
        """Each class needs its group in every hidden block, of more than one activity."""
        found = super().problems(blocks) + unknown_classes(blocks) + no_hidden_block(blocks, self.skip) + no_group_for_each_class(blocks)
        alone = [block for block in blocks[:-1] if math.prod(block.out_shape) <= block.classes]
        if alone:
            found.append(f"normalises over each class's group: block {alone[0].index} has one activity for each class; take it wider")
        return found

    def gradients(self, chain: Chain, state: Row, batch: Batch) -> tuple[Row, Row, Info]:
        """The whole algorithm."""
        a, learnt = self.learn(chain, state, batch)
        if self.inference == "readout":
            learnt = Row([*learnt, chain.at_top(classify, state, a, batch.y)])
            return learnt.grads, learnt.memory, Info(learnt.loss[-1], a)
        learnt = Row([*learnt, chain.at_top(idle, state)])
        return learnt.grads, learnt.memory, Info(chain.gather("loss", learnt.loss, add), Row([*a, None]))

    def learn(self, chain: Chain, state: Row, batch: Batch) -> tuple[Row, Row]:
        """What the blocks see, and what the hidden ones learn from it."""
        below = chain if self.inference == "readout" else chain.below_top
        a, _ = below.sweep_up("activation", rise, state, first=chain.at_bottom(enter, batch.x))
        y = chain.broadcast("label", chain.at_top(label, batch.y))
        return a, chain.below_top.map(learn, state, a, y)

    def diagnose(self, chain: Chain, state: Row, batch: Batch) -> dict[str, Row]:
        """margin: goodness of the right class less the mean over the others, 0 at the top."""
        return {"margin": Row([*self.learn(chain, state, batch)[1].margin, chain.at_top(idle, state).margin])}

    def predict(self, chain: Chain, state: Row, x: Any) -> Any:
        """The read-out's class scores, or the goodness of each class."""
        readout, hidden = self.inference == "readout", chain.below_top
        a, h = (chain if readout else hidden).sweep_up("activation", rise, state, first=chain.at_bottom(enter, x))
        return h[-1] if readout else chain.gather("goodness", Row([*hidden.map(scores, state, a, skip=self.skip), None]), add)
