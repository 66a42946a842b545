"""What snapshots cost a run on actors: steps a second with one every second, one every five, and none.

    python -m tests.benchmarks.bench_snapshot

Local losses (`mono_forward`) and backpropagation, 784-512-512-10 on three shards, batch 128, Adam: 8 MB of weights and moments. The time is
that of 600 steps between two evaluations, when all is compiled; in turns.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections import defaultdict
from dataclasses import replace

from locallearn.runtime.cluster import Crew
from locallearn.runtime.training import Evaluated, Snapshot
from tests.benchmarks.common import random_setup

STEPS, ROUNDS = 600, 2
KEEP = {"none": math.inf, "every 5 s": 5.0, "every second": 1.0}


def made(rule: str):
    """Two evaluations."""
    return replace(random_setup(rule, (784, 512, 512, 10), examples=2000, batch=128, steps=2 * STEPS, shards=3), evaluate_every=STEPS)


def pace(crew: Crew, rule: str, keep: float) -> tuple[float, int]:
    """Steps a second, and how many snapshots were taken in them."""
    ends, taken = list[float](), 0
    for event in crew.train(functools.partial(made, rule), keep_seconds=keep):
        if isinstance(event, Evaluated):
            ends.append(event.seconds)
        taken += isinstance(event, Snapshot) and len(ends) == 1
    return STEPS / (ends[1] - ends[0]), taken


def main() -> None:
    """Print the table."""
    found = defaultdict[tuple[str, str], list[tuple[float, int]]](list)
    with Crew(3) as crew:
        for _ in range(ROUNDS):
            for rule in ("mono_forward", "backprop"):
                for name, keep in KEEP.items():
                    found[rule, name].append(pace(crew, rule, keep))
    print("| rule | snapshots | taken | steps a second, median | to none |\n|---|---|---|---|---|")
    for (rule, name), each in found.items():
        median = statistics.median(speed for speed, _ in each)
        ratio = median / statistics.median(speed for speed, _ in found[rule, "none"])
        print(f"| `{rule}` | {name} | {sum(taken for _, taken in each)} | {median:.0f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
