"""Mono-Forward: every block is a classifier of its own, through a learned projection of its activities.

Gong, Li & Abdulla (2025), "Mono-Forward: Backpropagation-Free Algorithm for Efficient Neural Network Training Harnessing Local Errors".
https://arxiv.org/abs/2501.09238

With a_l = f_l(sg[a_{l-1}]; θ_l), where sg stops the gradient, a matrix M_l [classes, n_l] for each hidden block, and M_L = I:

    G_l    = a_l M_lᵀ                        goodness of each class
    loss_l = cross-entropy(softmax(G_l), y)
    Δθ_l   ∝ -∂loss_l/∂θ_l                   ΔM_l ∝ -∂loss_l/∂M_l

The prediction is the class of largest goodness in the top block, whose loss is logistic regression on a_{L-1}.

A boundary carries a_l up once, batch x width numbers, and the labels down to each shard once, one byte for each example. Nothing else
comes down: a shard may work on the next batch while those above are at this one. He initialisation and Adam are enough; it needs no
normalisation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax

from locallearn.block import Block, State, WithHead
from locallearn.chain import Chain, Row
from locallearn.rule import Batch, Info, Message, Rule
from locallearn.rules._common import Local, cross_entropy, flat, forward_body, head_key, label, unknown_classes


def goodness(block: Block, params: WithHead, x: jax.Array) -> jax.Array:
    """G_l = a_l M_lᵀ: [batch, classes]. x: [batch, *in_shape], the activities below."""
    a = block.apply(params.block, x)
    return a if block.top else flat(a) @ params.head.T


def learn(block: Block, state: State, x: jax.Array, y: jax.Array) -> Local:
    """loss_l, and its gradient by θ_l and M_l."""
    return Local(*jax.value_and_grad(lambda params: cross_entropy(goodness(block, params, x), y))(state.params))


@dataclass(frozen=True)
class MonoForward(Rule):
    """Mono-Forward: a local cross-entropy through a learned projection in every block."""

    messages: ClassVar = {
        "activation": Message("activation", "up", "a_l, once"),
        "label": Message("label", "broadcast", "y, from the top to every block"),
    }
    family: ClassVar = "local losses"
    assumes: ClassVar = "labels in every block; only forward locked"

    def problems(self, blocks: Sequence[Block]) -> list[str]:
        """M_l has a row for each class."""
        return super().problems(blocks) + unknown_classes(blocks)

    def init(self, block: Block, key: jax.Array) -> State:
        """M_l from N(0, 1/n_l): the goodness of a class begins with the scale of one activity."""
        n = math.prod(block.out_shape)
        head = () if block.top else jax.random.normal(head_key(key), (block.classes, n)) / math.sqrt(n)
        return block.state(WithHead(block.init(key), head))

    def gradients(self, chain: Chain, state: Row, batch: Batch) -> tuple[Row, Row, Info]:
        """The whole algorithm."""
        x, _ = chain.sweep_up("activation", forward_body, state, first=batch.x)
        y = chain.broadcast("label", chain.at_top(label, batch.y))
        local = chain.map(learn, state, x, y)
        return local.grads, state.memory, Info(local.loss[-1], x)

    def predict(self, chain: Chain, state: Row, x: Any) -> Any:
        """Goodness of each class in the top block."""
        return chain.sweep_up("activation", forward_body, state, first=x)[1][-1]
