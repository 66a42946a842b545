"""What rules share that learn from a random direction and from numbers that say how good it was."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp

from locallearn.block import Block, State
from locallearn.chain import Chain, Row
from locallearn.rule import Batch, Info, Rule

Distribution = Literal["normal", "rademacher"]


class Estimate(NamedTuple):
    """A block's estimate of its gradient so far, and the mean size of the projections that it was made from."""

    grads: Any
    projection: jax.Array


def noise(key: jax.Array, shape: tuple[int, ...], dtype: Any, distribution: Distribution) -> jax.Array:
    """Independent numbers of mean 0 and variance 1; those of `rademacher` are +1 and -1."""
    draw = jax.random.rademacher if distribution == "rademacher" else jax.random.normal
    return draw(key, shape, dtype)


def direction(block: Block, state: State, key: jax.Array, number: Any, *, distribution: Distribution) -> Any:
    """v_l, like the block's parameters, from the step's key: every shard draws its own, and nothing crosses for it."""
    leaves, tree = jax.tree.flatten(state.params)
    keys = jax.random.split(own_key(block, key, number), len(leaves))
    return jax.tree.unflatten(tree, [noise(k, p.shape, p.dtype, distribution) for k, p in zip(keys, leaves, strict=True)])


def own_key(block: Block, key: jax.Array, number: Any = 0) -> jax.Array:
    """The key of one block's draw. key: the step's; number: of the draw within the step."""
    return jax.random.fold_in(jax.random.fold_in(key, block.index), number)


def nothing(block: Block, state: State) -> Estimate:
    """The estimate before the first direction."""
    return Estimate(jax.tree.map(jnp.zeros_like, state.params), jnp.zeros(()))


def along(block: Block, so_far: Estimate, v: Any, slope: jax.Array, *, samples: int) -> Estimate:
    """The estimate with `slope` · v_l added, one of `samples`."""
    grads = jax.tree.map(lambda g, d: g + slope * d / samples, so_far.grads, v)
    return Estimate(grads, so_far.projection + jnp.abs(slope).mean().astype(so_far.projection.dtype) / samples)


def length(block: Block, grads: Any) -> jax.Array:
    """The Euclidean norm of a block's gradient."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(grads)))


def each_cross_entropy(h: jax.Array, y: jax.Array) -> jax.Array:
    """Softmax cross-entropy of each example: [batch]. h: [batch, classes], y: [batch] int."""
    return -jnp.take_along_axis(jax.nn.log_softmax(h), y[:, None].astype(jnp.int32), 1)[:, 0]


@dataclass(frozen=True)
class Perturbation(Rule):
    """A rule whose `estimate` gives (row of `Estimate`, Info)."""

    family: ClassVar = "perturbation"

    @property
    def additive_over_batch(self) -> bool:
        """Parts of a batch would draw other directions."""
        return False

    def estimate(self, chain: Chain, state: Row, batch: Batch) -> tuple[Row, Info]:
        """What each block makes of its perturbations."""
        raise NotImplementedError

    def gradients(self, chain: Chain, state: Row, batch: Batch) -> tuple[Row, Row, Info]:
        """The whole algorithm."""
        estimate, info = self.estimate(chain, state, batch)
        return estimate.grads, state.memory, info

    def diagnose(self, chain: Chain, state: Row, batch: Batch) -> dict[str, Row]:
        """The length of the estimated gradient, and the mean size of the projections."""
        estimate, _ = self.estimate(chain, state, batch)
        return {"gradient_norm": chain.map(length, estimate.grads), "projection": estimate.projection}
