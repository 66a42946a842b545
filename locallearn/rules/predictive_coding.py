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
activation such as gelu; Adam or AdamW, because the errors shrink on their way down, by γ in each block: a chain of seven takes a γ above
0.1, so that float32 holds what reaches the bottom, and an `epsilon` of 1e-15.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from annotated_types import Ge, Lt

from locallearn.block import Block
from locallearn.chain import Chain, Row
from locallearn.fields import Count, Positive
from locallearn.rule import Batch, Info, Message, Rule, forward
from locallearn.rules._common import too_short
from locallearn.rules._predictive import begin, clamp, diagnosis, learn, output_loss, relaxation
from locallearn.search import Log


class Relaxed(NamedTuple):
    """Activities after the relaxation. unit: row of `Unit`; x: what each block sees; h: predictions and loss of the forward pass."""

    unit: Row
    x: Row
    h: Row
    loss: Any
    inputs: Row


@dataclass(frozen=True)
class PredictiveCoding(Rule):
    """Predictive coding. steps, rate, momentum: of the activities. precision: λ. fixed_prediction: predictions of the forward pass."""

    steps: Count = 8
    rate: Positive = 0.01
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.65
    loss: Literal["squared", "cross_entropy"] = "squared"
    precision: Positive = 1.0
    fixed_prediction: bool = False

    space: ClassVar = {"rate": Log(0.003, 0.1)}
    messages: ClassVar = {
        "activation": Message("activation", "up", "z_l, in the forward pass and after every round"),
        "error": Message("error", "down", "(∂f_l/∂z_{l-1})ᵀ ε_l, in every round"),
    }
    family: ClassVar = "energy"
    assumes: ClassVar = "symmetric weights; rounds in which all blocks compute at once"

    def problems(self, blocks: Sequence[Block]) -> list[str]:
        """News from the top must have the time to reach the bottom."""
        return super().problems(blocks) + too_short("steps", self.steps, len(blocks) - 1, blocks)

    def gradients(self, chain: Chain, state: Row, batch: Batch) -> tuple[Row, Row, Info]:
        """Forward pass, relaxation, then one gradient of the energy by the weights."""
        at = self.relaxed(chain, state, batch)
        return chain.map(learn, state, at.unit, at.x, **self.options), state.memory, Info(at.loss, at.inputs)

    def diagnose(self, chain: Chain, state: Row, batch: Batch) -> dict[str, Row]:
        """Energy and residual, max |∂F/∂z_l|, of each block after the last round."""
        at = self.relaxed(chain, state, batch)
        return diagnosis(chain, state, at.unit, at.x, at.h, **self.options)

    @property
    def options(self) -> dict[str, Any]:
        """What defines the energy."""
        return {"loss": self.loss, "precision": self.precision}

    def relaxed(self, chain: Chain, state: Row, batch: Batch) -> Relaxed:
        """Forward pass and relaxation."""
        inputs, h = chain.sweep_up("activation", forward, state, first=batch.x)
        loss = chain.at_top(output_loss, h, batch.y, loss=self.loss)
        unit = chain.with_top(chain.map(begin, h, momentum=self.momentum), chain.at_top(clamp, batch.y))

        moves = {"steps": self.steps, "rate": self.rate, "momentum": self.momentum, "fixed": self.fixed_prediction}
        unit, x = relaxation(chain, state, unit, inputs, h, **moves, **self.options)
        return Relaxed(unit, x, h, loss, inputs)
