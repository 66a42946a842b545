"""Direct feedback alignment: the output error goes straight to every block, through fixed random weights.

Nøkland (2016), "Direct feedback alignment provides learning in deep neural networks", NeurIPS. https://arxiv.org/abs/1609.01596
Signs: Frenkel, Lefebvre & Bol (2021), https://arxiv.org/abs/1909.01311. Ternary: Launay et al. (2020), https://arxiv.org/abs/2006.01475

With h_l = f_l(h_{l-1}; θ_l), e = softmax(h_L) - onehot(y), and B_l drawn once from N(0, scale²/n_l), n_l the size of h_l:

    δ_L  = e
    δ_l  = q(e) B_l         e: [batch, classes], B_l: [classes, n_l], δ_l: [batch, n_l]
    ∇θ_l = (∂f_l/∂θ_l)ᵀ δ_l
    q(e) = e                full
    q(e) = sign(e)          sign: with softmax the label alone, for e is negative at the label and positive elsewhere
    q(e) = sign(e) where |e| > threshold, else 0          ternary: silent where the network is right

No error passes through a layer on its way to another: once e is known, all blocks update at the same time. A boundary carries h_l up once,
batch x width numbers; q(e) is a broadcast that reaches each shard below the top once, batch x classes numbers of 4 bytes (full), 1 bit
(sign) or 2 bits (ternary), each example padded to whole bytes. Nothing is sent for B_l: it follows from the seed.

What makes it work: Adam at about 1e-3; relu for two hidden layers, tanh beyond three, where relu is reported to do worse. In a linear
network B_l = (W_L … W_{l+1})ᵀ would be backpropagation. Convolutions learn poorly.
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
from locallearn.fields import Fraction, Positive
from locallearn.rule import Batch, Info, Message, Rule, forward
from locallearn.rules._common import feedback_key, output_error, unknown_classes
from locallearn.search import Log


def draw_feedback(block: Block, key: jax.Array, scale: float) -> jax.Array:
    """B_l [classes, *out_shape], from N(0, scale²/n_l)."""
    spread = scale / math.sqrt(math.prod(block.out_shape))
    return spread * jax.random.normal(feedback_key(key), (block.classes, *block.out_shape))


def pack(block: Block, e: jax.Array, *, error: str, threshold: float) -> jax.Array:
    """q(e) as it is sent. e: [batch, classes], a mean over the batch -> itself, or uint8 [batch, bytes]."""
    if error == "full":
        return e
    bits = [e > 0] if error == "sign" else [e * len(e) > threshold, e * len(e) < -threshold]
    return jnp.packbits(jnp.concatenate(bits, axis=1), axis=1)


def unpack(block: Block, sent: jax.Array, like: jax.Array, *, error: str) -> jax.Array:
    """q(e) / batch: [batch, classes], in the type of `like`."""
    if error == "full":
        return sent
    bits = jnp.unpackbits(sent, axis=1, count=block.classes * (1 if error == "sign" else 2)).astype(like.dtype)
    q = 2 * bits - 1 if error == "sign" else bits[:, : block.classes] - bits[:, block.classes :]
    return q / len(sent)


def local_gradient(block: Block, params: Any, feedback: Any, x: jax.Array, e: jax.Array) -> Any:
    """∇θ_l from the block's input and the output error. x: [batch, *in_shape], e: [batch, classes]."""
    delta = e if block.top else jnp.tensordot(e, feedback, 1)
    _, pull = jax.vjp(lambda params: block.apply(params, x), params)
    return pull(delta)[0]


@dataclass(frozen=True)
class DirectFeedback(Rule):
    """Direct feedback alignment with softmax cross-entropy.

    scale: size of the feedback weights, in units of 1/√n_l. error: how much of the error the blocks below the top are told. threshold: what
    a ternary error leaves out, a share of one example's largest possible error.
    """

    scale: Positive = 1.0
    error: Literal["full", "sign", "ternary"] = "full"
    threshold: Fraction = 0.25

    space: ClassVar = {"scale": Log(0.1, 10.0)}
    messages: ClassVar = {
        "activation": Message("activation", "up", "h_l, once"),
        "error": Message("error", "broadcast from the top", "q(e), once"),
    }
    family: ClassVar = "feedback alignment"
    assumes: ClassVar = "fixed random feedback weights; forward and update locked"

    def problems(self, blocks: Sequence[Block]) -> list[str]:
        """Every block must know how wide e is."""
        return super().problems(blocks) + unknown_classes(blocks)

    def init(self, block: Block, key: jax.Array) -> State:
        """memory: B_l; the top block needs none."""
        return block.state(block.init(key), () if block.top else draw_feedback(block, key, self.scale))

    def gradients(self, chain: Chain, state: Row, batch: Batch) -> tuple[Row, Row, Info]:
        """The whole algorithm."""
        x, h = chain.sweep_up("activation", forward, state, first=batch.x)
        top = chain.at_top(output_error, h, batch.y)
        sent = chain.broadcast("error", chain.at_top(pack, top.error, error=self.error, threshold=self.threshold))
        e = chain.with_top(chain.map(unpack, sent, h, error=self.error), top.error)
        return chain.map(local_gradient, state.params, state.memory, x, e), state.memory, Info(top.loss, x)
