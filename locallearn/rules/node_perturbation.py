"""Node perturbation: every unit jitters, and is credited with what became of the loss.

Williams (1992), "Simple statistical gradient-following algorithms for connectionist reinforcement learning", Machine Learning 8.
https://doi.org/10.1007/BF00992696
In deep networks: Dalm, Offergeld, Ahmad & van Gerven (2023), "Effective Learning with Node Perturbation in Multi-Layer Neural Networks".
https://arxiv.org/abs/2310.00965

Two forward passes, one of them with noise in every pre-activation, ξ_l ~ N(0, σ²), independent for each unit of each example:

    h_l = post_l(pre_l(h_{l-1}; θ_l))                 h̃_l = post_l(pre_l(h̃_{l-1}; θ_l) + ξ_l)
    δ   = loss(h̃_L) - loss(h_L)                       one number for each example
    ∇θ_l ≈ (∂pre_l/∂θ_l)ᵀ (δ ξ_l / σ²)                for a dense layer δ ξ_l h_{l-1}ᵀ / σ²; mean over the batch and over `samples`

As σ → 0 this is ⟨∂loss/∂u, ξ⟩ ξ / σ² pulled back to the weights, whose mean over ξ is backpropagation's gradient; the bias is O(σ²). Its
variance grows with the number of units, not of weights. Parameters of `post` (of a normalisation) stay as they are: nothing jitters them.

A boundary carries both passes up, 2 x batch x width numbers with one sample, and δ down to each shard, one number for each example.

What makes it work: Adam at a rate a few times below backpropagation's, and many steps; σ matters little between 1e-3 and 0.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from locallearn.block import Block, State
from locallearn.chain import Chain, Row
from locallearn.fields import Count, Positive
from locallearn.rule import Batch, Info, Message, forward
from locallearn.rules._perturbation import Estimate, Perturbation, each_cross_entropy, noise, nothing, own_key
from locallearn.search import Log


def jitter(block: Block, state: State, key: jax.Array, number: Any, x: jax.Array) -> jax.Array:
    """ξ_l / σ, like u_l. x: [batch, *in_shape], for its shape alone."""
    u = jax.eval_shape(block.pre, state.params, x)
    return noise(own_key(block, key, number), u.shape, u.dtype, "normal")


def noisy(block: Block, state: State, xi: jax.Array, x: jax.Array, *, sigma: float) -> jax.Array:
    """h̃_l. xi: ξ_l / σ; x: h̃_{l-1}, or the data."""
    return block.post(state.params, block.pre(state.params, x) + sigma * xi)


def losses(block: Block, h: jax.Array, y: jax.Array) -> jax.Array:
    """Softmax cross-entropy of each example: [batch]."""
    return each_cross_entropy(h, y)


def change(block: Block, h: jax.Array, y: jax.Array, clean: jax.Array) -> jax.Array:
    """δ: [batch]."""
    return losses(block, h, y) - clean


def mean_loss(block: Block, each: jax.Array) -> jax.Array:
    """The loss without noise."""
    return each.mean()


def credit(
    block: Block, state: State, xi: jax.Array, so_far: Estimate, x: jax.Array, delta: jax.Array, *, sigma: float, samples: int
) -> Estimate:
    """The estimate with one more sample. xi: ξ_l / σ; x: [batch, *in_shape], without noise; delta: [batch]."""
    u, pull = jax.vjp(lambda params: block.pre(params, x), state.params)
    each = delta.reshape(-1, *[1] * (u.ndim - 1)) / (sigma * samples * len(delta))
    grads = jax.tree.map(jnp.add, so_far.grads, pull(each * xi)[0])
    return Estimate(grads, so_far.projection + (jnp.abs(delta).mean() / (sigma * samples)).astype(so_far.projection.dtype))


@dataclass(frozen=True)
class NodePerturbation(Perturbation):
    """Node perturbation with softmax cross-entropy. sigma: size of the noise. samples: noisy passes in a step."""

    sigma: Positive = 0.01
    samples: Count = 1

    space: ClassVar = {"sigma": Log(1e-3, 1e-1)}
    messages: ClassVar = {
        "activation": Message("activation", "up", "h_l, once"),
        "noisy": Message("activation", "up", "h̃_l, once for each sample"),
        "difference": Message("scalar", "broadcast from the top", "δ of each example, once for each sample"),
    }
    assumes: ClassVar = "two forward passes, one of them with noise in every unit; forward and update locked"
    needs: ClassVar = "pre and post"

    def estimate(self, chain: Chain, state: Row, batch: Batch) -> tuple[Row, Info]:
        """(row of estimates, loss and inputs)."""
        x, h = chain.sweep_up("activation", forward, state, first=batch.x)
        clean = chain.at_top(losses, h, batch.y)

        def turn(number: Any, so_far: Row) -> Row:
            xi = chain.map(jitter, state, batch.key, number, x)
            _, moved = chain.sweep_up("noisy", noisy, state, xi, first=batch.x, sigma=self.sigma)
            delta = chain.broadcast("difference", chain.at_top(change, moved, batch.y, clean))
            return chain.map(credit, state, xi, so_far, x, delta, sigma=self.sigma, samples=self.samples)

        estimate = chain.repeat(self.samples, turn, chain.map(nothing, state))
        return estimate, Info(chain.at_top(mean_loss, clean), x)
