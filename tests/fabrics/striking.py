"""A run whose command is given until it is finished, and whoever strikes it: an actor, a worker, a node or the driver, at a moment."""

from __future__ import annotations

import contextlib
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from locallearn.experiment.api import configuration

FAST = {"backprop": 2000, "mono_forward": 3000, "direct_feedback": 2000, "replicas": 2000}
SLOW = {"backprop": 60, "mono_forward": 300, "direct_feedback": 100, "replicas": 60}
"""Steps of runs without and with slow lines: ten seconds or so of training. replicas: two chains of backpropagation on their own data."""
LONG_SECONDS = 10.0
"""A run with more than that between its snapshots is three times as long."""
SLOW_LINE = "64kbit"
MARK = "LOCALLEARN_KILLED_RUN"
"""In the environment of every process of a run."""


def config(name: str, steps: int, every: int) -> Any:
    """A rule on three shards, or replicas of two, with codecs that remember."""
    several = name == "replicas"
    return configuration(
        {
            "rule": {"name": "backprop" if several else name},
            "model": {"name": "mlp", "widths": [40, 12, 11, 10], "shards": 2 if several else 3},
            "data": {"name": "strokes1d", "samples": 400, "test_samples": 100},
            "train": {"steps": steps, "batch": 16, "evaluate_every": every},
            "codecs": {"default": ["error_feedback", "int8"]},
            "replicas": {"count": 2, "average_every": 10} if several else {},
        }
    )


class Case(NamedTuple):
    """A run, and what is done to it. strikes: at which moments. keep: seconds between snapshots. slow: whether lines are."""

    name: str
    slow: bool
    keep: float
    transport: str
    kind: str
    strikes: tuple[str, ...]

    @property
    def steps(self) -> int:
        """How long it is."""
        return (SLOW if self.slow else FAST)[self.name] * (3 if self.keep > LONG_SECONDS else 1)

    @property
    def every(self) -> int:
        """Steps between evaluations."""
        return self.steps // 5

    def config(self) -> Any:
        """What it trains."""
        return config(self.name, self.steps, self.every)


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
        self._seen: dict[int, Process] = {}

    def begin(self) -> None:
        """Give the command."""
        self.commands += 1
        words = [sys.executable, "-m", "tests.fabrics.kills", "--drive", str(self.folder), *map(str, self.case[:5])]
        with (self.folder.parent / f"{self.folder.name}.err").open("ab") as errors:
            own = {**os.environ, MARK: str(self.folder), "RAY_TMPDIR": str(self.folder.parent)}
            self.driver = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=errors, text=True, env=own)
        self._hearer = threading.Thread(target=self._hear, args=(self.driver, self.commands), daemon=True)
        self._hearer.start()
        threading.Thread(target=self._look, args=(self.driver,), daemon=True).start()

    def _look(self, driver: Any) -> None:
        while driver.poll() is None:
            self._seen.update(below(driver.pid))
            time.sleep(1)

    def left(self) -> list[str]:
        """The commands of processes that this run began and that live: they bear its mark, or, for some write over that, were seen."""
        mark, found = f"{MARK}={self.folder}\0".encode(), []
        for pid, process in processes().items():
            with contextlib.suppress(OSError):
                same = pid in self._seen and self._seen[pid].begun == process.begun
                if same or mark in Path(f"/proc/{pid}/environ").read_bytes():
                    found.append(process.command)
        return found

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
        named = lambda name: [[pid] for pid, process in family.items() if name in process.command]  # noqa: E731
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


class Process(NamedTuple):
    """parent: its number. begun: when, in ticks of the machine's clock."""

    parent: int
    begun: int
    command: str


def processes() -> dict[int, Process]:
    """Every process that lives."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, parent, *rest = (entry / "stat").read_text().rpartition(")")[2].split()
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if state != "Z":
                found[int(entry.name)] = Process(int(parent), int(rest[17]), command)
    return found


def below(root: int) -> dict[int, Process]:
    """The processes that descend from one."""
    table, found, new = processes(), {}, {root}
    while new:
        new = {pid for pid, process in table.items() if process.parent in new and pid not in found}
        found.update({pid: table[pid] for pid in new})
    return found


def below_named(root: int, name: str) -> bool:
    """Whether there is such a one among them."""
    return any(name in process.command for process in below(root).values())


def standstill(heard: list[Said], since: float, until: float) -> float:
    """The longest time between two times in which a run came no further than it ever had."""
    furthest, last, longest = -1, since, 0.0
    for each in heard:
        if each.at < until and (each.what == "Ended" or (each.what == "Progress" and each.step > furthest)):
            furthest = max(furthest, each.step)
            if each.at > since:
                longest, last = max(longest, each.at - last), each.at
    return max(longest, until - last) if until < math.inf and last == since else longest  # it was struck again before it was on its way
