"""Nudged predictive coding: the output is pulled towards the label, or pushed away from it, instead of being held at it.

Pinchetti et al. (2024), "Benchmarking Predictive Coding Networks - Made Simple", ICLR 2025. https://arxiv.org/abs/2407.01163
Nudges of both signs come from equilibrium propagation: Scellier, Ernoult, Kendall & Kumar (2023), https://arxiv.org/abs/2312.15103

The energy and its dynamics are those of predictive coding, μ_l = f_l(z_{l-1}; θ_l), with a target t that the forward pass sets:

    z_l ← μ_l                                            first: a forward pass
    t    = μ_L - β (μ_L - onehot(y))                     from the forward pass; it does not move with μ_L afterwards
    F    = Σ_{l<L} ½ ‖ε_l‖² + ½ ‖ε_L‖²                   ε_l = z_l - μ_l for l < L;  ε_L = t - μ_L
    v_l ← m v_l + ε_l - (∂f_{l+1}/∂z_l)ᵀ ε_{l+1}         `steps` rounds, all blocks at once
    z_l ← z_l - γ v_l
    ∇θ_l = -(∂f_l/∂θ_l)ᵀ ε_l / β                         once, at the relaxed activities; mean over the batch

    β = ±min(1, beta + ramp k) in training step k:       `positive`, `negative`, or `centred`, where the sign changes from step to step

With a positive β of 1, t is the label and the rule is predictive coding. As β → 0, ∇θ tends to a limit (not to backpropagation's gradient:
for that it takes fixed predictions, or a weak precision), with an error O(β), and O(β²) in the mean of both signs.

A boundary carries z_l up once in the forward pass, then in every round the pulled-back error down and z_l up:
(1 + 2·steps) x batch x width numbers. Nothing is sent for β: every block counts the steps.

What makes it work: what makes predictive coding work; a negative nudge that grows from 0.2 to 0.7 over the training (`ramp`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from annotated_types import Ge, Gt, Le, Lt

from locallearn.block import Block, State
from locallearn.chain import Chain, Row
from locallearn.fields import Count, NonNegative, Positive
from locallearn.rule import Batch, Info, Message, Rule, forward
from locallearn.rules._common import too_short
from locallearn.rules._predictive import Unit, begin, clamp, diagnosis, learn, output_loss, relaxation
from locallearn.search import Log

ENERGY = {"loss": "squared", "precision": 1.0}


def strength(block: Block, steps: jax.Array, *, nudge: str, beta: float, ramp: float) -> jax.Array:
    """β of this training step. steps: how many there were before."""
    size = jnp.minimum(1.0, beta + ramp * steps)
    return size * {"positive": 1, "negative": -1}.get(nudge, 1 - 2 * (steps % 2))


def nudged(block: Block, h: jax.Array, y: jax.Array, beta: jax.Array) -> jax.Array:
    """t: [batch, classes]. h: μ_L of the forward pass."""
    return h - beta.astype(h.dtype) * (h - jax.nn.one_hot(y, h.shape[1], dtype=h.dtype))


def learn_nudged(block: Block, state: State, unit: Unit, x: jax.Array, beta: jax.Array) -> Any:
    """∇θ_l, which is of the loss's own size whatever β."""
    return jax.tree.map(lambda g: g / beta.astype(g.dtype), learn(block, state, unit, x, **ENERGY))


def count(block: Block, steps: jax.Array) -> jax.Array:
    """One training step more."""
    return steps + 1


@dataclass(frozen=True)
class NudgedPredictiveCoding(Rule):
    """Nudged predictive coding. steps, rate, momentum: of the activities. beta: first size of the nudge; ramp: its growth in each step."""

    nudge: Literal["positive", "negative", "centred"] = "negative"
    beta: Annotated[float, Gt(0), Le(1)] = 0.2
    ramp: NonNegative = 0.0
    steps: Count = 8
    rate: Positive = 0.05
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.5

    space: ClassVar = {"rate": Log(0.01, 0.3), "beta": Log(0.05, 1.0)}
    messages: ClassVar = {
        "activation": Message("activation", "up", "z_l, in the forward pass and after every round"),
        "error": Message("error", "down", "(∂f_l/∂z_{l-1})ᵀ ε_l, in every round"),
    }
    family: ClassVar = "energy"
    assumes: ClassVar = "symmetric weights; rounds in which all blocks compute at once"

    def problems(self, blocks: Sequence[Block]) -> list[str]:
        """News from the top must have the time to reach the bottom."""
        return super().problems(blocks) + too_short("steps", self.steps, len(blocks) - 1, blocks)

    def init(self, block: Block, key: jax.Array) -> State:
        """memory: how many training steps there were."""
        return block.state(block.init(key), jnp.zeros((), jnp.int32))

    def gradients(self, chain: Chain, state: Row, batch: Batch) -> tuple[Row, Row, Info]:
        """Forward pass, nudge, relaxation, then one gradient of the energy by the weights."""
        inputs, h = chain.sweep_up("activation", forward, state, first=batch.x)
        beta = chain.map(strength, state.memory, nudge=self.nudge, beta=self.beta, ramp=self.ramp)
        unit, x = self.relaxed(chain, state, batch, inputs, h, beta)
        grads = chain.map(learn_nudged, state, unit, x, beta)
        return grads, chain.map(count, state.memory), Info(chain.at_top(output_loss, h, batch.y, loss="squared"), inputs)

    def diagnose(self, chain: Chain, state: Row, batch: Batch) -> dict[str, Row]:
        """Energy and residual, max |∂F/∂z_l|, of each block after the last round."""
        inputs, h = chain.sweep_up("activation", forward, state, first=batch.x)
        beta = chain.map(strength, state.memory, nudge=self.nudge, beta=self.beta, ramp=self.ramp)
        return diagnosis(chain, state, *self.relaxed(chain, state, batch, inputs, h, beta), h, **ENERGY)

    def relaxed(self, chain: Chain, state: Row, batch: Batch, x: Row, h: Row, beta: Row) -> tuple[Row, Row]:
        """(units, what each block sees) after all rounds. x, h: of the forward pass."""
        target = chain.at_top(nudged, h, batch.y, beta)
        unit = chain.with_top(chain.map(begin, h, momentum=self.momentum), chain.at_top(clamp, target))
        return relaxation(chain, state, unit, x, h, steps=self.steps, rate=self.rate, momentum=self.momentum, **ENERGY)
