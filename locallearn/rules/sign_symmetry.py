"""Sign symmetry: the error travels down through weights that have the signs of the forward ones, but not their magnitudes.

Liao, Leibo & Poggio (2016), "How important is weight symmetry in backpropagation?", AAAI. https://arxiv.org/abs/1510.05067
Large networks: Xiao, Chen, Liao & Poggio (2019), "Biologically-plausible learning algorithms can scale to large datasets".
https://arxiv.org/abs/1811.03567

Feedback alignment, with a feedback B_l that follows the signs of the forward weights W_l of `pre`:

    B_l     = M_l ⊙ sign(W_l)
    δ_{l-1} = (∂ pre_l(h; B_l)/∂h)ᵀ (∂h_l/∂u_l)ᵀ δ_l
    M_l     = σ_l           usf, uniform
    M_l     = σ_l |ξ_l|     frsf, fixed random: ξ_l from N(0, 1), once;  brsf, batchwise random: ξ_l anew in every step

σ_l is the root mean square of W_l at the beginning; without a scale of that size the error explodes on its way down. With W_l = ±σ_l usf is
backpropagation.

A boundary carries h_l up and δ_l down, once each: batch x width numbers both ways. The owner of W_l computes the product: no sign of a
weight is sent. M_l follows from the seed.

What makes it work: Adam at about 1e-3, as for backpropagation. Deep networks need batch normalisation; the paper also takes only the sign
of the gradient. Of the feedback alignment family these come closest to backpropagation with convolutions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from locallearn.block import Block, State
from locallearn.chain import Chain, Row
from locallearn.fields import Positive
from locallearn.rule import Batch, Info, Message, Rule, forward
from locallearn.rules._common import feedback_key, output_error
from locallearn.rules.feedback_alignment import Pulled, pull
from locallearn.search import Log


def random_magnitudes(sigma: Any, like: Any, key: jax.Array) -> Any:
    """σ |ξ| for every parameter. sigma: the tree of scales; like: the parameters."""
    leaves, tree = jax.tree.flatten(like)
    keys = jax.tree.unflatten(tree, list(jax.random.split(feedback_key(key), len(leaves))))
    return jax.tree.map(lambda s, w, k: s * jnp.abs(jax.random.normal(k, w.shape, w.dtype)), sigma, like, keys)


def feedback(block: Block, state: State, key: jax.Array, *, mode: str) -> Any:
    """B_l = M_l ⊙ sign(W_l). state.memory: M_l, or σ_l where M_l is drawn anew."""
    magnitudes = state.memory
    if mode == "brsf":
        magnitudes = random_magnitudes(magnitudes, state.params, jax.random.fold_in(key, block.index))
    return jax.tree.map(lambda m, w: m * jnp.sign(w), magnitudes, state.params)


def backward(block: Block, state: State, h: jax.Array, key: jax.Array, delta: jax.Array, *, mode: str) -> Pulled:
    """δ_l through the block. h: [batch, *in_shape], delta: [batch, *out_shape]."""
    return pull(block, state.params, None if block.bottom else feedback(block, state, key, mode=mode), h, delta)


@dataclass(frozen=True)
class SignSymmetry(Rule):
    """Feedback with the signs of the weights. mode: whence its magnitudes; scale: their size, in units of the weights' initial one."""

    mode: Literal["usf", "frsf", "brsf"] = "usf"
    scale: Positive = 1.0

    space: ClassVar = {"scale": Log(0.3, 3.0)}
    messages: ClassVar = {
        "activation": Message("activation", "up", "h_l, once"),
        "error": Message("error", "down", "δ_l, once"),
    }
    family: ClassVar = "feedback alignment"
    assumes: ClassVar = "feedback weights that know the signs of the forward ones; forward, backward and update locked"
    needs: ClassVar = "pre and post"

    @property
    def additive_over_batch(self) -> bool:
        """Magnitudes that are drawn for every batch differ between its parts."""
        return self.mode != "brsf"

    def init(self, block: Block, key: jax.Array) -> State:
        """memory: for every parameter σ_l, or the fixed M_l; the bottom block needs none."""
        params = block.init(key)
        if block.bottom:
            return block.state(params)
        sigma = jax.tree.map(lambda w: self.scale * jnp.sqrt(jnp.mean(w**2)), params)
        return block.state(params, random_magnitudes(sigma, params, key) if self.mode == "frsf" else sigma)

    def gradients(self, chain: Chain, state: Row, batch: Batch) -> tuple[Row, Row, Info]:
        """Backpropagation's choreography; only `backward` differs."""
        x, h = chain.sweep_up("activation", forward, state, first=batch.x)
        top = chain.at_top(output_error, h, batch.y)
        pulled = chain.sweep_down("error", backward, state, x, batch.key, last=top.error, mode=self.mode)
        return pulled.grads, state.memory, Info(top.loss, x)
