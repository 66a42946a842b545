"""Tables and the figure, from run directories written by hand."""

import csv
import io
import json
import statistics
import xml.etree.ElementTree as ET
from itertools import combinations

import numpy as np
import pytest

from locallearn.experiment.store import Store
from locallearn.report.figure import frontier
from locallearn.report.ink import byte_ticks, save, time_ticks
from locallearn.report.labels import overlap
from locallearn.report.report import write_report
from locallearn.report.summary import Group, groups_of, pareto, reference, summary
from locallearn.report.table import codecs_cell, rows_below, rows_of, to_csv

RULES = {"backprop": (0.9, 400), "direct_feedback": (0.85, 220), "predictive_coding": (0.88, 1500)}


def write_run(root, rule, codec, seed, ending=True):
    accuracy, mebibytes = RULES[rule]
    share = {"exact": 1.0, "int8": 0.25}[codec]
    store = Store(root / f"{rule}-{codec}-00000000" / f"seed-{seed}")
    store.make()
    varied = {"task": "one-D", "rule.name": rule, "rule.steps": 5 if rule == "predictive_coding" else None, "codecs.default": codec}
    config = {
        "rule": {"name": rule},
        "model": {"name": "mlp", "shards": 2},
        "data": {"name": "strokes1d"},
        "codecs": {"default": codec},
        "seed": seed,
    }
    store.begin(json.dumps(config), {"on": "local", "devices": ["cpu"], "source": "experiments/s.yaml", "varied": varied})
    total = int(mebibytes * share * 2**20)
    for step in (50, 100):
        sent = total * step // 100
        kinds = {"bytes_activation": sent, "bytes_evaluation": 7}
        store.append({"step": step, "seconds": step / 10, "bytes": sent, "validation_accuracy": 0.5, "train_loss": 1.0, **kinds})
    if ending:
        channel = {"message": "a", "kind": "activation", "src": 0, "dst": 1, "messages": 1, "payload": total - 20, "framed": total}
        aside = {**channel, "kind": "evaluation", "payload": 9, "framed": 29}
        tested = accuracy * (0.98 if codec == "int8" else 1) + 0.01 * seed
        store.finish({"reason": "steps", "test_accuracy": tested, "test_accuracy_lossless": tested, "traffic": [channel, aside]})


@pytest.fixture
def root(tmp_path):
    for rule in RULES:
        for codec in ("exact", "int8"):
            for seed in (0, 1):
                write_run(tmp_path, rule, codec, seed, ending=(rule, codec, seed) != ("predictive_coding", "int8", 1))
    return tmp_path


def test_one_tidy_row_for_each_evaluation(root):
    rows = list(csv.DictReader(io.StringIO(to_csv(rows_below(root)))))
    assert len(rows) == 12 * 2
    first, second = rows[:2]
    assert (first["sweep"], first["run"], first["rule"], first["fabric"]) == ("s", "backprop-exact-00000000/seed-0", "backprop", "fused")
    assert (first["task"], first["codecs.default"], first["rule.steps"]) == ("one-D", "exact", "")
    assert "rule.name" not in first  # it is `rule`
    assert (first["step"], first["test_accuracy"], first["reason"]) == ("50", "", "")
    assert (second["step"], second["test_accuracy"], second["reason"]) == ("100", "0.9", "steps")
    assert (first["bytes_evaluation"], second["bytes_evaluation"]) == ("7", "29")  # with the test
    assert rows[-1]["state"] == "interrupted"


SUMMARY = """\
one-D                             test     bytes    a step /backprop        time
backprop                  0.905 ±0.007   400 MiB  4.00 MiB         1        10 s
backprop int8             0.887 ±0.007   100 MiB  1.00 MiB      0.25        10 s
direct_feedback           0.855 ±0.007   220 MiB  2.20 MiB      0.55        10 s
direct_feedback int8      0.838 ±0.007  55.0 MiB   563 KiB     0.138        10 s
predictive_coding         0.885 ±0.007  1.46 GiB  15.0 MiB      3.75        10 s
predictive_coding int8 (1 interrupted)
                                 0.862   375 MiB  3.75 MiB     0.938        10 s"""


