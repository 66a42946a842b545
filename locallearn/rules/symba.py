"""SymBa: each example's positive and negative goodness are compared with each other, not with a threshold.

Lee & Song (2023), "SymBa: Symmetric Backpropagation-Free Contrastive Learning with Forward-Forward Algorithm for Optimizing Convergence".
https://arxiv.org/abs/2303.08418

A class c has an intrinsic class pattern p_c, of the size of x, drawn once and for all, ±1. It is shown next to x as further channels, so
that the bottom block has kernels φ for it besides its own. x⁺ shows the pattern of the true label, x⁻ that of another one, drawn
uniformly; sg stops the gradient, pre_1 and post_1 are the bottom block's linear part and what follows it:

    h_1    = post_1(pre_1(x / √(mean of x²); θ_1) + pre_1(p_c; φ))
    h_l    = f_l(sg[a_{l-1}]; θ_l)           a_l = h_l / √(mean of h_l²)
    G_l    = mean of h_l²                    goodness
    loss_l = mean of softplus(-α (G_l⁺ - G_l⁻))                 Δθ_l, Δφ ∝ -∂loss_l/∂θ_l, -∂loss_l/∂φ

Both phases pull with the same weight, α σ(-α (G_l⁺ - G_l⁻)): where forward-forward's threshold leaves one of them satisfied and the other
not, the pair is pushed apart, wherever it lies.

The top block is not one of these l: it learns nothing and receives the sum of the goodness of each label over the hidden blocks, those
below `skip` left out; x is shown once with each pattern, and the label with the largest sum wins.

What crosses, in numbers of 4 bytes, B the batch and C the classes: 2 B n_l up, once, and one number, the losses so far; at a prediction
C B n_l and B C. Labels go from the top to the bottom, one byte each.

What makes it work: relu, α = 4 and Adam at 1e-3 to 3e-3, cosine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from locallearn.block import Block, State, WithHead
from locallearn.chain import Chain, Row
from locallearn.fields import NonNegativeInt, Positive
from locallearn.rule import Batch, Info, Message, Rule
from locallearn.rules._common import head_key, label, unknown_classes
from locallearn.rules._goodness import Learnt, add, by_label, idle, no_hidden_block, normalised, wrong_labels
from locallearn.search import Log

PATTERNS = 0x1C9
"""Seed of the class patterns, which are the same in every run."""


class Shown(NamedTuple):
    """What the bottom block sees: x [batch, *in_shape], and labels [k x batch], with which each x is shown in turn."""

    x: jax.Array
    labels: jax.Array


def patterns(block: Block) -> jax.Array:
    """p_c: [classes, *in_shape]."""
    return jax.random.rademacher(jax.random.PRNGKey(PATTERNS), (block.classes, *block.in_shape), jnp.float32)


def pair(block: Block, x: jax.Array, y: jax.Array, key: jax.Array) -> Shown:
    """All x⁺, then all x⁻."""
    y = y.astype(jnp.int32)
    return Shown(normalised(x), jnp.concatenate([y, wrong_labels(y, block.classes, jax.random.fold_in(key, block.index))]))


def every_label(block: Block, x: jax.Array) -> Shown:
    """x with each class's pattern in turn, class by class."""
    return Shown(normalised(x), jnp.repeat(jnp.arange(block.classes), x.shape[0]))


