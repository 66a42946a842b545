"""Time to plan and to compile, by depth: python -m tests.benchmarks.bench_compile

Compile time of Fused should grow at most linearly with the number of blocks. Goal for Plan: 32 blocks with 50 rounds of relaxation in
less than 2 s.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

from locallearn.rules import RULES
from locallearn.runtime.fused import FusedSession
from tests.benchmarks.common import random_setup

DEPTHS = (4, 8, 16, 32)
ROUNDS = 50


def seconds(work: Callable[[], Any]) -> float:
    """Processor time of one call, all threads together: other programs do not count."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


def relaxing() -> Any:
    """Predictive coding with ROUNDS rounds, whatever its field is called."""
    rule = RULES["predictive_coding"]()
    name = next(field.name for field in fields(rule) if field.name in ("rounds", "steps", "inference_steps", "relaxation", "iterations"))
    return replace(rule, **{name: ROUNDS})


def main() -> None:
    """Print a table for each rule: blocks, seconds, and seconds by block against the shallowest."""
    rules = {"backprop": RULES["backprop"]()}
    if "predictive_coding" in RULES:
        rules[f"predictive coding, {ROUNDS} rounds"] = relaxing()
    for title, rule in rules.items():
        print(f"{title}\n{'blocks':>8} {'plan s':>8} {'enter s':>8} {'by block':>9}")
        first = None
        for depth in DEPTHS:
            setup = random_setup(rule, (32,) * depth + (10,), shards=4)
            stage = setup.stages[0]
            planned = seconds(lambda setup=setup, stage=stage: setup.plan_step(stage))
            entered = seconds(lambda setup=setup, stage=stage: FusedSession(setup).enter(stage))
            first = first or entered / depth
            print(f"{depth:8d} {planned:8.2f} {entered:8.2f} {entered / depth / first:8.2f}x")


if __name__ == "__main__":
    main()
