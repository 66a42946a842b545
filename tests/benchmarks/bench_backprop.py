"""Fused backpropagation against a hand-written loop: python -m tests.benchmarks.bench_backprop

Both train 784-512-512-10 on random data in batches of 128 with Adam, gathered from the same arrays. Rounds take turns, so that whatever
else the machine does falls on both; the least time of all rounds counts. Goal: at least 0.98 of the hand-written steps per second.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from locallearn.data.dataset import batches
from locallearn.runtime.fused import FusedSession
from locallearn.train import Optimizer
from tests.benchmarks.common import random_setup

WIDTHS, BATCH, STEPS, ROUNDS = (784, 512, 512, 10), 128, 50, 20
GOAL = 0.98


def by_hand(setup) -> Callable[[int], None]:
    """jit(scan(value_and_grad + optax)) over the same batches from the same initial weights."""
    tx = Optimizer().build(setup.steps)
    x, y = (jnp.asarray(part) for part in setup.split.train)
    params = [state.params for state in jax.jit(lambda: setup.begin(setup.stages[0]))()]

    def loss(params, x, y):
        for k, layer in enumerate(params):
            x = x @ layer["linear"]["kernel"] + layer["linear"]["bias"]
            x = jax.nn.relu(x) if k < len(params) - 1 else x
        return optax.softmax_cross_entropy_with_integer_labels(x, y).mean()

    def step(carry, index):
        params, opt = carry
        value, grads = jax.value_and_grad(loss)(params, x[index], y[index])
        updates, opt = tx.update(grads, opt, params)
        return (optax.apply_updates(params, updates), opt), value

    run = jax.jit(lambda carry, index: jax.lax.scan(step, carry, index), donate_argnums=0)
    carry = (params, tx.init(params))

    def advance(start: int) -> None:
        nonlocal carry
        index = batches(setup.seed, len(setup.split.train.y), BATCH, start, start + STEPS)
        carry, losses = run(carry, index)
        np.asarray(losses)

    return advance


def fused(setup) -> Callable[[int], None]:
    """The same through rule, chain and session."""
    session = FusedSession(setup)
    session.enter(setup.stages[0])
    return lambda start: session.advance(start, start + STEPS)


def main() -> None:
    """Print steps per second of both, and their ratio."""
    setup = random_setup("backprop", WIDTHS, examples=20_000, batch=BATCH, steps=STEPS * (ROUNDS + 1))
    runs = {"by hand": by_hand(setup), "fused": fused(setup)}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(ROUNDS + 1):
        for name, run in runs.items():
            begun = time.perf_counter()
            run(number * STEPS)
            if number:  # the first compiles
                times[name].append(time.perf_counter() - begun)
    best = {name: STEPS / min(t) for name, t in times.items()}
    for name, rate in best.items():
        print(f"{name:>8}  {rate:8.1f} steps/s  (median {STEPS / float(np.median(times[name])):8.1f})")
    ratio = best["fused"] / best["by hand"]
    print(f"   ratio  {ratio:8.3f}          goal {GOAL}: {'met' if ratio >= GOAL else 'MISSED'}")
    sys.exit(ratio < GOAL)


if __name__ == "__main__":
    main()
