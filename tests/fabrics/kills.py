"""Runs on actors in which something is killed at a random moment, again and again, until they end: are they right, and is nothing left?

    python -m tests.fabrics.kills --runs 50
    python -m tests.fabrics.kills --soak 3600

Each run trains in a process of its own, with a Ray of its own. An actor, any worker of Ray (its agents among them), Ray's node or the
driver is killed with SIGKILL: while things start, in compilation, training, at a snapshot, as it is written, or in an evaluation. Some
runs have a Ray of three nodes, one of which is lost, with all of its processes; some have lines of 64 kbit/s between their shards, on which
a step or an evaluation takes long enough to be hit. Where the driver or its node dies, the same command is given again. At the end the
result is compared with a run that nobody disturbed, bit for bit, and the process table is searched for what a run left.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import math
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

# Most of a run on actors that trains for seconds is compiling; both sides of the comparison inherit this.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

from locallearn.experiment.api import configuration
from locallearn.experiment.how import How
from locallearn.experiment.result import Result, load
from locallearn.experiment.run import execute
from locallearn.experiment.store import FINISHED, Store
from tests.fabrics.soak import soak

FAST = {"backprop": 2000, "mono_forward": 3000, "direct_feedback": 2000}
SLOW = {"backprop": 60, "mono_forward": 300, "direct_feedback": 100}
"""Steps of runs without and with slow lines: ten seconds or so of training."""
SLOW_LINE = "64kbit"
KINDS = ("actor", "worker", "node", "driver", "machine")
MOMENTS = ("start", "compilation", "training", "snapshot", "writing", "evaluation")
MARK = "LOCALLEARN_KILLED_RUN"
"""In the environment of every process of a run."""
COMMANDS = 8
LEAVE_SECONDS = 15.0


class Case(NamedTuple):
    """A run, and what is done to it. strikes: at which moments. keep: seconds between snapshots. slow: whether lines are."""

    rule: str
    slow: bool
    keep: float
    kind: str
    strikes: tuple[str, ...]

    @property
    def steps(self) -> int:
        """How long it is."""
        return (SLOW if self.slow else FAST)[self.rule]

    @property
    def every(self) -> int:
        """Steps between evaluations."""
        return self.steps // 5

    def config(self) -> Any:
        """Three shards and codecs that remember."""
        return config(self.rule, self.steps, self.every)


def config(rule: str, steps: int, every: int) -> Any:
    """Three shards and codecs that remember."""
    return configuration(
        {
            "rule": {"name": rule},
            "model": {"name": "mlp", "widths": [40, 12, 11, 10], "shards": 3},
            "data": {"name": "strokes1d", "samples": 400, "test_samples": 100},
            "train": {"steps": steps, "batch": 16, "evaluate_every": every},
            "codecs": {"default": ["error_feedback", "int8"]},
        }
    )


def alike(one: Result, other: Result) -> bool:
    """Curve (but for times and rounding of mean losses), traffic and every array."""
    curves = [[(r["step"], r["validation_accuracy"], r["bytes"]) for r in each.curve] for each in (one, other)]
    same = curves[0] == curves[1] and one.traffic == other.traffic and one.test_accuracy == other.test_accuracy
    return same and all(array.tobytes() == other.arrays[name].tobytes() for name, array in one.arrays.items())


# the process that is struck


def drive(case: Case, folder: Path) -> None:
    """Train, and say on standard output what happens, line by line."""
    with machines() if case.kind == "machine" else contextlib.nullcontext() as address:
        line = SLOW_LINE if case.slow else None
        execute(case.config(), How("ray", address=address, network=line, keep_seconds=case.keep, tell=tell), folder)


def tell(event: Any) -> None:
    """One event; its step, if it has one."""
    print(type(event).__name__, getattr(event, "step", -1), flush=True)


@contextlib.contextmanager
def machines() -> Iterator[str]:
    """The address of a Ray of three nodes, two of which may be struck."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3, "include_dashboard": False})
    others = [cluster.add_node(num_cpus=2) for _ in range(2)]
    print("machines", *(node.all_processes["raylet"][0].process.pid for node in others), flush=True)
    try:
        yield cluster.address
    finally:
        cluster.shutdown()


# who strikes


