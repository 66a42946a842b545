"""Two views of every example, as self-supervised rules compare them: the first is what the run sees, the second is drawn from it here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from locallearn.block import Block, State
from locallearn.chain import Chain, Row
from locallearn.fields import Fraction, NonNegative, Positive
from locallearn.rule import Batch, zeros
from locallearn.rules._common import Local, cross_entropy

_KINDS = _SHIFT, _ZOOM, _FLIP, _CONTRAST, _MASK, _NOISE = range(6)
_INSIDE = 6


@dataclass(frozen=True)
class Views:
    """How the second view differs from the first; each example gets its own random numbers at every step."""

    shift: NonNegative = 2.0  # moved by up to so many pixels along each axis of positions; the edge goes on
    zoom: Positive = 1.0  # enlarged by a factor between 1/zoom and zoom, along all axes alike
    flip: bool = False  # left and right exchanged, one time in two
    contrast: NonNegative = 0.0  # each channel times exp(a) plus b, where a and b are normal numbers of so much deviation
    mask: Fraction = 0.2  # this share of the positions (of the numbers, of examples without positions) becomes 0
    noise: NonNegative = 0.0  # deviation of the noise that is added to every number


VIEWS = Views()


def second_view(block: Block, x: jax.Array, key: jax.Array, *, views: Views) -> jax.Array:
    """x: [batch, *in_shape], at the bottom."""
    keys = [jax.random.fold_in(key, kind) for kind in _KINDS]
    axes, each = x.ndim - 2, (len(x), *[1] * (x.ndim - 1))
    if axes:
        shift = jax.random.uniform(keys[_SHIFT], (len(x), axes), x.dtype, -views.shift, views.shift)
        zoom = views.zoom ** jax.random.uniform(keys[_ZOOM], (len(x),), x.dtype, -1, 1)
        x = moved(x, shift, zoom) if views.shift or views.zoom != 1 else x
        x = jnp.where(jax.random.bernoulli(keys[_FLIP], 0.5, each), jnp.flip(x, -2), x) if views.flip else x
    if views.contrast:
        a, b = views.contrast * jax.random.normal(keys[_CONTRAST], (2, *each[:-1], x.shape[-1] if axes else 1), x.dtype)
        x = x * jnp.exp(a) + b
    if views.mask:
        x = jnp.where(jax.random.bernoulli(keys[_MASK], views.mask, (*x.shape[:-1], 1) if axes else x.shape), 0, x)
    return x + views.noise * jax.random.normal(keys[_NOISE], x.shape, x.dtype) if views.noise else x


def moved(x: jax.Array, shift: jax.Array, zoom: jax.Array) -> jax.Array:
    """Resampled linearly along each axis of positions. x: [batch, ..., channels], shift: [batch, axes], zoom: [batch]."""
    for axis in range(1, x.ndim - 1):
        n = x.shape[axis]
        centre, places = (n - 1) / 2, jnp.arange(n, dtype=x.dtype)
        seen = jnp.clip((places - centre) / zoom[:, None] + centre - shift[:, axis - 1, None], 0, n - 1)
        weight = jnp.maximum(0, 1 - jnp.abs(seen[:, :, None] - places))
        x = jnp.moveaxis(jnp.einsum("bij,bj...->bi...", weight, jnp.moveaxis(x, axis, 1)), 1, axis)
    return x


class Seen(NamedTuple):
    """What each block sees of the first view, what the learners below the top see of the second, and these as a chain of their own."""

    first: Row
    second: Row
    learners: Chain


def output(block: Block, body: Any, x: jax.Array, key: jax.Array, *, number: int, noise: float) -> jax.Array:
    """h of view `number`; while the block learns, below the top, with noise of so many of the deviations of h."""
    h = block.apply(body, x)
    if not noise or block.top or not block.learns:
        return h
    own = jax.random.fold_in(jax.random.fold_in(key, _INSIDE + number), block.index)
    return h + noise * jnp.std(h) * jax.random.normal(own, h.shape, h.dtype)


def rise(block: Block, state: State, key: jax.Array, x: jax.Array, **how: Any) -> jax.Array:
    """What the block sends up."""
    return output(block, state.params.block, x, key, **how)


def show(chain: Chain, state: Row, batch: Batch, views: Views, noise: float = 0.0) -> Seen:
    """Both views on their way up; the second goes as far as the highest block that learns from it."""
    first, _ = chain.sweep_up("activation", rise, state, batch.key, first=batch.x, number=0, noise=noise)
    learners = Chain(chain.blocks[: max((b.index + 1 for b in chain.blocks[:-1] if b.learns), default=0)], chain.fabric)
    if not learners.n:
        return Seen(first, Row([]), learners)
    view = chain.at_bottom(second_view, batch.x, batch.key, views=views)
    second, _ = learners.sweep_up("view", rise, state, batch.key, first=view, number=1, noise=noise)
    return Seen(first, second, learners)


def read_out(block: Block, state: State, x: jax.Array, y: jax.Array) -> Local:
    """The top's loss and gradient."""
    return Local(*jax.value_and_grad(lambda params: cross_entropy(block.apply(params.block, x), y))(state.params))


def own_gradient(block: Block, state: State, loss: Callable[[Any], jax.Array]) -> Any:
    """Of a block's own loss by its parameters; zero where it does not learn."""
    return jax.grad(loss)(state.params) if block.learns else zeros(block, state)


def all_gradients(chain: Chain, state: Row, own: Row, top: Any) -> Row:
    """Those of the learners and of the top, and zeros for the blocks between, of which none learns."""
    zero = chain.map(zeros, state)
    return Row([*own, *zero.values[len(own) : -1], top])


def untold(chain: Chain, told: Row) -> Row:
    """What the learners tell, as a row of the whole chain; nan for the others."""
    return Row([*told, *[jnp.nan] * (chain.n - len(told))])


def lacking(blocks: Sequence[Block]) -> list[str]:
    """What speaks against two views, in sentences."""
    found = [] if len(blocks) > 1 else ["needs a block below the top, which only reads out"]
    return [*found, "holds the examples of a batch against each other: give `batch` at least 2"] if blocks[0].batch == 1 else found
