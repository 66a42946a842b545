"""Equilibrium propagation, centred: the network settles three times, and the weights learn from the difference.

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
    ∇θ = -(∂Φ/∂θ(s⁺) - ∂Φ/∂θ(s⁻)) / 2β                   mean over the batch; the loss's gradient at equilibrium, with an error O(β²)

A round updates the blocks one after the other from the bottom up: each sees the new state below it and the last one above, so that with
the hard sigmoid no update can raise E, which updates of all blocks at once do not promise. Blocks do not wait for whole rounds: while block
l is at round t, block l+2 can be at round t-1, so that odd and even blocks take turns. The first round is a forward pass.

A boundary carries s_l up and (∂u_{l+1}/∂s_l)ᵀ s_{l+1} down in every round, but nothing down in the first: (2·free - 1 + 4·nudged) x batch x
width numbers for training, (2·free - 1) x batch x width for a prediction.

What makes it work: bounded activations (the hard sigmoid), weights that start small (`init: glorot, gain: 0.5`), enough free rounds to
come to rest (20 for two layers, more for deeper networks), β of 0.1 to 0.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Gt, Lt

from locallearn.block import Block, State
from locallearn.chain import Chain, Row
from locallearn.fields import Count
from locallearn.rule import Batch, Info, Message, Rule

BOUNDED = ("hard_sigmoid", "sigmoid", "tanh")


class Rest(NamedTuple):
    """A network at rest. x: row of what each block sees; s: row of states."""

    x: Row
    s: Row


def drive(block: Block, state: State, x: jax.Array) -> jax.Array:
    """u_1: the data are clamped, so that it is the same in all rounds."""
    return block.pre(state.params, x)


def settle(block: Block, state: State, above: Any, x: jax.Array, *, beta: float) -> jax.Array:
    """The block's new state. above: feedback, None in the first round; at the top the target. x: s_{l-1}; at the bottom u_1."""
    u = x if block.bottom else block.pre(state.params, x)
    if block.top:
        return (u + beta * above) / (1 + beta) if beta else u
    return block.post(state.params, u if above is None else u + above)


def feedback(block: Block, state: State, s: jax.Array, x: jax.Array) -> Any:
    """(∂u_l/∂s_{l-1})ᵀ s_l: what the state below adds to its own input."""
    if block.bottom:
        return None
    _, pull = jax.vjp(lambda below: block.pre(state.params, below), x)
    return pull(s)[0]


def onehot(block: Block, y: jax.Array, s: jax.Array) -> jax.Array:
    """The target of the top's states, in their type: [batch] int -> [batch, classes]."""
    return jax.nn.one_hot(y, s.shape[1], dtype=s.dtype)


def cost(block: Block, s: jax.Array, target: jax.Array) -> jax.Array:
    """C, mean over the batch."""
    return 0.5 * jnp.sum((s - target) ** 2) / s.shape[0]


def contrast(block: Block, state: State, plus: jax.Array, below_plus: Any, minus: jax.Array, below_minus: Any, *, beta: float) -> Any:
    """∇θ_l from the two states of the block and of the one below it; at the bottom, the data below both."""

    def slope(s: jax.Array, below: jax.Array) -> Any:
        _, pull = jax.vjp(lambda params: block.pre(params, below), state.params)
        return pull(s / (2 * beta * s.shape[0]))[0]

    if block.bottom:
        return slope(minus - plus, below_plus)
    return jax.tree.map(jnp.subtract, slope(minus, below_minus), slope(plus, below_plus))


def elementwise(block: Block) -> bool:
    """Whether `post` keeps the shape of what `pre` gives."""
    x = jax.ShapeDtypeStruct((1, *block.in_shape), jnp.float32)
    params = jax.eval_shape(lambda: block.init(jax.random.key(0)))
    return jax.eval_shape(block.pre, params, x).shape[1:] == block.out_shape


@dataclass(frozen=True)
class EquilibriumPropagation(Rule):
    """Centred equilibrium propagation, squared error. free, nudged: rounds of each phase. beta: the nudge."""

    free: Count = 20
    nudged: Count = 8
    beta: Annotated[float, Gt(0), Lt(1)] = 0.2

    messages: ClassVar = {
        "state": Message("activation", "up", "s_l, in every round"),
        "feedback": Message("activation", "down", "(∂u_{l+1}/∂s_l)ᵀ s_{l+1}, in every round"),
    }
    family: ClassVar = "energy"
    assumes: ClassVar = "symmetric weights; three phases of many rounds; predictions settle, too"
    needs: ClassVar = "pre and post"

    def problems(self, blocks: Sequence[Block]) -> list[str]:
        """Settling needs an energy: bounded elementwise activations, and a linear top."""
        found = super().problems(blocks)
        if found:
            return found
        for block in blocks[:-1]:
            if block.activation not in BOUNDED:
                found.append(f"needs bounded activations ({', '.join(BOUNDED)}); block {block.index} has {block.activation}")
        if blocks[-1].activation != "identity":
            found.append(f"needs a linear top block; this one has {blocks[-1].activation}")
        if any(getattr(block.module, "norm", None) is not None or not elementwise(block) for block in blocks):
            found.append("needs blocks without normalisation and pooling after the linear part: there is no energy for them")
        if self.nudged < len(blocks):
            found.append(f"needs `nudged` of at least {len(blocks)} for {len(blocks)} blocks: the nudge moves down one block in a round")
        return found

    def gradients(self, chain: Chain, state: Row, batch: Batch) -> tuple[Row, Row, Info]:
        """Three phases and their contrast."""
        rest = self.rest(chain, state, batch.x)
        target = chain.at_top(onehot, batch.y, rest.s)
        plus = self.rounds(chain, state, rest, self.nudged, self.beta, target)
        minus = self.rounds(chain, state, rest, self.nudged, -self.beta, target)
        below_plus, below_minus = (Row([batch.x, *row.values[1:]]) for row in (plus.x, minus.x))
        grads = chain.map(contrast, state, plus.s, below_plus, minus.s, below_minus, beta=self.beta)
        return grads, state.memory, Info(chain.at_top(cost, rest.s, target))

    def predict(self, chain: Chain, state: Row, x: Any) -> Any:
        """The top's states in the free phase."""
        return self.rest(chain, state, x).s[-1]

    def rest(self, chain: Chain, state: Row, x: Any) -> Rest:
        """The free phase; its first round is a forward pass."""
        u1, silence = chain.at_bottom(drive, state, x), Row([None] * chain.n)
        first = Rest(*chain.sweep_up("state", settle, state, silence, first=u1, beta=0.0))
        return self.rounds(chain, state, first, self.free - 1, 0.0, None)

    def rounds(self, chain: Chain, state: Row, start: Rest, times: int, beta: float, target: Any) -> Rest:
        """`times` rounds with one nudge. target: the top's."""

        def turn(number: Any, now: Rest) -> Rest:
            above = chain.down("feedback", chain.map(feedback, state, now.s, now.x), last=target)
            return Rest(*chain.sweep_up("state", settle, state, above, first=now.x[0], beta=beta))

        return chain.repeat(times, turn, start)
