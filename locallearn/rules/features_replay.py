"""Features replay: every block learns from the error of an earlier batch, whose input it has kept.

Huo, Gu & Huang (2018), "Training Neural Networks Using Features Replay", NeurIPS. https://arxiv.org/abs/1807.04511
Delayed gradients, with old features as well: Huo, Gu, Yang & Huang (2018), "Decoupled Parallel Backpropagation with Convergence
Guarantee", ICML. https://arxiv.org/abs/1804.10574

Blocks f_1 … f_L with weights θ_l^t at step t; block l is d_l = L - l steps behind. h_{l-1}^s is the input of block l in the forward pass of
step s, h_0^s = x^s:

    h_l^t   = f_l(h_{l-1}^t; θ_l^t)                                             forward pass, and h_{l-1}^t is kept for d_l steps
    r_l     = f_l(h_{l-1}^{t-d_l}; θ_l^t)                                       replay: old input, today's weights
    ∇θ_l^t  = (∂r_l/∂θ_l)ᵀ δ_l^t                                                δ_L^t = ∂loss/∂h_L^t
    δ_{l-1}^{t+1} = (∂r_l/∂h_{l-1})ᵀ δ_l^t                                      arrives below, for the next step

δ_l^t belongs to the batch of step t - d_l, the one that is replayed. The top block is never behind. With weights that do not move, ∇θ_l^t
is backpropagation's gradient of the batch of step t - d_l; the slower they move, the closer it is. In its first d_l steps block l has
nothing to replay, and its gradient is zero.

Backward passes of all blocks run at the same time: there is no backward locking, only the forward pass is one block after the other. The
paper lets a module of several layers be what is here one block.

A boundary carries h_l up once and δ_l down once, batch x width numbers both ways, as in backpropagation, but all blocks at once. Block l
keeps d_l of its inputs and one error.

What makes it work: settings of backpropagation with a somewhat smaller rate, few blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from locallearn.block import Block, State
from locallearn.chain import Chain, Row
from locallearn.rule import Batch, Info, Message, Rule, forward
from locallearn.rules._common import Pulled, output_error


class Replay(NamedTuple):
    """What a block keeps. inputs: [d_l, batch, *in_shape], the oldest first; delta: [batch, *out_shape], the error of the oldest."""

    inputs: jax.Array
    delta: jax.Array


def backward(block: Block, state: State, x: jax.Array, error: Any) -> Pulled:
    """The error through the block as it is now. x: this step's input, error: this step's, which only the top uses."""
    old, delta = (x, error) if block.top else (state.memory.inputs[0], state.memory.delta)
    if block.bottom:
        _, pull = jax.vjp(lambda params: block.apply(params, old), state.params)
        return Pulled(pull(delta)[0], None)
    _, pull = jax.vjp(block.apply, state.params, old)
    return Pulled(*pull(delta))


def keep(block: Block, memory: Any, x: jax.Array, delta: Any) -> Any:
    """The memory after this step: its input is the newest, and the error that has arrived is for what is now the oldest."""
    return memory if block.top else Replay(jnp.concatenate([memory.inputs[1:], x[None]]), delta)


@dataclass(frozen=True)
class FeaturesReplay(Rule):
    """Features replay with softmax cross-entropy, every block a module."""

    messages: ClassVar = {
        "activation": Message("activation", "up", "h_l, once"),
        "error": Message("error", "down", "δ_l of an earlier batch, once"),
    }
    family: ClassVar = "decoupled"
    assumes: ClassVar = "symmetric weights; gradients as old as a block is far from the top; only forward locked"
    locking: ClassVar = ("forward",)  # the error that comes down now is used at the next step

    @property
    def additive_over_batch(self) -> bool:
        """What is kept is a whole batch."""
        return False

    def problems(self, blocks: Sequence[Block]) -> list[str]:
        """Room for inputs is made before the first of them arrives."""
        unknown = any(block.batch < 1 for block in blocks)
        return super().problems(blocks) + (["needs blocks that know the number of examples in a batch"] if unknown else [])

    def init(self, block: Block, key: jax.Array) -> State:
        """memory: nothing to replay yet; the top never needs any."""
        if block.top:
            return super().init(block, key)
        behind = block.count - 1 - block.index
        inputs = jnp.zeros((behind, block.batch, *block.in_shape), block.in_dtype)
        return block.state(block.init(key), Replay(inputs, jnp.zeros((block.batch, *block.out_shape))))

    def gradients(self, chain: Chain, state: Row, batch: Batch) -> tuple[Row, Row, Info]:
        """The whole algorithm."""
        x, h = chain.sweep_up("activation", forward, state, first=batch.x)
        top = chain.at_top(output_error, h, batch.y)
        pulled = chain.map(backward, state, x, chain.with_top(Row([None] * chain.n), top.error))
        delta = chain.down("error", pulled.down, last=None)
        return pulled.grads, chain.map(keep, state.memory, x, delta), Info(top.loss, x)
