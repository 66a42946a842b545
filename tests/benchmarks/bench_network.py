"""The time that `locallearn time` predicts, against real actors whose sender paces every frame.

    python -m tests.benchmarks.bench_network [steps]

784-256-256-256-10 on four, and 784-256-10 on two shards, batch 64, on random data; networks on which the links take most of a step. The
time is that between two evaluations, which without validation data are one decision of the top each: the pipeline is empty after it.
Prints a table; predictions should be within 15 %.
"""

import sys
from dataclasses import replace

from locallearn.network.clock import ends
from locallearn.network.graph import step_graph
from locallearn.network.prices import Prices
from locallearn.networks import parse_network
from locallearn.runtime.cluster import Crew
from locallearn.runtime.fused import FusedSession
from locallearn.runtime.training import Evaluated, train
from tests.benchmarks.common import random_setup

NETWORKS = ("100 Mbit/s, 20 ms", "10 Mbit/s, 20 ms", "10 Mbit/s, 100 ms", "2 Mbit/s, 20 ms")
RULES = ("backprop", "mono_forward", "predictive_coding")
CHAINS = ((784, 256, 10), (784, 256, 256, 256, 10))
BATCH = 64


def setup(rule, widths, steps):
    """A run without validation data, with two decisions."""
    made = random_setup(rule, widths, examples=1000, batch=BATCH, steps=2 * steps, shards=len(widths) - 1)
    nothing = made.split.validation._replace(x=made.split.validation.x[:0], y=made.split.validation.y[:0])
    return replace(made, evaluate_every=steps, split=made.split._replace(validation=nothing, test=nothing))


def span(events):
    """Seconds between the first and the second evaluation."""
    times = [event.seconds for event in events if isinstance(event, Evaluated)]
    return times[1] - times[0]


def predicted(made, net, step_seconds):
    """The same by the clocks."""
    (stage,) = made.stages
    graph = step_graph(stage.rule, stage.blocks, stage.wiring.placement, Prices(stage, BATCH, step_seconds, len(stage.blocks)))
    return ends(graph, net, made.evaluate_every)[-1] + net.latency


def main(steps):
    """A line for each case."""
    print("| rule | shards | network | predicted, s | actors, s | ratio |\n|---|---|---|---|---|---|")
    for widths in CHAINS:
        with Crew(len(widths) - 1) as crew:
            for rule in RULES:
                made = setup(rule, widths, steps)
                fused = span(train(FusedSession(made))) / steps
                list(crew.train(lambda made=made: made))  # compiles
                for text in NETWORKS:
                    net = parse_network(text)
                    found = span(crew.train(lambda made=made: made, network=net))
                    wanted = predicted(made, net, fused)
                    print(f"| {rule} | {len(widths) - 1} | {text} | {wanted:.2f} | {found:.2f} | {wanted / found:.2f} |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
