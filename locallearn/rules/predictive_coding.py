"""Predictive coding: activities relax until neighbours agree, and only then do the weights learn.

Whittington & Bogacz (2017), "An approximation of the error backpropagation algorithm in a predictive coding network with local Hebbian
synaptic plasticity", Neural Computation 29(5). https://doi.org/10.1162/NECO_a_00949
Fixed predictions: Millidge, Tschantz & Buckley (2020), https://arxiv.org/abs/2006.04182
Settings for small networks: Pinchetti et al. (2024), https://arxiv.org/abs/2407.01163

Discriminative direction, z_0 = x: block l predicts μ_l = f_l(z_{l-1}; θ_l). The energy of one example, a sum over units, with precision λ:

    F    = Σ_{l<L} ½ ‖ε_l‖² + λ loss(μ_L, y)             ε_l = z_l - μ_l for l < L;  ε_L = -λ ∂loss/∂μ_L
    z_l ← μ_l                                            first: a forward pass, after which only ε_L is not zero
    v_l ← m v_l + ε_l - (∂f_{l+1}/∂z_l)ᵀ ε_{l+1}         `steps` rounds, all blocks at once: ∂F/∂z_l, with momentum m
    z_l ← z_l - γ v_l
    ∇θ_l = -(∂f_l/∂θ_l)ᵀ ε_l / λ                         once, at the relaxed activities; mean over the batch

`loss` is ½ ‖μ_L - onehot(y)‖², so that ε_L = onehot(y) - μ_L as if the top activity were held at the label, or softmax cross-entropy.
Examples relax independently: γ does not depend on the batch. ∇θ tends to backpropagation's as λ → 0, with an error O(λ). With
`fixed_prediction`, μ_l and its derivatives stay those of the forward pass, and at equilibrium ∇θ is backpropagation's.

A boundary carries z_l up once in the forward pass, then in every round the pulled-back error down and z_l up:
(1 + 2·steps) x batch x width numbers, or (1 + steps) x batch x width with fixed predictions, which need no z_l.

What makes it work: at least L - 1 steps, or the error does not reach the bottom; a total step γ·steps/(1 - m) well below 1; a smooth
activation such as gelu; Adam or AdamW, because the errors shrink on their way down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge, Lt

from locallearn.block import Block, State
from locallearn.chain import Chain, Row
from locallearn.fields import Count, Positive
from locallearn.rule import Batch, Info, Message, Rule, forward
from locallearn.rules._common import cross_entropy


class Unit(NamedTuple):
    """An activity z_l and its velocity v_l, None without momentum. The top block has the labels in place of an activity."""

    z: jax.Array
    v: Any


class Errors(NamedTuple):
    """ε_l, and what it asks of the activity below: (∂f_l/∂z_{l-1})ᵀ ε_l."""

    eps: jax.Array
    down: Any


def squared_error(h: jax.Array, y: jax.Array) -> jax.Array:
    """½ ‖h - onehot(y)‖², mean over the batch. h: [batch, classes], y: [batch] int."""
    return 0.5 * jnp.sum((h - jax.nn.one_hot(y, h.shape[1], dtype=h.dtype)) ** 2) / h.shape[0]


LOSSES = {"squared": squared_error, "cross_entropy": cross_entropy}


def output_loss(block: Block, h: jax.Array, y: jax.Array, *, loss: str) -> jax.Array:
    """The loss of the forward pass, mean over the batch."""
    return LOSSES[loss](h, y)


def begin(block: Block, h: jax.Array, *, momentum: float) -> Unit:
    """z_l = μ_l, at rest."""
    return Unit(h, jnp.zeros_like(h) if momentum else None)


def clamp(block: Block, y: jax.Array) -> Unit:
    """What stands for the top's activity."""
    return Unit(y, None)


def error(block: Block, unit: Unit, mu: jax.Array, *, loss: str, precision: float) -> jax.Array:
    """ε_l, for each example: [batch, *out_shape]."""
    return -precision * mu.shape[0] * jax.grad(LOSSES[loss])(mu, unit.z) if block.top else unit.z - mu


def compare(block: Block, state: State, unit: Unit, x: jax.Array, h: jax.Array, **options: Any) -> Errors:
    """ε_l and its pull. x: the activity below; h: the prediction of the forward pass, which the bottom need not repeat."""
    if block.bottom:
        return Errors(error(block, unit, h, **options), None)
    mu, pull = jax.vjp(lambda below: block.apply(state.params, below), x)
    eps = error(block, unit, mu, **options)
    return Errors(eps, *pull(eps))


def relax(block: Block, unit: Unit, eps: jax.Array, above: Any, *, rate: float, momentum: float) -> Unit:
    """One step of z_l down the energy. above: (∂f_{l+1}/∂z_l)ᵀ ε_{l+1}."""
    if block.top:
        return unit
    slope = eps - above
    v = momentum * unit.v + slope if momentum else slope
    return Unit(unit.z - rate * v, v if momentum else None)


def learn(block: Block, state: State, unit: Unit, x: jax.Array, *, precision: float, **options: Any) -> Any:
    """∇θ_l, mean over the batch."""
    mu, pull = jax.vjp(lambda params: block.apply(params, x), state.params)
    eps = error(block, unit, mu, precision=precision, **options)
    return pull(eps / (-precision * mu.shape[0]))[0]


@dataclass(frozen=True)
class PredictiveCoding(Rule):
    """Predictive coding. steps, rate, momentum: of the activities. precision: λ. fixed_prediction: predictions of the forward pass."""

    steps: Count = 8
    rate: Positive = 0.01
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.65
    loss: Literal["squared", "cross_entropy"] = "squared"
    precision: Positive = 1.0
    fixed_prediction: bool = False

    messages: ClassVar = {
        "activation": Message("activation", "up", "z_l, in the forward pass and after every round"),
        "error": Message("error", "down", "(∂f_l/∂z_{l-1})ᵀ ε_l, in every round"),
    }
    family: ClassVar = "energy"
    assumes: ClassVar = "symmetric weights; rounds in which all blocks compute at once"

    def problems(self, blocks: Sequence[Block]) -> list[str]:
        """The error must have the time to reach the bottom."""
        found = super().problems(blocks)
        if self.steps < len(blocks) - 1:
            found.append(f"needs `steps` of at least {len(blocks) - 1} for {len(blocks)} blocks: the error moves down one block in a round")
        return found

    def gradients(self, chain: Chain, state: Row, batch: Batch) -> tuple[Row, Row, Info]:
        """Forward pass, relaxation, then one gradient of the energy by the weights."""
        options = {"loss": self.loss, "precision": self.precision}
        x, h = chain.sweep_up("activation", forward, state, first=batch.x)
        loss = chain.at_top(output_loss, h, batch.y, loss=self.loss)
        unit = chain.with_top(chain.map(begin, h, momentum=self.momentum), chain.at_top(clamp, batch.y))

        def turn(number: Any, carry: tuple[Row, Row]) -> tuple[Row, Row]:
            unit, x = carry
            errors = chain.map(compare, state, unit, x, h, **options)
            above = chain.down("error", errors.down, last=None)
            unit = chain.map(relax, unit, errors.eps, above, rate=self.rate, momentum=self.momentum)
            return unit, x if self.fixed_prediction else chain.up("activation", unit.z, first=batch.x)

        unit, x = chain.repeat(self.steps, turn, (unit, x))
        return chain.map(learn, state, unit, x, **options), state.memory, Info(loss)
