"""Forward-forward: every block tells examples with the right label from examples with a wrong one, by the size of its activity.

Hinton (2022), "The Forward-Forward Algorithm: Some Preliminary Investigations". https://arxiv.org/abs/2212.13345

A label is painted one-hot on the first `classes` values of the flattened input: x⁺ shows the true one, x⁻ another. a_0 is x^±
divided by its root mean square, n_l the size of h_l, and sg stops the gradient:

    h_l    = f_l(sg[a_{l-1}]; θ_l)           a_l = h_l / √(mean of h_l²)
    G_l    = Σ_j h_lj²                       goodness, against ϑ = threshold · n_l
    loss_l = ½ mean of softplus(ϑ - G_l⁺) + softplus(G_l⁻ - ϑ),  + peer · mean_j (mean_k m_k - m_j)²
    m     <- 0.9 m + 0.1 · mean of h_l⁺ over the batch, kept in the block's memory
    Δθ_l   ∝ -∂loss_l/∂θ_l

Only the direction of h_l goes up, so that the next block cannot use the goodness of this one. The peer term keeps all units about equally
active; its gradient takes the activation function for the identity, so that it wakes silent units. The top is not one of these l:

    goodness   x is shown with each label in turn; the label with the largest sum of goodness over the hidden blocks wins, those below
               `skip` left out (the paper's 1: all but the first). Without hard negatives the top receives the sum and learns nothing.
    readout    x is shown with a neutral label, 0.1 for each class; softmax regression on a_l of the hidden blocks but those below
               `skip`, trained beside them. Each of its parts lies where it reads, in the block above; the top holds the highest.

Which label is the wrong one of x⁻, besides the right one of x⁺:

    uniform    any other, all alike.
    hard       another one, in proportion to what the read-out makes of it: a third of the epochs will do. x is shown neutrally first.

What crosses, in numbers of 4 bytes, B the batch and C the classes; besides, labels go from the top to the bottom, one byte each, and those
that are wrong as well if they are hard:

                         training, a hidden boundary      down           prediction, a hidden boundary   below the top
    goodness, uniform    2 B n_l, and 1: the loss         0              C B n_l, and B C                B C
    goodness, hard       3 B n_l, and B C: scores         B C            C B n_l, and B C                B C
    readout              3 B n_l, and B C: scores         B C            B n_l, and B C                  B n_l, and B C

What makes it work: relu and He initialisation (mean square 1 to begin with, as is the threshold), and Adam: for a few epochs at 3e-3 with a
falling rate; for more of them hard negatives, and 1e-3, held for half of the run.
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
from locallearn.fields import NonNegative, NonNegativeInt, Positive
from locallearn.rule import Batch, Info, Message, Rule
from locallearn.rules._common import label, output_error, unknown_classes
from locallearn.rules._goodness import Learnt, add, by_label, goodness, idle, no_hidden_block, normalised
from locallearn.rules._painting import presentations, show
from locallearn.rules._readout import Read, hard_labels, reader, regress, share
from locallearn.search import Log

MOMENTUM = 0.9


def rise(block: Block, state: State, a: jax.Array) -> jax.Array:
    """a_l from a_{l-1}; nothing rises above the top."""
    return a if block.top else normalised(block.apply(state.params.block, a))


def active(block: Block, params: Any, a: jax.Array) -> tuple[jax.Array, jax.Array]:
    """h_l, and h_l with the gradient of its pre-activation, where there is one of the same shape."""
    if block.composite:
        h = block.apply(params, a)
        return h, h
    u = block.pre(params, a)
    h = block.post(params, u)
    return h, u + jax.lax.stop_gradient(h - u) if u.shape == h.shape else h


def contrast(block: Block, state: State, a: jax.Array, *, threshold: float, peer: float) -> Learnt:
    """loss_l and its gradient. a: a_{l-1} of all x⁺, then of all x⁻."""
    size = a.shape[0] // 2
    theta = threshold * math.prod(block.out_shape)

    def loss(params: WithHead) -> tuple[jax.Array, tuple[Any, Any]]:
        h, through = active(block, params.block, a)
        excess = goodness(h) - theta
        contrastive = jnp.mean(jax.nn.softplus(jnp.concatenate([-excess[:size], excess[size:]])))
        margin = (excess[:size] - excess[size:]).mean() / math.prod(block.out_shape)
        if not peer:
            return contrastive, (state.memory, margin)
        m = MOMENTUM * state.memory + (1 - MOMENTUM) * through[:size].mean(0)
        return contrastive + peer * jnp.mean((m.mean() - m) ** 2), (m, margin)

    (value, kept), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
    return Learnt(value, grads, *kept)


def scores(block: Block, state: State, a: jax.Array, *, skip: int) -> jax.Array:
    """G_l of each label: [batch, classes]; nothing below `skip`."""
    each = by_label(goodness(block.apply(state.params.block, a)), block.classes)
    return each if block.index >= skip else jnp.zeros_like(each)


@dataclass(frozen=True)
class ForwardForward(Rule):
    """Forward-forward. threshold: mean square between x⁺ and x⁻. peer: weight of its term. skip: blocks from the bottom without a say.

    negatives: how wrong labels are drawn. inference: what predicts.
    """

    threshold: Positive = 1.0
    peer: NonNegative = 0.03
    negatives: Literal["uniform", "hard"] = "uniform"
    inference: Literal["goodness", "readout"] = "goodness"
    skip: NonNegativeInt = 0

    space: ClassVar = {"threshold": Log(0.3, 3.0), "peer": Log(0.003, 0.3)}
    messages: ClassVar = {
        "label": Message("label", "top to bottom", "y, to be painted on x"),
        "activation": Message("activation", "up", "a_l of x⁺ and x⁻ together"),
        "loss": Message("scalar", "up", "the sum of the losses so far; without a read-out"),
        "goodness": Message("evaluation", "up", "goodness of each label, summed so far; with `goodness`"),
        "neutral": Message("activation", "up", "a_l of x with the neutral label; with a read-out"),
        "score": Message("activation", "up", "the read-out's class scores, summed so far"),
        "error": Message("error", "broadcast", "their gradient, to every part of the read-out"),
        "wrong": Message("target", "top to bottom", "the wrong labels, with `hard`"),
    }
    family: ClassVar = "forward-forward"
    assumes: ClassVar = "labels at the bottom; two or three presentations of each example, one for each class at a prediction"

    @property
    def reads_out(self) -> bool:
        """Whether a read-out learns."""
        return self.inference == "readout" or self.negatives == "hard"

    @property
    def additive_over_batch(self) -> bool:
        """The peer term is about the mean of the batch."""
        return self.peer == 0

    def problems(self, blocks: Sequence[Block]) -> list[str]:
        """Labels must fit on the input, and some block must be hidden."""
        found = super().problems(blocks) + unknown_classes(blocks) + no_hidden_block(blocks, self.skip)
        if math.prod(blocks[0].in_shape) <= blocks[0].classes:
            found.append(f"paints {blocks[0].classes} labels on the input, which has only {math.prod(blocks[0].in_shape)} values")
        return found

    def init(self, block: Block, key: jax.Array) -> State:
        """memory: m, [*out_shape], at 0.5."""
        params = block.init(key)
        params = reader(block, params, skip=self.skip) if self.reads_out else WithHead(params, ())
        return block.state(params, () if block.top or not self.peer else jnp.full(block.out_shape, 0.5))

    def gradients(self, chain: Chain, state: Row, batch: Batch) -> tuple[Row, Row, Info]:
        """The whole algorithm."""
        x, learnt, read = self.learn(chain, state, batch)
        if read is None:
            learnt = Row([*learnt, chain.at_top(idle, state)])
            return learnt.grads, learnt.memory, Info(chain.gather("loss", learnt.loss, add), Row([*x, None]))
        grads = chain.map(regress, state, read.x, read.error, Row([*learnt.grads, None]))
        return grads, Row([*learnt.memory, state.memory[-1]]), Info(read.loss, Row([*x, read.x[-1]]))

    def learn(self, chain: Chain, state: Row, batch: Batch) -> tuple[Row, Row, Read | None]:
        """What the hidden blocks see, what they learn from it, and what is read out of them."""
        y = chain.to_bottom("label", chain.at_top(label, batch.y))
        read = self.read(chain, state, batch) if self.reads_out else None
        a = chain.at_bottom(presentations, batch.x, y, read.wrong if read else None, batch.key)
        x, _ = chain.below_top.sweep_up("activation", rise, state, first=a)
        return x, chain.below_top.map(contrast, state, x, threshold=self.threshold, peer=self.peer), read

    def read(self, chain: Chain, state: Row, batch: Batch) -> Read:
        """What the read-out makes of x with the neutral label."""
        x, told = self.read_scores(chain, state, batch.x)
        top = chain.at_top(output_error, told, batch.y)
        hard = self.negatives == "hard"
        wrong = chain.to_bottom("wrong", chain.at_top(hard_labels, told, batch.y, batch.key)) if hard else None
        return Read(x, top.loss, chain.broadcast("error", top.error), wrong)

    def read_scores(self, chain: Chain, state: Row, x: Any) -> tuple[Row, Any]:
        """What every block reads, and the class scores at the top."""
        x, _ = chain.sweep_up("neutral", rise, state, first=chain.at_bottom(show, x, neutral=True))
        return x, chain.gather("score", chain.map(share, state, x), add)

    def diagnose(self, chain: Chain, state: Row, batch: Batch) -> dict[str, Row]:
        """margin: mean of (G_l⁺ - G_l⁻) / n_l, 0 at the top."""
        return {"margin": Row([*self.learn(chain, state, batch)[1].margin, chain.at_top(idle, state).margin])}

    def predict(self, chain: Chain, state: Row, x: Any) -> Any:
        """The read-out's class scores, or the goodness of each label."""
        if self.inference == "readout":
            return self.read_scores(chain, state, x)[1]
        hidden = chain.below_top
        a, _ = hidden.sweep_up("activation", rise, state, first=chain.at_bottom(show, x, neutral=False))
        return chain.gather("goodness", Row([*hidden.map(scores, state, a, skip=self.skip), None]), add)
