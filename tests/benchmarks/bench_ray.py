"""Ray overhead: a step of tiny blocks on four actors, against bare Ray calls along the same chain with the same messages and bytes.

    python -m tests.benchmarks.bench_ray

Backprop's step is six messages one after the other (three up, three down); in the bare chain each actor passes the same number of bytes
on at once and computes nothing. Rounds alternate; the smallest of each counts. Start-up time and memory of the actors are printed too.
"""

from __future__ import annotations

import functools
import os
import threading
import time

import numpy as np
import ray

from locallearn.codec import exact
from locallearn.data import Dataset, split
from locallearn.models import MLP
from locallearn.rules.backprop import Backprop
from locallearn.runtime.cluster import Crew
from locallearn.runtime.setup import Setup, Stage
from locallearn.runtime.training import Evaluated
from locallearn.runtime.wiring import Wiring, choose_codecs, deal
from locallearn.train import Optimizer

SHARDS, WIDTH, BATCH, STEPS, ROUNDS = 4, 8, 16, 600, 7


def setup() -> Setup:
    """Four blocks of eight units, one in each shard."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(400, WIDTH)).astype(np.float32), rng.integers(0, WIDTH, 400)
    parts = split(Dataset.of("noise", (x, y), (x, y), classes=WIDTH), 0)
    from dataclasses import replace

    blocks = tuple(replace(b, tx=Optimizer(name="sgd").build(STEPS, b.index)) for b in MLP((WIDTH,) * (SHARDS + 1)).blocks((WIDTH,)))
    rule = Backprop()
    wiring = Wiring(deal(SHARDS, SHARDS), rule.messages, choose_codecs(rule.messages, {}, exact()))
    return Setup((Stage(rule, blocks, wiring, 0, STEPS * (ROUNDS + 1)),), parts, BATCH, STEPS, 0)


@ray.remote(max_concurrency=32)
class Hop:
    """Passes a message on: up to the top, then down again, `steps` times."""

    def __init__(self, place: int, core: int | None):
        if core is not None:
            os.sched_setaffinity(0, {core})
        self.place = place

    def connect(self, peers: list) -> None:
        self.peers, self.done = peers, threading.Event()

    @ray.method(num_returns=0)
    def push(self, left: int, up: bool, data: bytes) -> None:
        top, bottom = self.place == len(self.peers) - 1, self.place == 0
        if bottom and not up:
            left -= 1
            if not left:
                self.done.set()
                return
        up = (up or bottom) and not top
        self.peers[self.place + (1 if up else -1)].push.remote(left, up, data)

    def wait(self) -> None:
        self.done.wait()
        self.done.clear()


def bare(hops: list, data: bytes) -> float:
    """Seconds for one step of the bare chain."""
    begun = time.perf_counter()
    hops[0].push.remote(STEPS + 1, False, data)
    ray.get(hops[0].wait.remote())
    return (time.perf_counter() - begun) / STEPS


def main() -> None:
    """Print the table."""
    begun = time.perf_counter()
    cores = sorted(os.sched_getaffinity(0))
    with Crew(SHARDS) as crew:
        started = time.perf_counter() - begun
        data = bytes(20 + 4 * WIDTH * BATCH)
        hops = [Hop.options(num_cpus=0).remote(k, cores[k % len(cores)] if len(cores) <= SHARDS else None) for k in range(SHARDS)]
        ray.get([hop.connect.remote(hops) for hop in hops])
        bare(hops, data)
        ours, theirs, last = [], [], None
        for event in crew.train(functools.partial(setup), keep_seconds=1e9):
            if isinstance(event, Evaluated):
                if last is not None:
                    ours.append((event.seconds - last.seconds) / STEPS)
                last = event
        theirs = [bare(hops, data) for _ in range(ROUNDS)]
        memory = [peak / 2**20 for peak in crew.peak_memory]
    print(f"start of a private Ray with {SHARDS} actors: {started:.1f} s; memory at most: {', '.join(f'{m:.0f}' for m in memory)} MiB")
    print(f"locallearn  {1e3 * min(ours):6.2f} ms a step   {' '.join(f'{1e3 * t:.2f}' for t in ours)}")
    print(f"bare calls  {1e3 * min(theirs):6.2f} ms a step   {' '.join(f'{1e3 * t:.2f}' for t in theirs)}")
    print(f"ratio       {min(ours) / min(theirs):6.2f}")


if __name__ == "__main__":
    main()
