"""Expansion of a sweep: what runs, in which order, under which name, and every mistake at its line."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from locallearn.config.reading import read
from locallearn.config.run import RUN_KEYS
from locallearn.config.selection import selected
from locallearn.config.sweep import Target, load
from locallearn.errors import ConfigError

BASE = """\
rule: {name: backprop}
model: {name: mlp, widths: [40, 30, 20, 10], shards: 2}
data: {name: strokes}
train: {epochs: 2, batch: 50}
"""

SWEEP = """\
base: base.yaml
vary:
  task:
    - {label: small, data: {name: strokes, samples: 500}, train.batch: 20}
    - {label: large, data: {name: strokes, samples: 2000}, model.widths: [40, 50, 60, 10]}
  rule:
    - {name: backprop}
    - {name: predictive_coding, steps: 5}
  codecs.default: [exact, int8]
overrides:
  - {when: {rule.name: predictive_coding}, set: {train.optimizer.rate: 1e-2}}
  - {when: {rule.name: predictive_coding, task: small}, set: {train.optimizer.rate: 3e-2, rule.start: zeros}}
skip:
  - {when: {task: large, codecs.default: int8, rule.steps: [5, 20]}, because: too slow}
seeds: [0, 3]
target: {validation_accuracy: 0.95}
"""


@pytest.fixture
def sweep_of(tmp_path, catalog):
    """Expand a sweep that lies in a file beside its base."""

    def make(text: str = SWEEP, base: str = BASE):
        (tmp_path / "base.yaml").write_text(base)
        (tmp_path / "sweep.yaml").write_text(text)
        return load(read(tmp_path / "sweep.yaml"), catalog)

    return make


@pytest.fixture
def mistakes_of(sweep_of, tmp_path):
    def find(text: str, base: str = BASE) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            sweep_of(text, base)
        return [str(problem).replace(f"{tmp_path}/", "") for problem in caught.value.problems]

    return find


def test_every_combination_in_file_order_with_its_seeds(sweep_of):
    sweep = sweep_of()
    rows = [(*run.varied.values(), run.config.seed) for run in sweep.runs]
    assert rows == [
        ("small", "backprop", "exact", 0),
        ("small", "backprop", "exact", 3),
        ("small", "backprop", "int8", 0),
        ("small", "backprop", "int8", 3),
        ("small", "predictive_coding", 5, "exact", 0),
        ("small", "predictive_coding", 5, "exact", 3),
        ("small", "predictive_coding", 5, "int8", 0),
        ("small", "predictive_coding", 5, "int8", 3),
        ("large", "backprop", "exact", 0),
        ("large", "backprop", "exact", 3),
        ("large", "backprop", "int8", 0),
        ("large", "backprop", "int8", 3),
        ("large", "predictive_coding", 5, "exact", 0),
        ("large", "predictive_coding", 5, "exact", 3),
    ]
    assert list(sweep.runs[4].varied) == ["task", "rule.name", "rule.steps", "codecs.default"]
    assert sweep.target == Target(0.95)
    (skipped,) = sweep.skipped
    assert (skipped.because, skipped.varied["task"]) == ("too slow", "large")


def test_values_change_together_replace_whole_and_are_overridden_in_order(sweep_of):
    runs = {(*run.varied.values(),): run.config for run in sweep_of().runs}
    small, large = runs["small", "predictive_coding", 5, "exact"], runs["large", "predictive_coding", 5, "exact"]
    assert (small.data.samples, small.train.batch, small.model.widths) == (500, 20, (40, 30, 20, 10))
    assert (large.data.samples, large.train.batch, large.model.widths) == (2000, 50, (40, 50, 60, 10))
    assert (small.train.optimizer.rate, large.train.optimizer.rate) == (3e-2, 1e-2)
    assert (small.rule.start, large.rule.start) == ("zeros", "forward")
    assert runs["small", "backprop", "int8"].train.optimizer.rate == 1e-3


def test_names_say_what_varies_and_are_shared_by_the_seeds(sweep_of):
    runs = sweep_of().runs
    assert runs[4].name == f"predictive_coding-small-5-exact-{runs[4].config.identity()}"
    assert runs[4].name == runs[5].name
    assert len({run.name for run in runs}) == 7
    (run,) = sweep_of("base: base.yaml\n", BASE + "codecs: {default: int8}\n").runs
    assert run.name == f"backprop-int8-{run.config.identity()}"


def test_an_inline_base_and_expansion_from_python(catalog, sweep_of):
    inline = "base:\n" + "".join(f"  {line}\n" for line in BASE.splitlines()) + "vary: {rule: [{name: predictive_coding, steps: 3}]}\n"
    (run,) = sweep_of(inline).runs
    assert run.config.rule.steps == 3
    rule = catalog.rules["predictive_coding"]
    base = {"rule": rule(), "model": run.config.canonical()["model"], "data": {"name": "strokes"}, "train": {"epochs": 2, "batch": 50}}
    runs = load({"base": base, "vary": {"rule": [rule(steps=2), rule(steps=4)]}}, catalog).runs
    assert [r.config.rule.steps for r in runs] == [2, 4]
    with pytest.raises(ConfigError) as caught:
        load({"base": base, "vary": {"rule": [{"name": "backprop", "x": 1}]}, "sed": 1}, catalog)
    assert caught.value.problems[0].where == "sed"


def test_mistakes_in_values_are_reported_at_their_line_of_the_right_file(mistakes_of):
    text = """\
