"""Direct feedback alignment: the output error goes straight to every block, through fixed random weights.

Nøkland (2016), "Direct feedback alignment provides learning in deep neural networks", NeurIPS. https://arxiv.org/abs/1609.01596

With h_l = f_l(h_{l-1}; θ_l), e = softmax(h_L) - onehot(y), and B_l drawn once from N(0, scale²/n_l), n_l the size of h_l:

    δ_L  = e
    δ_l  = e B_l            e: [batch, classes], B_l: [classes, n_l], δ_l: [batch, n_l]
    ∇θ_l = (∂f_l/∂θ_l)ᵀ δ_l

No error passes through a layer on its way to another: once e is known, all blocks update at the same time. A boundary carries h_l up once,
batch x width numbers; e is a broadcast that reaches each shard below the top once, batch x classes numbers. Nothing is sent for B_l: it
follows from the seed.

What makes it work: Adam at about 1e-3; relu for two hidden layers, tanh beyond three, where relu is reported to do worse. In a linear
network B_l = (W_L … W_{l+1})ᵀ would be backpropagation. Convolutions learn poorly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from locallearn.block import Block, State
from locallearn.chain import Chain, Row
from locallearn.fields import Positive
from locallearn.rule import Batch, Info, Message, Rule, forward
from locallearn.rules._common import output_error, unknown_classes

FEEDBACK = 0xFEEDB
"""Folded into a block's key for its feedback weights."""


def local_gradient(block: Block, state: State, x: jax.Array, e: jax.Array) -> Any:
    """∇θ_l from the block's input and the output error. x: [batch, *in_shape], e: [batch, classes]."""
    delta = e if block.top else jnp.tensordot(e, state.memory, 1)
    _, pull = jax.vjp(lambda params: block.apply(params, x), state.params)
    return pull(delta)[0]


@dataclass(frozen=True)
class DirectFeedback(Rule):
    """Direct feedback alignment with softmax cross-entropy. scale: size of the feedback weights, in units of 1/√n_l."""

    scale: Positive = 1.0

    messages: ClassVar = {
        "activation": Message("activation", "up", "h_l, once"),
        "error": Message("error", "broadcast from the top", "e, once"),
    }
    family: ClassVar = "feedback alignment"
    assumes: ClassVar = "fixed random feedback weights; forward and update locked"

    def problems(self, blocks: Sequence[Block]) -> list[str]:
        """Every block must know how wide e is."""
        return super().problems(blocks) + unknown_classes(blocks)

    def init(self, block: Block, key: jax.Array) -> State:
        """memory: B_l [classes, *out_shape]; the top block needs none."""
        if block.top:
            return super().init(block, key)
        spread = self.scale / math.sqrt(math.prod(block.out_shape))
        feedback = spread * jax.random.normal(jax.random.fold_in(key, FEEDBACK), (block.classes, *block.out_shape))
        return block.state(block.init(key), feedback)

    def gradients(self, chain: Chain, state: Row, batch: Batch) -> tuple[Row, Row, Info]:
        """The whole algorithm."""
        x, h = chain.sweep_up("activation", forward, state, first=batch.x)
        top = chain.at_top(output_error, h, batch.y)
        e = chain.broadcast("error", top.error)
        return chain.map(local_gradient, state, x, e), state.memory, Info(top.loss)
