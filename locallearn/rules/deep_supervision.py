"""Backpropagation with deep supervision: hidden blocks have a read-out of their own, whose error joins the one from above.

Lee, Xie, Gallagher, Zhang & Tu (2015), "Deeply-Supervised Nets", AISTATS. https://arxiv.org/abs/1409.5185

With h_l = f_l(h_{l-1}; θ_l) and a linear read-out D_l with bias b_l at each supervised block below the top, α = weight:

    aux_l   = cross-entropy(softmax(h_l D_l + b_l), y)
    δ_L     = ∂loss/∂h_L
    e_l     = δ_l + α ∂aux_l/∂h_l                    e_l = δ_l at the top, and where no read-out is
    ∇θ_l    = (∂f_l/∂θ_l)ᵀ e_l,    δ_{l-1} = (∂f_l/∂h_{l-1})ᵀ e_l,    ∇(D_l, b_l) = α ∂aux_l/∂(D_l, b_l)

This is the gradient of loss + α Σ_l aux_l by all parameters. The paper has squared hinge losses and lets α vanish during training; here are
softmax and one α.

A boundary carries h_l up and δ_l down, once each: batch x width numbers both ways; and the labels down to each shard, one byte for each
example.

What makes it work: a weight of a few tenths; read-outs begin at zero, so that the first steps are backpropagation's. With `blocks` one
chooses where read-outs are: the last block of each shard, say, or none but one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from locallearn.block import Block, State, WithHead
from locallearn.chain import Chain, Row
from locallearn.fields import NonNegative, NonNegativeInt
from locallearn.rule import Batch, Info, Message, Rule
from locallearn.rules._common import cross_entropy, forward_body, label, output_error, unknown_classes
from locallearn.rules._heads import blank, read
from locallearn.rules.backprop import Pulled
from locallearn.search import Log


def backward(block: Block, state: State, x: jax.Array, y: jax.Array, delta: jax.Array, *, weight: float) -> Pulled:
    """e_l through the block, onto its parameters, its read-out's and its input; nothing is below the bottom."""

    def outputs(params: WithHead, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        h = block.apply(params.block, x)
        return h, weight * cross_entropy(read(params.head, h), y) if params.head else jnp.zeros(())

    if block.bottom:
        (_, aux), pull = jax.vjp(lambda params: outputs(params, x), state.params)
        return Pulled(pull((delta, jnp.ones_like(aux)))[0], None)
    (_, aux), pull = jax.vjp(outputs, state.params, x)
    return Pulled(*pull((delta, jnp.ones_like(aux))))


@dataclass(frozen=True)
class DeepSupervision(Rule):
    """Backpropagation with deep supervision. weight: α. blocks: numbers of those with a read-out; without it, all below the top."""

    weight: NonNegative = 0.3
    blocks: tuple[NonNegativeInt, ...] | None = None

    space: ClassVar = {"weight": Log(0.03, 1.0)}
    messages: ClassVar = {
        "activation": Message("activation", "up", "h_l, once"),
        "error": Message("error", "down", "δ_l, once"),
        "label": Message("label", "broadcast", "y, from the top to every block"),
    }
    family: ClassVar = "backprop"
    assumes: ClassVar = "symmetric weights; labels in every block; forward, backward and update locked"

    def problems(self, blocks: Sequence[Block]) -> list[str]:
        """A read-out has a column for each class, and the top needs none."""
        high = max(self.blocks or (), default=0)
        wrong = [f"has no read-out at block {high}: give numbers below {len(blocks) - 1}, the top"] if high >= len(blocks) - 1 > 0 else []
        return super().problems(blocks) + unknown_classes(blocks) + wrong

    def init(self, block: Block, key: jax.Array) -> State:
        """Read-outs at zero."""
        has = not block.top and (self.blocks is None or block.index in self.blocks)
        return block.state(WithHead(block.init(key), blank(math.prod(block.out_shape), block.classes) if has else ()))

    def gradients(self, chain: Chain, state: Row, batch: Batch) -> tuple[Row, Row, Info]:
        """The whole algorithm."""
        x, h = chain.sweep_up("activation", forward_body, state, first=batch.x)
        y = chain.broadcast("label", chain.at_top(label, batch.y))
        top = chain.at_top(output_error, h, batch.y)
        pulled = chain.sweep_down("error", backward, state, x, y, last=top.error, weight=self.weight)
        return pulled.grads, state.memory, Info(top.loss, x)

    def predict(self, chain: Chain, state: Row, x: Any) -> Any:
        """Class scores of the top block."""
        return chain.sweep_up("activation", forward_body, state, first=x)[1][-1]
