"""The baselines that a sweep asks for stand beside its runs: what each is, with whose data and training, and with as many trials."""

import csv

import pytest

from locallearn.cli import code_of
from locallearn.config.baselines import NAMES
from locallearn.config.reading import parse
from locallearn.config.run import resolve
from locallearn.config.sweep import load
from locallearn.errors import ConfigError

SWEEP = """
base:
  rule: {name: mono_forward}
  model: {name: mlp, widths: [40, 12, 12, 12, 10], shards: 4}
  data: {name: strokes1d, samples: 500, test_samples: 50, validation: 100}
  train: {steps: 4, batch: 40, evaluate_every: 4, optimizer: {name: adam, rate: 1.0e-2}}
vary:
  rule: [{name: mono_forward}, {name: decoupled_greedy}]
  codecs.default: [exact, int4]
seeds: [0, 1]
"""
WHOLE = {"model.shards": 1, "train.batch": 10}
GRADIENTS = {**WHOLE, "replicas": {"count": 4, "average": "gradients"}}
SELDOM = {"count": 4, "average_every": 16}
INT4 = {"activation": "int4", "error": "int4(stochastic)"}
WRITTEN = {
    "backprop": {},
    "backprop int8": {"codecs": {"activation": "int8", "error": "int8(stochastic)"}},
    "backprop int4": {"codecs": INT4},
    "AQ-SGD": {"codecs": {**INT4, "activation": ["difference(none, 400)", "int4"]}},
    "deep supervision": {"rule.name": "deep_supervision"},
    "solo": {"rule.name": "solo"},
    "solos": {"rule": {"name": "solo", "members": 4}},
    "data-parallel": GRADIENTS,
    "data-parallel sign": {**GRADIENTS, "codecs": {"average": ["error_feedback", "sign"]}},
    "data-parallel topk": {**GRADIENTS, "codecs": {"average": ["error_feedback", "topk(0.01)"]}},
    "PowerSGD": {**GRADIENTS, "codecs": {"average": ["error_feedback", "low_rank(2)"]}},
    "local SGD": {**WHOLE, "replicas": SELDOM},
    "DiLoCo": {**WHOLE, "replicas": {**SELDOM, "outer": {"name": "nesterov"}}},
}
"""Of the sweep above, by hand."""


def swept(text):
    return load(parse(text, "sweep.yaml"))


def beside(text):
    """The configurations of the baselines, by name, of one seed."""
    return {run.varied["baseline"]: run.config for run in swept(text).runs if "baseline" in run.varied}


def by_hand(**changes):
    text = SWEEP.partition("vary:")[0].replace("base:\n", "").replace("\n  ", "\n").replace("mono_forward", "backprop")
    found = parse(text, "run.yaml")
    for key, value in changes.items():
        found = found.put(tuple(key.split(".")), parse(str(value), key) if isinstance(value, int | str) else type(found)(value))
    return resolve(found)


def test_each_is_what_one_would_write_by_hand_for_the_same_data_model_and_training():
    found = beside(f"{SWEEP}baselines: true")
    assert list(found) == [name for name in NAMES if not name.startswith("microbatches")]
    assert {name: config.digest() for name, config in found.items()} == {name: by_hand(**own).digest() for name, own in WRITTEN.items()}


def test_the_other_runs_stay_what_they_are_and_come_first():
    alone, all_ = swept(SWEEP).runs, swept(f"{SWEEP}baselines: true").runs
    assert all_[: len(alone)] == alone
    assert len(all_) == len(alone) + 2 * len(WRITTEN)
    assert swept(f"{SWEEP}baselines: false").runs == alone
    names = [run.name.rpartition("-")[0] for run in all_[len(alone) :: 2]]
    assert "backprop-local_SGD" in names
    assert "solo-solos" in names


def test_some_by_name_and_none_that_is_among_the_runs_already():
    text = SWEEP.replace("{name: decoupled_greedy}", "{name: backprop}")
    assert list(beside(f"{text}baselines: [DiLoCo, backprop, solo]")) == ["solo", "DiLoCo"]


def test_they_are_made_for_every_task_but_not_for_every_method():
    text = (
        SWEEP
        + """
baselines: [backprop, data-parallel]
overrides:
  - {when: {task: b}, set: {train.batch: 80}}
  - {when: {rule.name: backprop}, set: {train.optimizer.rate: 0.1, codecs: {default: int8}}}
  - {when: {baseline: data-parallel, task: a}, set: {train.steps: 7}}
skip:
  - {when: {baseline: backprop, task: a}, because: known}
"""
    )
    tasks = "[{label: a, model.cuts: [2], model.shards: null}, {label: b, data.noise: 0.5}]"
    text = text.replace("vary:", f"vary:\n  task: {tasks}\n  case: [{{label: x, replicas: {{}}}}]")
    found = [run for run in swept(text).runs if "baseline" in run.varied and run.config.seed == 0]
    made = [(run.varied["task"], run.varied["baseline"]) for run in found]
    assert made == [("a", "data-parallel"), ("b", "backprop"), ("b", "data-parallel")]
    assert [run.config.replicas.count for run in found] == [2, 1, 4], "as many machines as there are shards"
    assert [run.config.train.batch for run in found] == [20, 80, 20], "which share a batch"
    assert [run.config.train.steps for run in found] == [7, 4, 4]
    assert {run.config.train.optimizer.rate for run in found} == {0.1}
    assert {run.config.codecs["default"] for run in found} == {(("exact", ()),)}, "a baseline has its own"