def test_a_label_may_be_called_as_something_that_is_measured(root):
    store = Store(next(root.glob("backprop-exact-*")) / "seed-0")
    store.write_meta({**store.read("meta.json"), "varied": {"bytes": "few", "as": "it is"}})
    first, last = rows_of(store.directory)
    assert [(row["vary.bytes"], row["as"]) for row in (first, last)] == [("few", "it is")] * 2
    assert first["bytes"] < last["bytes"]


def test_the_summary(root):
    text = summary(rows_below(root))
    assert text == SUMMARY
    assert max(map(len, text.splitlines())) <= 80


def test_variants_of_a_rule_are_told_apart():
    facts = {"task": "t", "data": "d", "rule": "pc", "codecs": "exact", "fabric": "fused", "state": "interrupted"}
    rows = [{**facts, "run": f"{steps}/seed-0", "rule.steps": steps, "rule.rate": 0.1} for steps in (5, 20)]
    rows.append({**facts, "run": "b/seed-0@ray", "fabric": "ray", "rule": "backprop"})
    assert [group.label for group in groups_of(rows)] == ["pc steps 5", "pc steps 20", "backprop on ray"]


def test_a_label_that_says_which_codecs_stands_for_them():
    facts = {"task": "t", "data": "d", "rule": "pc", "fabric": "fused", "state": "interrupted"}
    rows = [
        {**facts, "run": f"{k}/seed-0", "as": word, "codecs": codecs}
        for k, (word, codecs) in enumerate([("cheap", "int4 label=packed"), ("dear", "exact")])
    ]
    assert [group.name for group in groups_of(rows)] == ["pc cheap", "pc dear"]
    assert [group.name for group in groups_of([*rows, {**rows[0], "run": "2/seed-0", "codecs": "int8"}])] == [
        "pc cheap int4 label=packed",
        "pc dear",
        "pc cheap int8",
    ]


def test_sweeps_are_told_apart_where_nothing_else_does():
    facts = {"task": "t", "data": "d", "rule": "pc", "codecs": "exact", "fabric": "fused", "state": "interrupted"}
    rows = [{**facts, "run": f"{sweep}/pc-0/seed-0", "sweep": sweep} for sweep in ("one", "two")]
    assert [group.label for group in groups_of(rows)] == ["pc one", "pc two"]
    assert [group.label for group in groups_of(rows[:1])] == ["pc"]


def test_nothing_finished(tmp_path):
    write_run(tmp_path, "backprop", "exact", 0, ending=False)
    rows = rows_below(tmp_path)
    assert summary(rows).splitlines()[1].split() == ["backprop", "(1", "interrupted)", *"-----"]
    assert [path.name for path in write_report(rows, tmp_path, tmp_path / "out")] == ["report.html", "results.csv"]
    assert "Not over: 1 interrupted." in (tmp_path / "out" / "report.html").read_text()


def test_codecs_in_a_cell():
    assert codecs_cell({"default": "exact"}) == "exact"
    assert codecs_cell({"default": "exact", "error": ["error_feedback", "int8"]}) == "error=error_feedback+int8"
    assert codecs_cell({"default": "int8", "error": "exact"}) == "int8 error=exact"


def group(bytes_, *accuracies, rule="backprop", codecs="exact", panel="p"):
    return Group(panel, rule, codecs, "", accuracies, bytes_, bytes_ / 10, 1.0)


def test_pareto_by_brute_force():
    rng = np.random.default_rng(0)
    groups = [group(float(b), float(a)) for b, a in zip(rng.integers(1, 20, 40), rng.integers(1, 20, 40), strict=True)]
    points = {(g.bytes, statistics.median(g.accuracies)) for g in groups}
    best = {(b, a) for b, a in points if not any((c <= b and d >= a) and (c, d) != (b, a) for c, d in points)}
    assert {(g.bytes, g.accuracies[0]) for g in pareto(groups)} == best


