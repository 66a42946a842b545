"""Kolen-Pollack: feedback weights that learn what the forward weights learn, until the two are the same.

Kolen & Pollack (1994), "Backpropagation without weight transport", ICNN. https://doi.org/10.1109/ICNN.1994.374486
Akrout, Wilson, Humphreys, Lillicrap & Tweed (2019), "Deep learning without weight transport". https://arxiv.org/abs/1904.05391

Feedback alignment, with a feedback B_l that gets the increments of the weights W_l of `pre`, and decays as they do:

    δ_{l-1} = (∂ pre_l(h; B_l)/∂h)ᵀ d_l                  d_l = (∂h_l/∂u_l)ᵀ δ_l
    W_l ← (1 - ηλ) W_l - η ∇W_l                          ∇W_l = (∂u_l/∂W_l)ᵀ d_l
    B_l ← (1 - ηλ) B_l - η ∇W_l
    W_l - B_l = (1 - ηλ)^t (W_l - B_l at t = 0)          whatever the ∇W_l are: it becomes backpropagation

The increment of B_l needs h_{l-1} and d_l, which both sides of a synapse have: no weight is read. Here W_l and B_l are parameters of one
block and one optimizer, with the same gradient, of which every elementwise optimizer keeps the same moments. λ is its `weight_decay`: with
sgd and adamw the difference shrinks as above, with momentum m at last 1/(1 - m) times as fast; without decay it stays as it began. (`adam`
puts the decay into the gradient, and so into moments that then differ: take `adamw`.)

A boundary carries h_l up and δ_l down, once each: batch x width numbers both ways. Nothing is sent for B_l.

What makes it work: momentum at 0.1 with λ = 1e-3 for tanh, or adamw with ηλ times the number of steps well above 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax

from locallearn.block import Block, State, WithHead
from locallearn.chain import Chain, Row
from locallearn.fields import Positive
from locallearn.rule import Batch, Info, Message, Rule
from locallearn.rules._common import forward_body, output_error
from locallearn.rules.feedback_alignment import Pulled, draw_feedback, pull
from locallearn.search import Log


def backward(block: Block, state: State, h: jax.Array, delta: jax.Array) -> Pulled:
    """δ_l through the block; its parameters are W_l (block) and B_l (head), and B_l's gradient is that of W_l."""
    pulled = pull(block, state.params.block, state.params.head, h, delta)
    return pulled._replace(grads=WithHead(pulled.grads, () if block.bottom else pulled.of_pre))


@dataclass(frozen=True)
class KolenPollack(Rule):
    """Kolen-Pollack with softmax cross-entropy. scale: size of B_l at the beginning, in units of W_l's."""

    scale: Positive = 1.0

    space: ClassVar = {"scale": Log(0.3, 3.0)}
    messages: ClassVar = {
        "activation": Message("activation", "up", "h_l, once"),
        "error": Message("error", "down", "δ_l, once"),
    }
    family: ClassVar = "feedback alignment"
    assumes: ClassVar = "weight decay, which makes the learnt feedback symmetric; forward, backward and update locked"
    needs: ClassVar = "pre and post"

    def init(self, block: Block, key: jax.Array) -> State:
        """params: W_l and B_l; the bottom block needs no B_l."""
        return block.state(WithHead(block.init(key), () if block.bottom else draw_feedback(block, key, self.scale)))

    def gradients(self, chain: Chain, state: Row, batch: Batch) -> tuple[Row, Row, Info]:
        """Backpropagation's choreography; only `backward` differs."""
        x, h = chain.sweep_up("activation", forward_body, state, first=batch.x)
        top = chain.at_top(output_error, h, batch.y)
        pulled = chain.sweep_down("error", backward, state, x, last=top.error)
        return pulled.grads, state.memory, Info(top.loss, x)

    def predict(self, chain: Chain, state: Row, x: Any) -> Any:
        """A plain forward pass."""
        return chain.sweep_up("activation", forward_body, state, first=x)[1][-1]
