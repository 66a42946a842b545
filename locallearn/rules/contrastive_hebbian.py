"""Contrastive Hebbian learning: the network settles freely, then with the label at its output, and Hebb's rule learns the difference.

Movellan (1991), "Contrastive Hebbian learning in the continuous Hopfield model", Connectionist Models Summer School.
Xie & Seung (2003), "Equivalence of Backpropagation and Contrastive Hebbian Learning in a Layered Network", Neural Computation 15(2).
https://doi.org/10.1162/089976603762552988

States s_1 … s_L, with s_0 = x and u_l(s) = pre_l(s; θ_l), the linear part of block l (dense or convolutional, with its bias); σ_l the
elementwise part, its `post`; γ the gain of what comes back from above:

    s_l ← σ_l(u_l(s_{l-1}) + γ (∂u_{l+1}/∂s_l)ᵀ s_{l+1})  below the top
    s_L ← u_L(s_{L-1})        free phase                  s_L = onehot(y)        clamped phase

    s⁻: `free` rounds from zero;  s⁺: `clamped` rounds from s⁻
    ∇θ_l = γ^(l-L) (∂⟨s_l, u_l⟩/∂θ_l(s⁻) - ∂⟨s_l, u_l⟩/∂θ_l(s⁺))     for a dense block γ^(l-L) (s⁻ s⁻ᵀ - s⁺ s⁺ᵀ); mean over the batch

What the top's clamping does to s_l shrinks with γ from block to block, and γ^(l-L) makes up for it: as γ → 0 the gradient tends to that
of ½ ‖s_L - onehot(y)‖², as by backpropagation, with an error O(γ). With γ = 1 it is Movellan's rule, which is equilibrium propagation's
with one nudge as β → ∞, but for the factor β.

A round updates the blocks one after the other from the bottom up. A boundary carries s_l up and (∂u_{l+1}/∂s_l)ᵀ s_{l+1} down in every
round, but nothing down in the first: (2·free - 1 + 2·clamped) x batch x width numbers for training, (2·free - 1) x batch x width for a
prediction.

What makes it work: bounded activations; a gain of 0.05 to 0.5, not so small that γ^(L-l) is lost in single precision; `clamped` at least
the number of blocks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
from annotated_types import Gt, Le

from locallearn.block import Block, State
from locallearn.chain import Chain, Row
from locallearn.fields import Count
from locallearn.rule import ELEMENTWISE, Batch, Info, Message, Rule
from locallearn.rules._common import too_short
from locallearn.rules._settling import Rest, cost, diagnosis, free_phase, onehot, phase, restless, seen, slope
from locallearn.search import Linear


def contrast(block: Block, state: State, free: jax.Array, below: Any, clamped: jax.Array, below_clamped: Any, *, gain: float) -> Any:
    """∇θ_l, anti-Hebbian in the free phase, Hebbian in the clamped one."""
    scale = gain ** (block.count - 1 - block.index) * free.shape[0]
    if block.bottom:
        return slope(block, state, (free - clamped) / scale, below)
    return jax.tree.map(jnp.subtract, slope(block, state, free / scale, below), slope(block, state, clamped / scale, below_clamped))


@dataclass(frozen=True)
class ContrastiveHebbian(Rule):
    """Contrastive Hebbian learning, squared error. free, clamped: rounds of each phase. gain: γ, of the feedback."""

    free: Count = 15
    clamped: Count = 8
    gain: Annotated[float, Gt(0), Le(1)] = 0.5

    space: ClassVar = {"gain": Linear(0.2, 1.0)}
    messages: ClassVar = {
        "state": Message("activation", "up", "s_l, in every round"),
        "feedback": Message("activation", "down", "(∂u_{l+1}/∂s_l)ᵀ s_{l+1}, in every round"),
    }
    family: ClassVar = "energy"
    assumes: ClassVar = "symmetric weights; two phases of many rounds; predictions settle, too"
    needs: ClassVar = ELEMENTWISE

    def problems(self, blocks: Sequence[Block]) -> list[str]:
        """Settling needs an energy: bounded elementwise activations, and a linear top."""
        return super().problems(blocks) or restless(blocks) + too_short("clamped", self.clamped, len(blocks) - 1, blocks)

    def gradients(self, chain: Chain, state: Row, batch: Batch) -> tuple[Row, Row, Info]:
        """Two phases and their contrast."""
        free = self.rest(chain, state, batch.x)
        target = chain.at_top(onehot, batch.y, free.s)
        held = Rest(free.x, chain.with_top(free.s, target))
        held = phase(chain, state, held, self.clamped, math.inf, target, gain=self.gain)
        grads = chain.map(contrast, state, free.s, seen(free, batch.x), held.s, seen(held, batch.x), gain=self.gain)
        return grads, state.memory, Info(chain.at_top(cost, free.s, target))

    def diagnose(self, chain: Chain, state: Row, batch: Batch) -> dict[str, Row]:
        """Energy of each block after the free phase, and residual: by how much its state would still move in one more round."""
        return diagnosis(chain, state, self.rest(chain, state, batch.x), self.gain)

    def predict(self, chain: Chain, state: Row, x: Any) -> Any:
        """The top's states in the free phase."""
        return self.rest(chain, state, x).s[-1]

    def rest(self, chain: Chain, state: Row, x: Any) -> Rest:
        """The free phase."""
        return free_phase(chain, state, x, self.free, self.gain)
