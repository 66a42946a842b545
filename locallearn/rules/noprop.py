"""NoProp: every block learns alone to take the noise out of a label, and nothing passes between blocks in training.

Li, Teh & Pascanu (2025), "NoProp: Training Neural Networks without Back-propagation or Forward-propagation", discrete time.
https://arxiv.org/abs/2503.24322

T blocks, one for each step t = 1 … T of a diffusion that runs from noise (ᾱ_0 = 0) to the label (ᾱ_T almost 1), with u = onehot(y):

    ᾱ_t    = cos²(π/2 · ((T - t)/T + 0.008) / 1.008)      SNR(t) = ᾱ_t / (1 - ᾱ_t)
    z_t    ~ N(√ᾱ_t u, (1 - ᾱ_t) I)                       in training, drawn by each block for itself
    û_t    = softmax(f_t(x, z_{t-1}; θ_t))
    loss_t = ½ T η (SNR(t) - SNR(t-1)) ‖û_t - u‖² + κ cross-entropy(û_t, y)
    z_t    = a_t û_t + b_t z_{t-1}                         in predictions: the mean of q(z_t | z_{t-1}, û_t), from z_0 = 0
    a_t    = √ᾱ_t (1 - ᾱ_{t-1}/ᾱ_t) / (1 - ᾱ_{t-1})       b_t = √(ᾱ_{t-1}/ᾱ_t) (1 - ᾱ_t) / (1 - ᾱ_{t-1})

The prediction is the largest of z_T. The first term is the paper's; its other terms belong to a classifier of z_T and to learnt label
embeddings, which with one-hot labels have nothing to learn. κ lets every block's û be a classification as well. Each block has an optimizer
of its own, so that under Adam the size of its loss hardly matters, only the ratio of the two terms.

Each block sees all of x, so that depth is an ensemble of denoising classifiers, no hierarchy of features. Two controls tell what the
diffusion adds: η = 0 leaves the cross-entropy alone, and `independent` takes z away, too: T classifiers, whose û are averaged.

In training the data and the labels cross to each shard once, batch x size of x numbers and one byte for each example; no block waits for
another. A prediction sends x to each shard and z_t up, batch x classes numbers for a boundary.

What makes it work: the model `denoiser` with ten blocks of two hidden layers (784-512-256-10); Adam at 1e-3 with a falling rate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from locallearn.block import Block, State
from locallearn.chain import Chain, Row
from locallearn.fields import NonNegative
from locallearn.rule import Batch, Info, Message, Rule
from locallearn.rules._common import cross_entropy, flat, label, unknown_classes
from locallearn.search import Log


class Learnt(NamedTuple):
    """A block's loss and its gradient, what it saw, and the mean of ‖û - u‖²."""

    loss: jax.Array
    grads: Any
    inputs: jax.Array
    error: jax.Array


def alpha_bar(t: int, steps: int) -> float:
    """ᾱ_t: the share of the label in the variance of z_t."""
    return math.cos(math.pi / 2 * ((steps - t) / steps + 0.008) / 1.008) ** 2 if t else 0.0


def snr(t: int, steps: int) -> float:
    """SNR(t)."""
    return alpha_bar(t, steps) / (1 - alpha_bar(t, steps))


def posterior(t: int, steps: int) -> tuple[float, float, float]:
    """a_t, b_t and the variance c_t of q(z_t | z_{t-1}, u) = N(a_t u + b_t z_{t-1}, c_t I)."""
    now, before = alpha_bar(t, steps), alpha_bar(t - 1, steps)
    step = before / now
    return math.sqrt(now) * (1 - step) / (1 - before), math.sqrt(step) * (1 - now) / (1 - before), (1 - now) * (1 - step) / (1 - before)


def scores(block: Block, params: Any, x: jax.Array, z: jax.Array, level: Any) -> tuple[jax.Array, jax.Array]:
    """f_t: [batch, classes], and what the block saw. z: [batch, classes], level: a number, or [batch, 1]."""
    seen = jnp.concatenate([flat(x), z, jnp.broadcast_to(jnp.asarray(level, z.dtype), (len(z), 1))], 1)
    out = block.apply(params, seen)
    return (out if block.top else out[:, -1 - block.classes : -1]), seen


