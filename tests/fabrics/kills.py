"""Runs on actors in which something is killed at a random moment, again and again, until they end: are they right, and is nothing left?

    python -m tests.fabrics.kills --runs 50
    python -m tests.fabrics.kills --soak 3600

Each run trains in a process of its own, with a Ray of its own. An actor, any worker of Ray (its agents among them), Ray's node or the
driver is killed with SIGKILL: while things start, in compilation, training, at a snapshot, as it is written, or in an evaluation. Some
runs have a Ray of three nodes, one of which is lost, with all of its processes; some have lines of 64 kbit/s between their shards, on which
a step or an evaluation takes long enough to be hit; some are replicas, and some send their frames through Ray. Where the driver or its node
dies, the same command is given again. At the end the result is compared with a run that nobody disturbed, bit for bit, and the process
table is searched for what a run left.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import math
import os
import random
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

# Most of a run on actors that trains for seconds is compiling; both sides of the comparison inherit this.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

from locallearn.experiment.how import TRANSPORTS, How
from locallearn.experiment.result import Result, load
from locallearn.experiment.run import execute
from locallearn.experiment.store import FINISHED, Store
from tests.fabrics.soak import soak
from tests.fabrics.striking import FAST, SLOW_LINE, Case, Running, Strike, config, standstill

KINDS = ("actor", "worker", "node", "driver", "machine")
MOMENTS = ("start", "compilation", "training", "snapshot", "writing", "evaluation")
COMMANDS = 8
LEAVE_SECONDS = 60.0
"""Ray may take its time to notice that a driver is gone."""


def alike(one: Result, other: Result) -> bool:
    """Curve (but for times and rounding of mean losses), traffic and every array."""
    curves = [[(r["step"], r["validation_accuracy"], r["bytes"]) for r in each.curve] for each in (one, other)]
    same = curves[0] == curves[1] and one.traffic == other.traffic and one.test_accuracy == other.test_accuracy
    return same and all(array.tobytes() == other.arrays[name].tobytes() for name, array in one.arrays.items())


# the process that is struck


def drive(case: Case, folder: Path) -> None:
    """Train, and say on standard output what happens, line by line."""
    with machines() if case.kind == "machine" else contextlib.nullcontext() as address:
        line, keep = SLOW_LINE if case.slow else None, case.keep
        execute(case.config(), How("ray", address, case.transport, line, keep, tell=tell), folder)


def tell(event: Any) -> None:
    """One event; its step, if it has one."""
    print(type(event).__name__, getattr(event, "step", -1), flush=True)


@contextlib.contextmanager
def machines() -> Iterator[str]:
    """The address of a Ray of three nodes, two of which may be struck."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3, "include_dashboard": False})
    others = [cluster.add_node(num_cpus=2) for _ in range(2)]
    print("machines", *(node.all_processes["raylet"][0].process.pid for node in others), flush=True)
    try:
        yield cluster.address
    finally:
        ray.shutdown()
        cluster.shutdown()


# one run, and many


class Outcome(NamedTuple):
    """Of a run. lost: for each strike, the longest standstill after it, in seconds. left: commands of processes."""

    strikes: list[Strike]
    commands: int
    lost: list[float]
    left: list[str]


def one(case: Case, folder: Path, chance: random.Random) -> Outcome:
    """Give the command until the run is finished, and strike."""
    run, strikes, due = Running(case, folder), list[Strike](), list(case.strikes)
    while Store(folder).state != FINISHED:
        assert run.commands < COMMANDS, f"{folder} does not end: {(folder.parent / (folder.name + '.err')).read_text()[-3000:]}"
        run.begin()
        while due and run.driver.poll() is None:
            struck = run.strike(due[0], chance)
            if struck:
                strikes.append(struck)
                due.pop(0)
                run.until(lambda step=struck.step: any(each.step > step for each in run.said("Progress")))
        run.end()
    deadline = time.monotonic() + LEAVE_SECONDS
    while run.left() and time.monotonic() < deadline:
        time.sleep(0.5)
    times = [strike.at for strike in strikes] + [math.inf]
    lost = [standstill(run.heard, since, until) for since, until in itertools.pairwise(times)]
    return Outcome(strikes, run.commands, lost, run.left())


def many(runs: int, seed: int) -> int:
    """Print a line for each run that was struck, and what they come to; how many were wrong."""
    chance, wrong = random.Random(seed), 0
    right: dict[Any, Result] = {}
    moments, seconds = Counter[str](), defaultdict[str, list[float]](list)
    with tempfile.TemporaryDirectory(prefix="ll") as folder:
        for k in range(runs):
            name, transport, kind = chance.choice(list(FAST)), chance.choice(TRANSPORTS), KINDS[k % len(KINDS)]
            strikes = tuple(MOMENTS[(k // len(KINDS) + i * 3) % len(MOMENTS)] for i in range(chance.choice((1, 1, 2))))
            case = Case(name, chance.random() < 0.5, chance.choice((1.0, 5.0, 20.0)), transport, kind, strikes)
            place = Path(folder) / str(k)
            found = one(case, place, chance)
            right[case.config().digest()] = expected = right.get(case.config().digest()) or execute(case.config(), How("eager"))
            good = alike(load(place), expected)
            wrong += not good or bool(found.left)
            moments.update(strike.moment for strike in found.strikes)
            seconds[f"{kind:8} keep {case.keep:2.0f} s"] += found.lost
            where = ", ".join(f"{strike.moment} at {strike.step}" for strike in found.strikes) or "over before"
            told = f"{k:2} {name:15} {'slow' if case.slow else 'fast'} {transport:6} {kind:7} keep {case.keep:2.0f} s  {where:36}"
            told += f" commands {found.commands}  lost {' '.join(f'{s:.1f}' for s in found.lost):10} left {len(found.left)}"
            print(f"{told}  {'right' if good else 'WRONG'}", flush=True)
    for name, every in sorted(seconds.items()):
        if every:
            print(f"{name}: {len(every)} times, seconds lost: median {statistics.median(every):.1f}, at most {max(every):.1f}")
    print(f"{sum(moments.values())} strikes: {', '.join(f'{count} in {moment}' for moment, count in moments.most_common())}; {wrong} wrong")
    return wrong


if __name__ == "__main__":
    options = argparse.ArgumentParser()
    options.add_argument("--runs", type=int, default=50)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--soak", type=float)
    options.add_argument("--drive", nargs=6, help=argparse.SUPPRESS)
    asked = options.parse_args()
    if asked.drive:
        place, name, slow, keep, transport, kind = asked.drive
        drive(Case(name, slow == "True", float(keep), transport, kind, ()), Path(place))
    else:
        sys.exit(bool(soak(config("mono_forward", 10**7, 400), asked.soak) if asked.soak else many(asked.runs, asked.seed)))
