"""Cascaded forward: blocks that do not learn, a linear predictor of the label on each, and the sum of what all of them say.

Zhao, Wang, Jin, Lang, Li & Ling (2025), "The Cascaded Forward Algorithm for Neural Network Training", Pattern Recognition 161.
https://arxiv.org/abs/2303.09728

With h_l = f_l(h_{l-1}; θ_l), θ_l as they were drawn, and a linear predictor W_l, b_l on each hidden block:

    p_l    = softmax(h_l W_l + b_l)
    loss_l = cross-entropy(p_l, y)  or  ½ |h_l W_l + b_l - onehot(y)|²       Δ(W_l, b_l) ∝ -∂loss_l
    p      = Σ_l p_l                                                        the prediction is the class where p is largest

The top block of the chain, which is linear, is the predictor of the highest hidden block; that one has none of its own. Predictors learn
independently of each other. With `loss: squared` each is linear regression on fixed features, which the paper solves in closed form.

The blocks of the paper are random, or were trained before by direct feedback alignment: a run of two phases, in the first of which the rule
is `direct_feedback`.

A boundary carries h_l up once, batch x width numbers, and the labels down to each shard once, one byte for each example; at a prediction
also the sum so far, batch x classes numbers. Nothing else comes down, and where the blocks below are known to be fixed, neither would have
to cross twice for the same example.

What makes it work: wide blocks, since nothing but the number of random features tells classes apart, and convolutions with pooling (the
paper's have 32, 128 and 512 channels). Random dense blocks of 512 units reach no more than 90 % on MNIST in three epochs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from locallearn.block import Block, State, WithHead
from locallearn.chain import Chain, Row
from locallearn.rule import Batch, Info, Message, Rule
from locallearn.rules._common import Local, cross_entropy, forward_body, label, unknown_classes
from locallearn.rules._heads import blank, read


def has_predictor(block: Block) -> bool:
    """Whether the block carries a predictor: the highest hidden block's is the top."""
    return block.index < block.count - 2


def squared(scores: jax.Array, y: jax.Array) -> jax.Array:
    """Half the squared distance to the one-hot label, mean over the batch. scores: [batch, classes], y: [batch] int."""
    return 0.5 * jnp.mean(jnp.sum((scores - jax.nn.one_hot(y, scores.shape[1], dtype=scores.dtype)) ** 2, 1))


def class_scores(block: Block, params: WithHead, x: jax.Array) -> jax.Array:
    """What the block's predictor says of its input: [batch, classes]."""
    h = block.apply(params.block, x)
    return h if block.top else read(params.head, h)


def learn(block: Block, state: State, x: jax.Array, y: jax.Array, *, loss: str) -> Local:
    """One predictor; the gradient is zero in the block itself."""
    still = jax.tree.map(jnp.zeros_like, state.params)
    if not (block.top or has_predictor(block)):
        return Local(jnp.zeros(()), still)
    distance = squared if loss == "squared" else cross_entropy
    value, grads = jax.value_and_grad(lambda params: distance(class_scores(block, params, x), y))(state.params)
    return Local(value, grads if block.top else still._replace(head=grads.head))


def keep_body(block: Block, after: State, before: State) -> State:
    """The block as it was: the optimizer's weight decay is for predictors."""
    return after if block.top else after._replace(params=after.params._replace(block=before.params.block))


def vote(block: Block, state: State, x: jax.Array) -> jax.Array:
    """p_l: [batch, classes]; zero where there is no predictor."""
    if not (block.top or has_predictor(block)):
        return jnp.zeros((x.shape[0], block.classes), x.dtype)
    return jax.nn.softmax(class_scores(block, state.params, x))


def add(block: Block, total: jax.Array, own: jax.Array) -> jax.Array:
    """The sum so far."""
    return total + own


def accuracy(block: Block, state: State, x: jax.Array, y: jax.Array) -> jax.Array:
    """Share of the batch that this block's predictor tells right; nan where there is none."""
    if not (block.top or has_predictor(block)):
        return jnp.full((), jnp.nan)
    return jnp.mean(jnp.argmax(vote(block, state, x), -1) == y)


@dataclass(frozen=True)
class CascadedForward(Rule):
    """Cascaded forward. loss: what the predictors minimise."""

    loss: Literal["cross_entropy", "squared"] = "cross_entropy"

    messages: ClassVar = {
        "activation": Message("activation", "up", "h_l, once"),
        "label": Message("label", "broadcast", "y, from the top to every block"),
        "prediction": Message("evaluation", "up", "the sum of the predictions so far"),
    }
    family: ClassVar = "local losses"
    assumes: ClassVar = "labels in every block; blocks do not learn; only forward locked"

    def problems(self, blocks: Sequence[Block]) -> list[str]:
        """Predictors tell classes apart."""
        return super().problems(blocks) + unknown_classes(blocks)

    def init(self, block: Block, key: jax.Array) -> State:
        """Predictors at zero; the block as under every other rule."""
        head = blank(math.prod(block.out_shape), block.classes) if has_predictor(block) else ()
        return block.state(WithHead(block.init(key), head))

    def gradients(self, chain: Chain, state: Row, batch: Batch) -> tuple[Row, Row, Info]:
        """The whole algorithm."""
        x, _ = chain.sweep_up("activation", forward_body, state, first=batch.x)
        y = chain.broadcast("label", chain.at_top(label, batch.y))
        learnt = chain.map(learn, state, x, y, loss=self.loss)
        return learnt.grads, state.memory, Info(learnt.loss[-1], x)

    def step(self, chain: Chain, state: Row, batch: Batch) -> tuple[Row, Info]:
        """As every rule's, but whatever the optimizer does, blocks stay."""
        after, info = super().step(chain, state, batch)
        return chain.map(keep_body, after, state), info

    def diagnose(self, chain: Chain, state: Row, batch: Batch) -> dict[str, Row]:
        """Accuracy of each predictor on the batch."""
        x, _ = chain.sweep_up("activation", forward_body, state, first=batch.x)
        return {"accuracy": chain.map(accuracy, state, x, chain.broadcast("label", chain.at_top(label, batch.y)))}

    def predict(self, chain: Chain, state: Row, x: Any) -> Any:
        """p, the sum of all predictions."""
        x, _ = chain.sweep_up("activation", forward_body, state, first=x)
        return chain.gather("prediction", chain.map(vote, state, x), add)
