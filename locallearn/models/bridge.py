"""Narrow bridges: where the network is cut, the sending block ends in a learned projection to a few features or channels.

    c = P h + p                   the last layer of the block below the cut: what crosses
    x = E c                       the first layer of the block above it, back to the width that it was made for

P and E act on the last axis: on the features of dense blocks, on the channels at each position of convolutional ones (a 1x1 convolution).
P belongs to the sending block and E to the receiving one, so that whatever rule trains the block trains them, too
(node perturbation and activity-perturbed forward gradients learn what is in `pre` alone, and leave P as it was drawn).

Where `post` has to be elementwise (`Rule.needs`: there is no energy otherwise) P stands before the activation: pre = P pre(x) + p, and the
block passes on its activation of so many units.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
from flax import nnx

from locallearn.block import Block, stacked
from locallearn.errors import RuleError
from locallearn.models.layers import ACTIVATIONS, INITS


class Bridged(nnx.Module):
    """A composite block between bridges. project: P, or None; expand: E, or None."""

    def __init__(self, inner: Any, project: Any, expand: Any):
        self.inner, self.project, self.expand = inner, project, expand
        self.activation = "identity" if project is not None else getattr(inner, "activation", "identity")

    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [batch, *in_shape]."""
        return _through(self.project, self.inner(_through(self.expand, x)))


class BridgedHalves(nnx.Module):
    """A block with `pre` and `post` between bridges. elementwise: P belongs to `pre`."""

    def __init__(self, inner: Any, project: Any, expand: Any, elementwise: bool):
        self.inner, self.project, self.expand, self.elementwise = inner, project, expand, elementwise
        self.norm = getattr(inner, "norm", None)
        self.activation = inner.activation if project is None or elementwise else "identity"

    def pre(self, x: jax.Array) -> jax.Array:
        """E, then the inner linear part; then P, if `post` is to be elementwise."""
        u = self.inner.pre(_through(self.expand, x))
        return _through(self.project, u) if self.elementwise else u

    def post(self, u: jax.Array) -> jax.Array:
        """What follows the inner linear part, then P; or the activation alone."""
        if self.elementwise and self.project is not None:
            return ACTIVATIONS[self.activation](u)
        return _through(self.project, self.inner.post(u))


def _through(layer: Any, x: jax.Array) -> jax.Array:
    return x if layer is None else layer(x)


def _build(
    inner: Callable[[nnx.Rngs], Any], project: tuple[int, int] | None, expand: tuple[int, int] | None, elementwise: bool, rngs: nnx.Rngs
) -> nnx.Module:
    """The inner block comes first: it begins as it would without bridges. With an energy E is an isometry, so that states above do not push
    those below harder than each other."""
    module, spread = inner(rngs), INITS["lecun"](1.0)
    back = INITS["orthogonal"](1.0) if elementwise else spread
    down = nnx.Linear(*project, kernel_init=spread, rngs=rngs) if project else None
    up = nnx.Linear(*expand, use_bias=False, kernel_init=back, rngs=rngs) if expand else None
    return BridgedHalves(module, down, up, elementwise) if hasattr(module, "pre") else Bridged(module, down, up)


def bridged(blocks: Sequence[Block], placement: Sequence[int], width: int, *, elementwise: bool = False) -> list[Block]:
    """The blocks with a bridge of `width` features or channels at each shard boundary; RuleError where that is not narrower.

    placement: shard of each block. elementwise: whether the rule needs `post` to be elementwise.
    """
    cut = [here != below for here, below in zip(placement[1:], placement, strict=False)]
    done = []
    for block, above, below in zip(blocks, [*cut, False], [False, *cut], strict=True):
        if not (above or below):
            done.append(block)
            continue
        channels = block.out_shape[-1]
        if above and width >= channels:
            raise RuleError(f"is no bridge: block {block.index} passes on {channels} features or channels; give less")
        project, expand = (channels, width) if above else None, (width, block.in_shape[-1]) if below else None
        build = functools.partial(_build, block.build, project, expand, elementwise)
        done.append(replace(block, build=build, in_shape=(*block.in_shape[:-1], width) if below else block.in_shape))
    return stacked(done)
