"""Error-optimising predictive coding (ePC): the errors relax instead of the activities, through the whole network. Not local.

Goemaere, Oliviers, Bogacz & Demeester (2025), "ePC: Overcoming Exponential Signal Decay in Deep Predictive Coding Networks".
https://arxiv.org/abs/2505.20137

The energy of predictive coding, written in its errors e_l in place of the activities, with z_0 = x:

    z_l  = f_l(z_{l-1}; θ_l) + e_l                       e_L = 0: the top has no activity of its own
    F    = Σ_{l<L} ½ ‖e_l‖² + loss(z_L, y)
    e_l ← e_l - γ (e_l + ∂loss/∂z_l)                     `steps` rounds from e = 0; ∂loss/∂z_l is backpropagated from the top
    ∇θ_l = -(∂f_l/∂θ_l)ᵀ e_l                             once, with e_L = -∂loss/∂z_L; mean over the batch

It has the equilibrium of predictive coding, but the first round already takes the loss's whole gradient to every block, where the
activities of predictive coding attenuate it from block to block. That is also why it is no local rule: all rounds are forward and
backward sweeps, one after the other. It stands here as the reference for what relaxation costs. The first round from zero gives
e_l = -γ ∂loss/∂z_l: one small step is backpropagation, but for the factor γ below the top, which Adam undoes.

A boundary carries z_l up `steps` + 1 times and ∂loss/∂z_l down `steps` times: (1 + 2·steps) x batch x width numbers, as in predictive
coding, but one block after the other.

What makes it work: few steps (1 to 10), a total step γ·steps below 1; Adam, for the factor. Above a rate of about 1 it is unstable.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp

from locallearn.block import Block, State
from locallearn.chain import Chain, Row
from locallearn.fields import Count, Positive
from locallearn.rule import Batch, Info, Message, Rule
from locallearn.rules._predictive import LOSSES, output_loss
from locallearn.search import Log


class Pull(NamedTuple):
    """∂loss/∂z_l, and ∂loss/∂z_{l-1}, which travels on."""

    slope: jax.Array
    down: Any


def perturbed(block: Block, state: State, e: Any, x: jax.Array) -> jax.Array:
    """z_l from z_{l-1}; without an error in the forward pass and at the top."""
    mu = block.apply(state.params, x)
    return mu if e is None else mu + e


def output_slope(block: Block, z: jax.Array, y: jax.Array, *, loss: str) -> jax.Array:
    """∂loss/∂z_L, for each example: [batch, classes]."""
    return z.shape[0] * jax.grad(LOSSES[loss])(z, y)


def pull(block: Block, state: State, x: jax.Array, slope: jax.Array) -> Pull:
    """slope: ∂loss/∂z_l, from above."""
    return Pull(slope, None if block.bottom else jax.vjp(lambda below: block.apply(state.params, below), x)[1](slope)[0])


def relax(block: Block, e: Any, slope: jax.Array, *, rate: float) -> Any:
    """One step of e_l down the energy; from zero where there is none yet."""
    if block.top:
        return None
    return -rate * slope if e is None else e - rate * (e + slope)


def learn(block: Block, state: State, e: Any, x: jax.Array, slope: Any) -> Any:
    """∇θ_l, mean over the batch, by what is local. slope: at the top ∂loss/∂z_L."""
    error = -slope if block.top else e
    _, back = jax.vjp(lambda params: block.apply(params, x), state.params)
    return back(-error / error.shape[0])[0]


def energy(block: Block, e: Any, loss: Any) -> jax.Array:
    """The block's part of F, mean over the batch."""
    return loss if block.top else 0.5 * jnp.sum(e**2) / e.shape[0]


def residual(block: Block, e: Any, slope: jax.Array) -> jax.Array:
    """max |∂F/∂e_l| of one example: 0 at equilibrium."""
    return jnp.zeros((), slope.dtype) if block.top else jnp.max(jnp.abs(e + slope))


@dataclass(frozen=True)
class ErrorPredictiveCoding(Rule):
    """Error-optimising predictive coding. steps, rate: of the errors."""

    steps: Count = 4
    rate: Positive = 0.1
    loss: Literal["squared", "cross_entropy"] = "squared"

    space: ClassVar = {"rate": Log(0.01, 1.0)}
    messages: ClassVar = {
        "activation": Message("activation", "up", "z_l, before and after every round"),
        "error": Message("error", "down", "∂loss/∂z_l, in every round"),
    }
    family: ClassVar = "energy"
    assumes: ClassVar = "symmetric weights; not local: sweeps through the whole network; forward, backward and update locked"

    def gradients(self, chain: Chain, state: Row, batch: Batch) -> tuple[Row, Row, Info]:
        """Relaxation of the errors, then one gradient of the energy by the weights."""
        inputs, h = chain.sweep_up("activation", perturbed, state, Row([None] * chain.n), first=batch.x)
        e, x, z = self.relaxed(chain, state, batch, inputs, h)
        slope = chain.with_top(e, chain.at_top(output_slope, z, batch.y, loss=self.loss))
        grads = chain.map(learn, state, e, x, slope)
        return grads, state.memory, Info(chain.at_top(output_loss, h, batch.y, loss=self.loss), inputs)

    def diagnose(self, chain: Chain, state: Row, batch: Batch) -> dict[str, Row]:
        """Energy and residual, max |∂F/∂e_l|, of each block after the last round."""
        e, x, z = self.relaxed(chain, state, batch, *chain.sweep_up("activation", perturbed, state, Row([None] * chain.n), first=batch.x))
        top = chain.at_top(output_slope, z, batch.y, loss=self.loss)
        slope = chain.sweep_down("error", pull, state, x, last=top).slope
        loss = chain.with_top(e, chain.at_top(output_loss, z, batch.y, loss=self.loss))
        return {"energy": chain.map(energy, e, loss), "residual": chain.map(residual, e, slope)}

    def relaxed(self, chain: Chain, state: Row, batch: Batch, x: Row, z: Row) -> tuple[Row, Row, Row]:
        """(errors, what each block sees, z) after all rounds. x, z: of the forward pass."""

        def fall(e: Row, x: Row, z: Row) -> Row:
            top = chain.at_top(output_slope, z, batch.y, loss=self.loss)
            slope = chain.sweep_down("error", pull, state, x, last=top).slope
            return chain.map(relax, e, slope, rate=self.rate)

        def turn(number: Any, e: Row) -> Row:  # up, then down: what goes down knows what came up, and need not compute it again
            return fall(e, *chain.sweep_up("activation", perturbed, state, e, first=batch.x))

        e = chain.repeat(self.steps - 1, turn, fall(Row([None] * chain.n), x, z))
        return e, *chain.sweep_up("activation", perturbed, state, e, first=batch.x)
