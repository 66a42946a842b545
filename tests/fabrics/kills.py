"""Runs on actors in which something is killed at a random moment, again and again, until they end: are they right, and is nothing left?

    python -m tests.fabrics.kills --runs 50
    python -m tests.fabrics.kills --soak 3600

Each run trains in a process of its own, with a Ray of its own. After a random time an actor, any worker of Ray, Ray's node or the driver is
killed with SIGKILL: during start, compilation, training, snapshots or evaluations, as it comes. Where the driver or the node dies, the same
command is given again. At the end the result is compared with a run that nobody disturbed, bit for bit, and the process table is searched
for what a run left. `--soak`: one long run, with a kill of an actor every minute, and the memory of its actors.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from locallearn.experiment.api import configuration
from locallearn.experiment.result import Result, load
from locallearn.experiment.run import How, execute
from locallearn.experiment.store import FINISHED, Store
from tests.fabrics.soak import soak

RULES = ("backprop", "mono_forward", "direct_feedback")
DRIVER = """
import sys
from pathlib import Path
from locallearn.experiment.run import How, execute
from tests.fabrics.kills import config
execute(config(sys.argv[2], int(sys.argv[3])), How("ray", keep_seconds=float(sys.argv[4])), Path(sys.argv[1]))
"""


def config(rule: str, steps: int, every: int = 400) -> Any:
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


def pick(kind: str, driver: int, chance: random.Random) -> int | None:
    """A process of that kind to kill; None if there is none yet."""
    family = below(driver)
    names = {"actor": "ray::ShardActor", "worker": "ray::", "node": "raylet/raylet"}
    chosen = [driver] if kind == "driver" else [pid for pid, command in family.items() if names[kind] in command]
    return chance.choice(chosen) if chosen else None


def one(rule: str, steps: int, keep: float, kind: str, chance: random.Random, folder: Path) -> dict[str, Any]:
    """A run in which processes of a kind are killed, one at first and perhaps more."""
    begun, kills, again, seen = time.monotonic(), 0, 0, {}
    while Store(folder).state != FINISHED:
        command = [sys.executable, "-c", DRIVER, str(folder), rule, str(steps), str(keep)]
        driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
        due = time.monotonic() + chance.uniform(2, 25)
        while driver.poll() is None:
            seen |= below(driver.pid)
            if kills <= again and time.monotonic() > due:
                victim = pick(kind, driver.pid, chance)
                if victim is not None:
                    os.kill(victim, signal.SIGKILL)
                    kills += 1
            time.sleep(0.2)
        driver.communicate()
        again += 1
        assert again < 20, f"{folder} does not end"
    time.sleep(3)
    left = {pid: command for pid, command in seen.items() if processes().get(pid, (0, ""))[1] == command}
    ending = Store(folder).read("result.json")
    seconds = time.monotonic() - begun
    return {"kills": kills, "drivers": again, "left": left, "seconds": seconds, "lost": ending["seconds_lost"], "back": ending["rollbacks"]}


def many(runs: int, seed: int) -> int:
    """Print a line for each run; how many were wrong."""
    chance, wrong, steps = random.Random(seed), 0, 2000
    right = {rule: execute(config(rule, steps), How("eager")) for rule in RULES}
    with tempfile.TemporaryDirectory() as folder:
        for k in range(runs):
            rule, kind = chance.choice(RULES), chance.choice(("actor", "actor", "worker", "node", "driver"))
            keep = chance.choice((1.0, 5.0))
            found = one(rule, steps, keep, kind, chance, Path(folder) / str(k))
            good = alike(load(Path(folder) / str(k)), right[rule])
            wrong += not good or bool(found["left"])
            told = f"{k:3} {rule:16} {kind:7} keep {keep:.0f} s  kills {found['kills']}  commands {found['drivers']}"
            told += f"  gone back {found['back']}  lost {found['lost']:5.1f} s  left {len(found['left'])}"
            print(f"{told}  {'right' if good else 'WRONG'}", flush=True)
    return wrong


if __name__ == "__main__":
    options = argparse.ArgumentParser()
    options.add_argument("--runs", type=int, default=50)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--soak", type=float)
    asked = options.parse_args()
    sys.exit(bool(soak(config("mono_forward", 10**7, 400), asked.soak) if asked.soak else many(asked.runs, asked.seed)))
