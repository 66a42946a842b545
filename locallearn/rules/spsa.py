"""Simultaneous perturbation: two forward passes on either side of the parameters, and one number comes back (SPSA, MeZO).

Spall (1992), "Multivariate Stochastic Approximation Using a Simultaneous Perturbation Gradient Approximation", IEEE Transactions on
Automatic Control 37(3). https://doi.org/10.1109/9.119632
From a seed, for large networks: Malladi et al. (2023), "Fine-Tuning Language Models with Just Forward Passes", NeurIPS.
https://arxiv.org/abs/2305.17333

With θ all parameters of the network and v a random direction, independent normal numbers (`rademacher`: signs), ε = epsilon:

    g  = (loss(θ + ε v) - loss(θ - ε v)) / 2ε        the projected gradient: ⟨∇loss, v⟩ with an error O(ε²)
    ∇θ ≈ g v                                         mean over `samples` directions

No block knows more of the others than g: each draws its part of v from the step's seed, and draws it again for the update. A boundary
carries both passes up, 2 x batch x width numbers for each direction, and one number down to each shard. (Copies of a whole network that
share seeds would exchange nothing but g.)

What makes it work: little does, from scratch. The estimate is ⟨∇loss, v⟩ v, and for d parameters its squared length is about d times that
of the gradient: the rate has to fall, and the number of steps to rise, with d. The paper fine-tunes networks that are good already, with
rates of 1e-6. In 32 bits ε below 1e-4 drowns in rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from locallearn.block import Block, State
from locallearn.chain import Chain, Row
from locallearn.fields import Count, Positive
from locallearn.rule import Batch, Info, Message
from locallearn.rules._common import cross_entropy
from locallearn.rules._perturbation import Distribution, Perturbation, along, direction, nothing
from locallearn.search import Log


class Projected(NamedTuple):
    """The mean of both losses, and the slope between them."""

    loss: jax.Array
    slope: jax.Array


def both(block: Block, state: State, v: Any, x: jax.Array, *, epsilon: float) -> jax.Array:
    """h_l of θ + εv, then of θ - εv: [2 x batch, *out_shape]. x: theirs from below, or the data, [batch, *in_shape], at the bottom."""

    def shifted(sign: float) -> Any:
        return jax.tree.map(lambda p, d: p + sign * epsilon * d, state.params, v)

    plus, minus = (x, x) if block.bottom else jnp.split(x, 2)
    return jnp.concatenate([block.apply(shifted(1.0), plus), block.apply(shifted(-1.0), minus)])


def projected(block: Block, h: jax.Array, y: jax.Array, *, epsilon: float) -> Projected:
    """g, from the class scores of both passes."""
    plus, minus = (cross_entropy(scores, y) for scores in jnp.split(h, 2))
    return Projected((plus + minus) / 2, (plus - minus) / (2 * epsilon))


def no_loss(block: Block, state: State) -> jax.Array:
    """The sum of no losses, in the type of the parameters."""
    return jnp.zeros((), jax.tree.leaves(state.params)[0].dtype)


def add(block: Block, total: jax.Array, loss: jax.Array, *, samples: int) -> jax.Array:
    """The mean loss so far."""
    return total + loss / samples


@dataclass(frozen=True)
class SPSA(Perturbation):
    """Simultaneous perturbation with softmax cross-entropy. epsilon: half the distance of the two passes. samples: directions in a step."""

    epsilon: Positive = 1e-3
    samples: Count = 1
    distribution: Distribution = "normal"

    space: ClassVar = {"epsilon": Log(1e-4, 1e-2)}
    messages: ClassVar = {
        "activation": Message("activation", "up", "h_l of θ + εv and of θ - εv together, once for each direction"),
        "projection": Message("scalar", "broadcast from the top", "g, once for each direction"),
    }
    assumes: ClassVar = "two forward passes for each direction; forward and update locked"

    def estimate(self, chain: Chain, state: Row, batch: Batch) -> tuple[Row, Info]:
        """(row of estimates, loss)."""

        def turn(number: Any, carry: tuple[Row, Any]) -> tuple[Row, Any]:
            so_far, total = carry
            v = chain.map(direction, state, batch.key, number, distribution=self.distribution)
            _, h = chain.sweep_up("activation", both, state, v, first=batch.x, epsilon=self.epsilon)
            top = chain.at_top(projected, h, batch.y, epsilon=self.epsilon)
            g = chain.broadcast("projection", top.slope)
            return chain.map(along, so_far, v, g, samples=self.samples), chain.at_top(add, total, top.loss, samples=self.samples)

        start: tuple[Row, Any] = chain.map(nothing, state), chain.at_top(no_loss, state)
        estimate, loss = chain.repeat(self.samples, turn, start)
        return estimate, Info(loss)
