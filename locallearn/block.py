"""A block: the unit that learns locally. What is static stands here; what is learnt lives in a `State`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from locallearn.errors import RuleError

if TYPE_CHECKING:
    import optax

Spec = jax.ShapeDtypeStruct


class WithHead(NamedTuple):
    """The parameters of a block, and others that the same optimizer trains: those of its local head, its feedback weights."""

    block: Any
    head: Any


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

    Batch normalisation keeps running statistics (`nnx.BatchStat`): leaves of the parameters that no optimizer touches. While the block
    learns, `apply` normalises by the statistics of the batch; `evaluating`, the block as evaluations use it, by the running ones.

    A block rests in a phase where no block that learns needs its work, as those above the highest that learns where nothing comes down
    (`locallearn.runtime.influence`). No step brings it anything from below, so it computes and sends nothing; evaluations do.

    in_shape: shape of one example at the input. in_dtype: its type. build: makes the module from `nnx.Rngs`. classes: what the top block
    tells apart; local heads below it need the number. later: the blocks above it, for rules that copy what they are (not what they learnt).
    batch: examples of a training step, for rules that keep them between steps. training: false in evaluations.
    """

    build: Callable[[nnx.Rngs], nnx.Module]
    in_shape: tuple[int, ...]
    index: int = 0
    count: int = 1
    tx: optax.GradientTransformation | None = None
    learns: bool = True
    classes: int = 0
    in_dtype: Any = jnp.float32
    batch: int = 0
    training: bool = True
    rests: bool = False
    later: tuple[Block, ...] = ()

    @property
    def bottom(self) -> bool:
        """Whether this is the block that sees the data."""
        return self.index == 0

    @property
    def top(self) -> bool:
        """Whether this is the block that knows the labels."""
        return self.index == self.count - 1

    @cached_property
    def _shapes(self) -> nnx.Module:
        return nnx.eval_shape(lambda: self.build(nnx.Rngs(0)))

    @cached_property
    def _abstract(self) -> tuple[Any, Any]:
        module = nnx.merge(*nnx.split(self._shapes))  # one of this trace's own, to be changed
        if not (self.training and self.learns):
            module.eval()
        graph, params = nnx.split(module)
        return graph, nnx.to_pure_dict(params)

    @cached_property
    def _is_statistic(self) -> Any:
        """The tree of the parameters with a truth value for each leaf."""
        kinds = nnx.state(self._shapes)
        return nnx.to_pure_dict(nnx.map_state(lambda path, leaf: leaf.replace(isinstance(leaf, nnx.BatchStat)), kinds))

    @cached_property
    def has_statistics(self) -> bool:
        """Whether the block normalises over the batch and keeps running statistics."""
        return any(jax.tree.leaves(self._is_statistic))

    @property
    def observes(self) -> bool:
        """Whether a step of this block changes its running statistics."""
        return self.has_statistics and self.learns

    @cached_property
    def evaluating(self) -> Block:
        """The block as evaluations use it: itself, unless it rests or keeps running statistics."""
        return replace(self, training=False, rests=False) if self.has_statistics or self.rests else self

    @cached_property
    def module(self) -> nnx.Module:
        """The module with shapes in place of arrays: for its attributes alone."""
        return nnx.merge(*self._abstract)

    @property
    def composite(self) -> bool:
        """Whether the block has only `apply`."""
        return not hasattr(self.module, "pre")

    @property
    def elementwise(self) -> bool:
        """Whether `post` acts on each number by itself, as far as its shape and its normalisation tell."""
        return self.pre_shape == self.out_shape and getattr(self.module, "norm", None) is None

    @cached_property
    def out_shape(self) -> tuple[int, ...]:
        """Shape of one example at the output."""
        return jax.eval_shape(self.apply, self._abstract[1], self.examples(1)).shape[1:]

    @cached_property
    def pre_shape(self) -> tuple[int, ...]:
        """Shape of one example behind the linear part."""
        return jax.eval_shape(self.pre, self._abstract[1], self.examples(1)).shape[1:]

    def examples(self, count: int) -> Spec:
        """Shape and type of a batch of so many examples at the input."""
        return Spec((count, *self.in_shape), self.in_dtype)

    @property
    def activation(self) -> str:
        """Name of the activation function, or `identity`."""
        return getattr(self.module, "activation", "identity")

    def init(self, key: jax.Array) -> Any:
        """Fresh parameters, a nested dictionary of arrays."""
        return nnx.to_pure_dict(nnx.state(self.build(nnx.Rngs(params=key)), (nnx.Param, nnx.BatchStat)))

    def pre(self, params: Any, x: jax.Array) -> jax.Array:
        """The linear part. x: [batch, *in_shape]."""
        return nnx.merge(self._abstract[0], params).pre(x)

    def post(self, params: Any, u: jax.Array) -> jax.Array:
        """What follows the linear part. u: what `pre` returned."""
        return nnx.merge(self._abstract[0], params).post(u)

    def apply(self, params: Any, x: jax.Array) -> jax.Array:
        """The whole block. x: [batch, *in_shape] -> [batch, *out_shape]."""
        return _whole(nnx.merge(self._abstract[0], params), x)

    def state(self, params: Any, memory: Any = ()) -> State:
        """A state at the start of training, with a fresh optimizer."""
        return State(params, self.tx.init(self.learnt(params)) if self.tx else (), memory)

    def descend(self, state: State, grads: Any) -> State:
        """One step of this block's optimizer; a block that does not learn in this phase stays as it is."""
        import optax  # here, as wherever optax is used: checking a file needs the rules, but no optimizer

        if not self.learns or self.tx is None:
            return state
        params = self.learnt(state.params)
        updates, opt = self.tx.update(self.learnt(grads), state.opt, params)
        return state._replace(params=self.joined(optax.apply_updates(params, updates), state.params), opt=opt)

    def observe(self, state: State, params: Any, x: jax.Array) -> State:
        """The state with running statistics one step on: those of `params` and of the batch that the block saw.

        x: [batch, *in_shape]; params: with which the block saw it, before the step.
        """
        if not self.observes:
            return state
        body = params.block if isinstance(params, WithHead) else params
        module = nnx.merge(self._abstract[0], body)
        _whole(module, x)
        seen = nnx.to_pure_dict(nnx.state(module))
        return state._replace(params=self.joined(state.params, WithHead(seen, None) if body is not params else seen))

    def learnt(self, params: Any) -> Any:
        """Of a tree as the parameters, all but the statistics, of which the optimizer knows nothing."""
        if not self.has_statistics:
            return params
        return jax.tree.map(lambda statistic, leaf: None if statistic else leaf, self._statistics_of(params), params)

    def joined(self, learnt: Any, kept: Any) -> Any:
        """`learnt` with the statistics of `kept`."""
        if not self.has_statistics:
            return learnt
        return jax.tree.map(lambda statistic, new, old: old if statistic else new, self._statistics_of(kept), learnt, kept)

    def _statistics_of(self, params: Any) -> Any:
        """Which parts of a rule's parameters are statistics."""
        if isinstance(params, WithHead):
            return WithHead(self._is_statistic, False)
        if jax.tree.structure(params) != jax.tree.structure(self._is_statistic):
            raise RuleError("a rule on blocks with batch normalisation keeps a block's parameters as they are, or in a `WithHead`")
        return self._is_statistic


def stacked(blocks: Sequence[Block]) -> list[Block]:
    """The blocks from the bottom, each of which knows those above it."""
    done: tuple[Block, ...] = ()
    for block in reversed(blocks):
        done = (replace(block, later=done), *done)
    return list(done)


def _whole(module: Any, x: jax.Array) -> jax.Array:
    return module.post(module.pre(x)) if hasattr(module, "pre") else module(x)