class Said(NamedTuple):
    """A line of a driver. at: when it came. command: of which of the run's commands."""

    at: float
    command: int
    what: str
    step: int


class Strike(NamedTuple):
    """What was done. moment: which it was, or as far as what was said tells, was not. step: how far the run had come."""

    at: float
    moment: str
    step: int


class Running:
    """A run whose command is given until it is finished; what its drivers say is heard on a thread."""

    def __init__(self, case: Case, folder: Path):
        self.case, self.folder, self.heard, self.commands, self.machines = case, folder, list[Said](), 0, list[int]()

    def begin(self) -> None:
        """Give the command."""
        self.commands += 1
        words = [sys.executable, "-m", "tests.fabrics.kills", "--drive", str(self.folder), *map(str, self.case[:4])]
        with (self.folder.parent / f"{self.folder.name}.err").open("ab") as errors:
            own = {**os.environ, MARK: str(self.folder), "RAY_TMPDIR": str(self.folder.parent)}
            self.driver = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=errors, text=True, env=own)
        self._hearer = threading.Thread(target=self._hear, args=(self.driver, self.commands), daemon=True)
        self._hearer.start()

    def _hear(self, driver: Any, command: int) -> None:
        for line in driver.stdout:
            words = line.split()
            if words[:1] == ["machines"]:
                self.machines = [int(word) for word in words[1:]]
            elif len(words) == 2 and words[1].lstrip("-").isdigit():  # Ray says things, too
                self.heard.append(Said(time.monotonic(), command, words[0], int(words[1])))

    def end(self) -> None:
        """Wait for the driver, and for the last of its lines."""
        self.driver.wait(600)
        self._hearer.join(10)

    def said(self, *what: str) -> list[Said]:
        """What the present driver has said."""
        return [each for each in list(self.heard) if each.command == self.commands and each.what in what]

    def until(self, ready: Callable[[], object], seconds: float = 600.0, pause: float = 0.02) -> bool:
        """Wait; whether it became true before the driver ended, or the time was over."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.driver.poll() is None:
            if ready():
                return True
            time.sleep(pause)
        return False

    def sleep(self, seconds: float) -> None:
        """For so long, if the driver does not end before."""
        self.until(lambda: False, seconds)

    def victims(self) -> list[list[int]]:
        """What may be killed, each together with what has to go with it."""
        family = below(self.driver.pid)
        named = lambda *names: [[pid] for pid, command in family.items() if any(name in command for name in names)]  # noqa: E731
        match self.case.kind:
            case "driver":
                return [[self.driver.pid]]
            case "machine":
                return [[pid, *below(pid)] for pid in self.machines if pid in family]
            case "node":
                return named("raylet/raylet ")
            case "actor":
                return named("ray::ShardActor")
            case _:
                return named("ray::")

    def evaluating(self) -> bool:
        """Whether the steps before an evaluation are done, and it is not told yet."""
        last = self.said("Progress", "Evaluated")[-1:]
        return bool(last) and last[0].what == "Progress" and last[0].step % self.case.every == 0

    def strike(self, moment: str, chance: random.Random) -> Strike | None:
        """Kill at a moment; None if the driver ended before it came."""
        self._await(moment, chance)
        if not self.until(self.victims, pause=0.2):
            return None
        known = self.said("Compiled", "Progress")
        found = "start" if not below_named(self.driver.pid, "ray::ShardActor") else "compilation" if not known else moment
        found = "evaluation" if self.evaluating() else "training" if found in ("evaluation", "start", "compilation") and known else found
        victims, step = chance.choice(self.victims() or [[]]), max((each.step for each in known), default=0)
        for pid in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return Strike(time.monotonic(), found, step)

    def _await(self, moment: str, chance: random.Random) -> None:
        if moment == "start":
            return self.sleep(chance.uniform(0.5, 6))
        self.until(lambda: below_named(self.driver.pid, "ray::ShardActor"), pause=0.2)
        if moment == "compilation":
            return self.sleep(chance.uniform(0, 3))
        self.until(lambda: self.said("Progress"))
        if moment == "training":
            self.sleep(chance.uniform(0, 4))
        elif moment == "snapshot":  # the next one is taken so long after the last one, and a little
            self.until(lambda: self.said("Snapshot"))
            self.sleep(self.case.keep + chance.uniform(-0.2, 0.5))
        elif moment == "writing":
            before = self._written()
            self.until(lambda: self._written() - before, pause=0.002)
        else:
            done = len(self.said("Evaluated"))
            self.until(lambda: len(self.said("Evaluated")) > done)
            self.until(self.evaluating)
            self.sleep(chance.uniform(0, 0.5 if self.case.slow else 0.05))

    def _written(self) -> set[str]:
        place = self.folder / "checkpoints"
        return set(os.listdir(place)) if place.is_dir() else set()


def processes() -> dict[int, tuple[int, str]]:
    """Every process that lives: its parent, and its command."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if state != "Z":
                found[int(entry.name)] = int(parent), command
    return found


