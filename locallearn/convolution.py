"""Convolutions that train as fast within a compiled loop as outside of one."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx


def convolve(x: jax.Array, kernel: jax.Array, strides: Sequence[int] = (), padding: Any = "SAME", **options: Any) -> jax.Array:
    """`jax.lax.conv_general_dilated` of x [batch, ..., channels] with kernel [..., channels, out].

    On CPU, XLA rewrites a convolution's gradients into a form that it has a fast program for, but not within loops, where they then take
    some fifteen times as long (tests/benchmarks/bench_convolution.py). There a convolution is a matrix product with the patches of x.
    """
    strides = strides or (1,) * (x.ndim - 2)
    plain = not any(factor != 1 for name in ("lhs_dilation", "rhs_dilation") for factor in options.get(name) or ())
    if jax.default_backend() == "cpu" and plain and options.get("feature_group_count", 1) == 1:
        return _of_patches(x, kernel, strides, padding)
    space = "DHW"[-(x.ndim - 2) :]
    numbers = (f"N{space}C", f"{space}IO", f"N{space}C")
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, **{**options, "dimension_numbers": numbers})


Convolution = functools.partial(nnx.Conv, conv_general_dilated=convolve)


def _of_patches(x: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Any) -> jax.Array:
    sizes, out = kernel.shape[:-2], kernel.shape[-1]
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(x.shape[1:-1], sizes, strides, padding)
    x = jnp.pad(x, [(0, 0), *padding, (0, 0)])
    counts = [(n - k) // s + 1 for n, k, s in zip(x.shape[1:-1], sizes, strides, strict=True)]
    shifts = itertools.product(*map(range, sizes))
    spans = ([slice(i, i + (n - 1) * s + 1, s) for i, n, s in zip(shift, counts, strides, strict=True)] for shift in shifts)
    patches = jnp.concatenate([x[:, *span] for span in spans], -1)
    return (patches.reshape(-1, patches.shape[-1]) @ kernel.reshape(-1, out)).reshape(-1, *counts, out)