def activity(block: Block, params: WithHead, a: Any) -> jax.Array:
    """h_l: [k x batch, *out_shape]. a: `Shown` at the bottom, above it a_{l-1}."""
    if not block.bottom:
        return block.apply(params.block, a)
    u, of_pattern = block.pre(params.block, a.x), block.pre(params.head, patterns(block))
    return block.post(params.block, jnp.concatenate([u] * (a.labels.shape[0] // u.shape[0])) + of_pattern[a.labels])


def rise(block: Block, state: State, a: Any) -> jax.Array:
    """a_l from a_{l-1}."""
    return normalised(activity(block, state.params, a))


def goodness(h: jax.Array) -> jax.Array:
    """G: [batch]."""
    return jnp.mean(h**2, tuple(range(1, h.ndim)))


def contrast(block: Block, state: State, a: Any, *, alpha: float) -> Learnt:
    """loss_l, its gradient, and the mean of G_l⁺ - G_l⁻. a: of x⁺ and x⁻."""

    def loss(params: WithHead) -> tuple[jax.Array, jax.Array]:
        positive, negative = jnp.split(goodness(activity(block, params, a)), 2)
        return jnp.mean(jax.nn.softplus(-alpha * (positive - negative))), jnp.mean(positive - negative)

    (value, margin), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
    return Learnt(value, grads, state.memory, margin)


def scores(block: Block, state: State, a: Any, *, skip: int) -> jax.Array:
    """G_l of each label, or nothing below `skip`: [batch, classes]."""
    each = by_label(goodness(activity(block, state.params, a)), block.classes)
    return each if block.index >= skip else jnp.zeros_like(each)


@dataclass(frozen=True)
class SymBa(Rule):
    """Symmetric contrast of goodness. alpha: α, its steepness. skip: how many hidden blocks, from the bottom, have no say."""

    alpha: Positive = 4.0
    skip: NonNegativeInt = 0

    space: ClassVar = {"alpha": Log(1.0, 16.0)}
    messages: ClassVar = {
        "label": Message("label", "top to bottom", "y, to choose the patterns"),
        "activation": Message("activation", "up", "a_l of x⁺ and x⁻ together"),
        "loss": Message("scalar", "up", "the sum of the losses so far"),
        "goodness": Message("evaluation", "up", "goodness of each label, summed so far"),
    }
    family: ClassVar = "forward-forward"
    assumes: ClassVar = "labels at the bottom; two presentations of each example, one for each class at a prediction"

    @property
    def additive_over_batch(self) -> bool:
        """Parts of a batch would draw other wrong labels than the whole."""
        return False

    def problems(self, blocks: Sequence[Block]) -> list[str]:
        """Patterns enter before the bottom block's activation function, and some block must be hidden."""
        found = super().problems(blocks) + unknown_classes(blocks) + no_hidden_block(blocks, self.skip)
        if blocks[0].composite:
            found.append("adds class patterns in the linear part of the bottom block, which is composite: begin with another one")
        return found

    def init(self, block: Block, key: jax.Array) -> State:
        """φ as θ_1, of a key of its own."""
        return block.state(WithHead(block.init(key), block.init(head_key(key)) if block.bottom else ()))

    def gradients(self, chain: Chain, state: Row, batch: Batch) -> tuple[Row, Row, Info]:
        """The whole algorithm."""
        learnt = Row([*self.learn(chain, state, batch), chain.at_top(idle, state)])
        return learnt.grads, learnt.memory, Info(chain.gather("loss", learnt.loss, add))

    def learn(self, chain: Chain, state: Row, batch: Batch) -> Row:
        """What the hidden blocks learn."""
        y = chain.to_bottom("label", chain.at_top(label, batch.y))
        shown = chain.at_bottom(pair, batch.x, y, batch.key)
        a, _ = chain.below_top.sweep_up("activation", rise, state, first=shown)
        return chain.below_top.map(contrast, state, a, alpha=self.alpha)

    def diagnose(self, chain: Chain, state: Row, batch: Batch) -> dict[str, Row]:
        """margin: mean of G_l⁺ - G_l⁻, 0 at the top."""
        return {"margin": Row([*self.learn(chain, state, batch).margin, chain.at_top(idle, state).margin])}

    def predict(self, chain: Chain, state: Row, x: Any) -> Any:
        """The goodness of each label."""
        hidden = chain.below_top
        a, _ = hidden.sweep_up("activation", rise, state, first=chain.at_bottom(every_label, x))
        return chain.gather("goodness", Row([*hidden.map(scores, state, a, skip=self.skip), None]), add)
