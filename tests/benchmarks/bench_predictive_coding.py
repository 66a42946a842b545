"""Predictive coding in the Fused fabric against the same step written by hand in JAX.

    python -m tests.benchmarks.bench_predictive_coding [steps]

784-300-300-10, tanh, batch 64, 20 rounds, Adam; both run all their steps in one program. They take turns, and the least of fifteen rounds
counts on each side, by the clock and of the processor. It first checks that they compute the same thing. The ratio should stay below 1.1.

The floor: the step's matrix products alone, in the same order and the same loops, without errors, activation functions, or Adam.
"""

import sys
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from locallearn.codec import exact
from locallearn.data.dataset import Arrays, Split, batches
from locallearn.models import MLP
from locallearn.rule import init_state
from locallearn.rules.predictive_coding import PredictiveCoding
from locallearn.runtime.fused import FusedSession
from locallearn.runtime.setup import Setup, Stage
from locallearn.runtime.wiring import Wiring, choose_codecs
from locallearn.train import Optimizer
from tests.benchmarks.common import in_turns, took
from tests.benchmarks.libraries import by_hand

WIDTHS, BATCH, EXAMPLES, ROUNDS = (784, 300, 300, 10), 64, 6000, 15
RULE = PredictiveCoding(steps=20, rate=0.1, momentum=0.0)


def data():
    rng = np.random.default_rng(0)
    return Arrays(rng.normal(size=(EXAMPLES, 784)).astype(np.float32), rng.integers(0, 10, EXAMPLES).astype(np.int32))


def library(arrays, steps):
    """A function that trains `steps` further steps and gives the mean loss."""
    optimizer = Optimizer(rate=1e-3)
    model = MLP(widths=WIDTHS, activation="tanh", init="lecun")
    blocks = tuple(replace(b, tx=optimizer.build(steps, b.index)) for b in model.blocks((784,)))
    wiring = Wiring((0,) * len(blocks), RULE.messages, choose_codecs(RULE.messages, {}, exact()))
    stage = Stage(RULE, blocks, wiring, 0, steps)
    few = Arrays(arrays.x[:BATCH], arrays.y[:BATCH])
    session = FusedSession(Setup((stage,), Split(arrays, few, few), BATCH, steps, 0))
    session.enter(stage)
    return (lambda: session.advance(0, steps)), [state.params["linear"] for state in init_state(RULE, blocks, 0)]


class Task(NamedTuple):
    """What `libraries` train: data, each step's examples, initial weights."""

    x: np.ndarray
    y: np.ndarray
    index: np.ndarray
    layers: list


def task_of(arrays, steps, layers):
    """The same data, batches and initial weights as `library` has."""
    pairs = [(np.asarray(layer["kernel"]), np.asarray(layer["bias"])) for layer in layers]
    return Task(arrays.x, arrays.y, batches(0, EXAMPLES, BATCH, 0, steps), pairs)


def bare_products(task):
    """A function that computes the products of all steps, and nothing else."""
    (w1, _), (w2, _), (w3, _) = [(jnp.asarray(kernel), bias) for kernel, bias in task.layers]
    x_all, index = jnp.asarray(task.x), jnp.asarray(task.index)

    def step(k, sums):
        x = x_all[index[k]]
        z1 = x @ w1
        z2 = z1 @ w2
        top = z2 @ w3
        z1, z2 = jax.lax.fori_loop(1, RULE.steps, lambda _, z: ((z[0] @ w2) @ w2.T, (z[1] @ w3) @ w3.T), (z1, top @ w3.T))
        delta2, delta3 = z1 @ w2, z2 @ w3
        return tuple(a + b for a, b in zip(sums, (x.T @ z1, z1.T @ delta2, z2.T @ delta3), strict=True))

    run = jax.jit(lambda: jax.lax.fori_loop(0, len(index), step, tuple(map(jnp.zeros_like, (w1, w2, w3)))))
    return lambda: jax.block_until_ready(run())


def main(steps):
    arrays = data()
    ours, layers = library(arrays, steps)
    task = task_of(arrays, steps, layers)
    hand, _ = by_hand.make(task)
    floor = bare_products(task)
    for _ in range(2):  # the first call of the one by hand compiles
        losses = ours(), hand()
        assert abs(losses[0] / losses[1] - 1) < 1e-3, losses
    floor()
    runs = {"fused": ours, "by hand": hand, "bare products": floor}
    times = in_turns({name: partial(took, run) for name, run in runs.items()}, ROUNDS)
    for name, each in times.items():
        ratios = [a / b for a, b in zip(each, times["fused"], strict=True)]
        milliseconds = [1e3 * seconds / steps for seconds in each]
        print(f"{name:14}{milliseconds[0]:8.2f} ms a step, {ratios[0]:.3f} of fused; processor {milliseconds[1]:8.2f} ms, {ratios[1]:.3f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 40)
