"""One long run on actors of which one is killed every minute: is it right, and do those that live need no more memory with time?

    python -m tests.fabrics.kills --soak 3600

An emulated line of 64 kbit/s holds the run back, so that an hour of it is an hour of waiting rather than of computing. The bottom and the
top are killed at random; the shard between them outlives all its neighbours, and it is its memory, and the driver's, that has to stay.
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

from locallearn.experiment.prepare import Making, prepare
from locallearn.networks import NETWORKS
from locallearn.runtime.cluster import Crew
from locallearn.runtime.framed import EagerSession
from locallearn.runtime.training import Evaluated, Progress, Recovered, RolledBack, train

KILL_SECONDS = 60.0
SETTLED_SECONDS = 600.0
"""What a process takes in its first minutes it may keep."""
GROWTH = 8.0
"""MiB that a process may take on after these."""


def resident(process: int) -> float:
    """MiB that a process has in memory now."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def soak(settings: Any, seconds: float) -> int:
    """Run for so long, and say every minute how it is. settings: of a run of three shards. What was wrong, in numbers."""
    setup, chance = prepare(settings), random.Random(0)
    mine, memory, alone, together, lost = [], [], 0, 0, []
    begun = killed = time.monotonic()
    with Crew(3) as crew:
        for event in crew.train(Making.of(settings, setup), keep_seconds=5.0, network=NETWORKS["64kbit"]):
            now = time.monotonic()
            alone += isinstance(event, RolledBack) and event.shard is not None
            together += isinstance(event, RolledBack) and event.shard is None
            lost += [event.seconds] if isinstance(event, Recovered) else []
            mine += [event] if isinstance(event, Evaluated) else []
            if isinstance(event, Progress) and now - killed > KILL_SECONDS:
                killed, victim = now, chance.choice((0, 2))
                memory.append((now - begun, resident(crew.processes[1]), resident(os.getpid())))
                told = f"{(now - begun) / 60:5.1f} min  step {event.step:7}  gone back alone {alone:2}, all {together:2}"
                told += f"  lost {lost[-1] if lost else 0:4.1f} s"
                print(f"{told}  middle {memory[-1][1]:.1f} MiB  driver {memory[-1][2]:.1f} MiB  killing shard {victim}", flush=True)
                os.kill(crew.processes[victim], signal.SIGKILL)
            if now - begun > seconds and now - killed > KILL_SECONDS / 2:  # what was lost last is made up for by then
                break
    ours = (event for event in train(EagerSession(setup)) if isinstance(event, Evaluated))
    wrong = sum((a.step, a.accuracy, a.traffic) != (b.step, b.accuracy, b.traffic) for a, b in zip(mine, ours, strict=False))
    told = f"{len(memory)} kills, {alone} shards gone back alone, {together} times all"
    print(f"{told}; lost {sum(lost):.0f} s, at most {max(lost, default=0):.1f} at a time")
    print(f"{len(mine)} evaluations up to step {mine[-1].step}, of which {wrong} are wrong")
    return wrong + sum(grown(name, [(at, each[k]) for at, *each in memory]) for k, name in enumerate(("middle", "driver")))


def grown(name: str, memory: list[tuple[float, float]]) -> bool:
    """Whether a process took on more than it may, and what it had."""
    settled = [size for at, size in memory if at > SETTLED_SECONDS]
    if not settled:
        return False
    print(
        f"{name}: {settled[0]:.1f} MiB after {SETTLED_SECONDS / 60:.0f} minutes, {settled[-1]:.1f} at the end, at most {max(settled):.1f}"
    )
    return settled[-1] - settled[0] > GROWTH
