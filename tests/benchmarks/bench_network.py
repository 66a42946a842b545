"""The time that `locallearn time` predicts, against real actors whose sender paces every frame.

    python -m tests.benchmarks.bench_network [seconds]

784-64-...-10 with one block in each of two, three and four shards, batch 32, on random data; networks on which the links take most of a
step. The time is that between two evaluations, which without validation data are one decision of the top each: the pipeline is empty
after it. There are as many steps as are predicted to take `seconds` (5). Prints a table; predictions should be within 15 %.
"""

import math
import sys
from dataclasses import replace

from locallearn.network.clock import ends
from locallearn.network.graph import step_graph
from locallearn.network.prices import Prices
from locallearn.networks import parse_network
from locallearn.rules import RULES as LIBRARY
from locallearn.runtime.cluster import Crew
from locallearn.runtime.fused import FusedSession
from locallearn.runtime.training import Evaluated, train
from tests.benchmarks.common import random_setup

NETWORKS = ("4 Mbit/s, 50 ms", "1 Mbit/s, 20 ms", "1 Mbit/s, 200 ms", "256 kbit/s, 20 ms")
RULES = {"backprop": {}, "mono_forward": {}, "predictive_coding": {"steps": 4}}
SHARDS = (2, 3, 4)
BATCH, WIDTH, TRIAL = 32, 64, 20


def setup(rule, shards, steps):
    """One block in each shard."""
    widths = (784, *(WIDTH,) * (shards - 1), 10)
    return quiet(random_setup(LIBRARY[rule](**RULES[rule]), widths, examples=1000, batch=BATCH, steps=2 * steps, shards=shards), steps)


def quiet(made, steps):
    """The run without validation data, with two decisions."""
    nothing = made.split.validation._replace(x=made.split.validation.x[:0], y=made.split.validation.y[:0])
    return replace(made, evaluate_every=steps, split=made.split._replace(validation=nothing, test=nothing))


def span(events):
    """Seconds between the first and the second evaluation."""
    times = [event.seconds for event in events if isinstance(event, Evaluated)]
    return times[1] - times[0]


def predicted(made, net, step_seconds, steps):
    """When each of so many steps ends by the clocks, and the decision after the last is known."""
    (stage,) = made.stages
    graph = step_graph(stage.rule, stage.blocks, stage.wiring.placement, Prices(stage, BATCH, step_seconds, len(stage.blocks)))
    return ends(graph, net, steps) + net.latency


def main(seconds):
    """A line for each case."""
    print("| rule | shards | network | steps | predicted, s | actors, s | ratio |\n|---|---|---|---|---|---|---|")
    worst = 0.0
    for shards in SHARDS:
        with Crew(shards) as crew:
            for rule in RULES:
                trial = setup(rule, shards, TRIAL)
                step_seconds = span(train(FusedSession(trial))) / TRIAL
                for text in NETWORKS:
                    net = parse_network(text)
                    wanted = predicted(trial, net, step_seconds, 200)
                    steps = max(2, int((wanted < seconds).sum()))
                    made = setup(rule, shards, steps)
                    found = span(crew.train(lambda made=made: made, keep_seconds=math.inf, network=net))
                    ratio = wanted[steps - 1] / found
                    worst = max(worst, abs(ratio - 1))
                    print(f"| {rule} | {shards} | {text} | {steps} | {wanted[steps - 1]:.2f} | {found:.2f} | {ratio:.2f} |", flush=True)
    print(f"\nfurthest from 1: {worst:.1%}")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 5)
