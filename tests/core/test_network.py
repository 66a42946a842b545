"""Clocks for a step's graph: against closed forms, and against an event heap that knows nothing of their recurrences."""

import heapq
import time
from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest

import locallearn
from locallearn.cli import code_of
from locallearn.config.reading import parse
from locallearn.config.run import resolve
from locallearn.errors import ConfigError, LocallearnError
from locallearn.experiment.api import configuration
from locallearn.experiment.course import Course, Interval, course_of
from locallearn.experiment.how import How
from locallearn.experiment.predict import predict
from locallearn.experiment.prepare import stage_of
from locallearn.network.clock import _pipelined, _replayed, ends, upwards
from locallearn.network.graph import Event, as_ready, step_graph
from locallearn.network.prices import Prices, likenesses, resized
from locallearn.network.sent import Share
from locallearn.networks import NETWORKS, Network, parse_network
from locallearn.rules import RULES
from locallearn.runtime.influence import at_work
from locallearn.runtime.wiring import deal

SLOW = Network("slow", 1000.0, 1000.0, 0.5)


class Flat:
    """Every function takes a second, every message a kilobyte; of what goes down, as many frames as one likes."""

    def __init__(self, down=1.0):
        self.down = down

    def compute(self, name, block):
        return 1.0

    def message(self, name, src, dst):
        frames = self.down if src > dst else 1.0
        return 1000.0 * frames, frames


def stage(rule, widths=(196, 20, 16, 12, 10), activation="relu", **options):
    data = {"name": "fashion14"}
    model = {"name": "mlp", "widths": list(widths), "activation": activation, "shards": len(widths) - 1}
    return stage_of(resolve({"rule": {"name": rule, **options}, "model": model, "data": data, "train": {"epochs": 1, "batch": 50}}))


def graph(rule, prices=None, shards=4, microbatches=1, **options):
    found = stage(rule, **options)
    return step_graph(found.rule, found.blocks, deal(len(found.blocks), shards), prices or Flat(), microbatches)


def by_heap(events, net, steps, ahead):
    """The same machines over an event heap: each has a list of computations and one of sends, and begins the first when it can."""
    shards = 1 + max(max(event.shard, event.to or 0) for event in events)
    cpu, wire = defaultdict(list), defaultdict(list)
    for step in range(steps):
        for early_step in range(ahead + 1) if step == 0 else [step + ahead]:
            wire_early = [(early_step, k) for k, event in enumerate(events) if event.early and early_step < steps]
            for task in wire_early:
                wire[events[task[1]].shard].append((*task, step - 1))
        for k, event in enumerate(events):
            if event.to is None:
                cpu[event.shard].append((step, k))
            elif not event.early:
                wire[event.shard].append((step, k, None))
    silent = {(step, k) for k, event in enumerate(events) for step in range(steps + ahead) if event.to is not None and not event.sent(step)}
    wire = {s: [task for task in tasks if tuple(task[:2]) not in silent] for s, tasks in wire.items()}
    wire = defaultdict(list, wire)
    done, finished = dict.fromkeys(silent, 0.0), {}
    last = {event.shard: k for k, event in enumerate(events) if event.to is None}
    busy = {("cpu", s): False for s in range(shards)} | {("wire", s): False for s in range(shards)}
    heap, number, now = [], 0, 0.0

    def ready(step, k):
        return all((step, need) in done for need in events[k].needs)

    def begin():
        nonlocal number
        for s in range(shards):
            if cpu[s] and not busy["cpu", s] and ready(*cpu[s][0]):
                busy["cpu", s] = True
                heapq.heappush(heap, (now + events[cpu[s][0][1]].cost, number := number + 1, "cpu", s, cpu[s].pop(0)))
            if wire[s] and not busy["wire", s]:
                step, k, after = wire[s][0]
                waits = (after, s) not in finished if after is not None and after >= 0 else False
                if not waits and (events[k].early or ready(step, k)):
                    busy["wire", s] = True
                    wire[s].pop(0)
                    time = net.seconds(events[k].cost / (events[k].frames if events[k].spacing > 1 else 1))
                    arrives = now + time + net.latency
                    heapq.heappush(heap, (now + time, number := number + 1, "wire", s, None))
                    heapq.heappush(heap, (arrives, number := number + 1, "arrived", s, (step, k)))

    begin()
    while heap:
        now, _, kind, s, task = heapq.heappop(heap)
        if kind != "arrived":
            busy[kind, s] = False
        if kind in ("cpu", "arrived"):
            done[task] = now
        if kind == "cpu" and task[1] == last[s]:
            finished[task[0], s] = now
        begin()
    return np.array([max(time for (step, _), time in finished.items() if step == n) for n in range(steps)])


