"""Signal propagation: labels travel up through the same blocks as the data, and every block learns to bring the two together.

Kohan, Rietman & Siegelmann (2023), "Signal Propagation: The Framework for Learning and Inference in a Forward Pass", IEEE TNNLS.
https://arxiv.org/abs/2204.01723

A prototype t_l^c of each class c rises beside the activities, through weights of its own (S, a row for each class) into the bottom block
and through the same weights as they from there on; sg stops the gradient:

    h_l    = f_l(sg[h_{l-1}]; θ_l)
    t_1^c  = post_1(S_c; θ_1)               post: what follows the linear part of the block
    t_l^c  = f_l(sg[t_{l-1}^c]; θ_l)
    loss_l = cross-entropy(softmax_c(scale · ⟨h_l, t_l^c⟩ / √n_l), y)          n_l: the size of h_l
    Δθ_l, ΔS ∝ -∂loss_l                      through h_l and through t_l

The paper's code gives each example a target of its own, and takes the other targets of the batch as the wrong ones; with one prototype for
each class, those are these with weights. It divides by nothing and normalises activities instead. The top block is a softmax classifier of
sg[h_{L-1}], and predicts.

A boundary carries h_l up once, batch x width numbers, the prototypes (below the top), classes x width numbers, and the labels down to each
shard once, one byte for each example. Nothing else comes down.

What makes it work: Adam at about 1e-3, relu, and a scale that fits the width (4 for 512; 1 and 20 learn more slowly).
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
from locallearn.fields import Positive
from locallearn.rule import Batch, Info, Message, Rule
from locallearn.rules._common import Local, cross_entropy, flat, forward_body, head_key, label, unknown_classes
from locallearn.search import Log


def prototypes(block: Block, params: WithHead, t: Any) -> jax.Array:
    """t_l: [classes, *out_shape], from t_{l-1}; the bottom block has its own source."""
    if not block.bottom:
        return block.apply(params.block, t)
    return params.head if block.composite else block.post(params.block, params.head)


def rise(block: Block, state: State, t: Any) -> jax.Array:
    """t_l as it goes up."""
    return prototypes(block, state.params, t)


def class_scores(block: Block, params: WithHead, x: jax.Array, t: Any, *, scale: float) -> jax.Array:
    """How near h_l is to each prototype: [batch, classes]. x: [batch, *in_shape], t: [classes, *in_shape]."""
    h = block.apply(params.block, x)
    if block.top:
        return h
    h, t = flat(h), flat(prototypes(block, params, t))
    return scale * h @ t.T / math.sqrt(h.shape[1])


def learn(block: Block, state: State, x: jax.Array, t: Any, y: jax.Array, *, scale: float) -> Local:
    """loss_l and its gradient."""
    return Local(*jax.value_and_grad(lambda params: cross_entropy(class_scores(block, params, x, t, scale=scale), y))(state.params))


def accuracy(block: Block, state: State, x: jax.Array, t: Any, y: jax.Array) -> jax.Array:
    """Share of the batch that is nearest to the prototype of its class."""
    return jnp.mean(jnp.argmax(class_scores(block, state.params, x, t, scale=1.0), -1) == y)


@dataclass(frozen=True)
class SignalPropagation(Rule):
    """Signal propagation. scale: of the similarities; the larger, the more a loss is about the examples that are wrong."""

    scale: Positive = 4.0

    space: ClassVar = {"scale": Log(1.0, 16.0)}
    messages: ClassVar = {
        "activation": Message("activation", "up", "h_l, once"),
        "target": Message("target", "up, below the top", "t_l of each class, once"),
        "label": Message("label", "broadcast", "y, from the top to every block"),
    }
    family: ClassVar = "local losses"
    assumes: ClassVar = "labels in every block; an extra pass of one prototype for each class; only forward locked"

    def problems(self, blocks: Sequence[Block]) -> list[str]:
        """A prototype for each class."""
        return super().problems(blocks) + unknown_classes(blocks)

    def init(self, block: Block, key: jax.Array) -> State:
        """S from N(0, 1), the scale of pre-activations of normalised data."""
        shape = block.out_shape if block.composite else block.pre_shape  # where a prototype enters the bottom: after the linear part
        source = block.bottom and not block.top
        head = jax.random.normal(head_key(key), (block.classes, *shape)) if source else ()
        return block.state(WithHead(block.init(key), head))

    def signals(self, chain: Chain, state: Row, batch: Batch) -> tuple[Row, Row, Row]:
        """What every block sees: activities, prototypes (None at the bottom), labels."""
        x, _ = chain.sweep_up("activation", forward_body, state, first=batch.x)
        hidden = chain.below_top
        t = hidden.sweep_up("target", rise, state, first=None)[0] if hidden.n else Row([])
        return x, Row([*t, None]), chain.broadcast("label", chain.at_top(label, batch.y))

    def gradients(self, chain: Chain, state: Row, batch: Batch) -> tuple[Row, Row, Info]:
        """The whole algorithm."""
        x, t, y = self.signals(chain, state, batch)
        local = chain.map(learn, state, x, t, y, scale=self.scale)
        return local.grads, state.memory, Info(local.loss[-1], x)

    def diagnose(self, chain: Chain, state: Row, batch: Batch) -> dict[str, Row]:
        """Accuracy of each block's similarities, and of the top, on the batch."""
        return {"accuracy": chain.map(accuracy, state, *self.signals(chain, state, batch))}

    def predict(self, chain: Chain, state: Row, x: Any) -> Any:
        """Class scores of the top block."""
        return chain.sweep_up("activation", forward_body, state, first=x)[1][-1]
