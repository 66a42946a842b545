"""Frames over sockets against calls of Ray, and actors against threads of one process.

    python -m tests.benchmarks.bench_transport

Goals: between the same two actors the links carry at least three times the small messages a second of Ray calls; and four shards of 256
units (batch 128, a local loss, Adam, activations in 32 bits: 128 KiB a hop) train on actors at least 0.8 times as fast as in threads of one
process, whether these are linked by queues or by the same sockets. Rounds alternate; the best of each counts.
"""

from __future__ import annotations

import functools
import itertools
import os
import threading
import time
from collections import Counter
from typing import Any

import numpy as np
import ray

from locallearn.codec import exact
from locallearn.data import Dataset, split
from locallearn.models import MLP
from locallearn.rules import RULES
from locallearn.runtime.cluster import Crew
from locallearn.runtime.frame import TRAIN, Address, frame
from locallearn.runtime.links import Links
from locallearn.runtime.mailbox import Mailbox
from locallearn.runtime.peers import PeersSession
from locallearn.runtime.setup import Setup, Stage
from locallearn.runtime.training import Evaluated, train
from locallearn.runtime.wiring import Wiring, choose_codecs, deal
from locallearn.train import Optimizer

SHARDS, WIDTH, BATCH, STEPS, ROUNDS = 4, 256, 128, 200, 4
MESSAGES, SIZE, CALLS_ROUNDS = 4000, 64, 3


def setup() -> Setup:
    """Four blocks of 256 units and a read-out of ten classes, a local classifier at each."""
    from dataclasses import replace

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2000, WIDTH)).astype(np.float32), rng.integers(0, 10, 2000)
    parts = split(Dataset.of("noise", (x, y), (x[:BATCH], y[:BATCH]), classes=10), 0)
    blocks = MLP((WIDTH,) * SHARDS + (10,)).blocks((WIDTH,))
    blocks = tuple(replace(b, tx=Optimizer(rate=1e-3).build(STEPS, b.index)) for b in blocks)
    rule = RULES["mono_forward"]()
    wiring = Wiring(deal(SHARDS, SHARDS), rule.messages, choose_codecs(rule.messages, {}, exact()))
    return Setup((Stage(rule, blocks, wiring, 0, STEPS * (ROUNDS + 1)),), parts, BATCH, STEPS, 0)


@ray.remote(max_concurrency=8)
class End:
    """Sends small frames, or takes them, by either way."""

    def __init__(self, shard: int):
        self.links, self.come, self.all = Links(shard, "127.0.0.1", 1, b"s" * 32), 0, threading.Event()

    def place(self) -> tuple[str, int]:
        return self.links.place

    def connect(self, places: list[Any]) -> None:
        self.links.connect(places)

    def over_links(self, first: int) -> None:
        for step in range(first, first + MESSAGES):
            where = Address(TRAIN, 0, 1, 0, step, 0)
            self.links.post(where, frame(where, [np.zeros(SIZE, np.uint8)]))

    def take(self, first: int) -> None:
        for step in range(first, first + MESSAGES):
            self.links.take(Address(TRAIN, 0, 1, 0, step, 0), "x")

    def by_calls(self, other: Any) -> None:
        for step in range(MESSAGES):
            where = Address(TRAIN, 0, 1, 0, step, 0)
            other.call.remote(frame(where, [np.zeros(SIZE, np.uint8)]))

    @ray.method(num_returns=0)
    def call(self, data: bytes) -> None:
        self.come += 1
        if self.come % MESSAGES == 0:
            self.all.set()

    def all_came(self) -> None:
        self.all.wait()
        self.all.clear()


def messages() -> tuple[float, float]:
    """Messages a second between the same two actors: over links, by calls."""
    sender, receiver = End.remote(0), End.remote(1)
    places = ray.get([sender.place.remote(), receiver.place.remote()])
    ray.get([end.connect.remote(places) for end in (sender, receiver)])
    links, calls = [], []
    for turn in range(CALLS_ROUNDS):
        begun = time.perf_counter()
        ray.get([receiver.take.remote(turn * MESSAGES), sender.over_links.remote(turn * MESSAGES)])
        links.append(MESSAGES / (time.perf_counter() - begun))
        begun = time.perf_counter()
        ray.get([receiver.all_came.remote(), sender.by_calls.remote(receiver)])
        calls.append(MESSAGES / (time.perf_counter() - begun))
    for end in (sender, receiver):
        ray.kill(end)
    return max(links), max(calls)


def rates(events: Any) -> list[float]:
    """Examples a second in each interval but the first, in which programs compile."""
    seconds = [event.seconds for event in events if isinstance(event, Evaluated)]
    return [STEPS * BATCH / (b - a) for a, b in itertools.pairwise(seconds)]


class Queues:
    """The transport of a shard whose neighbours are threads of this process."""

    buffered = True

    def __init__(self, shard: int, boxes: list[Mailbox]):
        self._boxes, self._sent = boxes, Counter[int]()
        self.take = boxes[shard].take

    def post(self, address: Address, data: bytes) -> None:
        self._boxes[address.dst].put(self._sent[address.dst], data)
        self._sent[address.dst] += 1


def in_threads(transports: list[Any]) -> list[float]:
    """One shard in each thread of this process."""
    made, found = setup(), []

    def work(shard: int) -> None:
        found.append((shard, rates(train(PeersSession(made, shard, transports[shard]), keep_seconds=1e9))))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(SHARDS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return dict(found)[SHARDS - 1]


def by_queues() -> list[float]:
    """Threads that hand each other the frames."""
    boxes = [Mailbox() for _ in range(SHARDS)]
    return in_threads([Queues(k, boxes) for k in range(SHARDS)])


def by_sockets() -> list[float]:
    """Threads linked as actors are."""
    links = [Links(k, "127.0.0.1", 1, b"s" * 32) for k in range(SHARDS)]
    for one in links:
        one.connect([other.place for other in links])
    try:
        return in_threads(links)
    finally:
        for one in links:
            one.close()


def main() -> None:
    """Print the figures."""
    import jax

    jax.config.update("jax_cpu_enable_async_dispatch", False)  # as in the actors
    with Crew(SHARDS) as crew:
        actors, queues, sockets = [], [], []
        for _ in range(2):
            actors += rates(crew.train(functools.partial(setup), keep_seconds=1e9))
            queues += by_queues()
            sockets += by_sockets()
    ray.init(address="local", include_dashboard=False, num_cpus=max(2, os.cpu_count() or 1), log_to_driver=False)
    over_links, by_calls = messages()
    ray.shutdown()
    print(f"small messages a second   links {over_links:8,.0f}   calls {by_calls:8,.0f}   ratio {over_links / by_calls:.2f}")
    for name, threads in (("queues", queues), ("sockets", sockets)):
        ratio = max(actors) / max(threads)
        print(f"examples a second        actors {max(actors):8,.0f}   threads, {name:7} {max(threads):8,.0f}   ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
