"""The first shard alone, with a linear read-out: what a machine reaches that sends nothing. And an average of as many such machines.

A baseline, not a published method; averages of networks that differ in their initialisation alone: Lakshminarayanan, Pritzel & Blundell
(2017), "Simple and Scalable Predictive Uncertainty Estimation using Deep Ensembles", NeurIPS. https://arxiv.org/abs/1612.01474

With h the output of the first shard's last block, f its blocks, and M members, each with parameters θ_m, U_m, b_m of its own:

    scores_m = U_m h + b_m,    h = f(x; θ_m)        Δ(θ_m, U_m, b_m) ∝ -∂cross-entropy(softmax(scores_m), y)
    p(y | x) = mean over m of softmax(scores_m)

Of a model that is cut into shards it trains the blocks of the first one by backpropagation, and has a linear read-out from all of their
features in place of the blocks above. Nothing crosses: a machine that is alone has examples and labels by definition, where the first of
several shards has only examples. `members: 4` are four machines that never speak to each other, each with the whole training set, in the
same order, and with another initialisation; only to predict do they meet, when training is over: M times batch x classes numbers that would
cross then are no traffic of training, and are not counted. Of a model in one shard this is backpropagation.

What makes it a fair baseline: it is tuned as the others are, and given their compute. A first shard with the compute of all shards is a
setting of the model, such as `{when: {rule.name: solo}, set: {model.widths: [784, 2048, 512, 512, 10]}}` under a sweep's `overrides`. There
is no bridge where nothing is cut. The optimizer's `clip` is over all members together.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from locallearn.block import Block, State, stacked
from locallearn.chain import Chain, Row
from locallearn.convolution import Convolution
from locallearn.fields import Count, NonNegativeInt
from locallearn.rule import Batch, Info, Message, Rule
from locallearn.rules._common import Top, flat, output_error
from locallearn.rules._heads import Auxiliary, Layer, auxiliary, hidden_shapes
from locallearn.rules.backprop import Pulled, backward

HE, LECUN = nnx.initializers.he_normal(), nnx.initializers.lecun_normal()


def hidden_layer(kernel: Sequence[int], rngs: nnx.Rngs) -> nnx.Module:
    """A layer whose kernel has this shape."""
    *taps, n_in, n_out = kernel
    if taps:
        return Convolution(n_in, n_out, tuple(taps), kernel_init=HE, rngs=rngs)
    return nnx.Linear(n_in, n_out, kernel_init=HE, rngs=rngs)


def parameters(module: Any) -> Layer:
    """Those of a layer."""
    return Layer(module.kernel[...], module.bias[...])


class ReadOut(nnx.Module):
    """Class scores from all features: a linear layer, behind hidden layers as those of `decoupled_greedy`'s auxiliary networks."""

    activation = "identity"

    def __init__(self, shape: tuple[int, ...], classes: int, depth: int, width: int, head: str, rngs: nnx.Rngs):
        kernels, n = hidden_shapes(shape, depth, width, head)
        self.hidden = nnx.List([hidden_layer(kernel, rngs) for kernel in kernels])
        begin = nnx.initializers.zeros if depth else LECUN
        self.linear = nnx.Linear(n if depth else math.prod(shape), classes, kernel_init=begin, rngs=rngs)

    def pre(self, h: jax.Array) -> jax.Array:
        """h: [batch, ...] -> [batch, classes]."""
        if not self.hidden:
            return self.linear(flat(h))
        return auxiliary(Auxiliary(tuple(map(parameters, self.hidden)), parameters(self.linear)), h)

    def post(self, u: jax.Array) -> jax.Array:
        """Nothing."""
        return u


def of_each(value: Any, members: int) -> tuple[Any, ...]:
    """What each member has: what is not its own it shares with the others."""
    return value if isinstance(value, tuple) and members > 1 else (value,) * members


def together(values: Sequence[Any]) -> Any:
    """A value for each member; a single one stands for itself."""
    return tuple(values) if len(values) > 1 else values[0]


