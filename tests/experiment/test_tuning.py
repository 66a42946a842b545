"""Tuning: the same trials for everyone, choices from their files alone, mistakes at their lines, and nothing lost to a kill."""

import dataclasses
import json
import math
import shutil
import threading
import time

import pytest
import yaml

from locallearn.cli import code_of
from locallearn.config.catalog import Catalog
from locallearn.config.reading import read
from locallearn.config.selection import selected
from locallearn.config.sweep import load
from locallearn.errors import ConfigError
from locallearn.experiment.lock import Lock
from locallearn.experiment.store import Store
from locallearn.experiment.tuning import choose
from locallearn.report.table import last_rows, rows_below
from locallearn.report.tuning import median_to_target, searched
from locallearn.search import Linear

SWEEP = """\
base:
  rule: {name: backprop}
  model: {name: mlp, widths: [40, 30, 20, 10], shards: 2}
  data: {name: strokes}
  train: {epochs: 2, batch: 50}
vary:
  rule:
    - {name: backprop}
    - {name: predictive_coding}
    - {name: predictive_coding, noise: 0.5}
  codecs.default: [exact, int8]
seeds: [0, 3]
target: {validation_accuracy: 0.9}
tune:
  trials: 4
  studies: 2
  space:
    train.optimizer.rate: {log: [1e-4, 1e-1]}
    rule.steps: {whole: [2, 9]}
"""


@pytest.fixture
def tuned(tmp_path, catalog):
    """Expand a tuned sweep, in which predictive coding has a space of its own."""
    rule = dataclasses.make_dataclass("Own", [], bases=(catalog.rules["predictive_coding"],), frozen=True)
    rule.space = {"noise": Linear(0.0, 1.0)}
    own = Catalog({**catalog.rules, "predictive_coding": rule}, catalog.models, catalog.datasets, catalog.codecs)

    def make(text=SWEEP):
        (tmp_path / "tuned.yaml").write_text(text)
        return load(read(tmp_path / "tuned.yaml"), own)

    return make


def test_every_combination_has_as_many_trials_and_every_choice_its_runs(tuned):
    sweep = tuned()
    assert sweep.runs == ()
    assert [study.number for study in sweep.studies] == [0, 1] * 6
    assert {len(study.trials) for study in sweep.studies} == {4}
    for study in sweep.studies:
        for trial, follow in zip(study.trials, study.follow, strict=True):
            assert trial.config.seed == 1000 + study.number
            assert [run.config.seed for run in follow] == [0, 3]
            assert {run.config.digest() for run in follow} == {trial.config.digest()}
            assert (trial.tuned.trial is None, {run.tuned.trial for run in follow}) == (False, {None})
    names = [run.name for study in sweep.studies for run in (*study.trials, *(runs[0] for runs in study.follow))]
    assert len(set(names)) == len(names)


def test_rules_share_the_files_points_and_have_their_own_beside(tuned):
    by_rule = {study.trials[0].name.partition("/")[0].rpartition("-")[0]: study for study in tuned().studies if study.number == 0}
    rates = {name: [t.tuned.values["train.optimizer.rate"] for t in study.trials] for name, study in by_rule.items()}
    assert len(set(map(tuple, rates.values()))) == 1
    assert len(set(rates["backprop-exact"])) == 4
    keys = {name: list(study.trials[0].tuned.values) for name, study in by_rule.items()}
    assert keys["backprop-exact"] == ["train.optimizer.rate"]
    assert keys["predictive_coding-exact"] == ["train.optimizer.rate", "rule.steps", "rule.noise"]
    assert keys["predictive_coding-0.5-exact"] == ["train.optimizer.rate", "rule.steps"]  # what the file sets stays


def test_tuned_per_rule_the_choice_goes_to_all_of_its_combinations(tuned):
    sweep = tuned(SWEEP.replace("  studies: 2\n", "  per: rule\n"))
    assert len(sweep.studies) == 3
    for study in sweep.studies:
        assert {t.config.codecs["default"] for t in study.trials} == {(("exact", ()),)}
        assert [(run.varied["codecs.default"], run.config.seed) for run in study.follow[2]] == [
            ("exact", 0),
            ("exact", 3),
            ("int8", 0),
            ("int8", 3),
        ]
        assert {run.config.train.optimizer.rate for run in study.follow[2]} == {study.trials[2].tuned.values["train.optimizer.rate"]}
    chosen = selected(sweep, ["codecs.default=int8", "seed=3", "rule.name=backprop"])
    (only,) = chosen.studies
    assert len(chosen.first) == len(only.trials) == 4
    assert [[run.varied["codecs.default"] for run in runs] for runs in only.follow] == [["int8"]] * 4