def below(root: int) -> dict[int, str]:
    """The processes that descend from one."""
    table, found, new = processes(), {}, {root}
    while new:
        new = {pid for pid, (parent, _) in table.items() if parent in new and pid not in found}
        found.update({pid: table[pid][1] for pid in new})
    return found


def below_named(root: int, name: str) -> bool:
    """Whether there is such a one among them."""
    return any(name in command for command in below(root).values())


def left(folder: Path) -> list[str]:
    """The commands of processes that bear the mark of a run."""
    mark, found = f"{MARK}={folder}\0".encode(), []
    for pid, (_, command) in processes().items():
        with contextlib.suppress(OSError):
            if mark in Path(f"/proc/{pid}/environ").read_bytes():
                found.append(command)
    return found


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
    while left(folder) and time.monotonic() < deadline:
        time.sleep(0.5)
    times = [strike.at for strike in strikes] + [math.inf]
    lost = [standstill(run.heard, since, until) for since, until in itertools.pairwise(times)]
    return Outcome(strikes, run.commands, lost, left(folder))


def standstill(heard: list[Said], since: float, until: float) -> float:
    """The longest time between two times in which a run came no further than it ever had."""
    furthest, last, longest = -1, since, 0.0
    for each in heard:
        if each.at < until and (each.what == "Ended" or (each.what == "Progress" and each.step > furthest)):
            furthest = max(furthest, each.step)
            if each.at > since:
                longest, last = max(longest, each.at - last), each.at
    return max(longest, until - last) if until < math.inf and last == since else longest  # it was struck again before it was on its way


def many(runs: int, seed: int) -> int:
    """Print a line for each run that was struck, and what they come to; how many were wrong."""
    chance, wrong = random.Random(seed), 0
    right: dict[Any, Result] = {}
    moments, seconds = Counter[str](), defaultdict[str, list[float]](list)
    with tempfile.TemporaryDirectory(prefix="ll") as folder:
        for k in range(runs):
            rule, kind = chance.choice(list(FAST)), KINDS[k % len(KINDS)]
            strikes = tuple(MOMENTS[(k // len(KINDS) + i * 3) % len(MOMENTS)] for i in range(chance.choice((1, 1, 2))))
            case = Case(rule, chance.random() < 0.5, chance.choice((1.0, 5.0)), kind, strikes)
            place = Path(folder) / str(k)
            found = one(case, place, chance)
            right[case.config().digest()] = expected = right.get(case.config().digest()) or execute(case.config(), How("eager"))
            good = alike(load(place), expected)
            wrong += not good or bool(found.left)
            moments.update(strike.moment for strike in found.strikes)
            seconds[f"{kind:8} keep {case.keep:.0f} s"] += found.lost
            where = ", ".join(f"{strike.moment} at {strike.step}" for strike in found.strikes) or "over before"
            told = f"{k:2} {rule:15} {'slow' if case.slow else 'fast'} {kind:7} keep {case.keep:.0f} s  {where:36}"
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
    options.add_argument("--drive", nargs=5, help=argparse.SUPPRESS)
    asked = options.parse_args()
    if asked.drive:
        place, rule, slow, keep, kind = asked.drive
        drive(Case(rule, slow == "True", float(keep), kind, ()), Path(place))
    else:
        sys.exit(bool(soak(config("mono_forward", 10**7, 400), asked.soak) if asked.soak else many(asked.runs, asked.seed)))
