"""The command line: exit codes, streams, help, and a sweep that goes on after a failure."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from locallearn.cli import cli, code_of
from locallearn.commands import doctor
from locallearn.experiment.store import Store
from locallearn.models.mlp import PRESETS
from locallearn.report import tabular

ROOT = Path(__file__).parents[2]
RUN = {
    "rule": {"name": "backprop"},
    "model": {"name": "mlp", "widths": [40, 8, 10], "shards": 2},
    "data": {"name": "strokes1d", "samples": 200, "test_samples": 50},
    "train": {"steps": 6, "batch": 16, "evaluate_every": 3},
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LOCALLEARN_DATA", raising=False)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(RUN))
    return tmp_path


def write_sweep(folder, **changes):
    sweep = {"base": "tiny.yaml", "vary": {"codecs.default": ["exact", "int8"]}, **changes}
    (folder / "all.yaml").write_text(yaml.safe_dump(sweep))


@pytest.mark.parametrize("name", [None, *cli.commands])
def test_help_has_an_example_and_fits(name, capsys):
    assert code_of([name, "-h"] if name else ["--help"]) == 0
    text = capsys.readouterr().out
    example = text.split("Example:")[1]
    assert f"locallearn {name or 'run'}" in example
    # What it names is here, or is what `locallearn new --rule backprop` writes and its runs.
    assert all(list(ROOT.glob(word)) or word == "backprop.yaml" for word in re.findall(r"\S+\.yaml", example))
    assert set(re.findall(r"runs/(\w+)", example)) <= {"backprop", *(path.stem for path in ROOT.glob("experiments/*.yaml"))}
    assert max(map(len, text.splitlines())) <= 80
    if not name:
        assert "..." not in text.split("Commands:")[1]  # every summary is whole


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from locallearn.cli import code_of; code_of(['--help']); print(*({'jax', 'ray', 'yaml', 'rich'} & set(sys.modules)))"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stdout.splitlines()[-1] == ""
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.3


def test_run_show_and_status(folder, capsys):
    assert code_of(["run", "tiny.yaml", "--on", "eager", "--set", "seed=3"]) == 0
    shown = capsys.readouterr()
    assert "done " in shown.out
    assert "\x1b" not in shown.out
    assert shown.err == ""
    (directory,) = (folder / "runs" / "tiny").glob("backprop-*/seed-3@eager")
    assert Store(directory).state == "finished"
    assert (directory / "config.yaml").read_text().startswith("# from tiny.yaml")

    assert code_of(["run", "tiny.yaml", "--on", "eager", "--set", "seed=3"]) == 0
    assert capsys.readouterr().out.startswith("already ")
    assert code_of(["run", "tiny.yaml", "--on", "eager", "--set", "seed=3", "-q"]) == 0
    assert capsys.readouterr().out == ""

    assert code_of(["show", str(directory)]) == 0
    shown = capsys.readouterr().out
    assert "ended after 6 steps (steps)" in shown
    assert "activation  activation" in shown
    assert code_of(["status", "runs", "--format", "json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["state"], row["step"]) == ("finished", 6)
    assert code_of(["status", "runs"]) == 0
    assert "finished" in capsys.readouterr().out


def test_exit_codes_of_mistakes(folder, capsys):
    assert code_of(["run", "tiny.yaml", "--set", "train.stepz=3"]) == 2
    assert capsys.readouterr().err.startswith("--set train.stepz=3: unknown key `train.stepz`; did you mean `steps`?")
    assert code_of(["run", "none.yaml"]) == 2
    assert "none.yaml: there is no such file" in capsys.readouterr().err
    assert code_of(["walk"]) == 2
    assert "No such command" in capsys.readouterr().err
    assert code_of(["status", "none"]) == 1
    assert capsys.readouterr().err == "none: there are no runs here\n"
    assert code_of(["show", "."]) == 1
    assert "there is no run here" in capsys.readouterr().err
    assert code_of(["report", "."]) == 1
    assert code_of(["plan", "all.yaml"]) == 2
    (folder / "file").write_text("")
    write_sweep(folder)
    for command in (["run", "tiny.yaml"], ["sweep", "all.yaml"]):
        assert code_of([*command, "--runs", "file"]) == 2
        shown = capsys.readouterr()
        assert shown.out == ""
        assert shown.err.endswith("cannot be written: Not a directory; nothing was run\n")


def test_a_budget_of_bytes_that_ends_before_the_first_evaluation_is_a_mistake(folder, capsys):
    """A step sends 1,064 bytes: two messages of 16 rows of 8 float32 numbers, each with a header of 20; a decision 21."""
    assert code_of(["run", "tiny.yaml", "--set", "stop.bytes=3212"]) == 2
    message = "stop.bytes: 3.14 KiB are spent before the first evaluation, at step 3 and 3.14 KiB; set `train.evaluate_every` to 2 or less"
    assert message in capsys.readouterr().err
    assert code_of(["run", "tiny.yaml", "--set", "stop.bytes=3213"]) == 0
    assert "3.14 KiB" in capsys.readouterr().out
    assert code_of(["run", "tiny.yaml", "--set", "stop.bytes=3212", "--set", "train.evaluate_every=2"]) == 0


def test_data_that_is_not_there_is_a_mistake(folder, capsys, monkeypatch):
    monkeypatch.setenv("LOCALLEARN_DATA", "empty")
    assert code_of(["run", "tiny.yaml", "--set", "data={name: mnist}", "--set", "model.widths=[784, 8, 10]"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "train-images-idx3-ubyte.gz: missing (expected SHA-256 440fcabf" in shown.err
    assert shown.err.count("\n") == 1


def test_check(folder, capsys):
    write_sweep(folder, seeds=[0, 1])
    assert code_of(["check", "tiny.yaml", "all.yaml"]) == 0
    assert capsys.readouterr().out.splitlines()[1] == "all.yaml: ok, a sweep of 4 runs"
    (folder / "bad.yaml").write_text("rule: {name: backprop, rat: 1}\n")
    assert code_of(["check", "bad.yaml", "tiny.yaml"]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("bad.yaml:1: ")
    assert "tiny.yaml: ok" in shown.out


PLAN = """\
message     link    messages a step    payload     framed
activation  0 > 1                 1      512 B      532 B
error       1 > 0                 1      512 B      532 B
together                          2  1.00 KiB   1.04 KiB
"""


def test_plan(folder, capsys):
    assert code_of(["plan", "tiny.yaml"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[:4]] == [line.split() for line in PLAN.splitlines()]
    # 6 steps of 2 x (16 x 8 float32 + 20), and two decisions of 1 + 20 bytes, which go down as the errors do.
    assert lines[6] == "6 steps send 6.28 KiB in 14 messages, 3.16 KiB on the busiest link"
    assert code_of(["plan", "tiny.yaml", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["bytes"] == 6 * 2 * (16 * 8 * 4 + 20) + 2 * 21
    assert code_of(["plan", "tiny.yaml", "--format", "csv", "--set", "codecs.error=int8"]) == 0
    assert (
        capsys.readouterr().out.splitlines()[2] == f"0,6,error,error,1,0,1,{16 * 12},{16 * 12 + 20},{16 * 12 + 20}"
    )  # framed is what counts
    write_sweep(folder, seeds=[0, 1], skip=[{"when": {"codecs.default": "int8"}, "because": "known"}])
    assert code_of(["plan", "all.yaml"]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == ["skipped: int8 (known)", "2 runs send 12.6 KiB in all"]


def test_a_sweep_goes_on_after_a_failure(folder, capsys):
    write_sweep(folder)
    assert code_of(["sweep", "all.yaml", "--dry-run", "--only", "codecs.default=int8"]) == 0
    assert "1 run sends" in capsys.readouterr().out.replace("run send ", "run sends ")
    assert not (folder / "runs").exists()

    (folder / "runs" / "all").mkdir(parents=True)
    first = next(iter(_names(folder)))
    (folder / "runs" / "all" / first).write_text("in the way")  # the first run cannot have its directory
    assert code_of(["sweep", "all.yaml", "--on", "eager"]) == 1
    shown = capsys.readouterr()
    assert shown.out.splitlines()[0] == "2 runs: 2 new"
    assert "FAILED UnusableFolder" in shown.out
    assert shown.err.startswith("1 run failed:\n")
    assert "Traceback" not in shown.err
    assert (folder / "runs" / "all" / "results.csv").read_text().count("\n") == 3

    (folder / "runs" / "all" / first).unlink()
    assert code_of(["sweep", "all.yaml", "--on", "eager"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "2 runs: 1 finished, 1 new"
    assert code_of(["sweep", "all.yaml", "--on", "eager", "-q"]) == 0
    assert capsys.readouterr().out == ""
    assert yaml.safe_load((folder / "runs" / "all" / "sweep.yaml").read_text())["sweep"]["base"] == "tiny.yaml"

    assert code_of(["report", "runs/all", "-o", "figures"]) == 0
    assert sorted(path.name for path in (folder / "figures").iterdir()) == ["figures", "report.html", "results.csv"]


def _names(folder):
    from pathlib import Path

    from locallearn.config.reading import read
    from locallearn.config.sweep import load

    return [run.name for run in load(read(Path("all.yaml"))).runs]


def test_failed_runs_wait_for_retry(folder, capsys):
    write_sweep(folder, vary={"codecs.default": ["exact", "int8", "float16", "bfloat16"]})
    for name in _names(folder):
        store = Store(folder / "runs" / "all" / name / "seed-0@eager")
        store.make()
        store.fail({"type": "OSError", "message": "gone", "step": 0})
    assert code_of(["sweep", "all.yaml", "--on", "eager", "--fail-fast"]) == 1
    shown = capsys.readouterr()
    assert "4 runs: 4 failed" in shown.out
    assert shown.out.count("FAILED") == 1
    assert "stopped at the first failure" in shown.err
    assert code_of(["sweep", "all.yaml", "--on", "eager"]) == 1
    assert capsys.readouterr().out.count("FAILED FailedBefore") == 4
    assert code_of(["sweep", "all.yaml", "--on", "eager", "--retry-failed", "--only", "codecs.default=int8"]) == 0


def test_three_alike_stop_the_sweep(folder, capsys, monkeypatch):
    write_sweep(folder, vary={"codecs.default": ["exact", "int8", "float16", "bfloat16"]})

    def broken(*_):
        raise RuntimeError("no memory")

    monkeypatch.setattr("locallearn.experiment.training.prepare", broken)
    assert code_of(["sweep", "all.yaml"]) == 1
    shown = capsys.readouterr()
    assert shown.out.count("FAILED RuntimeError: no memory") == 3
    assert "the first 3 runs all failed in the same way" in shown.err
    assert code_of(["sweep", "all.yaml", "--keep-going", "--retry-failed"]) == 1
    assert capsys.readouterr().out.count("FAILED RuntimeError: no memory") == 4


def test_listings(capsys):
    for name in ("rules", "models", "codecs", "datasets"):
        assert code_of([name]) == 0
        assert max(map(len, capsys.readouterr().out.splitlines())) <= 80
        assert code_of([name, "--format", "json"]) == 0
        rows = json.loads(capsys.readouterr().out)
        assert all(row["name"] and row["summary"] for row in rows)
        assert code_of([name, "--format", "csv"]) == 0
        assert capsys.readouterr().out.startswith("name,")


@pytest.mark.parametrize(
    ("model", "data", "blocks", "millions"),
    [
        ("resnet20", "cifar10", 11, 0.27),  # as published: He et al. (2016), table 6
        ("resnet18", "cifar10", 10, 11.17),
        ("mlp", "mnist", 3, (785 * 512 + 513 * 512 + 513 * 10) / 1e6),
        ("convnet", "mnist", 4, (10 * 32 + (9 * 32 + 1) * 64 + (9 * 64 + 1) * 128 + (9 * 128 + 1) * 10) / 1e6),
    ],
)
def test_models_have_their_size(model, data, blocks, millions, capsys):
    assert code_of(["models", model, "--data", data, "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == blocks
    assert sum(row["parameters"] for row in rows) == pytest.approx(millions * 1e6, abs=5e3 if model.startswith("resnet") else 0)
    assert [row["bytes"] is None for row in rows] == [False] * (blocks - 1) + [True]  # nobody is above the top
    assert code_of(["models", model, "--data", data]) == 0
    page = capsys.readouterr().out
    assert f"{blocks} blocks, {sum(row['parameters'] for row in rows):,} parameters" in page
    assert ("\ncomposite: " in page) == model.startswith("resnet")


def test_the_page_of_the_perceptron_knows_its_presets(capsys):
    assert code_of(["models", "mlp"]) == 0
    page = capsys.readouterr().out
    assert max(map(len, page.splitlines())) <= 80
    words = page.split()
    for name, widths in PRESETS.items():
        assert "-".join(map(str, widths)) in words[words.index(name) + 1]


def test_models_that_do_not_fit_say_so(capsys):
    assert code_of(["models", "transformer"]) == 0
    assert "does not fit: takes text" in capsys.readouterr().out
    assert code_of(["models", "transformer", "--format", "csv"]) == 2
    assert "does not fit: takes text" in capsys.readouterr().err
    assert code_of(["models", "resnet81"]) == 2
    assert "did you mean `resnet18`?" in capsys.readouterr().err
    assert code_of(["models", "--data", "mnits"]) == 2
    assert "did you mean `mnist`?" in capsys.readouterr().err


def test_the_page_of_a_codec(capsys):
    assert code_of(["codecs", "topk"]) == 0
    page = capsys.readouterr().out
    assert page.startswith("topk(fraction=0.1, among=row)  wraps another; ")
    assert "at most 1 - k / n of the\nrow's own" in page
    assert max(map(len, page.splitlines())) <= 80
    assert code_of(["codecs", "topkk"]) == 2
    assert "did you mean `topk`?" in capsys.readouterr().err


def test_doctor(folder, capsys, monkeypatch):
    assert code_of(["doctor"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    monkeypatch.setattr(doctor, "_needed", lambda: ["click", "no-such-package"])
    assert code_of(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert "PROBLEM  not installed: no-such-package" in shown
    assert "PROBLEM  RAY_ADDRESS is 127.0.0.1:9, where no Ray answers" in shown


def test_interrupted_exits_130(folder):
    code = (
        "import os, signal, sys; from locallearn.commands.progress import Plain; from locallearn.cli import code_of\n"
        "before = Plain.__call__\n"
        "def kill(self, event):\n"
        "    before(self, event)\n"
        "    if type(event).__name__ == 'Evaluated': os.kill(os.getpid(), signal.SIGINT)\n"
        "Plain.__call__ = kill\n"
        "sys.exit(code_of(['run', 'tiny.yaml', '--on', 'eager']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=dict(os.environ))
    assert done.returncode == 130, done.stderr
    left = re.search(r"interrupted after step (\d+); the same command goes on from step (\d+)\n", done.stderr)
    assert left, done.stderr
    assert left[1] == left[2]
    assert int(left[1]) >= 3
    assert "Traceback" not in done.stderr


def test_ctrl_c_while_importing_leaves_at_once(folder):
    code = (
        "import os, signal, sys; from locallearn import cli\n"
        "class Press:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == 'jax': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Press()); sys.argv[1:] = ['run', 'tiny.yaml']\n"
        "cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")
    assert not (folder / "runs").exists()


def test_csv_leaves_empty_what_is_not_there():
    rows = [{"run": "a", "test": None, "failed": False}]
    assert tabular.shown(rows, "csv").splitlines() == ["run,test,failed", "a,,false"]
    assert tabular.shown(rows, "table").split()[-3:] == ["a", "-", "false"]
