"""Steps a second against the number of shards, of backpropagation as GPipe runs it and of a rule that sends nothing down.

    python -m tests.benchmarks.bench_scaling

Every shard holds one block of 512 units and computes on a machine of its own; batch 128, every bit sent; labels all come from the top.
So a network of more shards is a deeper one, and a perfect machine park takes the same time for each step. Up to four shards are measured
with real actors whose sender paces every frame, all on the cores of this machine; up to 10,000 are simulated, a thousand steps each.
`busy` is the share of a step in which a shard computes; `filled` the same over a thousand steps from an empty pipeline on.
"""

import math
import os
import time
from dataclasses import replace

from locallearn.experiment.course import Course, Interval
from locallearn.experiment.predict import predict
from locallearn.networks import parse_network
from locallearn.runtime.cluster import Crew
from locallearn.runtime.fused import FusedSession
from tests.benchmarks.bench_network import quiet, span
from tests.benchmarks.common import random_setup, took

NETWORKS = ("1gbit", "10 Mbit/s, 20 ms")
RULES = (("backprop", 1), ("backprop", 8), ("mono_forward", 1))
WIDTH, BATCH, STEPS, BASE = 512, 128, 1000, 6
SIMULATED = (2, 4, 16, 64, 256, 1000, 10_000)
MEASURED = (2, 4)
SECONDS = 6.0


def setup(rule, microbatches, shards, steps):
    """One block in each shard."""
    made = random_setup(rule, (WIDTH,) * shards + (10,), examples=1000, batch=BATCH, steps=2 * steps, shards=shards)
    return replace(quiet(made, steps), microbatches=microbatches)


def course(rule, microbatches):
    """Of a thousand steps, with the time that a step takes in one process, on one core."""
    made = setup(rule, microbatches, BASE, 20)
    session = FusedSession(made)
    session.enter(made.stages[0])
    session.advance(0, 20)
    seconds = min(took(lambda: session.advance(20, 40)).processor for _ in range(3)) / 20
    return Course([Interval(made.stages[0], STEPS)], BATCH, microbatches, seconds)


def simulated(known):
    """A line for each rule, network and number of shards."""
    print("| rule | microbatches | network | shards | steps a second | busy | filled |\n|---|---|---|---|---|---|---|")
    for (rule, microbatches), of in known.items():
        alone = of.step_seconds / BASE
        for text in NETWORKS:
            for shards in SIMULATED:
                found = predict(of, parse_network(text), shards)
                filled = STEPS * alone / found.seconds
                print(
                    f"| {rule} | {microbatches} | {text} | {shards:,} | {1 / found.step:.3g} | {alone / found.step:.1%} | {filled:.1%} |",
                    flush=True,
                )


def measured(known):
    """Predicted and real steps a second of a few actors."""
    print("| rule | microbatches | network | shards | predicted | actors |\n|---|---|---|---|---|---|")
    for shards in MEASURED:
        with Crew(shards) as crew:
            for (rule, microbatches), of in known.items():
                for text in NETWORKS:
                    net = parse_network(text)
                    rate = 1 / predict(of, net, shards).step
                    steps = max(3, min(200, int(SECONDS * rate)))
                    made = setup(rule, microbatches, shards, steps)
                    seconds = span(crew.train(lambda made=made: made, keep_seconds=math.inf, network=net))
                    print(f"| {rule} | {microbatches} | {text} | {shards} | {rate:.3g} | {steps / seconds:.3g} |", flush=True)


def main():
    """Three tables."""
    print(f"{os.cpu_count()} cores")
    known = {both: course(*both) for both in RULES}
    for (rule, microbatches), of in known.items():
        print(f"{rule}, {microbatches}: {1000 * of.step_seconds / BASE:.2f} ms of processor time for a block and a step")
    measured(known)
    simulated(known)
    for (rule, microbatches), of in known.items():
        begun = time.process_time()
        predict(of, parse_network(NETWORKS[0]), 10_000)
        print(f"{rule}, {microbatches}: 10,000 shards for {STEPS:,} steps predicted in {time.process_time() - begun:.1f} s of one core")


if __name__ == "__main__":
    main()
