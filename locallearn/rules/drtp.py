"""Direct random target projection: blocks below the top learn from the label, through fixed random weights, and never hear of an error.

Frenkel, Lefebvre & Bol (2021), "Learning without feedback: fixed random learning signals allow for feedforward training of deep neural
networks", Frontiers in Neuroscience 15. https://arxiv.org/abs/1909.01311

With h_l = f_l(h_{l-1}; θ_l), y* = onehot(y), e = softmax(h_L) - y*, and B_l drawn once from N(0, scale²/n_l), n_l the size of h_l:

    δ_L  = e
    δ_l  = -y* B_l           B_l: [classes, n_l]; a step moves h_l towards the row of its class
    ∇θ_l = (∂f_l/∂θ_l)ᵀ δ_l

This is direct feedback alignment with -y* in place of e: the sign that e has at the label, whatever the network says. A boundary carries
h_l up once, batch x width numbers; the labels are a broadcast that reaches each shard below the top once, one byte for each example. A
block can learn as soon as its input is there: only forward locked.

What makes it work: an activation that saturates, such as tanh, for nothing else ends the learning of a hidden block; small rates (Adam at
1e-4 to 5e-4). It is the weakest of the family.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import jax

from locallearn.block import Block, State
from locallearn.chain import Chain, Row
from locallearn.fields import Positive
from locallearn.rule import Batch, Info, Message, Rule, forward
from locallearn.rules._common import label, output_error, unknown_classes
from locallearn.rules.direct_feedback import draw_feedback, local_gradient
from locallearn.search import Log


def target(block: Block, y: jax.Array, like: jax.Array) -> jax.Array:
    """-y* / batch: [batch, classes], in the type of `like`."""
    return -jax.nn.one_hot(y, block.classes, dtype=like.dtype) / len(y)


@dataclass(frozen=True)
class DirectRandomTargetProjection(Rule):
    """Direct random target projection. scale: size of the projections, in units of 1/√n_l."""

    scale: Positive = 1.0

    space: ClassVar = {"scale": Log(0.1, 10.0)}
    messages: ClassVar = {
        "activation": Message("activation", "up", "h_l, once"),
        "label": Message("label", "broadcast", "y, from the top to every block"),
    }
    family: ClassVar = "feedback alignment"
    assumes: ClassVar = "labels in every block; fixed random projections; only forward locked"

    def problems(self, blocks: Sequence[Block]) -> list[str]:
        """Every block must know how many classes there are."""
        return super().problems(blocks) + unknown_classes(blocks)

    def init(self, block: Block, key: jax.Array) -> State:
        """memory: B_l; the top block needs none."""
        return block.state(block.init(key), () if block.top else draw_feedback(block, key, self.scale))

    def gradients(self, chain: Chain, state: Row, batch: Batch) -> tuple[Row, Row, Info]:
        """The whole algorithm."""
        x, h = chain.sweep_up("activation", forward, state, first=batch.x)
        y = chain.broadcast("label", chain.at_top(label, batch.y))
        top = chain.at_top(output_error, h, batch.y)
        e = chain.with_top(chain.map(target, y, h), top.error)
        return chain.map(local_gradient, state.params, state.memory, x, e), state.memory, Info(top.loss, x)