@pytest.mark.parametrize("rule", ["backprop", "direct_feedback", "predictive_coding", "mono_forward", "forward_forward"])
@pytest.mark.parametrize("net", [SLOW, Network("quick", 1e6, 1e6, 0.0), Network("far", 1e6, 1e6, 30.0)], ids=lambda net: net.name)
def test_recurrences_are_what_an_event_heap_finds(rule, net):
    events = graph(rule)
    ahead = 2
    np.testing.assert_allclose(_replayed(events, net, 12, ahead), by_heap(events, net, 12, ahead), rtol=1e-9)


@pytest.mark.parametrize("rule", ["backprop", "predictive_coding"])
@pytest.mark.parametrize("among", [2, 3, 5])
@pytest.mark.parametrize("net", [SLOW, Network("far", 1e6, 1e6, 30.0)], ids=lambda net: net.name)
def test_what_every_few_messages_are_is_what_an_event_heap_finds(rule, among, net):
    """Steps that send nothing down wait for nothing, and repeat themselves only after a while."""
    events = graph(rule, Flat(1 / among))
    found = _replayed(events, net, 400, 2)
    np.testing.assert_allclose(found[:40], by_heap(events, net, 40, 2), rtol=1e-9)
    np.testing.assert_allclose(np.diff(found[-30:]), np.diff(found[-60:-30]), rtol=1e-6)
    assert rule == "predictive_coding" or found[-1] < 0.9 * _replayed(graph(rule), net, 400, 2)[-1]


@pytest.mark.parametrize("rule", ["mono_forward", "local_classifier", "softhebb", "drtp"])
@pytest.mark.parametrize("net", [SLOW, Network("far", 1e6, 1e6, 30.0)], ids=lambda net: net.name)
@pytest.mark.parametrize("ahead", [2, 100])
def test_a_pipeline_is_what_replaying_it_finds(rule, net, ahead):
    """Labels that leave two steps ahead hold the bottom back, those of all steps do not."""
    events = graph(rule)
    order = upwards(events)
    assert order is not None
    found = _pipelined(events, net, 40, order, ahead)
    np.testing.assert_allclose(found, _replayed(events, net, 40, ahead), rtol=1e-9)
    np.testing.assert_allclose(found[:12], by_heap(events, net, 12, ahead), rtol=1e-9)
    if rule == "mono_forward" and net.name == "far":
        assert (found[-1] > 1.5 * _pipelined(events, net, 40, order, 100)[-1]) == (ahead == 2)


def test_what_comes_down_is_no_pipeline():
    assert upwards(graph("backprop")) is None
    assert upwards(graph("mono_forward")) is not None


def test_a_chain_of_two_by_hand():
    """One second at 0, a kilobyte up (1 s and 0.5 s of latency), one second at 1, and back: 5 s a step, nothing overlaps."""
    events = [Event(0, (), 1.0), Event(0, (0,), 1000.0, 1), Event(1, (1,), 1.0), Event(1, (2,), 1000.0, 0), Event(0, (3,), 0.0)]
    np.testing.assert_allclose(ends(events, SLOW, 4), [5, 10, 15, 20])


def test_a_chain_of_two_that_answers_every_other_time_by_hand():
    """The step that gets no answer ends 3.5 s after the one that did, and the bottom is by then at the next one: 6 s for both."""
    events = [Event(0, (), 1.0), Event(0, (0,), 1000.0, 1), Event(1, (1,), 1.0), Event(1, (2,), 500.0, 0, frames=0.5), Event(0, (3,), 0.0)]
    np.testing.assert_allclose(ends(events, SLOW, 30)[[0, 1, 2, 3, 4, 5, 28, 29]], [5, 8.5, 11, 14.5, 17, 20.5, 89, 92.5])


def test_a_pipeline_by_hand():
    """Nothing comes back: the first step takes 1 + 1.5 + 3 s, and then the slower shard sets the pace."""
    events = [Event(0, (), 1.0), Event(0, (0,), 1000.0, 1), Event(1, (1,), 3.0)]
    np.testing.assert_allclose(ends(events, SLOW, 4), [5.5, 8.5, 11.5, 14.5])


class Parts(Flat):
    """A block's passes take a second each, over all microbatches; its messages a kilobyte."""

    def __init__(self, m, seconds=1.0):
        self.m, self.seconds = m, seconds

    def compute(self, name, block):
        return self.seconds / self.m if name.endswith((".forward", ".backward")) else 0.0

    def message(self, name, src, dst):
        return 1000.0 / self.m, 1.0


