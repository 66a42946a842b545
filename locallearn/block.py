"""A block: the unit that learns locally. What is static stands here; what is learnt lives in a `State`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

if TYPE_CHECKING:
    import optax

Spec = jax.ShapeDtypeStruct


class State(NamedTuple):
    """A block's arrays: what the optimizer changes, the optimizer's own, and what the rule keeps besides."""

    params: Any
    opt: Any = ()
    memory: Any = ()


@dataclass(frozen=True, eq=False)
class Block:
    """The static description of one block: a Flax module, cut into `pre` and `post`.

    `apply(params, x) = post(params, pre(params, x))`, where `pre` is one linear or convolutional map (with its bias) and `post` is what
    follows: normalisation, activation, pooling. A composite module (residual, transformer) defines `__call__` alone; `composite` is then
    true and `pre` and `post` are not to be used. Two blocks are never equal: compiled programs are kept for each.

    in_shape: shape of one example at the input. build: makes the module from `nnx.Rngs`. classes: what the top block tells apart; local
    heads below it need the number.
    """

    build: Callable[[nnx.Rngs], nnx.Module]
    in_shape: tuple[int, ...]
    index: int = 0
    count: int = 1
    tx: optax.GradientTransformation | None = None
    learns: bool = True
    classes: int = 0

    @property
    def bottom(self) -> bool:
        """Whether this is the block that sees the data."""
        return self.index == 0

    @property
    def top(self) -> bool:
        """Whether this is the block that knows the labels."""
        return self.index == self.count - 1

    @cached_property
    def _abstract(self) -> tuple[Any, Any]:
        graph, params = nnx.split(nnx.eval_shape(lambda: self.build(nnx.Rngs(0))))
        return graph, nnx.to_pure_dict(params)

    @cached_property
    def module(self) -> nnx.Module:
        """The module with shapes in place of arrays: for its attributes alone."""
        return nnx.merge(*self._abstract)

    @property
    def composite(self) -> bool:
        """Whether the block has only `apply`."""
        return not hasattr(self.module, "pre")

    @cached_property
    def out_shape(self) -> tuple[int, ...]:
        """Shape of one example at the output."""
        x = Spec((1, *self.in_shape), jnp.float32)
        return jax.eval_shape(self.apply, self._abstract[1], x).shape[1:]

    @property
    def activation(self) -> str:
        """Name of the activation function, or `identity`."""
        return getattr(self.module, "activation", "identity")

    def init(self, key: jax.Array) -> Any:
        """Fresh parameters, a nested dictionary of arrays."""
        return nnx.to_pure_dict(nnx.state(self.build(nnx.Rngs(params=key)), nnx.Param))

    def pre(self, params: Any, x: jax.Array) -> jax.Array:
        """The linear part. x: [batch, *in_shape]."""
        return nnx.merge(self._abstract[0], params).pre(x)

    def post(self, params: Any, u: jax.Array) -> jax.Array:
        """What follows the linear part. u: what `pre` returned."""
        return nnx.merge(self._abstract[0], params).post(u)

    def apply(self, params: Any, x: jax.Array) -> jax.Array:
        """The whole block. x: [batch, *in_shape] -> [batch, *out_shape]."""
        module = nnx.merge(self._abstract[0], params)
        return module(x) if not hasattr(module, "pre") else module.post(module.pre(x))

    def state(self, params: Any, memory: Any = ()) -> State:
        """A state at the start of training, with a fresh optimizer."""
        return State(params, self.tx.init(params) if self.tx else (), memory)

    def descend(self, state: State, grads: Any) -> State:
        """One step of this block's optimizer; a block that does not learn in this phase stays as it is."""
        import optax  # here, as wherever optax is used: checking a file needs the rules, but no optimizer

        if not self.learns or self.tx is None:
            return state
        updates, opt = self.tx.update(grads, state.opt, state.params)
        return state._replace(params=optax.apply_updates(state.params, updates), opt=opt)
