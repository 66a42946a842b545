"""Boltzmann machines: neighbouring layers learn to dream up each other's states, by contrastive divergence; stacked, a deep belief net.

Hinton (2002), "Training Products of Experts by Minimizing Contrastive Divergence", Neural Computation 14(8).
https://doi.org/10.1162/089976602760128018
Stacked: Hinton, Osindero & Teh (2006), "A Fast Learning Algorithm for Deep Belief Nets", Neural Computation 18(7).
https://doi.org/10.1162/neco.2006.18.7.1527

Each block below the top is a restricted Boltzmann machine of what is below it, v in {0, 1}ⁿ, and its units h in {0, 1}ᵐ, with u_l the
linear part of the block (dense or convolutional, with its bias), and a bias a_l for each visible unit:

    E(v, h) = -⟨a_l, v⟩ - ⟨h, u_l(v)⟩             F(v) = -⟨a_l, v⟩ - Σ_j ln(1 + exp(u_lj(v)))    its free energy
    p(h_j = 1 | v) = sigmoid(u_lj(v))             p(v_i = 1 | h) = sigmoid(a_li + ((∂u_l/∂v)ᵀ h)_i)
    v_0 = the state below,  h_0 ~ p(h | v_0),  then `steps` times v_k ~ p(v | h_{k-1}), h_k ~ p(h | v_k)
    ∇θ_l = ∂F(v_0)/∂θ_l - ∂F(v_k)/∂θ_l            ⟨h v⟩ of the dream less ⟨h v⟩ of the data; mean over the batch

As k grows this becomes the gradient of -ln p(v_0). At the bottom x stands for v_0 as it is, numbers between 0 and 1; with
`visible: gaussian` any numbers of variance 1, E has ½‖v - a‖² in place of -⟨a, v⟩, and v_k ~ N(a + (∂u/∂v)ᵀ h, I). The top block is a
softmax classifier of the states below it, and the only one that knows of labels.

A boundary carries h_0 up once, and nothing else: as packed bits batch x width / 8 bytes, or with `up: probabilities` batch x width numbers.
Predictions send probabilities. All Gibbs steps stay within their block.

What makes it work: sigmoid blocks with small weights (`init: glorot`); blocks trained one after the other from the bottom, a phase each, or
all at once, which costs little; SGD with momentum or Adam at 1e-3. Trained on by backpropagation in a last phase it is the pre-trained
network of the paper.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp

from locallearn.block import Block, State, WithHead
from locallearn.chain import Chain, Row
from locallearn.fields import Count
from locallearn.rule import ELEMENTWISE, Batch, Info, Message, Rule
from locallearn.rules._common import cross_entropy

Visible = Literal["binary", "gaussian"]


class Learnt(NamedTuple):
    """A block's gradient, F(v_k) - F(v_0) and the mean square of v_k - v_0, zero at the top, and what the block saw; the top's loss."""

    grads: Any
    gap: jax.Array
    dream: jax.Array
    inputs: jax.Array
    loss: Any = None


def hidden(block: Block, params: WithHead, v: jax.Array) -> jax.Array:
    """p(h = 1 | v): [batch, *out_shape]."""
    return jax.nn.sigmoid(block.pre(params.block, v))


def visible(block: Block, params: WithHead, h: jax.Array, kind: Visible) -> jax.Array:
    """The mean of p(v | h): [batch, *in_shape]."""
    _, pull = jax.vjp(lambda v: block.pre(params.block, v), jnp.zeros((len(h), *block.in_shape), h.dtype))
    drive = params.head + pull(h)[0]
    return drive if gaussian(block, kind) else jax.nn.sigmoid(drive)


def gaussian(block: Block, kind: Visible) -> bool:
    """Whether v is a vector of real numbers."""
    return block.bottom and kind == "gaussian"


def free_energy(block: Block, params: WithHead, v: jax.Array, kind: Visible) -> jax.Array:
    """F(v): [batch]."""
    own = 0.5 * (v - params.head) ** 2 if gaussian(block, kind) else -params.head * v
    return summed(own) - summed(jax.nn.softplus(block.pre(params.block, v)))


def summed(values: jax.Array) -> jax.Array:
    """[batch, ...] -> [batch]."""
    return values.reshape(len(values), -1).sum(1)


def flip(key: jax.Array, p: jax.Array) -> jax.Array:
    """Independent bits with these probabilities, in their type."""
    return jax.random.bernoulli(key, p).astype(p.dtype)


def gibbs(block: Block, params: WithHead, h: jax.Array, key: jax.Array, *, steps: int, kind: Visible) -> jax.Array:
    """v_k from h_0."""

    def turn(number: Any, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        below, above = jax.random.split(jax.random.fold_in(key, number))
        mean = visible(block, params, carry[1], kind)
        v = mean + jax.random.normal(below, mean.shape, mean.dtype) if gaussian(block, kind) else flip(below, mean)
        return v, flip(above, hidden(block, params, v))

    return jax.lax.fori_loop(0, steps, turn, (jnp.zeros((len(h), *block.in_shape), h.dtype), h))[0]


def keys(block: Block, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """For h_0, and for the dream."""
    first, dream = jax.random.split(jax.random.fold_in(key, block.index))
    return first, dream


def unpacked(block: Block, v: jax.Array) -> jax.Array:
    """What a block sees, from what crossed."""
    if v.dtype != jnp.uint8 or block.bottom:
        return v
    return jnp.unpackbits(v, axis=1, count=math.prod(block.in_shape)).reshape(-1, *block.in_shape).astype(float)


def rise(block: Block, state: State, key: Any, v: jax.Array, *, up: str) -> jax.Array:
    """What goes up: h_0 as bits, or its probabilities. At the top the class scores."""
    v = unpacked(block, v)
    if block.top:
        return block.apply(state.params, v)
    p = hidden(block, state.params, v)
    return jnp.packbits(flip(keys(block, key)[0], p).astype(bool).reshape(len(p), -1), axis=1) if up == "bits" else p


def learn(block: Block, state: State, v: jax.Array, key: jax.Array, *, steps: int, kind: Visible) -> Learnt:
    """Contrastive divergence. v: what crossed from below."""
    v, (first, dream) = unpacked(block, v), keys(block, key)
    if block.top:
        return Learnt(None, jnp.zeros(()), jnp.zeros(()), v)
    v_k = gibbs(block, state.params, flip(first, hidden(block, state.params, v)), dream, steps=steps, kind=kind)

    def rises(params: WithHead) -> jax.Array:
        return (free_energy(block, params, v, kind) - free_energy(block, params, v_k, kind)).mean()

    gap, grads = jax.value_and_grad(rises)(state.params)
    return Learnt(grads, -gap, jnp.mean((v_k - v) ** 2), v)


def classify(block: Block, state: State, learnt: Learnt, y: jax.Array) -> Learnt:
    """The top: softmax cross-entropy."""
    loss, grads = jax.value_and_grad(lambda params: cross_entropy(block.apply(params, learnt.inputs), y))(state.params)
    return learnt._replace(grads=grads, loss=loss)


def odd(block: Block) -> bool:
    """Whether a block is no layer of sigmoid units."""
    return block.activation != "sigmoid" or not block.elementwise


@dataclass(frozen=True)
class Boltzmann(Rule):
    """Stacked Boltzmann machines. steps: k of CD-k. visible: of the data. up: what a block shows to the next one in training."""

    steps: Count = 1
    visible: Visible = "binary"
    up: Literal["bits", "probabilities"] = "bits"

    messages: ClassVar = {
        "activation": Message("activation", "up", "h_0, once, as packed bits or probabilities"),
        "probability": Message("evaluation", "up", "p(h = 1 | v), in predictions"),
    }
    family: ClassVar = "energy"
    assumes: ClassVar = "symmetric weights within a block; labels at the top alone; only forward locked"
    needs: ClassVar = ELEMENTWISE

    @property
    def additive_over_batch(self) -> bool:
        """Parts of a batch would draw other states."""
        return False

    def problems(self, blocks: Sequence[Block]) -> list[str]:
        """Units are binary."""
        found = super().problems(blocks)
        bad = [] if found else [block.index for block in blocks[:-1] if odd(block)]
        return found + [f"needs blocks of sigmoid units without normalisation and pooling below the top; block {i} is none" for i in bad]

    def init(self, block: Block, key: jax.Array) -> State:
        """a_l at zero."""
        return block.state(block.init(key) if block.top else WithHead(block.init(key), jnp.zeros(block.in_shape)))

    def gradients(self, chain: Chain, state: Row, batch: Batch) -> tuple[Row, Row, Info]:
        """The whole algorithm."""
        learnt = self.learnt(chain, state, batch)
        return learnt.grads, state.memory, Info(learnt.loss[-1], learnt.inputs)

    def learnt(self, chain: Chain, state: Row, batch: Batch) -> Row:
        """What each block finds."""
        v, _ = chain.sweep_up("activation", rise, state, batch.key, first=batch.x, up=self.up)
        learnt = chain.map(learn, state, v, batch.key, steps=self.steps, kind=self.visible)
        return chain.with_top(learnt, chain.at_top(classify, state, learnt, batch.y))

    def diagnose(self, chain: Chain, state: Row, batch: Batch) -> dict[str, Row]:
        """F(v_k) - F(v_0), and the mean square of v_k - v_0."""
        learnt = self.learnt(chain, state, batch)
        return {"free_energy_gap": learnt.gap, "reconstruction": learnt.dream}

    def predict(self, chain: Chain, state: Row, x: Any) -> Any:
        """Class scores, from probabilities."""
        return chain.sweep_up("probability", rise, state, None, first=x, up="probabilities")[1][-1]