base: base.yaml
vary:
  rule:
    - {name: predictive_coding,
       step: 5}
    - {name: bakprop}
  model.widths: [[40, 10], [41, 5, 10]]
  codec.default: [exact]
"""
    assert mistakes_of(text) == ["sweep.yaml:8: unknown key `vary.codec.default`; did you mean `codecs`?"]
    assert mistakes_of(text.rpartition("  codec")[0], BASE + "sead: 3\n") == [
        "base.yaml:2: `model.shards: 2`: 2 shards for 1 blocks: a shard holds at least one block",
        "base.yaml:5: unknown key `sead`; did you mean `seed`?",
        "sweep.yaml:4: `rule`: needs two blocks",
        "sweep.yaml:5: unknown key `rule.step`; did you mean `steps`?",
        "sweep.yaml:6: `rule.name: bakprop` is no rule; did you mean `backprop`?",
        "sweep.yaml:7: `model.widths: [41, 5, 10]`: begins with 41, not 40",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("vary: {}\n", "sweep.yaml:1: `base` is missing"),
        ("base: no.yaml\n", "sweep.yaml:1: `base: no.yaml`: there is no such file"),
        ("base: sweep.yaml\n", "sweep.yaml:1: `base: sweep.yaml`: is itself a sweep; a base is a run"),
        ("base: [1]\n", "sweep.yaml:1: `base: [1]`: must be the path of a run's file, or a run"),
        ("base: base.yaml\nvarry: {}\n", "sweep.yaml:2: unknown key `varry`; did you mean `vary`?"),
        ("base: base.yaml\ntune: {trials: 3}\n", "sweep.yaml:2: `tune.space`: is empty, and so is the rule's own"),
        ("base: base.yaml\nvary: [1]\n", "sweep.yaml:2: `vary: [1]`: input should be a mapping"),
        ("base: base.yaml\nvary: {rule: backprop}\n", "sweep.yaml:2: `vary.rule: backprop`: must be a list of the values to try"),
        ("base: base.yaml\nvary: {seed: [1]}\n", "sweep.yaml:2: `vary.seed: [1]`: seeds have a place of their own"),
        ("base: base.yaml\nvary: {rul: [{name: backprop}]}\n", "sweep.yaml:2: unknown key `vary.rul`; did you mean `rule`?"),
        ("base: base.yaml\nvary: {panel: [1]}\n", "sweep.yaml:2: unknown key `vary.panel`; to vary several keys together, give each"),
        ("base: base.yaml\nvary: {p: [{label: a}, {x: 1}]}\n", "sweep.yaml:2: `vary.p[1].label` is missing"),
        ("base: base.yaml\nvary: {p: [{label: a}, {label: a}]}\n", "sweep.yaml:2: `vary.p[1].label: a`: another entry has this label"),
        ("base: base.yaml\nvary: {p: [{label: a, ruel: 1}]}\n", "sweep.yaml:2: unknown key `ruel`; did you mean `rule`?"),
        ("base: base.yaml\nvary: {rule.name.x: [1]}\n", "sweep.yaml:2: `rule.name` has no keys of its own that could be set"),
        ("base: base.yaml\nvary: {train.optimiser.rate: [1]}\n", "sweep.yaml:2: unknown key `train.optimiser`; did you mean `optimizer`?"),
        ("base: base.yaml\nvary: {train.batch: [5, 5.0]}\n", "sweep.yaml:2: `vary`: two combinations are the same run: train.batch 5; and"),
        ("base: base.yaml\nvary: {seed: [1], rule: []}\n", "sweep.yaml:2: `vary.seed: [1]`: seeds have"),
        ("base: base.yaml\nseeds: [1, 1]\n", "sweep.yaml:2: `seeds: [1, 1]`: must be different numbers, at least one"),
        ("base: base.yaml\nseeds: 3\n", "sweep.yaml:2: `seeds: 3`: input should be a list"),
        ("base: base.yaml\nseeds: [0, -1]\n", "sweep.yaml:2: `seeds[1]: -1`: input should be greater than or equal to 0"),
        ("base: base.yaml\nskip: [{when: {rule.name: backprop}}]\n", "sweep.yaml:2: `skip[0].because` is missing"),
        ("base: base.yaml\nskip: [{when: {}, because: x}]\n", 'sweep.yaml:2: `skip: [{"when": {}, "because": "x"}]`: skips every'),
        ("base: base.yaml\nskip: [{when: {rule.nam: x}, because: x}]\n",
         "sweep.yaml:2: `skip[0].when.rule.nam: x`: no combination has this key"),
        ("base: base.yaml\nskip: [{when: {rule.name: bp}, because: x}]\n", "sweep.yaml:2: `skip[0].when.rule.name: bp` is not among the"),
        ("base: base.yaml\noverrides: [{when: {rule.name: backprop}, set: {train.bach: 3}}]\n",
         "sweep.yaml:2: unknown key `train.bach`; did you mean `batch`?"),
        ("base: base.yaml\ntarget: {validation_accuracy: 2}\n", "sweep.yaml:2: `target.validation_accuracy: 2`: input should be less than"),
        (BASE, "sweep.yaml:1: this is a run, not a sweep: start it with `locallearn run`"),
    ],
)  # fmt: skip
def test_one_mistake(mistakes_of, text, expected):
    found = mistakes_of(text)
    assert found[0][: len(expected)] == expected


def test_a_syntax_error_in_the_base_keeps_its_own_line(mistakes_of):
    (found,) = mistakes_of("base: base.yaml\n", "rule: {name: backprop}\nmodel: [\n")
    assert found.startswith("base.yaml:3: is not valid YAML")


def test_too_many_runs_are_refused_before_any_is_made(mistakes_of):
    many = ", ".join(map(str, range(1, 200)))
    text = f"base: base.yaml\nvary:\n  train.batch: [{many}]\n  train.epochs: [{many}]\n"
    assert mistakes_of(text) == ["sweep.yaml:2: `vary`: makes 39601 runs; 10000 are the most"]


def test_a_condition_sees_defaults_that_nobody_wrote(sweep_of):
    text = """\
