"""What the benchmarks share: a run of any rule on random data, turns that are timed, and the arithmetic of a compiled program."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from locallearn.codec import exact
from locallearn.data.dataset import Arrays, Split
from locallearn.models import MLP
from locallearn.rules import RULES
from locallearn.runtime.setup import Setup, Stage
from locallearn.runtime.wiring import Wiring, choose_codecs, deal
from locallearn.train import Optimizer


def random_setup(
    rule: Any, widths: tuple[int, ...], *, model: Any = None, examples: int = 1000, batch: int = 32, steps: int = 10, shards: int = 2
) -> Setup:
    """A run on Gaussian noise with random labels. rule: a name, or a rule. model: by default a multi-layer perceptron of these widths."""
    rng = np.random.default_rng(0)

    def part(count: int) -> Arrays:
        x = rng.normal(size=(count, widths[0])).astype(np.float32)
        return Arrays(x, rng.integers(0, widths[-1], count).astype(np.int32))

    rule = RULES[rule]() if isinstance(rule, str) else rule
    blocks = (model or MLP(widths=widths)).blocks(widths[:1], widths[-1])
    blocks = tuple(replace(b, tx=Optimizer().build(steps, b.index), batch=batch) for b in blocks)
    wiring = Wiring(deal(len(blocks), shards), rule.messages, choose_codecs(rule.messages, {}, exact()))
    split = Split(part(examples), part(10), part(10))
    return Setup((Stage(rule, blocks, wiring, 0, steps),), split, batch, steps, seed=0)


class Took(NamedTuple):
    """Seconds by the clock, and of the processor, all threads of the program together: other programs hardly count there."""

    clock: float
    processor: float


def took(run: Callable[[], Any]) -> Took:
    """What one call takes."""
    begun = time.perf_counter(), time.process_time()
    run()
    return Took(time.perf_counter() - begun[0], time.process_time() - begun[1])


def in_turns(runs: Mapping[str, Callable[[], Took]], rounds: int) -> dict[str, Took]:
    """The least that each took, in rounds in which one comes after the other: whatever else the machine does falls on all of them."""
    found: dict[str, list[Took]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            found[name].append(run())
    return {name: Took(*(min(part) for part in zip(*times, strict=True))) for name, times in found.items()}


DEFINED = re.compile(r"^\s*(?:ROOT )?%(\S+) = ([a-z]\d*|pred)\S*?\[([\d,]*)\]")
PRODUCT = re.compile(r" dot\(%([^,)]+), %[^,)]+\).*lhs_contracting_dims={([\d,]*)}")
CALLED = re.compile(r"(?:calls|to_apply|body|branch_computations|true_computation|false_computation)={?(%[^\s,}]+(?:, %[^\s,}]+)*)")
TIMES = re.compile(r"backend_config=({.*})")


def products(program: str) -> int:
    """Multiplications in the matrix products of an optimised program, as text: one turn of loops whose length is not known.

    A product of complex matrices counts four times, and of a conditional every branch.
    """
    parts: dict[str, list[str]] = {}
    name = ""
    for line in program.splitlines():
        if line.endswith("{") and "->" in line:
            name = re.sub(r"^ENTRY ", "", line).split()[0]
            parts[name] = []
            if line.startswith("ENTRY"):
                parts["ENTRY"] = parts[name]
        elif name:
            parts[name].append(line)
    known: dict[str, int] = {}

    def count(part: str) -> int:
        if part not in known:
            shapes = {m[1]: (m[2], [int(n) for n in m[3].split(",") if n]) for m in map(DEFINED.match, parts[part]) if m}
            known[part] = sum(operation(line, shapes) for line in parts[part])
        return known[part]

    def operation(line: str, shapes: dict[str, tuple[str, list[int]]]) -> int:
        if dot := PRODUCT.search(line):
            made, left = DEFINED.match(line), shapes[dot[1]][1]
            assert made
            contracted = math.prod(left[int(axis)] for axis in dot[2].split(",") if axis)
            return math.prod(shapes[made[1]][1]) * contracted * (4 if made[2].startswith("c") else 1)
        if called := CALLED.search(line):
            config = TIMES.search(line) if " while(" in line else None
            turns = int(json.JSONDecoder().raw_decode(config[1])[0].get("known_trip_count", {}).get("n", 1)) if config else 1
            return turns * sum(count(part) for part in called[1].split(", "))
        return 0

    return count("ENTRY")
