"""The time of one fused step of every rule, as a ratio to backprop's: python -m tests.benchmarks.bench_rules [rule ...]

784-512-512-10, batch 128, relu, Adam, on random data, three shards; a rule that takes no such network gets the nearest one that it takes,
and backprop is timed on the very same. Rule and backprop take turns, a few steps in each, and the least time of all turns counts on
either side. Rounds and hyperparameters are the rules' defaults. Beside the time: that of the processor, all threads together, which other
programs disturb less; the multiplications in the step's matrix products, counted in the compiled program; the messages of a step, and how
many of them wait for each other.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any, NamedTuple

from locallearn.models import MODELS
from locallearn.report.costs import suited
from locallearn.rules import RULES
from locallearn.runtime.fused import FusedSession
from tests.benchmarks.common import in_turns, products, random_setup, took

BATCH, TURNS, SECONDS = 128, 15, 0.06
HIDDEN = (512, 512), (510, 510)
"""Hidden layers: the second for rules that deal units to ten classes."""


class Runner:
    """A session that trains a few steps at a time."""

    def __init__(self, rule: Any, settings: dict[str, Any]):
        self.setup = random_setup(rule, (784, 10), model=model_of(settings), batch=BATCH, steps=10**6, shards=3)
        self.session, stage = FusedSession(self.setup), self.setup.stages[0]
        self.session.enter(stage)
        self.plan = self.setup.plan_step(stage)
        self.products = products(self.session.programs[0].loop.as_text())
        self.done, self.steps = 0, 1
        self.train()
        begun = time.perf_counter()
        self.train()
        self.steps = max(1, min(100, round(SECONDS / (time.perf_counter() - begun))))

    def train(self) -> None:
        """The next steps."""
        self.session.advance(self.done, self.done + self.steps)
        self.done += self.steps


class Measured(NamedTuple):
    """ms: of one step. time, processor, products: as ratios to backprop's on the same network."""

    name: str
    network: str
    ms: float
    time: float
    processor: float
    products: float
    messages: int
    hops: int


def model_of(settings: dict[str, Any]) -> Any:
    """The model of these settings."""
    return MODELS[settings["name"]](**{key: value for key, value in settings.items() if key != "name"})


def network_of(rule: Any) -> dict[str, Any]:
    """The settings of the first of the networks that the rule takes: perceptrons before all others."""
    found = [settings for hidden in HIDDEN if (settings := suited(rule, 784, 10, hidden))]
    return next((settings for settings in found if settings["name"] == "mlp"), found[0])


def told(settings: dict[str, Any]) -> str:
    """The network in a few words."""
    widths, activation = "-".join(map(str, settings["widths"])), settings.get("activation", "relu")
    return f"{settings['depth']} × {widths}" if "depth" in settings else f"{widths}, {activation}"


def measured(name: str, rivals: dict[str, Runner]) -> Measured:
    """One rule, in turns with backprop. rivals: backprop on the networks so far."""
    rule = RULES[name]()
    settings = network_of(rule)
    network = told(settings)
    if network not in rivals:
        rivals[network] = Runner("backprop", settings)
    rival = rivals[network]
    run = rival if name == "backprop" else Runner(rule, settings)
    times = in_turns({"rule": lambda: took(run.train), "backprop": lambda: took(rival.train)}, TURNS)
    each = [[seconds / steps for seconds in times[who]] for who, steps in (("rule", run.steps), ("backprop", rival.steps))]
    ratios = [mine / its for mine, its in zip(*each, strict=True)]
    messages = sum(run.plan.traffic.messages.values())
    return Measured(name, network, 1e3 * each[0][0], *ratios, run.products / rival.products, messages, run.plan.hops)


def main(names: list[str]) -> None:
    """Print a table, the fastest first, by the processor's time."""
    rivals: dict[str, Runner] = {}
    rows = []
    for name in names or list(RULES):
        rows.append(measured(name, rivals))
        print(f"{name}: {rows[-1].ms:.2f} ms", file=sys.stderr, flush=True)
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n")
    print("| rule | processor | time | products | ms | messages | in a row | network |\n|---|---|---|---|---|---|---|---|")
    for row in sorted(rows, key=lambda row: row.processor):
        ratios = " | ".join(f"{ratio:.2f}" for ratio in (row.processor, row.time, row.products, row.ms))
        print(f"| `{row.name}` | {ratios} | {row.messages} | {row.hops} | {row.network} |")


if __name__ == "__main__":
    main(sys.argv[1:])
