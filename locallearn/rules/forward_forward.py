"""Forward-forward: every block tells examples with the right label from examples with a wrong one, by the size of its activity.

Hinton (2022), "The Forward-Forward Algorithm: Some Preliminary Investigations". https://arxiv.org/abs/2212.13345

The label is painted on the first `classes` entries of the flattened input: a one for its class, zeros for the others. x⁺ shows the true
label, x⁻ one of the others, drawn uniformly. With a_0 = x^±, divided by its root mean square as all that enters a block, and sg the
stopped gradient:

    h_l    = f_l(sg[a_{l-1}]; θ_l)           a_l = h_l / √(mean of h_l²)
    G_l    = Σ_j h_lj²                       goodness, against θ = threshold · n_l
    loss_l = mean of softplus(θ - G_l⁺) and softplus(G_l⁻ - θ)  +  peer · mean_j (mean_k m_k - m_j)²
    m     <- 0.9 m + 0.1 mean over the batch of h_l⁺          kept in the block's memory
    Δθ_l   ∝ -∂loss_l/∂θ_l

The peer term keeps all units about equally active; its gradient passes the activation as if that were the identity, so that it wakes
silent units. Only the direction of h_l reaches the next block: goodness is no use to it.

The top block stands for no hidden layer, and `inference` says what it does:

    goodness   x is shown once with each label; the label of the largest goodness, summed over the hidden blocks, wins. The top adds up
               and has nothing to learn: its parameters stay as they were.
    readout    x is shown once with a neutral label, 0.1 for every class. The top is a softmax classifier of a_{L-1}, trained on a third
               presentation of each example. Quicker, and as a rule less accurate. (The paper's reads all hidden layers but the first.)

A boundary between hidden blocks carries a_l^± up once, 2 x batch x width numbers (with `readout` 3 x batch x width; the boundary below
the top then carries batch x width, with `goodness` no activity at all). Labels go from the top to the bottom, one byte for each example.
With `goodness` the sum of the losses goes up for the report, 4 bytes. A prediction costs classes x batch x width numbers for each hidden
boundary and classes x batch for each boundary with `goodness`, batch x width with `readout`.

What makes it work: relu, He initialisation (mean square 1 to begin with, which is the threshold), normalised inputs, the peer term.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp

from locallearn.block import Block, State
from locallearn.chain import Chain, Row
from locallearn.fields import NonNegative, Positive
from locallearn.rule import Batch, Info, Message, Rule
from locallearn.rules._common import cross_entropy, label, unknown_classes

NEUTRAL = 0.1
MOMENTUM = 0.9


class Learnt(NamedTuple):
    """A block's own loss, its gradient by the block's parameters, and the running mean activity."""

    loss: jax.Array
    grads: Any
    memory: Any


def normalised(a: jax.Array) -> jax.Array:
    """Each example divided by its root mean square. a: [batch, ...]."""
    square = jnp.mean(a**2, tuple(range(1, a.ndim)), keepdims=True)
    return a * jax.lax.rsqrt(square + 1e-12)


def paint(x: jax.Array, mark: jax.Array) -> jax.Array:
    """x with `mark` [batch, classes] in place of the first entries of each flattened example."""
    rest = x.reshape(x.shape[0], -1)[:, mark.shape[1] :]
    return jnp.concatenate([mark.astype(x.dtype), rest], 1).reshape(x.shape)


def wrong_labels(y: jax.Array, classes: int, key: jax.Array) -> jax.Array:
    """One of the other labels for each example, uniformly."""
    return (y + jax.random.randint(key, y.shape, 1, classes)) % classes


def presentations(block: Block, x: jax.Array, y: jax.Array, key: jax.Array, *, neutral: bool) -> jax.Array:
    """a_0 of x⁺ and x⁻, one after the other, and of x with the neutral label: [2 or 3 x batch, *in_shape]."""
    y = y.astype(jnp.int32)
    wrong = wrong_labels(y, block.classes, jax.random.fold_in(key, block.index))
    shown = [paint(x, jax.nn.one_hot(labels, block.classes)) for labels in (y, wrong)]
    return normalised(jnp.concatenate([*shown, paint(x, neutral_mark(block, x))] if neutral else shown))


def neutral_mark(block: Block, x: jax.Array) -> jax.Array:
    """0.1 for every class: [batch, classes]."""
    return jnp.full((x.shape[0], block.classes), NEUTRAL)


def every_label(block: Block, x: jax.Array) -> jax.Array:
    """a_0 of x with each label in turn: [classes x batch, *in_shape], class by class."""
    marks = jnp.repeat(jnp.eye(block.classes), x.shape[0], axis=0)
    return normalised(paint(jnp.tile(x, (block.classes, *(1 for _ in x.shape[1:]))), marks))


def no_label(block: Block, x: jax.Array) -> jax.Array:
    """a_0 of x with the neutral label."""
    return normalised(paint(x, neutral_mark(block, x)))


def rise(block: Block, state: State, a: jax.Array, *, passes: int) -> jax.Array:
    """a_l from a_{l-1}, of which the top needs the last presentation only; at the top the class scores."""
    h = block.apply(state.params, a)
    if block.top:
        return h
    return normalised(h[-(h.shape[0] // passes) :] if block.index == block.count - 2 else h)


def goodness(h: jax.Array) -> jax.Array:
    """G: [batch]."""
    return jnp.sum(h**2, tuple(range(1, h.ndim)))


def active(block: Block, params: Any, a: jax.Array) -> tuple[jax.Array, jax.Array]:
    """h_l, and h_l again with the gradient of the activation's input, where the block has one of that shape."""
    if block.composite:
        h = block.apply(params, a)
        return h, h
    u = block.pre(params, a)
    h = block.post(params, u)
    return h, u + jax.lax.stop_gradient(h - u) if u.shape == h.shape else h


