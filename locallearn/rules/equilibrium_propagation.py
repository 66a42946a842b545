"""Equilibrium propagation: the network settles freely, then with a nudge, and the weights learn from the difference.

Scellier & Bengio (2017), "Equilibrium propagation: bridging the gap between energy-based models and backpropagation", Frontiers in
Computational Neuroscience 11. https://arxiv.org/abs/1602.05179
Both signs of the nudge: Laborieux et al. (2021), https://arxiv.org/abs/2006.03824
Updates one layer after the other: Scellier, Ernoult, Kendall & Kumar (2023), https://arxiv.org/abs/2312.15103

States s_1 … s_L, with s_0 = x and u_l(s) = pre_l(s; θ_l), the linear part of block l (dense or convolutional, with its bias), and σ_l the
elementwise part, its `post`. The primitive function, and the energy that settling lowers (G_l is the integral of σ_l's inverse):

    Φ(s; θ) = Σ_l ⟨s_l, u_l(s_{l-1})⟩                    E = Σ_l G_l(s_l) - Φ + β C,    C = ½ ‖s_L - onehot(y)‖²

    s_l ← σ_l(u_l(s_{l-1}) + (∂u_{l+1}/∂s_l)ᵀ s_{l+1})    below the top: σ_l(∂Φ/∂s_l)
    s_L ← (u_L(s_{L-1}) + β onehot(y)) / (1 + β)          the top is linear: the exact minimum of E in s_L

    s⁰: `free` rounds from zero with β = 0;  s⁺, s⁻: `nudged` rounds each from s⁰, with +β and -β
    ∇θ = -(∂Φ/∂θ(s⁺) - ∂Φ/∂θ(s⁻)) / 2β                   centred; mean over the batch
    ∇θ = -(∂Φ/∂θ(s⁺) - ∂Φ/∂θ(s⁰)) / β                    positive, the original rule; negative: with -β and s⁻

At equilibrium that is the loss's gradient with an error O(β²) when centred, O(β) with one nudge.

A round updates the blocks one after the other from the bottom up: each sees the new state below it and the last one above, so that with
the hard sigmoid no update can raise E, which updates of all blocks at once do not promise. Blocks do not wait for whole rounds: while block
l is at round t, block l+2 can be at round t-1, so that odd and even blocks take turns. The first round is a forward pass.

A boundary carries s_l up and (∂u_{l+1}/∂s_l)ᵀ s_{l+1} down in every round, but nothing down in the first: (2·free - 1 + 4·nudged) x batch x
width numbers for training, (2·free - 1 + 2·nudged) x batch x width with one nudge, (2·free - 1) x batch x width for a prediction.

What makes it work: bounded activations (the hard sigmoid), weights that start small (`init: glorot, gain: 0.5`), enough free rounds to
come to rest (20 for two layers, more for deeper networks), β of 0.1 to 0.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from annotated_types import Gt, Lt

from locallearn.block import Block, State
from locallearn.chain import Chain, Row
from locallearn.fields import Count
from locallearn.rule import ELEMENTWISE, Batch, Info, Message, Rule
from locallearn.rules._common import too_short
from locallearn.rules._settling import Rest, cost, diagnosis, free_phase, onehot, phase, restless, seen, slope
from locallearn.search import Log


def contrast(block: Block, state: State, plus: jax.Array, below_plus: Any, minus: jax.Array, below_minus: Any, *, gap: float) -> Any:
    """∇θ_l from the states at the larger and at the smaller nudge, `gap` apart; at the bottom, the data below both."""
    scale = gap * plus.shape[0]
    if block.bottom:
        return slope(block, state, (minus - plus) / scale, below_plus)
    return jax.tree.map(jnp.subtract, slope(block, state, minus / scale, below_minus), slope(block, state, plus / scale, below_plus))


@dataclass(frozen=True)
class EquilibriumPropagation(Rule):
    """Equilibrium propagation, squared error. free, nudged: rounds of each phase. beta: size of the nudge. nudge: its sign, or both."""

    free: Count = 20
    nudged: Count = 8
    beta: Annotated[float, Gt(0), Lt(1)] = 0.2
    nudge: Literal["centred", "positive", "negative"] = "centred"

    space: ClassVar = {"beta": Log(0.05, 0.8)}
    messages: ClassVar = {
        "state": Message("activation", "up", "s_l, in every round"),
        "feedback": Message("activation", "down", "(∂u_{l+1}/∂s_l)ᵀ s_{l+1}, in every round"),
    }
    family: ClassVar = "energy"
    assumes: ClassVar = "symmetric weights; two or three phases of many rounds; predictions settle, too"
    needs: ClassVar = ELEMENTWISE

    def problems(self, blocks: Sequence[Block]) -> list[str]:
        """Settling needs an energy: bounded elementwise activations, and a linear top."""
        return super().problems(blocks) or restless(blocks) + too_short("nudged", self.nudged, len(blocks), blocks)

    def gradients(self, chain: Chain, state: Row, batch: Batch) -> tuple[Row, Row, Info]:
        """The phases and their contrast."""
        rest = self.rest(chain, state, batch.x)
        target = chain.at_top(onehot, batch.y, rest.s)
        plus = rest if self.nudge == "negative" else phase(chain, state, rest, self.nudged, self.beta, target)
        minus = rest if self.nudge == "positive" else phase(chain, state, rest, self.nudged, -self.beta, target)
        gap = 2 * self.beta if self.nudge == "centred" else self.beta
        grads = chain.map(contrast, state, plus.s, seen(plus, batch.x), minus.s, seen(minus, batch.x), gap=gap)
        return grads, state.memory, Info(chain.at_top(cost, rest.s, target))

    def diagnose(self, chain: Chain, state: Row, batch: Batch) -> dict[str, Row]:
        """Energy of each block after the free phase, and residual: by how much its state would still move in one more round."""
        return diagnosis(chain, state, self.rest(chain, state, batch.x))

    def predict(self, chain: Chain, state: Row, x: Any) -> Any:
        """The top's states in the free phase."""
        return self.rest(chain, state, x).s[-1]

    def rest(self, chain: Chain, state: Row, x: Any) -> Rest:
        """The free phase."""
        return free_phase(chain, state, x, self.free)
