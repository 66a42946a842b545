"""Channel-wise competitive learning: every block gives each class a group of its channels, and the groups compete; no negatives.

Papachristodoulou, Kyrkou, Timotheou & Theocharides (2024), "Convolutional Channel-wise Competitive Learning for the Forward-Forward
Algorithm", AAAI. https://arxiv.org/abs/2312.12668

With h_l = f_l(sg[h_{l-1}]; θ_l), where sg stops the gradient, channels (of a dense block: units) dealt to the C classes in order, as many
to each, and S_c the group of class c at all positions:

    G_lc   = mean over S_c of h_l²           goodness of class c
    loss_l = cross-entropy(softmax(G_l), y)                  the CwC loss
    Δθ_l   ∝ -∂loss_l/∂θ_l

With `separate`, the second, fourth, … hidden block is a channel-wise feature separator (CFSE): a group convolution, in which the channels
of a class see the channels of the same class alone. It is the same block with all other weights at zero, where they stay; those that are
left begin √C times as large.

The top block is not one of these l. What it does is `inference`:

    goodness   the class with the largest sum of G_l over the hidden blocks wins, those below `skip` left out (the paper's global average:
               all but the last). The top receives the sum and learns nothing.
    readout    the top is a softmax classifier of sg[h_{L-1}] (the paper's softmax predictor).

A boundary carries h_l up once, batch x width numbers, and the labels down to each shard once, one byte for each example; with `goodness`
also one number up, the losses so far, and at a prediction the sum, batch x classes. Nothing else comes down.

What makes it work: few layers, batch normalisation in convolutional blocks, Adam at 1e-3 to 1e-2. Each group sees only its own class rise,
so that a wrong label need never be shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from locallearn.block import Block, State
from locallearn.chain import Chain, Row
from locallearn.fields import NonNegativeInt
from locallearn.rule import Batch, Info, Message, Rule, forward
from locallearn.rules._common import cross_entropy, label, unknown_classes
from locallearn.rules._goodness import Learnt, add, between, by_class, classify, idle, no_group_for_each_class, no_hidden_block


def goodness(block: Block, params: Any, x: jax.Array) -> jax.Array:
    """G_l: [batch, classes]. x: [batch, *in_shape], the activities below."""
    return jnp.mean(by_class(block.apply(params, x), block.classes) ** 2, -1)


def is_separator(block: Block) -> bool:
    """Whether the block is the second of a pair of hidden blocks."""
    return block.index % 2 == 1 and not block.top


def separated(block: Block, params: Any) -> Any:
    """Parameters, or their gradients, with zero between channels of different classes."""

    def own(leaf: jax.Array) -> jax.Array:
        if leaf.ndim < 2:
            return leaf
        below = np.arange(leaf.shape[-2]) % block.in_shape[-1] * block.classes // block.in_shape[-1]
        above = np.arange(leaf.shape[-1]) * block.classes // leaf.shape[-1]
        return jnp.where(below[:, None] == above, leaf, 0)

    return jax.tree.map(own, params)


def learn(block: Block, state: State, x: jax.Array, y: jax.Array, *, separate: bool) -> Learnt:
    """loss_l, and its gradient."""

    def loss(params: Any) -> tuple[jax.Array, jax.Array]:
        each = goodness(block, params, x)
        return cross_entropy(each, y), between(each, y)

    (value, margin), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
    return Learnt(value, separated(block, grads) if separate and is_separator(block) else grads, state.memory, margin)


def scores(block: Block, state: State, x: jax.Array, *, skip: int) -> jax.Array:
    """G_l, or nothing below `skip`: [batch, classes]."""
    each = goodness(block, state.params, x)
    return each if block.index >= skip else jnp.zeros_like(each)


@dataclass(frozen=True)
class Channelwise(Rule):
    """Channel-wise competition. skip: how many hidden blocks, from the bottom, have no say. separate: every second one is a CFSE's."""

    inference: Literal["goodness", "readout"] = "goodness"
    skip: NonNegativeInt = 0
    separate: bool = False

    messages: ClassVar = {
        "activation": Message("activation", "up", "h_l, once"),
        "label": Message("label", "broadcast", "y, from the top to every block"),
        "loss": Message("scalar", "up", "the sum of the losses so far; with `goodness`"),
        "goodness": Message("evaluation", "up", "goodness of each class, summed so far; with `goodness`"),
    }
    family: ClassVar = "forward-forward"
    assumes: ClassVar = "labels in every block; only forward locked"

    def problems(self, blocks: Sequence[Block]) -> list[str]:
        """Each class needs its group in every hidden block."""
        found = super().problems(blocks) + unknown_classes(blocks) + no_hidden_block(blocks, self.skip) + no_group_for_each_class(blocks)
        if self.separate and any(block.composite for block in blocks[1:-1:2]):
            found.append("separates classes within one map of channels; a composite block has several: leave `separate` out")
        return found

    def init(self, block: Block, key: jax.Array) -> State:
        """Separators begin without the weights that they lack."""
        params = block.init(key)
        if not (self.separate and is_separator(block)):
            return block.state(params)
        gain = float(np.sqrt(block.classes))
        return block.state(jax.tree.map(lambda leaf: leaf * gain if leaf.ndim > 1 else leaf, separated(block, params)))

    def gradients(self, chain: Chain, state: Row, batch: Batch) -> tuple[Row, Row, Info]:
        """The whole algorithm."""
        x, learnt = self.learn(chain, state, batch)
        if self.inference == "readout":
            learnt = Row([*learnt, chain.at_top(classify, state, x, batch.y)])
            return learnt.grads, learnt.memory, Info(learnt.loss[-1], x)
        learnt = Row([*learnt, chain.at_top(idle, state)])
        return learnt.grads, learnt.memory, Info(chain.gather("loss", learnt.loss, add), Row([*x, None]))

    def learn(self, chain: Chain, state: Row, batch: Batch) -> tuple[Row, Row]:
        """What the blocks see, and what the hidden ones learn from it."""
        x, _ = (chain if self.inference == "readout" else chain.below_top).sweep_up("activation", forward, state, first=batch.x)
        y = chain.broadcast("label", chain.at_top(label, batch.y))
        return x, chain.below_top.map(learn, state, x, y, separate=self.separate)

    def diagnose(self, chain: Chain, state: Row, batch: Batch) -> dict[str, Row]:
        """margin: goodness of the right class less the mean over the others, 0 at the top."""
        return {"margin": Row([*self.learn(chain, state, batch)[1].margin, chain.at_top(idle, state).margin])}

    def predict(self, chain: Chain, state: Row, x: Any) -> Any:
        """The read-out's class scores, or the goodness of each class."""
        readout, hidden = self.inference == "readout", chain.below_top
        a, h = (chain if readout else hidden).sweep_up("activation", forward, state, first=x)
        return h[-1] if readout else chain.gather("goodness", Row([*hidden.map(scores, state, a, skip=self.skip), None]), add)
