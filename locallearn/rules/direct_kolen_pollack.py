"""Direct Kolen-Pollack: direct feedback alignment whose feedback weights learn, too.

Webster, Choi & Ahn (2021), "Learning the connections in direct feedback alignment". https://openreview.net/forum?id=zgGmAx9ZcY

With h_l = f_l(h_{l-1}; θ_l), e = softmax(h_L) - onehot(y), and B_l [classes, n_l] drawn from N(0, scale²/n_l) at the beginning:

    δ_L  = e                           δ_l = e B_l
    ∇θ_l = (∂f_l/∂θ_l)ᵀ δ_l
    ∇B_l = eᵀ h_l                      what a layer straight from h_l to the classes would get
    B_l ← (1 - ηλ) B_l - η ∇B_l

For the highest hidden block ∇B_l is the gradient of W_L, so that B_l and W_L become the same as under Kolen-Pollack, at the rate of the
weight decay λ. Further down there is no such pair; B_l gathers what of h_l goes with which error, and so follows the path from h_l to the
classes. θ_l and B_l belong to one block and its optimizer.

A boundary carries h_l up once, batch x width numbers; e is a broadcast that reaches each shard below the top once, batch x classes numbers.
Nothing is sent for B_l: what it learns from is at hand.

What makes it work: what makes direct feedback alignment work, and a weight decay (adamw or momentum). The authors' code reports 67.5 % on
CIFAR-10 with two convolutions, where direct feedback alignment has 61.0 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from locallearn.block import Block, State, WithHead
from locallearn.chain import Chain, Row
from locallearn.fields import Positive
from locallearn.rule import Batch, Info, Message, Rule
from locallearn.rules._common import forward_body, output_error, unknown_classes
from locallearn.rules.direct_feedback import draw_feedback, local_gradient
from locallearn.search import Log


def learn(block: Block, state: State, x: jax.Array, h: jax.Array, e: jax.Array) -> WithHead:
    """∇θ_l and ∇B_l. x: [batch, *in_shape], h: [batch, *out_shape], e: [batch, classes]."""
    grads = local_gradient(block, state.params.block, state.params.head, x, e)
    return WithHead(grads, () if block.top else jnp.tensordot(e.T, h, 1))


@dataclass(frozen=True)
class DirectKolenPollack(Rule):
    """Direct Kolen-Pollack with softmax cross-entropy. scale: size of B_l at the beginning, in units of 1/√n_l."""

    scale: Positive = 1.0

    space: ClassVar = {"scale": Log(0.1, 10.0)}
    messages: ClassVar = {
        "activation": Message("activation", "up", "h_l, once"),
        "error": Message("error", "broadcast from the top", "e, once"),
    }
    family: ClassVar = "feedback alignment"
    assumes: ClassVar = "learnt direct feedback weights; forward and update locked"

    def problems(self, blocks: Sequence[Block]) -> list[str]:
        """Every block must know how wide e is."""
        return super().problems(blocks) + unknown_classes(blocks)

    def init(self, block: Block, key: jax.Array) -> State:
        """params: θ_l and B_l; the top block needs no B_l."""
        return block.state(WithHead(block.init(key), () if block.top else draw_feedback(block, key, self.scale)))

    def gradients(self, chain: Chain, state: Row, batch: Batch) -> tuple[Row, Row, Info]:
        """The whole algorithm."""
        x, h = chain.sweep_up("activation", forward_body, state, first=batch.x)
        top = chain.at_top(output_error, h, batch.y)
        e = chain.broadcast("error", top.error)
        return chain.map(learn, state, x, h, e), state.memory, Info(top.loss, x)

    def predict(self, chain: Chain, state: Row, x: Any) -> Any:
        """A plain forward pass."""
        return chain.sweep_up("activation", forward_body, state, first=x)[1][-1]