@pytest.mark.parametrize("m", [1, 2, 8])
def test_microbatches_fill_a_pipeline(m):
    """GPipe (Huang et al. 2019): (K - 1 + m) / m of what each shard computes, for equal parts and free messages."""
    free = Network("free", 1e30, 1e30, 0.0)
    found = ends(as_ready(graph("backprop", Parts(m), microbatches=m), free), free, 5)
    np.testing.assert_allclose(np.diff(found, prepend=0), 2 * (4 - 1 + m) / m)


@pytest.mark.parametrize("m", [1, 2, 8])
def test_microbatches_come_down_while_others_go_up(m):
    """Two shards that compute nothing: both directions are busy but for the first and the last microbatch."""
    found = ends(as_ready(graph("backprop", Parts(m, 0.0), shards=2, microbatches=m), SLOW), SLOW, 3)
    np.testing.assert_allclose(np.diff(found, prepend=0), (m + 1) / m + 2 * SLOW.latency)


def test_the_order_of_readiness_keeps_what_a_step_is():
    events = graph("predictive_coding", microbatches=2)
    found = as_ready(events, SLOW)
    assert Counter((e.shard, e.cost, e.to, len(e.needs)) for e in found) == Counter((e.shard, e.cost, e.to, len(e.needs)) for e in events)
    assert all(need < k for k, event in enumerate(found) for need in event.needs)


@pytest.mark.parametrize("rule", ["backprop", "mono_forward"])
def test_a_graph_sends_what_the_plan_sends(rule):
    found = stage(rule)
    prices = Prices(found, 50, 1.0, len(found.blocks))
    events = step_graph(found.rule, found.blocks, deal(4, 4), prices)
    setup_bytes = sum(event.cost for event in events if event.to is not None)
    assert setup_bytes == {"backprop": 2 * (50 * 4 * (20 + 16 + 12) + 3 * 20), "mono_forward": 50 * 4 * 48 + 3 * 20 + 3 * (50 + 20)}[rule]
    assert sum(event.cost for event in events if event.to is None) == pytest.approx(1.0)


def test_a_long_chain_repeats_the_middle():
    assert likenesses(4, 4) == [0, 1, 2, 3]
    assert likenesses(4, 7) == [0, 1, 2, 1, 2, 1, 3]
    assert likenesses(2, 4) == [0, 0, 0, 1]
    assert likenesses(5, 2) == [0, 4]


@pytest.mark.parametrize("rule", [name for name in RULES if name not in ("noprop", "diffusion_blocks")])
def test_a_chain_that_was_made_longer_does_what_a_long_one_does(rule):
    """A network of eight blocks, and one of five that became as long: the same events."""
    short, long = (stage(rule, widths=(196, *[20] * hidden, 10), activation="sigmoid") for hidden in (4, 7))
    longer, own = (step_graph(found.rule, resized(found.blocks, 8), deal(8, 8), Flat()) for found in (short, long))
    assert longer == own


@pytest.mark.parametrize(("learns", "count", "awake"), [({2}, 5, 3), ({2}, 8, 7), ({1}, 5, 4), ({0}, 6, 1), ({0, 2}, 5, 3)])
def test_in_a_longer_chain_all_rest_above_the_highest_that_learns(learns, count, awake):
    """Also blocks like one that is below it in the run."""
    found = stage("mono_forward")
    blocks = at_work(found.rule, [replace(block, learns=block.index in learns) for block in found.blocks])
    assert [block.rests for block in resized(blocks, count)] == [i >= awake for i in range(count)]
    assert not any(block.rests for block in resized([replace(block, rests=False) for block in blocks], count))


def test_a_longer_chain_of_a_rule_whose_top_gets_nothing():
    """Forward-Forward's last hidden block sends nothing up; in the middle of a longer chain its likeness does."""
    found = stage("forward_forward", widths=(196, 20, 20, 20, 20, 10))
    blocks = resized(found.blocks, 12)
    events = step_graph(found.rule, blocks, deal(12, 12), Prices(found, 50, 1.0, 12))
    sent = {event.shard: event.cost for event in events if event.to == event.shard + 1 and event.cost > 1000}
    assert sent == dict.fromkeys(range(10), 2 * 50 * 20 * 4 + 20)  # positive and negative examples, and a header