def line(text, old, new):
    """The sweep with a change, and the number of its line."""
    assert old in text
    changed = text.replace(old, new)
    return changed, changed[: changed.index(new)].count("\n") + new.rstrip("\n").count("\n") + 1


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("  trials: 4\n", "  trials: 0\n", "greater than or equal to 1"),
        ("  trials: 4\n", "  trails: 4\n", "unknown key `tune.trails`; did you mean `trials`?"),
        ("  studies: 2\n", "  studies: 2\n  per: [rule, task]\n", "is no entry of `vary` (entries: rule, codecs.default)"),
        ("  studies: 2\n", "  studies: 2\n  seed: 2\n", "seed 3 is among `seeds`"),
        ("  studies: 2\n", "  studies: 2\n  choose_by: accuracy\n", "validation_accuracy"),
        ("  studies: 2\n", "  studies: 2\n  choose_by: test_accuracy\n", "validation_accuracy"),
        ("{log: [1e-4, 1e-1]}", "{log: [1e-1, 1e-4]}", "must be a lower end and a higher one"),
        ("{log: [1e-4, 1e-1]}", "{log: [0, 1]}", "above 0"),
        ("{log: [1e-4, 1e-1]}", "{log: 3}", "`log` takes two numbers"),
        ("{log: [1e-4, 1e-1]}", "{lag: [1, 2]}", "must be a list of values, or one of {log: [low, high]}"),
        ("    rule.steps: {whole: [2, 9]}\n", "    rule.stepz: {whole: [2, 9]}\n", "no rule of this sweep has this key"),
        ("    rule.steps: {whole: [2, 9]}\n", "    rule.rate: {linear: [-1, 0]}\n", "greater than 0"),
        ("    rule.steps: {whole: [2, 9]}\n", "    trian.batch: [2, 9]\n", "did you mean `train`?"),
        ("    rule.steps: {whole: [2, 9]}\n", "    codecs.default: [exact, int8]\n", "is under `vary`, too"),
        ("    rule.steps: {whole: [2, 9]}\n", "    seed: [1, 2]\n", "is no key of a run that could be tuned"),
        ("  codecs.default: [exact, int8]\n", "  codecs.default: [exact, exact]\n", "two combinations are the same run"),
    ],
)
def test_mistakes_at_their_line(tuned, old, new, what):
    text, number = line(SWEEP, old, new)
    with pytest.raises(ConfigError) as caught:
        tuned(text)
    told = [str(problem) for problem in caught.value.problems]
    assert any(what in each for each in told), told
    if "same run" not in what:
        assert any(f"tuned.yaml:{number}:" in each for each in told if what in each), told


def test_what_needs_a_target_or_validation_says_so(tuned):
    with pytest.raises(ConfigError, match="needs `target"):
        tuned(SWEEP.replace("target: {validation_accuracy: 0.9}\n", "").replace("  studies: 2", "  choose_by: bytes_to_target"))
    with pytest.raises(ConfigError, match="chooses on validation examples"):
        tuned(SWEEP.replace("{name: strokes}", "{name: strokes, validation: 0}"))
    with pytest.raises(ConfigError, match="has no effect"):
        tuned(SWEEP.replace("seeds:", "overrides: [{when: {rule.name: backprop}, set: {train.optimizer.rate: 1}}]\nseeds:"))


def written(directory, valid, sent=(10, 20), reason="steps"):
    store = Store(directory)
    store.make()
    for step, (accuracy, count) in enumerate(zip(valid, sent, strict=True)):
        store.append({"step": step, "validation_accuracy": accuracy, "validation_accuracy_lossless": 1 - accuracy, "bytes": count})
    store.finish({"reason": reason})


def chosen(tuned, folder, by, *trials):
    sweep = tuned(SWEEP.replace("  studies: 2", f"  choose_by: {by}"))
    study = sweep.studies[0]
    for run, told in zip(study.trials, trials, strict=False):
        written(folder / run.name, **told)
    return choose(study, lambda run: folder / run.name, sweep)