def test_the_reference_is_backprops_cheapest_near_its_best():
    best, cheap, poor = group(3000.0, 0.9), group(2000.0, 0.8985), group(1000.0, 0.89)
    others = [group(10.0, 0.9, codecs="int8"), group(10.0, 0.95, rule="other"), group(10.0, 0.9, panel="q")]
    assert reference([best, poor, cheap, *others], "p") is cheap
    assert reference(others[:2], "p") is None


@pytest.mark.parametrize(("low", "high"), [(888e6, 5e9), (1, 10), (1.1e9, 2.7e9), (3e5, 9e5), (1e3, 1e13), (7.0e6, 7.4e6)])
def test_ticks_are_few_round_and_inside(low, high):
    ticks = byte_ticks(low, high)
    assert 2 <= len(ticks) <= 7
    assert all(low <= tick <= high for tick in ticks)


@pytest.mark.parametrize(("low", "high"), [(3e-3, 0.2), (0.5, 9.0), (40.0, 7200.0), (1e3, 1e9), (1.0, 1e12), (100.0, 130.0), (4e4, 9e4)])
def test_times_are_few_round_and_inside(low, high):
    ticks = time_ticks(low, high)
    assert 2 <= len(ticks) <= 6
    length = {"ms": 1e-3, "s": 1, "min": 60, "h": 3600, "d": 86400, "y": 365.25 * 86400}
    for seconds, words in ticks:
        number, unit = words.split()
        assert low <= seconds <= high
        assert seconds == pytest.approx(float(number) * length[unit])


def test_the_figure_is_deterministic_and_stands_alone(root, tmp_path):
    groups = groups_of(rows_below(root))
    for suffix in ("svg", "pdf", "png"):
        one, two = (save(frontier(groups), tmp_path / f"{name}.{suffix}").read_bytes() for name in "ab")
        assert one == two
    svg = (tmp_path / "a.svg").read_text()
    ET.fromstring(svg)
    references = svg.replace("http://www.w3.org/", "").replace("http://purl.org/", "").replace("http://creativecommons.org/", "")
    assert "http" not in references.replace("https://matplotlib.org/", "")
    assert "<image" not in svg


def test_one_lost_seed_does_not_press_the_others_together():
    axes = frontier([group(10.0, 0.9, 0.89), group(20.0, 0.8, 0.82, 0.1), group(30.0, 0.85)]).axes[0]
    low, high = axes.get_ylim()
    assert 0.1 < low < np.mean([0.8, 0.82, 0.1])
    assert high > 0.9


def test_names_cover_nothing():
    """Eight rules close together: no name lies on another, none leaves its panel."""
    rng = np.random.default_rng(1)
    rules = ["backprop", *(f"rule_number_{k}" for k in range(7))]
    groups = [
        group(2.0 ** rng.uniform(20, 30), *(0.8 + rng.normal(0, 0.02) + rng.normal(0, 0.004, 3)), rule=rule, codecs=codec, panel=panel)
        for panel in "pq"
        for rule in rules
        for codec in ("exact", "int8")
    ]
    figure = frontier(groups)
    renderer = figure.canvas.get_renderer()
    for axes in figure.axes:
        boxes = [tuple(text.get_window_extent(renderer).extents) for text in axes.texts]
        assert len(boxes) == len(rules)
        inside = axes.get_window_extent(renderer)
        for box in boxes:
            assert inside.x0 <= box[0]
            assert box[2] <= inside.x1
        for one, other in combinations(boxes, 2):
            assert overlap(one, np.array([other])) < 0.1 * (one[2] - one[0]) * (one[3] - one[1])


def test_a_front_begins_with_who_sends_nothing():
    """What is no better than that has bought nothing for its bytes."""
    figure = frontier([group(2.0**20, 0.5), group(2.0**24, 0.9), group(0.0, 0.7, rule="solo")])
    steps = max(figure.axes[0].lines, key=lambda line: line.get_linewidth())
    assert steps.get_ydata().tolist() == [0.7, 0.7, 0.9, 0.9]
    assert steps.get_xdata()[1] == 2.0**24


def test_one_point_makes_a_figure(tmp_path):
    assert save(frontier([group(1000.0, 0.5)]), tmp_path / "x.svg").exists()
    assert [g.panel for g in groups_of([])] == []
