"""Steps of a small convolutional network, alone and within a compiled loop: python -m tests.benchmarks.bench_convolution"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from locallearn.convolution import convolve

CHANNELS, SIZE, BATCH, STEPS, ROUNDS = (3, 16, 32, 64), 32, 100, 5, 3


def by_xla(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """As XLA comes."""
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def step_with(convolution: Callable[..., jax.Array]) -> Callable[..., Any]:
    """One step of gradient descent on a sum of squares."""

    def loss(kernels: Any, x: jax.Array) -> jax.Array:
        for kernel in kernels:
            x = jax.nn.relu(convolution(x, kernel))
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        return jnp.sum(x**2)

    return lambda kernels, x: jax.tree.map(lambda w, g: w - 1e-6 * g, kernels, jax.grad(loss)(kernels, x))


def main() -> None:
    """Print the table."""
    key = jax.random.key(0)
    kernels = [jax.random.normal(key, (3, 3, a, b)) / 10 for a, b in itertools.pairwise(CHANNELS)]
    x = jax.random.normal(key, (BATCH, SIZE, SIZE, CHANNELS[0]))
    programs = {}
    for name, convolution in {"XLA": by_xla, "patches": convolve}.items():
        step = step_with(convolution)
        programs[name, "alone"] = (jax.jit(step), 1)
        programs[name, "in a loop"] = (
            jax.jit(lambda kernels, x, step=step: jax.lax.fori_loop(0, STEPS, lambda _, now: step(now, x), kernels)),
            STEPS,
        )
    best = dict.fromkeys(programs, float("inf"))
    for program, _ in programs.values():
        jax.block_until_ready(program(kernels, x))
    for _ in range(ROUNDS):
        for name, (program, steps) in programs.items():
            begun = time.perf_counter()
            jax.block_until_ready(program(kernels, x))
            best[name] = min(best[name], (time.perf_counter() - begun) / steps)
    print("| convolution | step | ms | ratio |\n|---|---|---|---|")
    for (name, where), seconds in best.items():
        print(f"| {name} | {where} | {seconds * 1e3:.1f} | {seconds / best['XLA', 'alone']:.2f} |")


if __name__ == "__main__":
    main()