def learn(block: Block, state: State, x: jax.Array, y: jax.Array, key: jax.Array, *, eta: float, kappa: float, independent: bool) -> Learnt:
    """loss_t and its gradient at one draw of z_{t-1}. x: [batch, *example_shape], y: [batch] int."""
    t, steps = block.index + 1, block.count
    y, share = y.astype(jnp.int32), alpha_bar(block.index, block.count)
    u = jax.nn.one_hot(y, block.classes, dtype=x.dtype)
    z = math.sqrt(share) * u + math.sqrt(1 - share) * jax.random.normal(jax.random.fold_in(key, block.index), u.shape, u.dtype)
    z = jnp.zeros_like(z) if independent else z

    def loss(params: Any) -> tuple[jax.Array, Any]:
        guess, seen = scores(block, params, x, z, block.index / steps)
        error = jnp.sum((jax.nn.softmax(guess) - u) ** 2, 1).mean()
        return 0.5 * steps * eta * (snr(t, steps) - snr(t - 1, steps)) * error + kappa * cross_entropy(guess, y), (seen, error)

    (value, (seen, error)), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
    return Learnt(value, grads, seen, error)


def denoise(block: Block, state: State, x: jax.Array, z: Any, *, independent: bool) -> jax.Array:
    """z_t from z_{t-1}, which is 0 below the bottom; of independent classifiers the sum of û so far: [batch, classes]."""
    z = jnp.zeros((x.shape[0], block.classes), x.dtype) if z is None else z
    a, b, _ = (1.0, 1.0, 0.0) if independent else posterior(block.index + 1, block.count)
    guess, _ = scores(block, state.params, x, jnp.zeros_like(z) if independent else z, block.index / block.count)
    return a * jax.nn.softmax(guess) + b * z


def no_denoiser(blocks: Sequence[Block]) -> list[str]:
    """Whether blocks do not map [x, z, level] to class scores, in a sentence."""
    if found := unknown_classes(blocks):
        return found
    wanted = (math.prod(blocks[0].in_shape) + blocks[0].classes + 1,)
    fits = all(b.in_shape == wanted for b in blocks[1:]) and all(b.out_shape == wanted for b in blocks[:-1])
    return [] if fits and blocks[0].composite else ["needs blocks that each see x and a noisy label: `model: {name: denoiser}` gives them"]


@dataclass(frozen=True)
class NoProp(Rule):
    """NoProp in discrete time. eta: η. kappa: κ. independent: the control without z."""

    eta: NonNegative = 0.1
    kappa: NonNegative = 1.0
    independent: bool = False

    space: ClassVar = {"eta": Log(0.01, 1.0)}
    messages: ClassVar = {
        "input": Message("input", "broadcast from the bottom", "x, to every shard, also in predictions"),
        "label": Message("label", "broadcast", "y, from the top to every block"),
        "state": Message("evaluation", "up", "z_t, in predictions alone; of independent classifiers the sum of û"),
    }
    family: ClassVar = "denoising blocks"
    assumes: ClassVar = "data and labels in every block; nothing is locked"

    @property
    def additive_over_batch(self) -> bool:
        """Parts of a batch would have other noise."""
        return self.independent

    def problems(self, blocks: Sequence[Block]) -> list[str]:
        """Blocks must see x and z, and have something to learn."""
        found = super().problems(blocks) + no_denoiser(blocks)
        return found if self.eta or self.kappa else [*found, "has nothing to learn with `eta: 0` and `kappa: 0`"]

    def gradients(self, chain: Chain, state: Row, batch: Batch) -> tuple[Row, Row, Info]:
        """The whole algorithm."""
        learnt = self.learnt(chain, state, batch)
        return learnt.grads, state.memory, Info(learnt.loss[-1], learnt.inputs)

    def learnt(self, chain: Chain, state: Row, batch: Batch) -> Row:
        """What each block finds."""
        x = chain.broadcast("input", batch.x, source="bottom")
        y = chain.broadcast("label", chain.at_top(label, batch.y))
        return chain.map(learn, state, x, y, batch.key, eta=self.eta, kappa=self.kappa, independent=self.independent)

    def diagnose(self, chain: Chain, state: Row, batch: Batch) -> dict[str, Row]:
        """How far each block's û is from the label."""
        return {"denoising_error": self.learnt(chain, state, batch).error}

    def predict(self, chain: Chain, state: Row, x: Any) -> Any:
        """z_T."""
        shown = chain.broadcast("input", x, source="bottom")
        return chain.sweep_up("state", denoise, state, shown, first=None, independent=self.independent)[1][-1]
