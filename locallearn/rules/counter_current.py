"""Counter-current learning: a forward network fed with data and a feedback network fed with classes meet at every block.

Kao & Hariharan (2024), "Counter-Current Learning: A Biologically Plausible Dual Network Approach for Deep Learning", NeurIPS.
https://arxiv.org/abs/2409.19841
The loss for classes is that of the authors' program: https://github.com/IandRover/CCL-NeurIPS24

With sg stopping the gradient, a_0 = x, c_L = I [classes, classes], and feedback layers that mirror the blocks above the bottom: the linear
part transposed (dense or convolutional) with weights W̃_l of its own and without bias, then σ:

    a_l     = f_l(sg[a_{l-1}]; θ_l)                                  up, from the data
    c_{l-1} = σ(W̃_l sg[c_l])                                        down, from the classes: [classes, *in_shape]
    loss(a, c) = scale · mean over examples and classes of (a · c - [the example is of this class])² / n,      n: numbers in a
    Δθ_l    ∝ -∂/∂θ_l loss(a_l, sg[c_l])                             the top: -∂/∂θ_L cross-entropy(a_L, y)
    ΔW̃_l   ∝ -∂/∂W̃_l loss(sg[a_{l-1}], c_{l-1})

Neither stream waits for the other: there is no backward locking. What comes down does not depend on the batch but only on the feedback
weights, so it has a row for each class, not for each example.

A boundary carries a_l up once, batch x width numbers, c_l down once, classes x width numbers, and the labels to each shard below the top
once, one byte for each example.

What makes it work, in the paper: elu, no momentum, a large rate (1 for MNIST, with batches of 256) and gradients clipped to length 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp

from locallearn.block import Block, State, WithHead
from locallearn.chain import Chain, Row
from locallearn.fields import Positive
from locallearn.rule import Batch, Info, Message, Rule
from locallearn.rules._common import cross_entropy, flat, forward_body, label, unknown_classes
from locallearn.rules._targets import feedback_weights, no_mirror, transposed
from locallearn.search import Log


class Signal(NamedTuple):
    """c_l, and what the block makes of it for the one below, c_{l-1}."""

    here: jax.Array
    down: Any


class Learnt(NamedTuple):
    """The loss of the block's own activities, and the gradients."""

    loss: jax.Array
    grads: WithHead


def classes(block: Block) -> jax.Array:
    """c_L: a row for each class."""
    return jnp.eye(block.classes)


def descent(block: Block, state: State, c: jax.Array, *, activation: str) -> Signal:
    """c_{l-1} from c_l: [classes, *out_shape] -> [classes, *in_shape]; the bottom has nothing below it."""
    return Signal(c, None if block.bottom else signal(block, state.params.head, c, activation))


def signal(block: Block, weights: Any, c: jax.Array, activation: str) -> jax.Array:
    """c_{l-1} = σ(W̃_l c_l)."""
    return getattr(jax.nn, activation)(transposed(block, weights, c))


def agreement(a: jax.Array, c: jax.Array, y: jax.Array, scale: float) -> jax.Array:
    """loss(a, c): how far products of activities and signals are from saying the class. a: [batch, ...], c: [classes, ...], y: [batch]."""
    products = flat(a) @ flat(c).T
    wanted = jax.nn.one_hot(y, c.shape[0], dtype=a.dtype)
    return scale * jnp.mean((products - wanted) ** 2) / flat(a).shape[1]


def learn(block: Block, state: State, x: jax.Array, met: Signal, y: jax.Array, *, scale: float, activation: str) -> Learnt:
    """The gradients of the block and of its feedback layer. x: a_{l-1}, [batch, *in_shape]."""

    def upward(params: Any) -> jax.Array:
        a = block.apply(params, x)
        return cross_entropy(a, y) if block.top else agreement(a, met.here, y, scale)

    def downward(weights: Any) -> jax.Array:
        return agreement(x, signal(block, weights, met.here, activation), y, scale)

    loss, grads = jax.value_and_grad(upward)(state.params.block)
    return Learnt(loss, WithHead(grads, () if block.bottom else jax.grad(downward)(state.params.head)))


def recognised(block: Block, state: State, x: jax.Array, met: Signal, y: jax.Array) -> jax.Array:
    """Share of the examples whose activity agrees best with the signal of their own class."""
    a = block.apply(state.params.block, x)
    return jnp.mean(jnp.argmax(a if block.top else flat(a) @ flat(met.here).T, 1) == y)


@dataclass(frozen=True)
class CounterCurrent(Rule):
    """Counter-current learning. scale: of the blocks' loss. activation: σ, of the feedback layers."""

    scale: Positive = 128.0
    activation: Literal["elu", "relu", "leaky_relu", "tanh", "gelu"] = "elu"

    space: ClassVar = {"scale": Log(16.0, 1024.0)}
    messages: ClassVar = {
        "activation": Message("activation", "up", "a_l, once"),
        "target": Message("target", "down", "c_l, a row for each class, once"),
        "label": Message("label", "broadcast", "y, from the top to every block"),
    }
    family: ClassVar = "targets"
    assumes: ClassVar = "labels in every block; learned feedback weights; forward and update locked"
    needs: ClassVar = "pre and post"

    def problems(self, blocks: Sequence[Block]) -> list[str]:
        """Every block above the bottom is mirrored, and must know the number of classes."""
        found = super().problems(blocks)
        return found or unknown_classes(blocks) + no_mirror(blocks[1:])

    def init(self, block: Block, key: jax.Array) -> State:
        """The block's own parameters and W̃_l; the bottom block needs none."""
        return block.state(WithHead(block.init(key), () if block.bottom else feedback_weights(block, key)))

    def gradients(self, chain: Chain, state: Row, batch: Batch) -> tuple[Row, Row, Info]:
        """The two streams, then every block by itself."""
        x, met, y = self.streams(chain, state, batch)
        learnt = chain.map(learn, state, x, met, y, scale=self.scale, activation=self.activation)
        return learnt.grads, state.memory, Info(learnt.loss[-1], x)

    def streams(self, chain: Chain, state: Row, batch: Batch) -> tuple[Row, Row, Row]:
        """(a_{l-1}, signals, labels) of every block."""
        x, _ = chain.sweep_up("activation", forward_body, state, first=batch.x)
        met = chain.sweep_down("target", descent, state, last=chain.at_top(classes), activation=self.activation)
        return x, met, chain.broadcast("label", chain.at_top(label, batch.y))

    def predict(self, chain: Chain, state: Row, x: Any) -> Any:
        """Class scores of the top block."""
        return chain.sweep_up("activation", forward_body, state, first=x)[1][-1]

    def diagnose(self, chain: Chain, state: Row, batch: Batch) -> dict[str, Row]:
        """recognised: share of the batch that each block's activities put into the right class."""
        return {"recognised": chain.map(recognised, state, *self.streams(chain, state, batch))}