def test_where_time_counts_backprop_has_microbatches_and_replicas_no_clock_of_one_chain():
    found = beside(SWEEP.replace("vary:", "  schedule: {network: 1mbit, step: 0.01}\nvary:") + "baselines: true")
    assert set(found) == set(NAMES)
    assert found["microbatches"].train.microbatches == 4
    assert found["microbatches int4"].codecs["activation"] == (("int4", ()),)
    assert found["local SGD"].schedule is None
    assert found["backprop"].schedule is not None


def test_of_one_machine_there_is_backprop_alone_and_of_replicas_the_batch_is_that_of_all():
    one = SWEEP.replace("shards: 4", "shards: 1")
    assert list(beside(f"{one}baselines: true")) == ["backprop"]
    found = beside(one.replace("vary:", "  replicas: {count: 4, average_every: 2}\nvary:") + "baselines: true")
    assert found["backprop"].train.batch == 160
    assert (found["DiLoCo"].train.batch, found["DiLoCo"].replicas.count) == (40, 4)
    assert not {"solo", "backprop int4", "AQ-SGD"} & set(found), "nothing is cut"


def test_what_a_model_does_not_allow_is_left_out_unless_it_is_asked_for():
    text = SWEEP.replace("shards: 4", "shards: 4, norm: batch") + "baselines: "
    assert "solos" not in beside(f"{text}true")
    with pytest.raises(ConfigError, match=r"sweep\.yaml:11: `rule`: with several `members` takes no batch normalisation"):
        swept(f"{text}[solos]")


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("baselines: [solo, DiLoCoo]", "11: `baselines[1]: DiLoCoo` is no baseline; did you mean `DiLoCo`?"),
        ("baselines: all", "11: `baselines: all`: input should be a valid boolean"),
        ("baselines: true\nskip: [{when: {baseline: sollo}, because: x}]", "12: `skip[0].when.baseline: sollo` is not among the labels"),
    ],
)
def test_mistakes_at_their_line(text, mistake):
    with pytest.raises(ConfigError) as found:
        swept(SWEEP + text)
    assert str(found.value).startswith(f"sweep.yaml:{mistake}")


def test_phases_of_the_bases_own_and_a_label_of_their_name_are_refused():
    phases = SWEEP.replace("steps: 4, batch", "phases: [{steps: 4}], batch")
    with pytest.raises(ConfigError, match="11: `baselines: true`: the base trains in phases of its own"):
        swept(f"{phases}baselines: true")
    with pytest.raises(ConfigError, match=r"`vary\.baseline: .*`: is the label that `baselines` have"):
        swept(SWEEP.replace("vary:", "vary:\n  baseline: [{label: a}, {label: b, train.batch: 20}]") + "baselines: true")


@pytest.mark.parametrize("per", ["", "  per: rule\n"])
def test_each_has_as_many_trials_as_any_other(per):
    space = "  space: {train.optimizer.rate: {log: [1.0e-3, 1.0e-1]}}\n"
    studies = swept(f"{SWEEP}baselines: true\ntune:\n  trials: 3\n  studies: 2\n{per}{space}").studies
    contenders = 2 if per else 4
    assert len(studies) == 2 * (contenders + len(WRITTEN))
    rates = {}
    for study in studies:
        assert len(study.trials) == 3
        rates.setdefault(study.number, set()).add(tuple(run.config.train.optimizer.rate for run in study.trials))
    assert {number: len(found) for number, found in rates.items()} == {0: 1, 1: 1}, "the same points for all"


def ended(tmp_path, monkeypatch, text):
    """The rows of a sweep that was run to its end, by baseline."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "all.yaml").write_text(text.replace("seeds: [0, 1]", "seeds: [0]").replace("[exact, int4]", "[int4]"))
    assert code_of(["sweep", "all.yaml"]) == 0
    with open("runs/all/results.csv") as file:
        return {row["baseline"] or row["rule"]: row for row in csv.DictReader(file) if row["test_accuracy"]}


def test_a_sweep_with_some_of_them_to_its_end(tmp_path, monkeypatch, capsys):
    rows = ended(tmp_path, monkeypatch, f"{SWEEP}baselines: [backprop, solos, data-parallel sign]")
    assert set(rows) == {"mono_forward", "decoupled_greedy", "backprop", "solos", "data-parallel sign"}
    assert {row["step"] for row in rows.values()} == {"4"}
    assert {row["examples"] for row in rows.values()} == {"160"}, "who shares a batch has seen as many"
    assert rows["solos"]["bytes"] == "0"
    assert int(rows["mono_forward"]["bytes"]) < int(rows["backprop"]["bytes"])
    assert rows["data-parallel sign"]["replicas"] == "4"
    shown = capsys.readouterr().out
    assert "backprop data-parallel sign" in shown


@pytest.mark.slow
def test_a_sweep_with_all_of_them_to_its_end(tmp_path, monkeypatch):
    rows = ended(tmp_path, monkeypatch, f"{SWEEP}baselines: true")
    assert set(rows) == {"mono_forward", "decoupled_greedy", *WRITTEN}
    assert {row["state"] for row in rows.values()} == {"finished"}
    assert int(rows["data-parallel sign"]["bytes"]) < int(rows["data-parallel"]["bytes"])
