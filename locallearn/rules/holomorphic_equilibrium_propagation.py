"""Holomorphic equilibrium propagation: the nudge goes round a circle of complex numbers, and the gradient is exact at finite size.

Laborieux & Zenke (2022), "Holomorphic Equilibrium Propagation Computes Exact Gradients Through Finite Size Oscillations", NeurIPS.
https://arxiv.org/abs/2209.00530

States s_1 … s_L, with s_0 = x and u_l(s) = pre_l(s; θ_l), and σ_l holomorphic. Energy and settling are those of equilibrium propagation,
with a complex nudge:

    Φ(s; θ) = Σ_l ⟨s_l, u_l(s_{l-1})⟩                    ⟨ , ⟩ without conjugation
    s_l ← σ_l(u_l(s_{l-1}) + (∂u_{l+1}/∂s_l)ᵀ s_{l+1})    below the top
    s_L ← (u_L(s_{L-1}) + β onehot(y)) / (1 + β)          the top is linear

    s⁰: `free` rounds from zero with β = 0;  s^k: `nudged` rounds from s⁰, with β_k = β e^{2πik/N}, for k = 0 … N-1
    ∇θ = -1/(N β) Σ_k e^{-2πik/N} ∂Φ/∂θ(s^k)              Cauchy's integral for the derivative by β at 0; mean over the batch

The error at equilibrium is that of a trapezoidal rule on a circle, O(β^N): geometric in N, as long as the states are holomorphic in a disc
of nudges larger than β. Beyond its radius, more points do not help. N = 2 is centred equilibrium propagation.

States at conjugate nudges are conjugate, so that only k = 0 … N/2 settle, and those between 0 and N/2 count twice. s⁰ and those with
β_k = ±β are real, and sent as such; the others are complex, 8 bytes a number in single precision. With N even, a boundary carries in both
directions together (2·free - 1 + 4·nudged) x batch x width real and (N - 2)·nudged x batch x width complex numbers.

What makes it work: a smooth activation, sigmoid or tanh (the hard sigmoid has no derivative by a complex number, nor has max-pooling);
enough rounds to come to rest at every nudge; β of 0.1 to 0.5, N of 4 to 10.
"""

from __future__ import annotations

import cmath
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
from annotated_types import Ge, Gt, Lt

from locallearn.block import Block, State
from locallearn.chain import Chain, Row
from locallearn.fields import Count
from locallearn.rule import ELEMENTWISE, Batch, Info, Message, Rule
from locallearn.rules._common import too_short
from locallearn.rules._settling import Rest, cost, diagnosis, free_phase, onehot, phase, restless, seen, slope
from locallearn.search import Log

HOLOMORPHIC = ("sigmoid", "tanh")


def widen(block: Block, a: jax.Array) -> jax.Array:
    """A state in the complex numbers of its precision."""
    return a.astype(jnp.complex128 if a.dtype == jnp.float64 else jnp.complex64)


def point(block: Block, state: State, s: jax.Array, below: jax.Array, *, weight: complex) -> Any:
    """One point's part of ∇θ_l, the real part of weight · ∂Φ/∂θ_l. A real weight goes with real states."""
    return slope(block, state, s * (weight / s.shape[0]), below)


def add(block: Block, *parts: Any) -> Any:
    """The sum over the circle."""
    return jax.tree.map(lambda *leaves: functools.reduce(jnp.add, leaves), *parts)


@dataclass(frozen=True)
class HolomorphicEquilibriumPropagation(Rule):
    """Holomorphic equilibrium propagation, squared error. free, nudged: rounds of each phase. beta: the nudge's size. points: N."""

    free: Count = 20
    nudged: Count = 10
    beta: Annotated[float, Gt(0), Lt(1)] = 0.2
    points: Annotated[int, Ge(2)] = 4

    space: ClassVar = {"beta": Log(0.05, 0.8)}
    messages: ClassVar = {
        "state": Message("activation", "up", "s_l, in every round with a real nudge or none"),
        "feedback": Message("activation", "down", "(∂u_{l+1}/∂s_l)ᵀ s_{l+1}, likewise"),
        "complex_state": Message("activation", "up", "s_l, in every round with a complex nudge"),
        "complex_feedback": Message("activation", "down", "(∂u_{l+1}/∂s_l)ᵀ s_{l+1}, likewise"),
    }
    family: ClassVar = "energy"
    assumes: ClassVar = "symmetric weights; complex activities; many phases of many rounds; predictions settle, too"
    needs: ClassVar = ELEMENTWISE

    def problems(self, blocks: Sequence[Block]) -> list[str]:
        """Settling needs an energy: bounded holomorphic activations, and a linear top."""
        return super().problems(blocks) or restless(blocks, HOLOMORPHIC) + too_short("nudged", self.nudged, len(blocks), blocks)

    def gradients(self, chain: Chain, state: Row, batch: Batch) -> tuple[Row, Row, Info]:
        """The free phase, a phase for each point of the upper half circle, and Cauchy's integral."""
        rest = self.rest(chain, state, batch.x)
        target = chain.at_top(onehot, batch.y, rest.s)
        start = Rest(chain.map(widen, rest.x), chain.map(widen, rest.s)) if self.points > 2 else rest
        parts = []
        for k in range(self.points // 2 + 1):
            if real := 2 * k % self.points == 0:
                weight = (-1.0 if k == 0 else 1.0) / (self.points * self.beta)
                at = phase(chain, state, rest, self.nudged, self.beta if k == 0 else -self.beta, target)
            else:
                turn = cmath.exp(2j * cmath.pi * k / self.points)
                weight = -2 / (self.points * self.beta * turn)
                names = "complex_state", "complex_feedback"
                at = phase(chain, state, start, self.nudged, self.beta * turn, target, names=names)
            below = seen(at, batch.x if real else chain.at_bottom(widen, batch.x))
            parts.append(chain.map(point, state, at.s, below, weight=weight))
        return chain.map(add, *parts), state.memory, Info(chain.at_top(cost, rest.s, target))

    def diagnose(self, chain: Chain, state: Row, batch: Batch) -> dict[str, Row]:
        """Energy of each block after the free phase, and residual: by how much its state would still move in one more round."""
        return diagnosis(chain, state, self.rest(chain, state, batch.x))

    def predict(self, chain: Chain, state: Row, x: Any) -> Any:
        """The top's states in the free phase."""
        return self.rest(chain, state, x).s[-1]

    def rest(self, chain: Chain, state: Row, x: Any) -> Rest:
        """The free phase."""
        return free_phase(chain, state, x, self.free)
