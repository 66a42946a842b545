"""The time that `locallearn time` predicts, against real actors whose sender paces every frame.

    python -m tests.benchmarks.bench_network [exact | codecs] [seconds]

784-64-...-10 with one block in each of two, three and four shards, batch 32, on random data; networks on which the links take most of a
step. The time is that between two evaluations, which without validation data are one decision of the top each: the pipeline is empty
after it. There are as many steps as are predicted to take `seconds` (5). With codecs, on three shards, the steps are those of the case,
the third time, when what is not sent has been met and compiled; what is predicted goes by the bytes that the actors sent, as `locallearn
time` does. Prints a table; predictions should be within 15 %.
"""

import math
import sys
from dataclasses import replace
from types import MappingProxyType

from locallearn.codec import build, exact
from locallearn.network.clock import ends
from locallearn.network.graph import step_graph
from locallearn.network.prices import Prices
from locallearn.network.sent import Amounts, shares
from locallearn.networks import parse_network
from locallearn.rules import RULES as LIBRARY
from locallearn.runtime.cluster import Crew
from locallearn.runtime.fused import FusedSession
from locallearn.runtime.training import Evaluated, train
from locallearn.runtime.wiring import choose_codecs
from tests.benchmarks.common import random_setup

NETWORKS = ("4 Mbit/s, 50 ms", "1 Mbit/s, 20 ms", "1 Mbit/s, 200 ms", "256 kbit/s, 20 ms")
RULES = {"backprop": {}, "mono_forward": {}, "predictive_coding": {"steps": 4}}
SHARDS = (2, 3, 4)
BATCH, WIDTH, TRIAL = 32, 64, 20

INT4, PACKED, REUSE = ("int4", ()), ("packed", ()), ("reuse", (1600, 2))
EVENTS = [("difference", (0.05,)), ("int8", ())]
CODECS = {
    "int4": ("backprop", {"activation": [INT4], "error": [INT4]}, 30),
    "every(4), deflate": ("backprop", {"activation": [INT4], "error": [("every", (4,)), ("deflate", ()), ("ternary", ())]}, 40),
    "events": ("predictive_coding", {"activation": EVENTS, "error": EVENTS}, 8),
    "greedy, reuse": ("decoupled_greedy", {"activation": [REUSE, INT4], "label": [REUSE, PACKED], "scalar": [("every", (100,))]}, 40),
}
"""Rule, codecs and steps. Of 1600 examples, 50 steps each time round, rows cross every second time: in half of the third 40 steps."""
SLOW = ("256 kbit/s, 20 ms", "64 kbit/s, 50 ms")


def setup(rule, shards, steps):
    """One block in each shard."""
    widths = (784, *(WIDTH,) * (shards - 1), 10)
    return quiet(random_setup(LIBRARY[rule](**RULES[rule]), widths, examples=1000, batch=BATCH, steps=2 * steps, shards=shards), steps)


def quiet(made, steps):
    """The run without validation data, with a decision every so many steps."""
    nothing = made.split.validation._replace(x=made.split.validation.x[:0], y=made.split.validation.y[:0])
    return replace(made, evaluate_every=steps, split=made.split._replace(validation=nothing, test=nothing))


def coded(name, shards=3):
    """A case of CODECS; of greedy training the phase in which the highest block learns."""
    rule, codecs, steps = CODECS[name]
    widths = (784, *(WIDTH,) * (shards - 1), 10)
    made = quiet(
        random_setup(LIBRARY[rule](**RULES.get(rule, {})), widths, examples=1600, batch=BATCH, steps=3 * steps, shards=shards), steps
    )
    (stage,) = made.stages
    chosen = choose_codecs(stage.rule.messages, {kind: build(tuple(spec)) for kind, spec in codecs.items()}, exact())
    blocks = tuple(replace(block, learns=block.top or rule != "decoupled_greedy") for block in stage.blocks)
    return replace(made, stages=(replace(stage, blocks=blocks, wiring=stage.wiring._replace(codecs=chosen)),))


def evaluations(events):
    """The last two."""
    return [event for event in events if isinstance(event, Evaluated)][-2:]


def span(events):
    """Seconds between the last two evaluations."""
    before, after = evaluations(events)
    return after.seconds - before.seconds


def predicted(made, net, step_seconds, steps, sent=MappingProxyType({})):
    """When each of so many steps ends by the clocks, and the decision after the last is known."""
    (stage,) = made.stages
    prices = Prices(stage, BATCH, step_seconds, len(stage.blocks), sent=sent)
    graph = step_graph(stage.rule, stage.blocks, stage.wiring.placement, prices)
    return ends(graph, net, steps) + net.latency


def lossless(seconds):
    """A line for each case; how far the predictions are from 1."""
    print("| rule | shards | network | steps | predicted, s | actors, s | ratio |\n|---|---|---|---|---|---|---|")
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
                    print(f"| {rule} | {shards} | {text} | {steps} | {wanted[steps - 1]:.2f} | {found:.2f} | {ratio:.2f} |", flush=True)
                    yield abs(ratio - 1)


def with_codecs(_):
    """The same, with the bytes that were sent beside the plan's bound."""
    print(
        "| rule | codecs | network | steps | kB sent | planned | predicted, s | actors, s | ratio |\n|---|---|---|---|---|---|---|---|---|"
    )
    with Crew(3) as crew:
        for name, (rule, _, steps) in CODECS.items():
            made = coded(name)
            step_seconds = span(train(FusedSession(made))) / steps
            planned = made.plan_step(made.stages[0]).traffic * steps
            for text in SLOW:
                net = parse_network(text)
                before, after = evaluations(crew.train(lambda made=made: made, keep_seconds=math.inf, network=net))
                counts = (Amounts.of([(1, traffic.rows())]) for traffic in (planned, before.traffic, after.traffic))
                wanted, found = predicted(made, net, step_seconds, steps, shares(*counts))[-1], after.seconds - before.seconds
                sizes = f"{(after.traffic.bytes - before.traffic.bytes) / 1000:.1f} | {planned.bytes / 1000:.1f}"
                print(f"| {rule} | {name} | {text} | {steps} | {sizes} | {wanted:.2f} | {found:.2f} | {wanted / found:.2f} |", flush=True)
                yield abs(wanted / found - 1)


def main(*given):
    """One table or both."""
    tables = {"exact": lossless, "codecs": with_codecs}
    seconds = next((float(word) for word in given if word not in tables), 5.0)
    for name in [word for word in given if word in tables] or tables:
        print(f"\nfurthest from 1: {max(tables[name](seconds)):.1%}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
