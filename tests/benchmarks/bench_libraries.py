"""Predictive coding in `Fused`, by hand in JAX, and in public libraries, each in its own environment, all in one run.

    python -m tests.benchmarks.bench_libraries --pcx VENV/bin/python --fabricpc VENV/bin/python --ngclearn VENV/bin/python

784-300-300-10, tanh, squared error, batch 64, 20 rounds, one step of Adam for each batch; what a library does differently stands in its
driver, in `libraries/`. Same data, batches and initial weights; everybody takes ten steps in turn, in many rounds, and the least time
counts. `bare products` are the matrix products of a step alone, in rows of examples. Where a library holds to another version of JAX, the
program by hand runs with that too: nothing there is much faster. Before anything is timed, weights and loss are compared: `far` is the
largest difference from the weights by hand, as a share of how far those have moved.

Goals: at most 1.1 times the time by hand, and 1.5 times as fast as each library.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tests.benchmarks.bench_predictive_coding import BATCH, bare_products, data, library, task_of
from tests.benchmarks.common import Took, in_turns, took
from tests.benchmarks.libraries import by_hand

LIBRARIES = "pcx", "fabricpc", "ngclearn"
FOLDER = Path(__file__).parent / "libraries"
STEPS = 10


class Peer:
    """A driver in another environment."""

    def __init__(self, python: str, driver: str, task: Path):
        self.place = task.parent
        command = [python, "-P", str(FOLDER / "served.py"), driver, str(task)]
        alone = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=alone)

    def train(self) -> Took:
        """What all steps take."""
        return Took(*map(float, self.ask("train").split()))

    def weights(self) -> list[Any]:
        """(kernel, bias) by layer."""
        self.ask(f"weights {self.place / 'weights.npz'}")
        found = np.load(self.place / "weights.npz")
        return [(found[f"kernel{i}"], found[f"bias{i}"]) for i in range(3)]

    def ask(self, command: str) -> str:
        """The answer to one command."""
        assert self.process.stdin
        assert self.process.stdout
        print(command, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"{self.process.args} ended with {self.process.wait()}")
        return answer

    def close(self) -> None:
        """The end of its input, which ends it."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(60)


def loss(task: Any, layers: list[Any]) -> float:
    """The mean loss of a forward pass over all that was trained on."""
    h = task.x[task.index.ravel()]
    for i, (kernel, bias) in enumerate(layers):
        h = h @ kernel + bias
        h = np.tanh(h) if i < 2 else h
    return float(0.5 * np.sum((h - np.eye(10)[task.y[task.index.ravel()]]) ** 2) / len(h))


def far(layers: list[Any], hand: list[Any], start: list[Any]) -> float:
    """The largest difference of weights, as a share of the largest step that they have made by hand."""
    parts = [[np.concatenate([np.ravel(part) for part in layer]) for layer in some] for some in (layers, hand, start)]
    return max(float(np.abs(a - b).max() / np.abs(b - c).max()) for a, b, c in zip(*parts, strict=True))


def version(python: str) -> str:
    """Of JAX in an environment."""
    return subprocess.run([python, "-c", "import jax; print(jax.__version__)"], capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    """Compare, time, print a table."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in LIBRARIES:
        asked.add_argument(f"--{name}", metavar="PYTHON", help=f"interpreter of an environment with {name}")
    asked.add_argument("--rounds", type=int, default=40)
    given = vars(asked.parse_args())
    arrays = data()
    ours, layers = library(arrays, STEPS)
    task = task_of(arrays, STEPS, layers)
    hand, hand_weights = by_hand.make(task)
    here = jax.__version__
    runs: dict[str, Callable[[], Took]] = {"locallearn": lambda: took(ours), "by hand": lambda: took(hand)}
    floor = bare_products(task)
    floor()
    runs["bare products"] = lambda: took(floor)
    versions = dict.fromkeys(runs, here)
    peers: dict[str, Peer] = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "task.npz"
        parts = {f"{part}{i}": value for i, layer in enumerate(task.layers) for part, value in zip(("kernel", "bias"), layer, strict=True)}
        np.savez(place, x=task.x, y=task.y, index=task.index, **parts)
        for name in LIBRARIES:
            python = given[name]
            if not python:
                print(f"{name}: left out. python3 -m venv V && V/bin/pip install {name}, then --{name} V/bin/python")
                continue
            its = version(python)
            for label, driver in [(name, name), *([(f"by hand, with the JAX of {name}", "by_hand")] if its != here else [])]:
                peers[label] = Peer(python, driver, place)
                runs[label], versions[label] = peers[label].train, its
        for _ in range(2):
            told = ours(), hand()
            assert abs(told[0] / told[1] - 1) < 1e-3, told
            for peer in peers.values():
                peer.train()
        moved = [(np.asarray(kernel), np.asarray(bias)) for kernel, bias in hand_weights()]
        print(f"loss {loss(task, task.layers):.4f}; after {2 * STEPS} steps by hand {loss(task, moved):.4f}")
        for label, peer in peers.items():
            found = peer.weights()
            print(f"  {label}: {loss(task, found):.4f}, far {far(found, moved, task.layers):.1e}")
        sys.stdout.flush()
        best = in_turns(runs, given["rounds"])
        for peer in peers.values():
            peer.close()
    print(f"batch {BATCH}, {given['rounds']} rounds of {STEPS} steps; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n")
    print("| what | JAX | ms a step | to locallearn's | processor, ms | to locallearn's |\n|---|---|---|---|---|---|")
    ours_best = best["locallearn"]
    for label, found in best.items():
        told = [f"{1e3 * one / STEPS:.2f} | {one / base:.2f}" for one, base in zip(found, ours_best, strict=True)]
        print(f"| {label} | {versions[label]} | {' | '.join(told)} |")


if __name__ == "__main__":
    main()