base: base.yaml
vary:
  train.batch: [10, 20, 30]
skip:
  - {when: {train.batch: 1e1, train.optimizer.rate: 0.001, codecs.default: exact, seed: 0}, because: defaults}
  - {when: {train.batch: [20], rule.steps: 20}, because: backprop has no steps}
overrides:
  - {when: {train.batch: [20, 30], stop.accuracy: null, model.activation: relu, data.validation: 0.1}, set: {seed: 5}}
  - when: {count: framed, diagnostics: [], cluster.spread: spread, schedule: null, schedule.staleness: 0, replicas.count: 1}
    set: {train.epochs: 3}
"""
    with pytest.raises(ConfigError, match="no combination has this key"):
        sweep_of(text)
    sweep = sweep_of(text.replace("rule.steps: 20", "data.samples: 7"))
    assert [(run.config.train.batch, run.config.seed, run.config.train.epochs) for run in sweep.runs] == [(20, 5, 3), (30, 5, 3)]


@pytest.mark.parametrize(
    ("key", "near"),
    [("cout", "count"), ("cluster.spred", "cluster.spread"), ("train.optimizer.rat", "train.optimizer.rate"), ("stop", None)],
)
def test_a_condition_on_a_key_that_no_run_has_is_a_mistake(mistakes_of, key, near):
    (told,) = mistakes_of(f"base: base.yaml\nskip:\n  - {{when: {{{key}: 1}}, because: x}}\n")
    end = f"; did you mean `{near}`?" if near else ""
    assert told.partition(" (")[0] == f"sweep.yaml:3: `skip[0].when.{key}: 1`: no combination has this key{end}"


def test_select(sweep_of):
    sweep = sweep_of()
    assert selected(sweep, []) == sweep
    assert len(selected(sweep, ["task=small"]).runs) == 8
    assert len(selected(sweep, ["task=[small, large]", "rule.name=backprop", "seed=3"]).first) == 4
    assert len(selected(sweep, ["train.optimizer.rate=3e-2"]).runs) == 4
    for only in (["task=tiny"], ["tusk=small"], ["task"]):
        with pytest.raises(ConfigError, match=f"^--only {only[0]}: "):
            selected(sweep, only)


axis = st.lists(st.integers(1, 50), min_size=1, max_size=4, unique=True)


@settings(deadline=None, max_examples=40)
@given(axis, axis, st.lists(st.sampled_from(["exact", "int8", "topk(0.5)"]), min_size=1, unique=True), axis)
def test_expansion_is_the_product_in_order(catalog, batches, epochs, codecs, seeds):
    base = {
        "rule": {"name": "backprop"},
        "model": {"name": "mlp", "widths": [40, 9, 10], "shards": 1},
        "data": {"name": "strokes"},
        "train": {"epochs": 2},
    }
    vary = {"train.batch": batches, "train.epochs": epochs, "codecs.default": codecs}
    runs = load({"base": base, "vary": vary, "seeds": seeds}, catalog).runs
    made = [(r.config.train.batch, r.config.train.epochs, r.config.canonical()["codecs"]["default"], r.config.seed) for r in runs]
    assert made == list(itertools.product(batches, epochs, codecs, seeds))
    assert len({run.name for run in runs}) == math.prod(map(len, (batches, epochs, codecs)))
    assert set(base) <= set(RUN_KEYS)
