"""Dual propagation: every unit has two states, nudged apart; their mean is the activity, their difference the error.

Høier, Staudt & Zach (2023), "Dual Propagation: Accelerating Contrastive Hebbian Learning with Dyadic Neurons", ICML.
https://arxiv.org/abs/2302.01228
Why it works, and other nudges: Høier & Zach (2024), https://arxiv.org/abs/2402.08573

With u_l = pre_l(h_{l-1}; θ_l), the linear part of block l (dense or convolutional), h_l = f(u_l) from a forward pass with h_0 = x, f the
elementwise part, C_b the loss of one example, e = ∂C_b/∂u_L, and β the nudge:

    s_L^±  = u_L ∓ ½ β e
    s_l^±  = f(u_l ± ½ (∂u_{l+1}/∂h_l)ᵀ (s_{l+1}^+ - s_{l+1}^-))          one sweep down, l = L-1 … 1
    ∇θ_l   = -(∂u_l/∂θ_l)ᵀ (s_l^+ - s_l^-) / β                            mean over the batch

s_l^± settle block l exactly, given its neighbours. The paper may sweep over the states again and again, up and down; here it is one sweep
after a forward pass, which is enough, so that the input of a block is h_{l-1} and not yet the mean of s_{l-1}^±. With relu this is
backpropagation exactly, not in a limit, as long as no nudge carries a unit over its threshold; a smooth f gives it up to O(β²).

A boundary carries h_l up once and what the difference asks of h_l, (∂u_{l+1}/∂h_l)ᵀ (s_{l+1}^+ - s_{l+1}^-), down once: batch x width
numbers both ways, as in backpropagation.

What makes it work: whatever works for backpropagation, with β of about 0.1; far below that, differences drown in rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from locallearn.block import Block, State
from locallearn.chain import Chain, Row
from locallearn.fields import Positive
from locallearn.rule import ELEMENTWISE, Batch, Info, Message, Rule, forward
from locallearn.rules._common import Top, output_error
from locallearn.search import Log


class Dyad(NamedTuple):
    """s⁺ and s⁻ of a block, and what their difference asks of the block below."""

    plus: jax.Array
    minus: jax.Array
    down: Any


def first_difference(block: Block, top: Top, *, beta: float) -> jax.Array:
    """-β e, for each example: s_L^+ - s_L^-. The error of the mean loss has been divided by the batch."""
    return -beta * top.error.shape[0] * top.error


def separate(block: Block, state: State, x: jax.Array, nudge: jax.Array) -> Dyad:
    """s_l^± from the block's input and the difference that is asked of it. x: [batch, *in_shape], nudge: [batch, *out_shape]."""
    u, pull = jax.vjp(lambda below: block.pre(state.params, below), x)
    plus, minus = (block.post(state.params, u + sign * nudge / 2) for sign in (1, -1))
    return Dyad(plus, minus, None if block.bottom else pull(plus - minus)[0])


def contrast(block: Block, state: State, x: jax.Array, dyad: Dyad, *, beta: float) -> Any:
    """∇θ_l, mean over the batch."""
    _, pull = jax.vjp(lambda params: block.pre(params, x), state.params)
    return pull((dyad.minus - dyad.plus) / (beta * x.shape[0]))[0]


def drift(block: Block, h: jax.Array, dyad: Dyad) -> jax.Array:
    """How far the mean of s_l^± has left h_l, as a share of its length: 0 where the rule is backpropagation."""
    return jnp.linalg.norm((dyad.plus + dyad.minus) / 2 - h) / jnp.linalg.norm(h)


@dataclass(frozen=True)
class DualPropagation(Rule):
    """Dual propagation with softmax cross-entropy, one sweep. beta: the nudge at the top."""

    beta: Positive = 0.1

    space: ClassVar = {"beta": Log(0.01, 1.0)}
    messages: ClassVar = {
        "activation": Message("activation", "up", "h_l, once"),
        "error": Message("error", "down", "(∂u_{l+1}/∂h_l)ᵀ (s_{l+1}^+ - s_{l+1}^-), once"),
    }
    family: ClassVar = "energy"
    assumes: ClassVar = "symmetric weights; forward, backward and update locked"
    needs: ClassVar = ELEMENTWISE

    def problems(self, blocks: Sequence[Block]) -> list[str]:
        """A nudge of u_l must reach the same unit of h_l, and the top be linear."""
        found = super().problems(blocks)
        if found:
            return found
        if blocks[-1].activation != "identity":
            found.append(f"needs a linear top block; this one has {blocks[-1].activation}")
        if not all(block.elementwise for block in blocks):
            found.append("needs blocks without normalisation and pooling after the linear part: a nudge goes through each unit by itself")
        return found

    def gradients(self, chain: Chain, state: Row, batch: Batch) -> tuple[Row, Row, Info]:
        """Forward pass, one sweep down, contrast."""
        x, h = chain.sweep_up("activation", forward, state, first=batch.x)
        top = chain.at_top(output_error, h, batch.y)
        dyad = self.dyads(chain, state, x, top)
        return chain.map(contrast, state, x, dyad, beta=self.beta), state.memory, Info(top.loss, x)

    def dyads(self, chain: Chain, state: Row, x: Row, top: Top) -> Row:
        """s_l^± of every block."""
        return chain.sweep_down("error", separate, state, x, last=chain.at_top(first_difference, top, beta=self.beta))

    def diagnose(self, chain: Chain, state: Row, batch: Batch) -> dict[str, Row]:
        """drift: ‖mean of s_l^± - h_l‖ / ‖h_l‖."""
        x, h = chain.sweep_up("activation", forward, state, first=batch.x)
        return {"drift": chain.map(drift, h, self.dyads(chain, state, x, chain.at_top(output_error, h, batch.y)))}