def contrast(block: Block, state: State, a: jax.Array, *, passes: int, threshold: float, peer: float) -> Learnt:
    """loss_l and its gradient. a: [passes x batch, *in_shape]: x⁺, x⁻ and what does not count here."""
    size = a.shape[0] // passes
    theta = threshold * math.prod(block.out_shape)

    def loss(params: Any) -> tuple[jax.Array, Any]:
        h, through = active(block, params, a[: 2 * size])
        excess = goodness(h) - theta
        contrastive = jnp.mean(jax.nn.softplus(jnp.concatenate([-excess[:size], excess[size:]])))
        if not peer:
            return contrastive, state.memory
        m = MOMENTUM * state.memory + (1 - MOMENTUM) * through[:size].mean(0)
        return contrastive + peer * jnp.mean((m.mean() - m) ** 2), m

    (value, memory), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
    return Learnt(value, grads, memory)


def classify(block: Block, state: State, a: jax.Array, y: jax.Array) -> Learnt:
    """The read-out at the top."""
    return Learnt(*jax.value_and_grad(lambda params: cross_entropy(block.apply(params, a), y))(state.params), state.memory)


def idle(block: Block, state: State) -> Learnt:
    """A top block that only adds up."""
    return Learnt(jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.params), state.memory)


def scores(block: Block, state: State, a: jax.Array) -> jax.Array:
    """G_l of each label less their mean, so that a coarse codec keeps the differences: [batch, classes]."""
    if block.top:
        return a
    each = goodness(block.apply(state.params, a)).reshape(block.classes, -1).T
    return each - each.mean(1, keepdims=True)


def add(block: Block, total: jax.Array, own: Any) -> jax.Array:
    """The sum so far; the top has nothing to add."""
    return total if block.top else total + own


@dataclass(frozen=True)
class ForwardForward(Rule):
    """Forward-forward with supervised labels. threshold: mean square activity between positive and negative. peer: weight of its term."""

    threshold: Positive = 1.0
    peer: NonNegative = 0.03
    inference: Literal["goodness", "readout"] = "goodness"

    messages: ClassVar = {
        "label": Message("label", "top to bottom", "y, to be painted on x"),
        "activation": Message("activation", "up", "a_l of x⁺ and x⁻ together; with `readout` also of x with the neutral label"),
        "loss": Message("scalar", "up", "the sum of the losses so far; with `goodness`"),
        "goodness": Message("evaluation", "up", "goodness of each label, summed so far; with `goodness`"),
    }
    family: ClassVar = "forward-forward"
    assumes: ClassVar = "labels at the bottom; two or three presentations of each example, one for each class at a prediction"

    @property
    def additive_over_batch(self) -> bool:
        """The peer term is about the mean of the batch."""
        return self.peer == 0

    def problems(self, blocks: Sequence[Block]) -> list[str]:
        """Labels must fit on the input, and some block must be hidden."""
        found = super().problems(blocks) + unknown_classes(blocks)
        if len(blocks) < 2:
            found.append("needs a hidden block: the top one does not learn by goodness")
        if math.prod(blocks[0].in_shape) <= blocks[0].classes:
            found.append(f"paints {blocks[0].classes} labels on the input, which has only {math.prod(blocks[0].in_shape)} values")
        return found

    def init(self, block: Block, key: jax.Array) -> State:
        """memory: m, [*out_shape], at 0.5."""
        return block.state(block.init(key), () if block.top or not self.peer else jnp.full(block.out_shape, 0.5))

    def gradients(self, chain: Chain, state: Row, batch: Batch) -> tuple[Row, Row, Info]:
        """The whole algorithm."""
        readout = self.inference == "readout"
        passes = 3 if readout else 2
        hidden = below_top(chain)
        y = chain.to_bottom("label", chain.at_top(label, batch.y))
        a = chain.at_bottom(presentations, batch.x, y, batch.key, neutral=readout)
        x, _ = (chain if readout else hidden).sweep_up("activation", rise, state, first=a, passes=passes)
        learnt = hidden.map(contrast, state, x, passes=passes, threshold=self.threshold, peer=self.peer)
        top = chain.at_top(classify, state, x, batch.y) if readout else chain.at_top(idle, state)
        learnt = Row([*learnt, top])
        loss = top.loss if readout else chain.gather("loss", learnt.loss, add)
        return learnt.grads, learnt.memory, Info(loss)

    def predict(self, chain: Chain, state: Row, x: Any) -> Any:
        """The read-out's class scores, or the goodness of each label."""
        if self.inference == "readout":
            return chain.sweep_up("activation", rise, state, first=chain.at_bottom(no_label, x), passes=1)[1][-1]
        hidden = below_top(chain)
        a, _ = hidden.sweep_up("activation", rise, state, first=chain.at_bottom(every_label, x), passes=1)
        return chain.gather("goodness", Row([*hidden.map(scores, state, a), None]), add)


def below_top(chain: Chain) -> Chain:
    """The hidden blocks."""
    return Chain(chain.blocks[:-1], chain.fabric)
