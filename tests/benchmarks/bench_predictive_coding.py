"""Predictive coding in the Fused fabric against the same step written by hand in JAX.

    python -m tests.benchmarks.bench_predictive_coding [steps]

784-300-300-10, tanh, batch 64, 20 rounds, Adam; both run all their steps in one program. The two take turns, and the fastest of fifteen
rounds counts on each side. It first checks that they compute the same thing. The ratio should stay below 1.1.
"""

import sys
import time
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from locallearn.codec import exact
from locallearn.data.dataset import Arrays, batches
from locallearn.models import MLP
from locallearn.rule import init_state
from locallearn.rules.predictive_coding import PredictiveCoding
from locallearn.runtime.fused import FusedSession
from locallearn.runtime.setup import Setup, Split, Stage
from locallearn.runtime.wiring import Wiring, choose_codecs
from locallearn.train import Optimizer
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


def seconds(go):
    begun = time.perf_counter()
    go()
    return time.perf_counter() - begun


def main(steps):
    arrays = data()
    ours, layers = library(arrays, steps)
    hand, _ = by_hand.make(task_of(arrays, steps, layers))
    for _ in range(2):  # the first call of the one by hand compiles
        losses = ours(), hand()
        assert abs(losses[0] / losses[1] - 1) < 1e-3, losses
    times = np.array([(seconds(ours), seconds(hand)) for _ in range(ROUNDS)]).min(0) / steps * 1e3
    print(f"predictive coding, fused: {times[0]:.2f} ms a step; by hand: {times[1]:.2f} ms; ratio {times[0] / times[1]:.3f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 40)
