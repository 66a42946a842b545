"""Forward gradients: one directional derivative, computed along with the forward pass, in place of backpropagation.

Baydin, Pearlmutter, Syme, Wood & Torr (2022), "Gradients without Backpropagation". https://arxiv.org/abs/2202.08587

With h_l = f_l(h_{l-1}; θ_l), v_l a random direction in block l's parameters, independent normal numbers (`rademacher`: signs), and t_0 = 0:

    t_l  = (∂f_l/∂h_{l-1}) t_{l-1} + (∂f_l/∂θ_l) v_l         tangents rise with the activities
    g    = ⟨∂loss/∂h_L, t_L⟩ = ⟨∇loss, v⟩                    one number for the whole network and batch
    ∇θ_l ≈ g v_l                                             mean over `samples` directions

The estimate has no bias, but its variance grows with the number of parameters d: E ‖g v‖² = (d + 2) ‖∇loss‖² for normal v, d ‖∇loss‖² for
signs. With hundreds of thousands of parameters hardly anything is learnt from scratch: this rule is the negative control of its family,
beside perturbations of the activities (`activity_forward_gradient`, `node_perturbation`), which are far fewer.

A boundary carries h_l up once and t_l up once for each direction, 2 x batch x width numbers with one direction, and one number down to
each shard. Nothing is sent for v: it follows from the seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from locallearn.block import Block, State
from locallearn.chain import Chain, Row
from locallearn.fields import Count
from locallearn.rule import Batch, Info, Message, forward
from locallearn.rules._common import output_error
from locallearn.rules._perturbation import Distribution, Perturbation, along, direction, nothing


def tangent(block: Block, state: State, v: Any, x: jax.Array, t: Any) -> jax.Array:
    """t_l, like h_l. x: [batch, *in_shape]; t: t_{l-1} of the same shape, None at the bottom, where the data do not move."""
    if t is None:
        return jax.jvp(lambda params: block.apply(params, x), (state.params,), (v,))[1]
    return jax.jvp(block.apply, (state.params, x), (v, t))[1]


def slope(block: Block, error: jax.Array, t: jax.Array) -> jax.Array:
    """g. error: ∂loss/∂h_L, t: t_L, both [batch, classes]."""
    return jnp.vdot(error, t)


@dataclass(frozen=True)
class ForwardGradient(Perturbation):
    """Forward gradients with softmax cross-entropy. samples: directions in a step."""

    samples: Count = 1
    distribution: Distribution = "normal"

    messages: ClassVar = {
        "activation": Message("activation", "up", "h_l, once"),
        "tangent": Message("activation", "up", "t_l, once for each direction"),
        "projection": Message("scalar", "broadcast from the top", "g, once for each direction"),
    }
    assumes: ClassVar = "derivatives along one direction, carried upwards; forward and update locked"

    def estimate(self, chain: Chain, state: Row, batch: Batch) -> tuple[Row, Info]:
        """(row of estimates, loss and inputs)."""
        x, h = chain.sweep_up("activation", forward, state, first=batch.x)
        top = chain.at_top(output_error, h, batch.y)

        def turn(number: Any, so_far: Row) -> Row:
            v = chain.map(direction, state, batch.key, number, distribution=self.distribution)
            _, t = chain.sweep_up("tangent", tangent, state, v, x, first=None)
            g = chain.broadcast("projection", chain.at_top(slope, top.error, t))
            return chain.map(along, so_far, v, g, samples=self.samples)

        return chain.repeat(self.samples, turn, chain.map(nothing, state)), Info(top.loss, x)
