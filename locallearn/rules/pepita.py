"""PEPITA: two forward passes, the second with the output error added to the input; what differs between them is what a block learns from.

Dellaferrera & Kreiman (2022), "Error-driven input modulation: solving the credit assignment problem without a backward pass", ICML.
https://arxiv.org/abs/2201.11665
As feedback alignment: Srinivasan et al. (2024), https://arxiv.org/abs/2302.05440

Present the Error to Perturb the Input To modulate Activity. With u_l = pre_l(h_{l-1}; W_l), h_l = post_l(u_l), and F [classes, n_0] drawn
once, uniformly within ±scale·√(6/n_0):

    h_0  = x                           clean pass;  e = softmax(h_L) - onehot(y)
    h'_0 = x + e F                     modulated pass
    ∇W_l = (h_l - h'_l)ᵀ h'_{l-1}      l < L, without f'
    ∇W_L = eᵀ h'_{L-1}

For small F, h_l - h'_l = -e F W_1ᵀ … as far as h_l: feedback through weights that learn. Weights shared over an image take the mean over
its positions. Where `post` changes the shape (pooling), the difference goes to the units that it came from, through ∂h_l/∂u_l.

A boundary carries h_l and h'_l up, once each: 2 x batch x width numbers; e goes from the top to the bottom block, batch x classes numbers.
The second pass waits for the first; nothing goes backward from block to block.

What makes it work: F small (ten times as large, it fails); momentum at about 0.1, batch 64, relu, one or two hidden layers.
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
from locallearn.rules._common import feedback_key, output_error, unknown_classes
from locallearn.search import Log


def modulate(block: Block, state: State, x: jax.Array, e: jax.Array) -> jax.Array:
    """h'_0 = x + e F. x: [batch, *in_shape], e: [batch, classes], a mean over the batch; state.memory: F [classes, *in_shape]."""
    return x + len(x) * jnp.tensordot(e, state.memory, 1)


def change(block: Block, clean: jax.Array, modulated: jax.Array) -> jax.Array:
    """(h_l - h'_l) / batch."""
    return (clean - modulated) / len(clean)


def local_gradient(block: Block, params: Any, x: jax.Array, delta: jax.Array) -> Any:
    """δ_l onto the parameters. x: [batch, *in_shape], h'_{l-1}; delta: [batch, *out_shape]."""
    u, onto_pre = jax.vjp(lambda params: block.pre(params, x), params)
    _, through_post = jax.vjp(block.post, params, u)
    of_post, d = through_post(delta)
    d = (delta if u.shape == delta.shape else d) / math.prod(u.shape[1:-1])
    return jax.tree.map(jnp.add, onto_pre(d)[0], of_post)


@dataclass(frozen=True)
class Pepita(Rule):
    """PEPITA with softmax cross-entropy. scale: size of F, in units of √(6/n_0), the bound of He's uniform distribution."""

    scale: Positive = 0.05

    space: ClassVar = {"scale": Log(0.01, 0.3)}
    messages: ClassVar = {
        "activation": Message("activation", "up", "h_l, the clean pass"),
        "modulated": Message("activation", "up", "h'_l, the modulated pass"),
        "error": Message("error", "from the top to the bottom", "e, once"),
    }
    family: ClassVar = "feedback alignment"
    assumes: ClassVar = "two forward passes, the error at the input; forward and update locked"
    needs: ClassVar = "pre and post"

    def problems(self, blocks: Sequence[Block]) -> list[str]:
        """The bottom block must know how wide e is."""
        return super().problems(blocks) + unknown_classes(blocks)

    def init(self, block: Block, key: jax.Array) -> State:
        """memory of the bottom block: F [classes, *in_shape]."""
        if not block.bottom:
            return super().init(block, key)
        bound = self.scale * math.sqrt(6 / math.prod(block.in_shape))
        shape = (block.classes, *block.in_shape)
        return block.state(block.init(key), jax.random.uniform(feedback_key(key), shape, minval=-bound, maxval=bound))

    def gradients(self, chain: Chain, state: Row, batch: Batch) -> tuple[Row, Row, Info]:
        """The whole algorithm."""
        x, h = chain.sweep_up("activation", forward, state, first=batch.x)
        top = chain.at_top(output_error, h, batch.y)
        e = chain.to_bottom("error", top.error)
        x_mod, h_mod = chain.sweep_up("modulated", forward, state, first=chain.at_bottom(modulate, state, batch.x, e))
        delta = chain.with_top(chain.map(change, h, h_mod), top.error)
        return chain.map(local_gradient, state.params, x_mod, delta), state.memory, Info(top.loss, x)