def rise(block: Block, state: State, x: Any, *, members: int) -> Any:
    """h of each member."""
    pairs = zip(of_each(state.params, members), of_each(x, members), strict=True)
    return together([block.apply(params, seen) for params, seen in pairs])


def errors(block: Block, h: Any, y: jax.Array, *, members: int) -> Top:
    """The mean loss, and each member's own error."""
    tops = [output_error(block, scores, y) for scores in of_each(h, members)]
    return Top(jnp.stack([top.loss for top in tops]).mean(), together([top.error for top in tops]))


def fall(block: Block, state: State, x: Any, delta: Any, *, members: int) -> Pulled:
    """δ of each member through its own block."""
    each = zip(of_each(state.params, members), of_each(x, members), of_each(delta, members), strict=True)
    pulled = [backward(block, State(params), seen, error) for params, seen, error in each]
    return Pulled(together([p.grads for p in pulled]), together([p.down for p in pulled]))


def average(block: Block, h: Any, *, members: int) -> jax.Array:
    """log of the mean probability; one member's scores as they are."""
    if members == 1:
        return h
    return jax.nn.logsumexp(jnp.stack([jax.nn.log_softmax(scores) for scores in h]), axis=0) - math.log(members)


@dataclass(frozen=True)
class Solo(Rule):
    """The first shard alone. members: as many of them, each with its own initialisation, whose predictions are averaged.

    depth, width, head: hidden layers before the read-out, as `decoupled_greedy` has them in its auxiliary networks.
    """

    members: Count = 1
    depth: NonNegativeInt = 0
    width: NonNegativeInt = 0
    head: Literal["mlp", "conv"] = "mlp"

    messages: ClassVar = {
        "activation": Message("activation", "up", "h_l, once, within the one shard"),
        "error": Message("error", "down", "δ_l, once, within the one shard"),
    }
    family: ClassVar = "backprop"
    assumes: ClassVar = "a machine that has all examples, all labels and nobody to speak to"
    locking: ClassVar = ()

    def deployed(self, blocks: Sequence[Block], placement: Sequence[int]) -> tuple[Sequence[Block], tuple[int, ...]]:
        """The blocks of the first shard and a read-out, all in one shard."""
        own = [block for block, shard in zip(blocks, placement, strict=True) if not shard]
        if len(own) < len(blocks):
            shape, classes = own[-1].out_shape, blocks[-1].out_shape[0]
            build = functools.partial(ReadOut, shape, classes, self.depth, self.width, self.head)
            own.append(replace(blocks[-1], build=build, in_shape=shape, in_dtype=jnp.float32))
        own = [replace(block, index=i, count=len(own)) for i, block in enumerate(own)]
        return stacked(own), (0,) * len(own)

    def problems(self, blocks: Sequence[Block]) -> list[str]:
        """Running statistics are kept for one member."""
        alone = self.members == 1 or not any(block.has_statistics for block in blocks)
        return [] if alone else ["with several `members` takes no batch normalisation: take layer normalisation or none"]

    def init(self, block: Block, key: jax.Array) -> State:
        """The first member begins as under every other rule."""
        keys = [key, *(jax.random.fold_in(key, m) for m in range(1, self.members))]
        return block.state(together([block.init(k) for k in keys]))

    def gradients(self, chain: Chain, state: Row, batch: Batch) -> tuple[Row, Row, Info]:
        """Backpropagation, in each member."""
        x, h = chain.sweep_up("activation", rise, state, first=batch.x, members=self.members)
        top = chain.at_top(errors, h, batch.y, members=self.members)
        pulled = chain.sweep_down("error", fall, state, x, last=top.error, members=self.members)
        return pulled.grads, state.memory, Info(top.loss, x)

    def predict(self, chain: Chain, state: Row, x: Any) -> Any:
        """The members' average."""
        _, h = chain.sweep_up("activation", rise, state, first=x, members=self.members)
        return chain.at_top(average, h, members=self.members)
