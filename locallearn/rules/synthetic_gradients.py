"""Synthetic gradients (decoupled neural interfaces, DNI): every block predicts its error instead of waiting for it.

Jaderberg, Czarnecki, Osindero, Vinyals, Graves, Silver & Kavukcuoglu (2017), "Decoupled Neural Interfaces using Synthetic Gradients", ICML.
https://arxiv.org/abs/1608.05343
Why it converges: Czarnecki et al. (2017), https://arxiv.org/abs/1703.00522

With h_l = f_l(h_{l-1}; θ_l), h_0 = x, C_b the loss of one example, and for each block below the top a model M_l of the error of its output,
given its output and, with `label`, the class:

    ĝ_l  = M_l(h_l, y)                                       ĝ_L = ∂C_b/∂h_L, the true one
    ∇θ_l = (∂f_l/∂θ_l)ᵀ ĝ_l                                  at once; mean over the batch
    g_l  = (∂f_{l+1}/∂h_l)ᵀ ĝ_{l+1}                          what the block above says that the error was
    ∇M_l = ∂/∂M_l ½ ‖ĝ_l - g_l‖²                             mean over the examples of which g_l was sent

g_l is itself made from a prediction, but for l = L-1, so that nobody waits for the top and the truth seeps down from step to step. If all
M_l are right, this is backpropagation. M_l is linear, or has one relu layer of `hidden` units; its last layer begins at zero, so that
blocks do not move before they know where to. For outputs with spatial axes it is a convolution over 5 positions along each, and the class
is a constant plane.

A boundary carries h_l up once, batch x width numbers, and g_l down for every `every`-th example of the batch, batch/every x width numbers
(rounded up to whole examples); with `label` also the labels to each shard once, one byte for each example. To send all errors at every
k-th step and none between would be as many numbers; with some of each batch every step costs the same, and M_l learns all the time.

What makes it work: `label`, and models that learn faster than the blocks whose errors they predict. Block and model have one optimizer, so
the output of M_l is multiplied by `speed`, and a step of Adam moves the prediction so many times as far.
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
from locallearn.convolution import convolve
from locallearn.fields import Count, NonNegativeInt, Positive
from locallearn.rule import Batch, Info, Message, Rule
from locallearn.rules._common import cross_entropy, forward_body, head_key, label, unknown_classes
from locallearn.search import Log


class Affine(NamedTuple):
    """One layer of M_l: a matrix, or a kernel with a 5 for each spatial axis, and a bias for each channel."""

    kernel: jax.Array
    bias: jax.Array


class Pulled(NamedTuple):
    """∇θ_l, what the block tells the one below (g_{l-1}, for the examples that are sent), and at the top the loss."""

    grads: Any
    down: Any
    loss: Any


def new_layer(shape: Sequence[int], n_in: int, n_out: int, key: jax.Array | None) -> Affine:
    """A layer for features of this shape (channels last); without a key it is zero."""
    size = (*(5 for _ in shape[:-1]), n_in, n_out)
    kernel = jnp.zeros(size) if key is None else jax.random.normal(key, size) * math.sqrt(2 / math.prod(size[:-1]))
    return Affine(kernel, jnp.zeros(n_out))


def affine(layer: Affine, v: jax.Array) -> jax.Array:
    """v: [batch, ..., n_in] -> [batch, ..., n_out]."""
    if v.ndim == 2:
        return v @ layer.kernel + layer.bias
    return convolve(v, layer.kernel) + layer.bias


def synthesise(block: Block, layers: tuple[Affine, ...], h: jax.Array, y: Any, speed: float) -> jax.Array:
    """ĝ_l, for each example: [batch, *out_shape]. y: [batch], or None."""
    v = h
    if y is not None:
        planes = jax.nn.one_hot(y, block.classes, dtype=h.dtype).reshape(len(h), *(1 for _ in h.shape[2:]), block.classes)
        v = jnp.concatenate([h, jnp.broadcast_to(planes, (*h.shape[:-1], block.classes))], -1)
    for layer in layers[:-1]:
        v = jax.nn.relu(affine(layer, v))
    return speed * affine(layers[-1], v)


def backward(block: Block, state: State, x: jax.Array, y: Any, *, every: int, speed: float) -> Pulled:
    """∇θ_l by the predicted error, and the error of the input. x: [batch, *in_shape]; y: the labels, which the top must have."""
    h, pull = jax.vjp(block.apply, state.params.block, x)
    loss, error = None, None
    if block.top:
        loss, error = jax.value_and_grad(cross_entropy)(h, y)
    else:
        error = synthesise(block, state.params.head, h, y, speed) / x.shape[0]
    grads, down = pull(error)
    return Pulled(grads, None if block.bottom else (down * x.shape[0])[::every], loss)


def regress(block: Block, state: State, h: jax.Array, y: Any, told: Any, grads: Any, *, every: int, speed: float) -> WithHead:
    """∇θ_l and ∇M_l. told: g_l of every `every`-th example, as many as there are."""
    if block.top:
        return WithHead(grads, ())
    some = None if y is None else y[::every]

    def miss(layers: tuple[Affine, ...]) -> jax.Array:
        return 0.5 * jnp.sum((synthesise(block, layers, h[::every], some, speed) - told) ** 2) / told.shape[0]

    return WithHead(grads, jax.grad(miss)(state.params.head))


def likeness(block: Block, state: State, h: jax.Array, y: Any, told: Any, *, speed: float) -> jax.Array:
    """Cosine of ĝ_l and g_l, over the whole batch; 1 at the top."""
    if block.top:
        return jnp.ones(())
    own = synthesise(block, state.params.head, h, y, speed)
    return jnp.sum(own * told) / jnp.maximum(jnp.linalg.norm(own) * jnp.linalg.norm(told), jnp.finfo(own.dtype).tiny)


@dataclass(frozen=True)
class SyntheticGradients(Rule):
    """Synthetic gradients.

    every: one in so many examples has its error sent. label: M_l sees the class. hidden: units of M_l, 0 for a linear one. speed: what the
    output of M_l is multiplied by.
    """

    every: Count = 1
    label: bool = True
    hidden: NonNegativeInt = 0
    speed: Positive = 8.0

    space: ClassVar = {"speed": Log(1.0, 32.0)}
    messages: ClassVar = {
        "activation": Message("activation", "up", "h_l, once"),
        "error": Message("error", "down", "g_l, of every `every`-th example, once"),
        "label": Message("label", "broadcast", "y, from the top to every block; with `label`"),
    }
    family: ClassVar = "decoupled"
    assumes: ClassVar = "labels in every block, with `label`; only forward locked"
    locking: ClassVar = ("forward",)  # the true error trains M_l alone: no block waits for it

    @property
    def additive_over_batch(self) -> bool:
        """Which examples the M_l learn from depends on how the batch is cut."""
        return self.every == 1

    def problems(self, blocks: Sequence[Block]) -> list[str]:
        """M_l may be told the class, and takes at most three spatial axes."""
        found = super().problems(blocks) + (unknown_classes(blocks) if self.label else [])
        deep = [block.index for block in blocks[:-1] if len(block.out_shape) > 4]
        return [*found, *(f"takes features with at most three spatial axes; block {i} has more" for i in deep[:1])]

    def init(self, block: Block, key: jax.Array) -> State:
        """The block's own parameters, and the layers of M_l."""
        if block.top:
            return block.state(WithHead(block.init(key), ()))
        shape, n = block.out_shape, block.out_shape[-1]
        sizes = [n + (block.classes if self.label else 0), *([self.hidden] if self.hidden else [])]
        first = [new_layer(shape, sizes[0], self.hidden, head_key(key))] if self.hidden else []
        return block.state(WithHead(block.init(key), (*first, new_layer(shape, sizes[-1], n, None))))

    def gradients(self, chain: Chain, state: Row, batch: Batch) -> tuple[Row, Row, Info]:
        """Every block as soon as it has its input; then what it is told of its error."""
        x, h, y, pulled = self.pass_through(chain, state, batch, self.every)
        told = chain.down("error", pulled.down, last=None)
        grads = chain.map(regress, state, h, y, told, pulled.grads, every=self.every, speed=self.speed)
        return grads, state.memory, Info(pulled.loss[-1], x)

    def pass_through(self, chain: Chain, state: Row, batch: Batch, every: int) -> tuple[Row, Row, Row, Row]:
        """(inputs, outputs, labels where they are known, what `backward` gives) of every block."""
        x, h = chain.sweep_up("activation", forward_body, state, first=batch.x)
        y = chain.broadcast("label", chain.at_top(label, batch.y)) if self.label else chain.with_top(Row([None] * chain.n), batch.y)
        return x, h, y, chain.map(backward, state, x, y, every=every, speed=self.speed)

    def predict(self, chain: Chain, state: Row, x: Any) -> Any:
        """A plain forward pass."""
        return chain.sweep_up("activation", forward_body, state, first=x)[1][-1]

    def diagnose(self, chain: Chain, state: Row, batch: Batch) -> dict[str, Row]:
        """likeness: cosine of the predicted error with what the block above says."""
        _, h, y, pulled = self.pass_through(chain, state, batch, 1)
        return {"likeness": chain.map(likeness, state, h, y, chain.down("error", pulled.down, last=None), speed=self.speed)}