def test_the_choice(tuned, tmp_path):
    ends = [{"valid": (0.5, 0.8)}, {"valid": (0.9, 0.85)}, {"valid": (0.1, 0.85)}, {"valid": (0.9, 0.99), "reason": "diverged"}]
    assert chosen(tuned, tmp_path / "a", "validation_accuracy", *ends[:3]) is None  # one is not over
    found = chosen(tuned, tmp_path / "b", "validation_accuracy", *ends)
    assert (found.trial, found.figures["validation_accuracy"]) == (1, 0.85)
    assert found.values == found.study.trials[1].tuned.values
    assert chosen(tuned, tmp_path / "c", "validation_accuracy_lossless", *ends).trial == 0
    cheap = [{"valid": (0.5, 0.95)}, {"valid": (0.91, 0.92), "sent": (15, 20)}, {"valid": (0.9, 0.92), "sent": (15, 20)}, {"valid": (0, 0)}]
    assert chosen(tuned, tmp_path / "d", "bytes_to_target", *cheap).trial == 1
    missed = [{"valid": (0.5, 0.6)}, {"valid": (0.5, 0.7)}, {"valid": (0.5, 0.6)}, {"valid": (0.5, 0.6)}]
    assert chosen(tuned, tmp_path / "e", "bytes_to_target", *missed).trial == 1
    lost = chosen(tuned, tmp_path / "f", "validation_accuracy", *[{"valid": (0.1, 0.2), "reason": "diverged"}] * 4)
    assert lost.trial is None
    assert "0 failed, the others diverged" in lost.why


TINY = {
    "base": {
        "rule": {"name": "backprop"},
        "model": {"name": "mlp", "widths": [40, 8, 10], "shards": 2},
        "data": {"name": "strokes1d", "samples": 200, "test_samples": 50},
        "train": {"steps": 6, "batch": 16, "evaluate_every": 3},
    },
    "vary": {"rule": [{"name": "backprop"}, {"name": "direct_feedback"}]},
    "seeds": [0, 1],
    "target": {"validation_accuracy": 0.05},
    "tune": {"trials": 2, "studies": 2, "space": {"train.optimizer.rate": {"log": [1e-3, 1e-2]}}},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY, sort_keys=False))
    assert swept(folder, "undisturbed") == 0
    return folder


def swept(folder, runs, *words):
    return code_of(["sweep", str(folder / "tiny.yaml"), "--runs", str(folder / runs), "--on", "eager", *words])


def results(folder, runs):
    """{run: result without times} of all runs and trials, and the choices in the plan."""
    root = folder / runs / "tiny"
    found = {}
    for path in sorted(root.rglob("result.json")):
        kept = {key: value for key, value in json.loads(path.read_text()).items() if key not in ("seconds", "compile_seconds", "finished")}
        found[str(path.relative_to(root))] = kept
    return found, yaml.safe_load((root / "sweep.yaml").read_text())["chosen"]


def test_a_tuned_sweep_to_its_end(place):
    root = place / "undisturbed" / "tiny"
    rows = last_rows(rows_below(root))
    trials, runs = [row for row in rows if row["trial"] is not None], [row for row in rows if row["trial"] is None]
    assert (len(trials), len(runs)) == (8, 8)
    assert {row["state"] for row in rows} == {"finished"}
    assert all(row["test_accuracy"] is None for row in trials)
    assert all(row["test_accuracy"] is not None for row in runs)
    plan = yaml.safe_load((root / "sweep.yaml").read_text())
    assert len(plan["chosen"]) == 4
    for choice in plan["chosen"]:
        name, _, study = choice["study"].partition("/study-")
        own = [row for row in trials if row["run"].startswith(f"{name}/") and row["study"] == int(study)]
        best = max(row["validation_accuracy"] for row in own)
        first = next(row for row in own if row["validation_accuracy"] == best)
        assert (choice["trial"], choice["values"]["train.optimizer.rate"]) == (first["trial"], first["train.optimizer.rate"])
        follow = [row for row in runs if row["run"].startswith(f"{choice['study']}-")]
        assert sorted(row["seed"] for row in follow) == [0, 1]
        assert {row["train.optimizer.rate"] for row in follow} == {first["train.optimizer.rate"]}
    assert sorted(entry["run"] for entry in plan["runs"]) == sorted(row["run"] for row in runs)


