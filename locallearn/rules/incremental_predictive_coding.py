"""Incremental predictive coding: weights and activities descend the energy together, in every round.

Salvatori, Song, Yordanov, Millidge, Sha, Emde, Xu, Bogacz & Lukasiewicz (2024), "A stable, fast, and fully automatic learning algorithm for
predictive coding networks", ICLR. https://arxiv.org/abs/2212.00720
Settings for small networks: Pinchetti et al. (2024), https://arxiv.org/abs/2407.01163

The energy is that of predictive coding, z_0 = x and μ_l = f_l(z_{l-1}; θ_l), with precision λ:

    F    = Σ_{l<L} ½ ‖ε_l‖² + λ loss(μ_L, y)             ε_l = z_l - μ_l for l < L;  ε_L = -λ ∂loss/∂μ_L
    z_l ← μ_l                                            first: a forward pass
    v_l ← m v_l + ε_l - (∂f_{l+1}/∂z_l)ᵀ ε_{l+1}         `steps` times, all blocks at once, each time at the same z and θ:
    z_l ← z_l - γ v_l
    θ_l ← θ_l + η (∂f_l/∂θ_l)ᵀ ε_l / λ                   mean over the batch, through the block's optimizer

No block waits for a relaxation to end, and no signal is needed to switch between inference and learning. In the first time only ε_L is
not zero, so that block l begins to learn in the time number L - l + 1. The activities of the last time would not be used, so they do not
move: `steps` updates of the weights, `steps` - 1 of the activities.

Every training step is `steps` optimizer steps, and schedules of the learning rate count them so. With the schedule of so many batches,
the rate would be down after a fraction 1/`steps` of the training.

A boundary carries z_l up once in the forward pass, then `steps` - 1 times the pulled-back error down and z_l up:
(2·steps - 1) x batch x width numbers.

What makes it work: a rate γ near 1 with little momentum, and weights small enough for it, as γ (1 + ‖W‖²) above 2 (1 + m) is unstable
(`init: lecun, gain: 0.577`); more `steps` than blocks, AdamW at about 3e-4 with weight decay (0.01 to 0.03).
With one step, only the top block learns.
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
from locallearn.rule import Batch, Info, Message, Rule, descend, forward
from locallearn.rules._common import too_short
from locallearn.rules._predictive import Unit, begin, clamp, diagnosis, error, output_loss, relax
from locallearn.search import Linear


class Slopes(NamedTuple):
    """ε_l, what it asks of the activity below, and ∇θ_l."""

    eps: jax.Array
    down: Any
    grads: Any


def slopes(block: Block, state: State, unit: Unit, x: jax.Array, *, precision: float, **options: Any) -> Slopes:
    """Both slopes of the energy at the same activities and weights. x: the activity below."""
    if block.bottom:
        mu, pull = jax.vjp(lambda params: block.apply(params, x), state.params)
    else:
        mu, pull = jax.vjp(block.apply, state.params, x)
    eps = error(block, unit, mu, precision=precision, **options)
    grads, *down = pull(eps)
    return Slopes(eps, down[0] if down else None, jax.tree.map(lambda g: g / (-precision * mu.shape[0]), grads))


def at_rest(block: Block, state: State, unit: Unit, x: jax.Array, **options: Any) -> Slopes:
    """`slopes` right after the forward pass, when only the top has an error."""
    if block.top:
        return slopes(block, state, unit, x, **options)
    return Slopes(jnp.zeros_like(unit.z), None if block.bottom else jnp.zeros_like(x), jax.tree.map(jnp.zeros_like, state.params))


@dataclass(frozen=True)
class IncrementalPredictiveCoding(Rule):
    """Incremental predictive coding. steps: updates of the weights. rate, momentum: of the activities. precision: λ."""

    steps: Count = 8
    rate: Positive = 0.8
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.3
    loss: Literal["squared", "cross_entropy"] = "squared"
    precision: Positive = 1.0

    space: ClassVar = {"rate": Linear(0.2, 1.0)}
    messages: ClassVar = {
        "activation": Message("activation", "up", "z_l, in the forward pass and after every round but the last"),
        "error": Message("error", "down", "(∂f_l/∂z_{l-1})ᵀ ε_l, in every round but the last"),
    }
    family: ClassVar = "energy"
    assumes: ClassVar = "symmetric weights; rounds in which all blocks compute at once"

    @property
    def additive_over_batch(self) -> bool:
        """The weights move within the step."""
        return False

    @property
    def updates(self) -> int:
        """One in every round."""
        return self.steps

    def problems(self, blocks: Sequence[Block]) -> list[str]:
        """News from the top must have the time to reach the bottom."""
        return super().problems(blocks) + too_short("steps", self.steps, len(blocks), blocks)

    def step(self, chain: Chain, state: Row, batch: Batch) -> tuple[Row, Info]:
        """Forward pass, then rounds in which activities and weights move together."""
        inputs, h = chain.sweep_up("activation", forward, state, first=batch.x)
        loss = chain.at_top(output_loss, h, batch.y, loss=self.loss)
        state, unit, x = self.rounds(chain, state, batch, inputs, h)
        at = chain.map(slopes, state, unit, x, loss=self.loss, precision=self.precision)
        return chain.map(descend, state, at.grads, state.memory), Info(loss, inputs)

    def diagnose(self, chain: Chain, state: Row, batch: Batch) -> dict[str, Row]:
        """Energy and residual, max |∂F/∂z_l|, of each block before the last round, at the weights of that moment."""
        inputs, h = chain.sweep_up("activation", forward, state, first=batch.x)
        state, unit, x = self.rounds(chain, state, batch, inputs, h)
        now = chain.map(forward, state, x)
        return diagnosis(chain, state, unit, x, now, loss=self.loss, precision=self.precision)

    def rounds(self, chain: Chain, state: Row, batch: Batch, x: Row, h: Row) -> tuple[Row, Row, Row]:
        """(state, units, what each block sees) after all rounds but the last. x, h: of the forward pass."""
        unit = chain.with_top(chain.map(begin, h, momentum=self.momentum), chain.at_top(clamp, batch.y))

        def turn(slopes_of: Any, state: Row, unit: Row, x: Row) -> tuple[Row, Row, Row]:
            at = chain.map(slopes_of, state, unit, x, loss=self.loss, precision=self.precision)
            above = chain.down("error", at.down, last=None)
            unit = chain.map(relax, unit, at.eps, above, rate=self.rate, momentum=self.momentum)
            state = chain.map(descend, state, at.grads, state.memory)
            return state, unit, chain.up("activation", unit.z, first=batch.x)

        if self.steps == 1:
            return state, unit, x
        return chain.repeat(self.steps - 2, lambda number, carry: turn(slopes, *carry), turn(at_rest, state, unit, x))
