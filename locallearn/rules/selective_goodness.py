"""Selective and shape-sensitive goodness: what counts is how peaked the activity is, not how large; labels reach every block.

Akkuş, Kocabay, Yüksel & Sawaf (2026), "Selectivity and Shape in the Design of Forward-Forward Goodness Functions".
https://arxiv.org/abs/2604.13081

Features and labels are forwarded separately (FFCL): every hidden block adds a learned projection V_l [classes, n] of the label it is asked
about to its linear part pre_l, before post_l. x⁺ has the true label y in all blocks, x⁻ another one, drawn uniformly. With sg the stop of
the gradient, a_0 = x / √(mean of x²), and the goodness G one of two:

    h_l    = post_l(pre_l(sg[a_{l-1}]; θ_l) + V_l[label])       a_l = h_l / √(mean of h_l²)
    top_k        G_l = mean of the k largest of h_l², k = share · n_l
    burstiness   G_l = mean of ((h_l - mean h_l) / std h_l)⁴ - 3, the excess kurtosis

    loss_l = ½ mean of softplus(ϑ - G_l⁺) + softplus(G_l⁻ - ϑ)          Δ(θ_l, V_l) ∝ -∂loss_l

Sums of squares, forward-forward's goodness, ask all units to be active for a right label; these ask for a few. Burstiness does not change
when h_l is scaled.

The top block is not one of these l: it learns nothing and receives the sum of the goodness of each label over the hidden blocks, those
below `skip` left out; the label with the largest sum wins.

What crosses, in numbers of 4 bytes, B the batch and C the classes: 2 B n_l up, once, and one number, the losses so far; at a prediction
C B n_l and B C. Labels go down to each shard once, one byte each; every block draws the same wrong ones.

What makes it work: relu, and Adam at 1e-3, cosine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from locallearn.block import Block, State, WithHead
from locallearn.chain import Chain, Row
from locallearn.fields import Fraction, NonNegativeInt
from locallearn.rule import Batch, Info, Message, Rule
from locallearn.rules._common import flat, head_key, label, unknown_classes
from locallearn.rules._goodness import Learnt, add, by_label, idle, no_hidden_block, normalised, wrong_labels
from locallearn.search import Linear


def top_k(h: jax.Array, share: float) -> jax.Array:
    """Mean of the largest squares of each example: [batch]. h: [batch, n]."""
    return jnp.mean(jax.lax.top_k(h**2, max(1, round(share * h.shape[1])))[0], 1)


def burstiness(h: jax.Array) -> jax.Array:
    """Excess kurtosis of each example: [batch]. h: [batch, n]."""
    centred = h - h.mean(1, keepdims=True)
    return jnp.mean(centred**4, 1) / (jnp.mean(centred**2, 1) + 1e-6) ** 2 - 3


def asked(block: Block, y: jax.Array, key: jax.Array) -> jax.Array:
    """Labels of all x⁺, then of all x⁻: the same in every block."""
    y = y.astype(jnp.int32)
    return jnp.concatenate([y, wrong_labels(y, block.classes, key)])


def enter(block: Block, x: jax.Array, *, times: int) -> jax.Array:
    """a_0, once for each label that will be asked about."""
    return jnp.concatenate([normalised(x)] * (times or block.classes))


def activity(block: Block, params: WithHead, labels: jax.Array | None, a: jax.Array) -> jax.Array:
    """h_l. labels: [batch], or none where each label has its turn, class by class. a: [batch, *in_shape]."""
    if labels is None:
        labels = jnp.repeat(jnp.arange(block.classes), a.shape[0] // block.classes)
    u = block.pre(params.block, a)
    return block.post(params.block, u + params.head[labels].reshape(labels.shape[0], *(1,) * (u.ndim - 2), u.shape[-1]))


def rise(block: Block, state: State, labels: jax.Array | None, a: jax.Array) -> jax.Array:
    """a_l from a_{l-1}."""
    return normalised(activity(block, state.params, labels, a))


def goodness(h: jax.Array, kind: str, share: float) -> jax.Array:
    """G: [batch]."""
    return burstiness(flat(h)) if kind == "burstiness" else top_k(flat(h), share)


def contrast(block: Block, state: State, labels: jax.Array, a: jax.Array, *, kind: str, share: float, threshold: float) -> Learnt:
    """loss_l, its gradient, and the mean of G_l⁺ - G_l⁻. labels, a: of x⁺ and x⁻."""

    def loss(params: WithHead) -> tuple[jax.Array, jax.Array]:
        positive, negative = jnp.split(goodness(activity(block, params, labels, a), kind, share), 2)
        both = jnp.concatenate([threshold - positive, negative - threshold])
        return jnp.mean(jax.nn.softplus(both)), jnp.mean(positive - negative)

    (value, margin), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
    return Learnt(value, grads, state.memory, margin)


def scores(block: Block, state: State, a: jax.Array, *, kind: str, share: float, skip: int) -> jax.Array:
    """G_l of each label, or nothing below `skip`: [batch, classes]."""
    each = by_label(goodness(activity(block, state.params, None, a), kind, share), block.classes)
    return each if block.index >= skip else jnp.zeros_like(each)


@dataclass(frozen=True)
class SelectiveGoodness(Rule):
    """Goodness of peaked activity. share: of the units that `top_k` counts. threshold: ϑ, between positive and negative.

    skip: how many hidden blocks, from the bottom, have no say at a prediction.
    """

    goodness: Literal["top_k", "burstiness"] = "burstiness"
    share: Fraction = 0.02
    threshold: float = 2.0
    skip: NonNegativeInt = 0

    space: ClassVar = {"threshold": Linear(0.5, 4.0)}
    messages: ClassVar = {
        "label": Message("label", "broadcast", "y, from the top to every block"),
        "activation": Message("activation", "up", "a_l of x⁺ and x⁻ together"),
        "loss": Message("scalar", "up", "the sum of the losses so far"),
        "goodness": Message("evaluation", "up", "goodness of each label, summed so far"),
    }
    family: ClassVar = "forward-forward"
    assumes: ClassVar = "labels in every block; two presentations of each example, one for each class at a prediction"

    @property
    def additive_over_batch(self) -> bool:
        """Parts of a batch would draw other wrong labels than the whole."""
        return False

    def problems(self, blocks: Sequence[Block]) -> list[str]:
        """Labels enter before a hidden block's activation function, and some block must be hidden."""
        found = super().problems(blocks) + unknown_classes(blocks) + no_hidden_block(blocks, self.skip)
        composite = [block.index for block in blocks[:-1] if block.composite]
        if composite:
            found.append(f"adds labels in the linear part of every hidden block; block {composite[0]} is composite")
        return found

    def init(self, block: Block, key: jax.Array) -> State:
        """V_l from N(0, 1): as large as one number of a normalised input would be with He's weights, times √(n_in / 2)."""
        params = block.init(key)
        if block.top:
            return block.state(WithHead(params, ()))
        u = jax.eval_shape(block.pre, params, jax.ShapeDtypeStruct((1, *block.in_shape), jnp.float32))
        return block.state(WithHead(params, jax.random.normal(head_key(key), (block.classes, u.shape[-1]))))

    def gradients(self, chain: Chain, state: Row, batch: Batch) -> tuple[Row, Row, Info]:
        """The whole algorithm."""
        learnt = Row([*self.learn(chain, state, batch), chain.at_top(idle, state)])
        return learnt.grads, learnt.memory, Info(chain.gather("loss", learnt.loss, add))

    def learn(self, chain: Chain, state: Row, batch: Batch) -> Row:
        """What the hidden blocks learn."""
        hidden, y = chain.below_top, chain.broadcast("label", chain.at_top(label, batch.y))
        labels = hidden.map(asked, y, batch.key)
        a, _ = hidden.sweep_up("activation", rise, state, labels, first=chain.at_bottom(enter, batch.x, times=2))
        return hidden.map(contrast, state, labels, a, kind=self.goodness, share=self.share, threshold=self.threshold)

    def diagnose(self, chain: Chain, state: Row, batch: Batch) -> dict[str, Row]:
        """margin: mean of G_l⁺ - G_l⁻, 0 at the top."""
        return {"margin": Row([*self.learn(chain, state, batch).margin, chain.at_top(idle, state).margin])}

    def predict(self, chain: Chain, state: Row, x: Any) -> Any:
        """The goodness of each label."""
        hidden = chain.below_top
        a, _ = hidden.sweep_up("activation", rise, state, None, first=chain.at_bottom(enter, x, times=0))
        each = hidden.map(scores, state, a, kind=self.goodness, share=self.share, skip=self.skip)
        return chain.gather("goodness", Row([*each, None]), add)