def test_trials_do_not_see_the_test_set(place):
    """Two evaluations of the 20 validation examples, and none after them."""
    root = place / "undisturbed" / "tiny"
    trial, run = (json.loads(next(root.glob(f"backprop-*/{name}/seed-*/result.json")).read_text()) for name in ("trials/*", "study-*"))
    sent = {kind: [c["messages"] for c in ending["traffic"] if c["kind"] == "evaluation"] for kind, ending in (("t", trial), ("r", run))}
    assert sent == {"t": [2], "r": [3]}
    assert trial["test_accuracy"] is None


def test_bytes_to_the_target_are_the_median_over_studies_of_the_least_over_trials(place):
    rows = rows_below(place / "undisturbed" / "tiny")
    for name in ("backprop", "direct_feedback"):
        studies = [each for each in searched(rows, 0.05) if each.combination.startswith(name)]
        assert [(each.study, each.trials) for each in studies] == [(0, 2), (1, 2)]
        for each in studies:
            own = [r for r in rows if r["rule"] == name and r["study"] == each.study and r["trial"] is not None]
            assert each.bytes == sum(row["bytes"] for row in last_rows(own))
            assert each.to_target == min((r["bytes"] for r in own if r["validation_accuracy"] >= 0.05), default=math.inf)
        assert median_to_target(studies) == max(each.to_target for each in studies)
    assert all(math.isinf(each.to_target) for each in searched(rows, 1.1))


def copied(place, runs):
    """The undisturbed sweep under another name."""
    shutil.copytree(place / "undisturbed", place / runs)
    return place / runs / "tiny"


def test_whoever_goes_on_makes_the_same_choices(place, capsys):
    """The plan, the end of a trial and all that follows from a choice are lost; what belongs to no choice stays."""
    root = copied(place, "again")
    (root / "sweep.yaml").unlink()
    next(root.glob("backprop-*/trials/study-1-trial-0-*/seed-1001@eager/result.json")).unlink()
    shutil.rmtree(next(root.glob("direct_feedback-*/study-0-*")))
    assert swept(place, "again", "--only", "rule.name=direct_feedback") == 0
    shown = capsys.readouterr().out
    assert "4 trials: 4 finished" in shown
    assert shown.count(" chose trial ") == 2
    assert len(yaml.safe_load((root / "sweep.yaml").read_text())["chosen"]) == 3
    assert swept(place, "again") == 0
    assert "8 trials: 7 finished, 1 resumed" in capsys.readouterr().out
    assert results(place, "again") == results(place, "undisturbed")


def test_trials_of_another_process_are_waited_for(place, capsys):
    root = copied(place, "waiting")
    trial = next(root.glob("backprop-*/trials/study-0-trial-1-*/seed-1000@eager"))
    (trial / "result.json").unlink()
    with Lock(trial):
        thread = threading.Thread(target=swept, args=(place, "waiting", "--only", "rule.name=backprop"))
        thread.start()
        shown = ""
        while "waiting for 1 trial of another process" not in shown:
            time.sleep(0.05)
            shown += capsys.readouterr().out
        assert "chose" not in shown
    thread.join()
    assert results(place, "waiting") == results(place, "undisturbed")


def test_the_page_tells_of_it(place):
    assert code_of(["report", str(place / "undisturbed" / "tiny"), "-o", str(place / "page")]) == 0
    page = (place / "page" / "report.html").read_text()
    assert "What tuning chose" in page
    assert "2 × 2" in page


def test_dry_run_counts_trials_and_runs(place, capsys):
    assert code_of(["sweep", str(place / "tiny.yaml"), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    # A step sends two messages of 16 rows of 8 float32 numbers, each with a header of 20; a decision 21.
    assert "8 trials send" in shown
    sent = 6 * 2 * (16 * 8 * 4 + 20) + 2 * 21
    (row,) = [line.split() for line in shown.splitlines() if line.startswith("backprop")]
    assert (row[1], row[4]) == ("4", "4")
    assert float(row[2]) == pytest.approx(4 * sent / 1024, rel=0.01)
