"""Backpropagation, cut at block boundaries: the baseline.

Rumelhart, Hinton & Williams (1986), "Learning representations by back-propagating errors", Nature 323. https://doi.org/10.1038/323533a0

With h_0 = x and h_l = f_l(h_{l-1}; θ_l), and the loss at the top:

    δ_L     = ∂loss/∂h_L
    δ_{l-1} = (∂f_l/∂h_{l-1})ᵀ δ_l
    ∇θ_l    = (∂f_l/∂θ_l)ᵀ δ_l

A boundary carries h_l up and δ_l down, once each: batch x width numbers both ways.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax

from locallearn.block import Block, State
from locallearn.chain import Chain, Row
from locallearn.rule import Batch, Info, Message, Rule, forward
from locallearn.rules._common import Pulled, output_error


def backward(block: Block, state: State, h: jax.Array, delta: jax.Array) -> Pulled:
    """δ_l through the block: onto its parameters and its input; nothing is below the bottom."""
    if block.bottom:
        _, pull = jax.vjp(lambda params: block.apply(params, h), state.params)
        return Pulled(pull(delta)[0], None)
    _, pull = jax.vjp(block.apply, state.params, h)
    return Pulled(*pull(delta))


@dataclass(frozen=True)
class Backprop(Rule):
    """Backpropagation with softmax cross-entropy."""

    messages: ClassVar = {
        "activation": Message("activation", "up", "h_l, once"),
        "error": Message("error", "down", "δ_l, once"),
    }
    family: ClassVar = "backprop"
    assumes: ClassVar = "symmetric weights; forward, backward and update locked"

    def gradients(self, chain: Chain, state: Row, batch: Batch) -> tuple[Row, Row, Info]:
        """The whole algorithm."""
        x, h = chain.sweep_up("activation", forward, state, first=batch.x)
        top = chain.at_top(output_error, h, batch.y)
        pulled = chain.sweep_down("error", backward, state, x, last=top.error)
        return pulled.grads, state.memory, Info(top.loss, x)