@pytest.mark.parametrize("rule", ["mono_forward", "backprop"])
def test_ten_thousand_shards_for_a_thousand_steps(rule):
    """In less than a minute of one core."""
    begun = time.process_time()
    found = predict(Course([Interval(stage(rule), 1000)], 50, 1, 1e-3), NETWORKS["10gbit"], 10_000)
    assert time.process_time() - begun < 60
    assert (found.step < found.first / 100) == (rule == "mono_forward"), "a pipeline is filled once, a chain that waits never"


@pytest.mark.parametrize("shards", [4, 9])
@pytest.mark.parametrize("rule", ["mono_forward", "backprop", "predictive_coding"])
def test_a_quarter_of_the_messages_takes_as_long_as_all_on_a_network_four_times_as_fast(rule, shards):
    """Each has bytes and a frame in every fourth step; computing takes next to nothing."""
    found = stage(rule)
    sent = {(name, src, dst): Share(0.25, 0.25) for name in found.rule.messages for src in range(4) for dst in range(4)}
    some, all_ = (Course([Interval(found, 32, shares)], 50, 1, 1e-9) for shares in (sent, {}))
    fast = SLOW._replace(up=4 * SLOW.up, down=4 * SLOW.down, latency=SLOW.latency / 4)
    slower, faster = predict(some, SLOW, shards), predict(all_, fast, shards)
    assert slower.step == pytest.approx(faster.step)
    assert slower.seconds - SLOW.latency == pytest.approx(faster.seconds - fast.latency, rel=1e-3)  # but for the first step


def test_what_is_never_sent_is_not_waited_for():
    """Every receiver goes on with what it keeps: no step of any shard waits for another."""
    found = stage("backprop")
    sent = {(name, src, dst): Share(0.0, 0.0) for name in found.rule.messages for src in range(4) for dst in range(4)}
    prices = Prices(found, 50, 1.0, 4, sent=sent)
    events = step_graph(found.rule, found.blocks, deal(4, 4), prices)
    assert not any(event.to is not None for event in events)
    own = Counter()
    for event in events:
        own[event.shard] += event.cost
    np.testing.assert_allclose(ends(events, SLOW, 5), max(own.values()) * np.arange(1, 6))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    model = {"name": "mlp", "widths": [196, 16, 16, 10], "shards": 3}
    train = {"steps": 20, "batch": 50, "evaluate_every": 10}
    config = {"rule": {"name": "backprop"}, "model": model, "data": {"name": "fashion14"}, "train": train}
    return locallearn.run(config, runs=tmp_path_factory.mktemp("runs")).directory


def test_a_run_on_a_network(finished):
    """On a line so slow that only messages count: two rounds trips of 50 rows of 16 numbers, each with its header, after each other."""
    course = course_of(finished, step_seconds=1e-9)
    found = predict(course, Network("slow", 100.0, 100.0, 1.0))
    assert (found.shards, found.steps) == (3, 20)
    assert found.step == pytest.approx(4 * (50 * 16 * 4 + 20) / 100 + 4)
    assert found.seconds == pytest.approx(20 * found.step + 2)  # and two decisions
    best = max(record["validation_accuracy"] for record in locallearn.load(finished).curve)
    assert predict(course_of(finished, accuracy=best / 2), NETWORKS["1mbit"]).steps == 10
    with pytest.raises(LocallearnError, match="never had a validation accuracy"):
        course_of(finished, accuracy=0.99)


def test_the_command(finished, capsys):
    assert code_of(["time", str(finished), "--network", "1mbit", "--shards", "3", "--shards", "40"]) == 0
    head, three, forty = capsys.readouterr().out.splitlines()
    assert head.split() == ["network", "shards", "steps", "first", "step", "each", "step", "in", "all"]
    assert three.split()[:3] == ["1mbit", "3", "20"]
    assert forty.split()[:3] == ["1mbit", "40", "20"]
    assert code_of(["time", str(finished), "--network", "fast"]) == 2
    assert "`fast` is no network" in capsys.readouterr().err


def test_networks_in_words():
    assert parse_network("1gbit") is NETWORKS["1gbit"]
    assert parse_network("1 Mbit/s, 20 ms")[1:] == (125e3, 125e3, 0.02)
    assert parse_network("5 Mbit/s up, 50 Mbit/s down, 1 s")[1:] == (625e3, 6.25e6, 1.0)
    assert parse_network("50 Mbit/s down, 5 Mbit/s up, 1 s")[1:] == (625e3, 6.25e6, 1.0)
    assert parse_network("10 kB/s")[1:] == (10e3, 10e3, 0.0)
    half = ("5 Mbit/s up, 20 ms", "5 Mbit/s down", "5 Mbit/s up, 50 Mbit/s up", "5 Mbit/s, 50 Mbit/s", "5 Mbit/s up, 50 Mbit/s")
    for text in ("fast", "", "1 Mbit/s, soon", "20 ms", "0 Mbit/s", "up", "up 5 Mbit/s", *half):
        with pytest.raises(LocallearnError, match="is no network"):
            parse_network(text)


