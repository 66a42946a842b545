"""Zero-divergence inference learning (Z-IL): predictive coding whose weights learn at just the right moment, exactly as by backpropagation.

Song, Lukasiewicz, Xu & Bogacz (2020), "Can the Brain Do Backpropagation? - Exact Implementation of Backpropagation in Predictive Coding
Networks", NeurIPS. https://proceedings.neurips.cc/paper/2020/hash/fec87a37cdeec1c6ecf8181c0aa2d3bf-Abstract.html
Convolutions: Salvatori, Song, Lukasiewicz, Bogacz & Xu (2021), https://arxiv.org/abs/2103.03725

The energy is that of predictive coding, F = Σ_{l<L} ½ ‖ε_l‖² + loss(μ_L, y), with μ_l = f_l(z_{l-1}; θ_l) and ε_l = z_l - μ_l:

    z_l ← μ_l                                            a forward pass: ε_l = 0 but for ε_L = -∂loss/∂μ_L
    z_l ← z_l - γ (ε_l - (∂f_{l+1}/∂z_l)ᵀ ε_{l+1})       rounds t = 1, 2, …, all blocks at once
    ∇θ_l = -(∂f_l/∂θ_l)ᵀ ε_l                             of block l at the one time t = L - l; mean over the batch

The error of the top moves down one block in a round. Before time L - l nothing pulls at z_l, and ε_l = 0; at that time
ε_l = γ (∂f_{l+1}/∂z_l)ᵀ ε_{l+1}, while z_{l-1}, and with it μ_l, still are where the forward pass left them. With γ = 1 this is
backpropagation's error, and ∇θ its gradient; with another γ block l learns γ^(L-l) times that. What happens to z_l later is not used.

So only the messages that are not idle are sent: z_l up once in the forward pass, and the pulled-back error down once, at time L - l - 1:
2 x batch x width numbers, as for backpropagation. The pull is through the weights from before the step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import jax

from locallearn.block import Block, State
from locallearn.chain import Chain, Row
from locallearn.fields import Positive
from locallearn.rule import Batch, Info, Message, Rule, forward
from locallearn.rules._predictive import LOSSES, output_loss


class Moment(NamedTuple):
    """A block at its time L - l: what it asks of the activity below, and ∇θ_l."""

    down: Any
    grads: Any


def first_error(block: Block, h: jax.Array, y: jax.Array, *, loss: str) -> jax.Array:
    """ε_L of the forward pass, for each example: [batch, classes]."""
    return -h.shape[0] * jax.grad(LOSSES[loss])(h, y)


def moment(block: Block, state: State, x: jax.Array, above: jax.Array, *, rate: float) -> Moment:
    """One round, and learning. above: (∂f_{l+1}/∂z_l)ᵀ ε_{l+1}, at the top ε_L; x: the activity below, not yet moved."""
    eps = above if block.top else rate * above  # ε_l was zero, so z_l moves to μ_l + γ above
    if block.bottom:
        _, pull = jax.vjp(lambda params: block.apply(params, x), state.params)
    else:
        _, pull = jax.vjp(block.apply, state.params, x)
    grads, *down = pull(eps)
    return Moment(down[0] if down else None, jax.tree.map(lambda g: -g / eps.shape[0], grads))


@dataclass(frozen=True)
class ZeroDivergence(Rule):
    """Zero-divergence inference learning. rate: γ, of the activities."""

    rate: Positive = 1.0
    loss: Literal["squared", "cross_entropy"] = "squared"

    messages: ClassVar = {
        "activation": Message("activation", "up", "z_l, once"),
        "error": Message("error", "down", "(∂f_l/∂z_{l-1})ᵀ ε_l, once"),
    }
    family: ClassVar = "energy"
    assumes: ClassVar = "symmetric weights; every block knows its time; forward, backward and update locked"

    def gradients(self, chain: Chain, state: Row, batch: Batch) -> tuple[Row, Row, Info]:
        """A forward pass, then block after block its moment."""
        x, h = chain.sweep_up("activation", forward, state, first=batch.x)
        top = chain.at_top(first_error, h, batch.y, loss=self.loss)
        at = chain.sweep_down("error", moment, state, x, last=top, rate=self.rate)
        return at.grads, state.memory, Info(chain.at_top(output_loss, h, batch.y, loss=self.loss), x)
