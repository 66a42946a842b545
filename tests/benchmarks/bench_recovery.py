"""What the loss of an actor costs where the lost shard alone goes back to its last snapshot, and where all go back.

    python -m tests.benchmarks.bench_recovery

Local losses (`mono_forward`) and backpropagation, 784-512-512-10 on three shards, batch 128, a snapshot every five seconds. An actor is
killed between one and four seconds after a snapshot, each in turn. Seconds: from the last progress before the loss until as many steps are
done again.
"""

from __future__ import annotations

import functools
import os
import random
import signal
import statistics
import time

from locallearn.runtime.cluster import Crew
from locallearn.runtime.training import Progress, Recovered, RolledBack, Snapshot
from tests.benchmarks.common import random_setup

KEEP, KILLS, ROUNDS = 5.0, 3, 2


def losses(crew: Crew, rule: str, alone: bool, seed: int) -> list[tuple[float, int]]:
    """(seconds, steps that were done again) of so many kills. The same seed kills at the same moments."""
    make = functools.partial(random_setup, rule, (784, 512, 512, 10), examples=2000, batch=128, steps=10**6, shards=3)
    chance, found, due, killed, back = random.Random(seed), list[tuple[float, int]](), None, 0, None
    for event in crew.train(make, keep_seconds=KEEP, alone=alone):
        if isinstance(event, Snapshot) and due is None and killed == len(found):
            due = time.monotonic() + chance.uniform(1, 4)
        elif isinstance(event, Progress) and due and time.monotonic() > due:
            os.kill(crew.processes[killed % 3], signal.SIGKILL)
            killed, due = killed + 1, None
        elif isinstance(event, RolledBack):
            assert (event.shard is not None) == alone, event
            back = event
        elif isinstance(event, Recovered) and back:
            found.append((event.seconds, back.lost - back.step))
            if len(found) == KILLS:
                break
    return found


def main() -> None:
    """Print the table."""
    found: dict[tuple[str, bool], list[tuple[float, int]]] = {}
    with Crew(3) as crew:
        for turn in range(ROUNDS):
            for rule in ("mono_forward", "backprop"):
                for alone in (True, False):
                    found.setdefault((rule, alone), []).extend(losses(crew, rule, alone, turn))
    print("| rule | who goes back | losses | seconds, median | least and most | steps done again, median |\n|---|---|---|---|---|---|")
    for (rule, alone), each in found.items():
        seconds, steps = zip(*each, strict=True)
        spread = f"{min(seconds):.1f} to {max(seconds):.1f}"
        who = "the lost shard" if alone else "all three"
        print(f"| {rule} | {who} | {len(each)} | {statistics.median(seconds):.1f} | {spread} | {statistics.median(steps):.0f} |")


if __name__ == "__main__":
    main()