RUN = """\
rule: {name: backprop}
model: {name: mlp, widths: [196, 12, 10], shards: 2}
data: {name: fashion14, limit: 300, validation: 40}
train: {steps: 2, batch: 16}
"""


@pytest.mark.parametrize(
    ("written", "bandwidths", "latency"),
    [
        ("1mbit", (125e3, 125e3), 0.02),
        ("1 Mbit/s, 20 ms", (125e3, 125e3), 0.02),
        ("{bandwidth: 1 Mbit/s, latency: 20 ms}", (125e3, 125e3), 0.02),
        ("{bandwidth: 100 Mbit/s, up: 20 Mbit/s, latency: 20 ms}", (2.5e6, 12.5e6), 0.02),
        ("{bandwidth: 1 kB/s}", (1e3, 1e3), 0.0),
    ],
)
def test_a_file_says_at_what_pace_its_links_run_and_is_the_same_run(written, bandwidths, latency):
    plain, paced = resolve(parse(RUN, "run.yaml")), resolve(parse(f"{RUN}network: {written}", "run.yaml"))
    assert parse_network(paced.network)[1:] == (*bandwidths, latency)
    assert paced.canonical() == plain.canonical()
    assert (paced.digest(), paced.structure()) == (plain.digest(), plain.structure())
    assert configuration(paced, ["seed=1"]).network == paced.network
    clocked = resolve(parse(f"{RUN}schedule:\n  network: {written}\n  step: 0.01", "run.yaml"))
    assert clocked.schedule.network == paced.network
    assert (How("ray").line(paced), How("ray").line(plain), How("local").line(paced)) == (paced.network, None, None)
    assert How("ray", network="64kbit").line(paced) == "64kbit"


@pytest.mark.parametrize(
    ("written", "mistakes"),
    [
        ("network: fast", ["5: `network: fast`: `fast` is no network; write one of nvlink, "]),
        ("network: 5", ["5: `network: 5`: `5` is no network"]),
        ("network: {latency: 20 ms}", ["5: `network.bandwidth` is missing, such as 1 Mbit/s"]),
        (
            "network:\n  bandwith: 1 Mbit/s\n  up: 0 kB/s\n  latency: 20",
            [
                "5: `network.bandwidth` is missing, such as 1 Mbit/s",
                "6: `network.bandwith: 1 Mbit/s`: is no key of a network (keys: bandwidth, up, latency)",
                "7: `network.up: 0 kB/s`: is no rate with its unit",
                "8: `network.latency: 20`: is no time with its unit, such as 20 ms",
            ],
        ),
    ],
)
def test_a_network_that_is_none_is_found_at_its_line(written, mistakes):
    with pytest.raises(ConfigError) as found:
        resolve(parse(RUN + written, "run.yaml"))
    lines = str(found.value).splitlines()[: len(mistakes)]
    assert [line[: len(text) + 9] for line, text in zip(lines, mistakes, strict=True)] == [f"run.yaml:{text}" for text in mistakes]


def test_the_network_of_a_file_is_emulated_between_actors_and_told(monkeypatch, tmp_path, capsys):
    """The driver's part; that a line of so many bytes a second is kept to is proved with real actors elsewhere."""
    emulated = []

    def train_on_ray(making, *, network, **options):
        emulated.append(network)
        raise LocallearnError("there is no Ray here")
        yield

    monkeypatch.setattr("locallearn.runtime.cluster.train_on_ray", train_on_ray)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(f"{RUN}network: 1mbit")
    for flags in ([], ["--network", "64kbit", "--fresh"]):
        assert code_of(["run", "run.yaml", "--on", "ray", *flags]) == 1
    assert emulated == [NETWORKS["1mbit"], NETWORKS["64kbit"]]
    assert "links between actors are paced as of 64kbit" in capsys.readouterr().out
    assert '"network": "64kbit"' in next(tmp_path.glob("runs/run/*/seed-0@ray/meta.json")).read_text()
    assert code_of(["plan", "run.yaml"]) == 0
    assert "actors (--on ray) send it at the pace of 1mbit" in capsys.readouterr().out
