"""Difference target propagation: learned inverses of the blocks carry targets down, and every block moves towards its own.

Lee, Zhang, Fischer & Bengio (2015), "Difference Target Propagation", ECML PKDD. https://arxiv.org/abs/1412.7525

With h_l = f_l(h_{l-1}; θ_l), h_0 = x, and for each block between the bottom and the top an approximate inverse
G_l(h) = σ_l(W̃_l h + c_l) from h_l to h_{l-1}: the block's linear part transposed (dense or convolutional) with weights of its own, then the
block's activation. C_b is the loss of one example, η the step of the first target, ε noise from N(0, noise²):

    ĥ_{L-1} = h_{L-1} - η ∂C_b/∂h_{L-1}
    ĥ_{l-1} = h_{l-1} + G_l(ĥ_l) - G_l(h_l)                       l = L-1 … 2, one after the other
    ∇θ_l    = ∂/∂θ_l ½ ‖f_l(h_{l-1}) - ĥ_l‖² / η                  the top: ∂C_b/∂θ_L;  mean over the batch
    ∇G_l    = ∂/∂(W̃_l, c_l) ½ ‖G_l(f_l(h_{l-1} + ε)) - (h_{l-1} + ε)‖²

If G_l inverts f_l exactly, every target is a Gauss-Newton step towards the one above. The difference G_l(ĥ_l) - G_l(h_l) makes up for an
inverse that is not exact: where there is nothing to correct above, there is nothing below. Both gradients go to the block's one optimizer.

A boundary carries h_l up once and ĥ_l down once, batch x width numbers both ways: G_l lives with f_l.

What makes it work: tanh, and an optimizer that scales each weight's step (Adam, RMSprop): targets shrink on their way down. The paper
trains the inverses and the blocks in turns, an epoch each; here both learn at every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from locallearn.block import Block, State, WithHead
from locallearn.chain import Chain, Row
from locallearn.fields import NonNegative, Positive
from locallearn.rule import Batch, Info, Message, Rule
from locallearn.rules._common import forward_body, output_error
from locallearn.rules._targets import feedback_weights, no_mirror, transposed
from locallearn.search import Log


class Inverse(NamedTuple):
    """G_l. weights: W̃_l, shaped as the block's parameters; bias: c_l, [*in_shape]."""

    weights: Any
    bias: jax.Array


class Aim(NamedTuple):
    """ĥ_l - the top has ∂loss/∂h_L in its place - and the target of the block below."""

    target: jax.Array
    down: Any


def invert(block: Block, inverse: Inverse, h: jax.Array) -> jax.Array:
    """G_l(h): [batch, *out_shape] -> [batch, *in_shape]."""
    return getattr(jax.nn, block.activation)(transposed(block, inverse.weights, h) + inverse.bias)


def aim(block: Block, state: State, x: jax.Array, h: jax.Array, target: jax.Array, *, step: float) -> Aim:
    """ĥ_{l-1} from ĥ_l; at the top from the gradient of the loss, which has been divided by the batch."""
    if block.bottom:
        return Aim(target, None)
    if block.top:
        _, pull = jax.vjp(lambda below: block.apply(state.params.block, below), x)
        return Aim(target, x - step * x.shape[0] * pull(target)[0])
    inverse = state.params.head
    return Aim(target, x + invert(block, inverse, target) - invert(block, inverse, h))


def reconstruction(block: Block, body: Any, inverse: Inverse, x: jax.Array, epsilon: Any) -> jax.Array:
    """½ ‖G_l(f_l(x + ε)) - (x + ε)‖², mean over the batch."""
    seen = x + epsilon
    return 0.5 * jnp.sum((invert(block, inverse, block.apply(body, seen)) - seen) ** 2) / x.shape[0]


def learn(block: Block, state: State, x: jax.Array, target: jax.Array, key: jax.Array, *, step: float, noise: float) -> WithHead:
    """∇θ_l and ∇G_l. x: [batch, *in_shape], target: ĥ_l, [batch, *out_shape]; at the top ∂loss/∂h_L."""
    body, inverse = state.params
    h, pull = jax.vjp(lambda params: block.apply(params, x), body)
    (grads,) = pull(target if block.top else (h - target) / (step * x.shape[0]))
    if block.top or block.bottom:
        return WithHead(grads, ())
    epsilon = noise * jax.random.normal(jax.random.fold_in(key, block.index), x.shape, x.dtype) if noise else 0.0
    return WithHead(grads, jax.grad(lambda g: reconstruction(block, body, g, x, epsilon))(inverse))


def misfit(block: Block, state: State, x: jax.Array) -> jax.Array:
    """Length of what G_l does not rebuild, as a share of its input's."""
    if block.top or block.bottom:
        return jnp.zeros(())
    missed = reconstruction(block, state.params.block, state.params.head, x, 0.0)
    return jnp.sqrt(2 * x.shape[0] * missed) / jnp.linalg.norm(x)


@dataclass(frozen=True)
class DifferenceTarget(Rule):
    """Difference target propagation. step_size: η, of the first target. noise: standard deviation of ε, on which the inverses train."""

    step_size: Positive = 0.3
    noise: NonNegative = 0.3

    space: ClassVar = {"step_size": Log(0.03, 1.0), "noise": Log(0.03, 1.0)}
    messages: ClassVar = {
        "activation": Message("activation", "up", "h_l, once"),
        "target": Message("target", "down", "ĥ_l, once"),
    }
    family: ClassVar = "targets"
    assumes: ClassVar = "learned inverses, no symmetric weights; forward, backward and update locked"
    needs: ClassVar = "pre and post"

    @property
    def additive_over_batch(self) -> bool:
        """Other parts of a batch would draw other noise."""
        return self.noise == 0

    def problems(self, blocks: Sequence[Block]) -> list[str]:
        """Every block between the bottom and the top is mirrored."""
        found = super().problems(blocks)
        if found:
            return found
        unknown = [block.activation for block in blocks[1:-1] if not hasattr(jax.nn, block.activation)]
        return [*no_mirror(blocks[1:-1]), *(f"knows no activation {name} for an inverse" for name in unknown[:1])]

    def init(self, block: Block, key: jax.Array) -> State:
        """The block's own parameters, and those of its inverse where it has one."""
        inner = not (block.top or block.bottom)
        return block.state(WithHead(block.init(key), Inverse(feedback_weights(block, key), jnp.zeros(block.in_shape)) if inner else ()))

    def gradients(self, chain: Chain, state: Row, batch: Batch) -> tuple[Row, Row, Info]:
        """Forward pass, targets from the top down, then every block by itself."""
        x, h = chain.sweep_up("activation", forward_body, state, first=batch.x)
        top = chain.at_top(output_error, h, batch.y)
        aims = chain.sweep_down("target", aim, state, x, h, last=top.error, step=self.step_size)
        grads = chain.map(learn, state, x, aims.target, batch.key, step=self.step_size, noise=self.noise)
        return grads, state.memory, Info(top.loss, x)

    def predict(self, chain: Chain, state: Row, x: Any) -> Any:
        """A plain forward pass."""
        return chain.sweep_up("activation", forward_body, state, first=x)[1][-1]

    def diagnose(self, chain: Chain, state: Row, batch: Batch) -> dict[str, Row]:
        """misfit: ‖G_l(h_l) - h_{l-1}‖ / ‖h_{l-1}‖, 0 for the blocks that have no inverse."""
        x, _ = chain.sweep_up("activation", forward_body, state, first=batch.x)
        return {"misfit": chain.map(misfit, state, x)}
