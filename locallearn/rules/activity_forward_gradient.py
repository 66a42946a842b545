"""Activity-perturbed forward gradients with local losses: small random directions, each with a number of its own (LG-FG-A).

Ren, Kornblith, Liao & Hinton (2022), "Scaling Forward Gradient With Local Losses", ICLR 2023. https://arxiv.org/abs/2210.03310

Every block has a loss of its own, and no gradient passes between blocks. With u_l = pre_l(sg[h_{l-1}]; θ_l), where sg stops the gradient,
a linear head D_l [n_l, classes] with bias b_l, and v_l independent normal numbers (or signs) for each unit of each example, v_lk those of
group k (the last axis of u_l is cut into `groups` equal parts) and zero elsewhere:

    loss_l = cross-entropy(softmax(post_l(u_l) D_l + b_l), y)
    g_lk   = ⟨∂loss_l/∂u_l, v_lk⟩                     for each example; a derivative along one direction, no backward pass
    ∂loss_l/∂u_l ≈ Σ_k g_lk v_lk                      ∇θ_l = (∂pre_l/∂θ_l)ᵀ of this, for a dense layer the product with h_{l-1}ᵀ

The head, and the top block, which is a head itself, take their exact gradient: their error is at hand. The loss sees the activities of all
groups, as if each group had a copy of it in which the others stand still, so that every copy has the same value. The variance grows with
the size of a group, not of the network: with signs and groups of one unit nothing random is left, and the rule is a local classifier
trained exactly. Parameters of `post` (of a normalisation) stay as they are. In features with spatial axes a group holds all positions.

A boundary carries h_l up once, batch x width numbers, and the labels down to each shard once, one byte for each example. Nothing else
comes down: a shard may work on the next batch while those above are at this one.

What makes it work: groups; the work grows with their number. With one group for 512 units, MNIST stays several points below backprop.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from locallearn.block import Block, State, WithHead
from locallearn.chain import Chain, Row
from locallearn.fields import Count
from locallearn.rule import Batch, Info, Message, Rule
from locallearn.rules._common import Local, cross_entropy, flat, forward_body, label, unknown_classes
from locallearn.rules._perturbation import Distribution, each_cross_entropy, length, noise, own_key


class Head(NamedTuple):
    """decoder: D_l [n_l, classes], bias: b_l [classes]."""

    decoder: jax.Array
    bias: jax.Array


def losses(block: Block, params: WithHead, u: jax.Array, y: jax.Array) -> jax.Array:
    """loss_l of each example: [batch]. u: pre-activations."""
    scores = flat(block.post(params.block, u)) @ params.head.decoder + params.head.bias
    return each_cross_entropy(scores, y)


def slopes(block: Block, params: WithHead, u: jax.Array, y: jax.Array, v: jax.Array, groups: int) -> jax.Array:
    """g_lk, one for each unit of the last axis: [batch, ..., n], equal within a group. u, v: [batch, ..., n]."""
    _, along = jax.linearize(lambda u: losses(block, params, u, y), u)
    size = u.shape[-1] // groups
    masks = jnp.repeat(jnp.eye(groups, dtype=u.dtype), size, axis=1)
    each = jax.vmap(lambda mask: along(v * mask))(masks)
    return jnp.repeat(each.T, size, axis=1).reshape(len(u), *[1] * (u.ndim - 2), u.shape[-1])


def learn(block: Block, state: State, x: jax.Array, y: jax.Array, key: jax.Array, *, groups: int, distribution: Distribution) -> Local:
    """loss_l, and the estimate of its gradient. x: [batch, *in_shape], y: [batch] int."""
    if block.top:
        value, grads = jax.value_and_grad(lambda body: cross_entropy(block.apply(body, x), y))(state.params.block)
        return Local(value, WithHead(grads, ()))
    u, pull = jax.vjp(lambda body: block.pre(body, x), state.params.block)
    v = noise(own_key(block, key), u.shape, u.dtype, distribution)
    (body,) = pull(slopes(block, state.params, u, y, v, groups) * v / len(u))
    value, head = jax.value_and_grad(lambda head: losses(block, WithHead(state.params.block, head), u, y).mean())(state.params.head)
    return Local(value, WithHead(body, head))


@dataclass(frozen=True)
class ActivityForwardGradient(Rule):
    """Activity-perturbed forward gradients with local losses. groups: directions for each example in each block below the top."""

    groups: Count = 1
    distribution: Distribution = "normal"

    messages: ClassVar = {
        "activation": Message("activation", "up", "h_l, once"),
        "label": Message("label", "broadcast", "y, from the top to every block"),
    }
    family: ClassVar = "perturbation"
    assumes: ClassVar = "labels in every block; only forward locked"
    needs: ClassVar = "pre and post"

    @property
    def additive_over_batch(self) -> bool:
        """Parts of a batch would have other directions."""
        return False

    def problems(self, blocks: Sequence[Block]) -> list[str]:
        """A head has a column for each class, and groups must divide the units."""
        found = super().problems(blocks)
        if found:
            return found
        for block in blocks[:-1]:
            units = block.pre_shape[-1]
            if units % self.groups:
                found.append(f"cuts the units of each hidden block into {self.groups} groups; block {block.index} has {units}")
        return found + unknown_classes(blocks)

    def init(self, block: Block, key: jax.Array) -> State:
        """Heads at zero."""
        n = math.prod(block.out_shape)
        head = () if block.top else Head(jnp.zeros((n, block.classes)), jnp.zeros(block.classes))
        return block.state(WithHead(block.init(key), head))

    def gradients(self, chain: Chain, state: Row, batch: Batch) -> tuple[Row, Row, Info]:
        """The whole algorithm."""
        x, _ = chain.sweep_up("activation", forward_body, state, first=batch.x)
        y = chain.broadcast("label", chain.at_top(label, batch.y))
        local = chain.map(learn, state, x, y, batch.key, groups=self.groups, distribution=self.distribution)
        return local.grads, state.memory, Info(local.loss[-1], x)

    def diagnose(self, chain: Chain, state: Row, batch: Batch) -> dict[str, Row]:
        """The length of the estimated gradient."""
        grads, _, _ = self.gradients(chain, state, batch)
        return {"gradient_norm": chain.map(length, grads)}

    def predict(self, chain: Chain, state: Row, x: Any) -> Any:
        """Class scores of the top block."""
        return chain.sweep_up("activation", forward_body, state, first=x)[1][-1]
