"""Feedback alignment: the error travels down through fixed random weights.

Lillicrap, Cownden, Tweed & Akerman (2014), "Random feedback weights support learning in deep neural networks".
https://arxiv.org/abs/1411.0247 (Nature Communications 7, 13276, 2016)

A block is u_l = pre_l(h_{l-1}; W_l), h_l = post_l(u_l). Backpropagation carries the error down through W_lᵀ. Here every block but the
bottom one owns a second set B_l of the parameters of `pre`, drawn once from the distribution of W_l and never changed:

    δ_L     = ∂loss/∂h_L
    d_l     = (∂h_l/∂u_l)ᵀ δ_l                     elementwise: f'(u_l) ⊙ δ_l
    ∇W_l    = (∂u_l/∂W_l)ᵀ d_l
    δ_{l-1} = (∂ pre_l(h; B_l)/∂h)ᵀ d_l            dense: B_lᵀ d_l

With B_l = W_l this is backpropagation, for convolutions too. A boundary carries h_l up and δ_l down, once each: batch x width numbers both
ways, as many as backpropagation, because the owner of W_l computes the product anyway. Nothing is sent for B_l: it follows from the seed.

What makes it work: learning turns W_l until it agrees with B_l. Two or three layers do, relu or tanh, with Adam at about 1e-3; the gap to
backpropagation grows with depth and is wide for convolutions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from locallearn.block import Block, State
from locallearn.chain import Chain, Row
from locallearn.fields import Positive
from locallearn.rule import Batch, Info, Message, Rule, forward
from locallearn.rules._common import feedback_key, output_error
from locallearn.search import Log


class Pulled(NamedTuple):
    """∇θ_l, that part of it which came through `pre`, and the δ that travels on."""

    grads: Any
    of_pre: Any
    down: Any


def draw_feedback(block: Block, key: jax.Array, scale: float) -> Any:
    """B_l, shaped as the block's parameters and drawn as they are, `scale` times as large."""
    return jax.tree.map(lambda b: scale * b, block.init(feedback_key(key)))


def pull(block: Block, params: Any, feedback: Any, h: jax.Array, delta: jax.Array) -> Pulled:
    """δ_l through `post`; then onto the parameters, and through B_l onto the input. h: [batch, *in_shape], delta: [batch, *out_shape]."""
    u, onto_pre = jax.vjp(lambda params: block.pre(params, h), params)
    _, through_post = jax.vjp(block.post, params, u)
    of_post, d = through_post(delta)
    (of_pre,) = onto_pre(d)
    grads = jax.tree.map(jnp.add, of_pre, of_post)
    if block.bottom:
        return Pulled(grads, of_pre, None)
    _, through_feedback = jax.vjp(lambda x: block.pre(feedback, x), h)
    return Pulled(grads, of_pre, *through_feedback(d))


def backward(block: Block, state: State, h: jax.Array, delta: jax.Array) -> Pulled:
    """δ_l through a block whose memory is B_l."""
    return pull(block, state.params, state.memory, h, delta)


@dataclass(frozen=True)
class FeedbackAlignment(Rule):
    """Feedback alignment with softmax cross-entropy. scale: size of the feedback weights, in units of the forward weights' initial one."""

    scale: Positive = 1.0

    space: ClassVar = {"scale": Log(0.3, 3.0)}
    messages: ClassVar = {
        "activation": Message("activation", "up", "h_l, once"),
        "error": Message("error", "down", "δ_l, once"),
    }
    family: ClassVar = "feedback alignment"
    assumes: ClassVar = "fixed random feedback weights; forward, backward and update locked"
    needs: ClassVar = "pre and post"

    def init(self, block: Block, key: jax.Array) -> State:
        """memory: B_l; the bottom block needs none."""
        return block.state(block.init(key), () if block.bottom else draw_feedback(block, key, self.scale))

    def gradients(self, chain: Chain, state: Row, batch: Batch) -> tuple[Row, Row, Info]:
        """Backpropagation's choreography; only `backward` differs."""
        x, h = chain.sweep_up("activation", forward, state, first=batch.x)
        top = chain.at_top(output_error, h, batch.y)
        pulled = chain.sweep_down("error", backward, state, x, last=top.error)
        return pulled.grads, state.memory, Info(top.loss, x)
