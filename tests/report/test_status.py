"""Looking at runs while they go on, and holding them beside each other."""

import io
import json
import threading
import time

import pytest
import yaml

from locallearn.cli import code_of
from locallearn.commands.comparing import differing
from locallearn.commands.status import Status, counted, screen, watch
from locallearn.experiment.lock import Lock
from locallearn.experiment.store import Store

RUN = "backprop-exact-00000000/seed-0"


def planned(root, *runs, **more):
    root.mkdir(exist_ok=True)
    (root / "sweep.yaml").write_text(yaml.safe_dump({"sweep": {}, "runs": [{"run": run, "varied": {}} for run in runs], **more}))


def states(root):
    return {row["run"]: row["state"] for row in Status(root).rows()}


def test_runs_that_a_sweep_has_not_begun_are_told(tmp_path, writer):
    folder = tmp_path / "sweep"  # of its own, in a folder that holds nothing else
    planned(folder, RUN, "backprop-exact-00000000/seed-1")
    writer(folder, "backprop", "exact", 0)
    writer(folder, "backprop", "int8", 0, reason="diverged")
    writer(folder, "mono_forward", "exact", 0, failure="gone")
    assert states(folder) == {
        RUN: "finished",
        "backprop-int8-00000000/seed-0": "diverged",
        "mono_forward-exact-00000000/seed-0": "failed",
        "backprop-exact-00000000/seed-1": "new",
    }
    assert states(tmp_path)[f"{folder.name}/backprop-exact-00000000/seed-1"] == "new"
    assert counted(Status(folder).rows()) == "4 runs: 1 failed, 1 diverged, 1 finished, 1 new"


def test_a_tuned_sweep_is_not_over_before_its_studies_have_chosen(tmp_path, writer):
    trial = {"run": RUN, "study": 0, "trial": 0}
    writer(tmp_path, "backprop", "exact", 0)
    for chosen, over in (([], False), ([{"study": "backprop-exact-00000000/study-0"}], True)):
        planned(tmp_path, trials=[trial], chosen=chosen)
        status = Status(tmp_path)
        assert status.over(status.rows()) is over


def test_what_fits_on_a_screen(tmp_path, writer):
    planned(tmp_path, *(f"backprop-exact-00000000/seed-{k}" for k in range(30)))
    writer(tmp_path, "backprop", "exact", 3)
    writer(tmp_path, "mono_forward", "exact", 0, failure="gone")
    lines = screen(Status(tmp_path).rows(), 12, tmp_path).splitlines()
    assert len(lines) <= 12 - 1
    assert max(map(len, lines)) <= 80
    assert "1 failed, 1 finished, 29 new" in lines[0]
    assert ["mono_forward" in lines[3], "finished" in lines[4]] == [True, True]
    assert lines[-1] == "... and 24 more"


def test_a_pipe_gets_a_line_for_each_change_until_all_is_over(tmp_path, writer, monkeypatch):
    monkeypatch.setattr("locallearn.commands.status.LOOK_SECONDS", 0.01)
    planned(tmp_path, RUN)
    out = io.StringIO()
    thread = threading.Thread(target=watch, args=(tmp_path, out))
    thread.start()
    time.sleep(0.1)
    assert thread.is_alive()
    writer(tmp_path, "backprop", "exact", 0)
    thread.join(10)
    assert not thread.is_alive()
    told = [line.split(" ", 1)[1] for line in out.getvalue().splitlines()]
    assert (told[0], told[-1]) == ("1 run: 1 new", "1 run: 1 finished")
    assert told[-2].split()[1:5] == ["finished", "100", "valid", "0.800"]
    assert max(map(len, out.getvalue().splitlines())) <= 80


@pytest.fixture
def on_actors(tmp_path, writer):
    """A run that goes on, on two actors of which the second waits for the first."""
    writer(tmp_path, "backprop", "exact", 0)
    folder = tmp_path / RUN
    (folder / "result.json").unlink()
    waiting = {"step": 812, "message": "activation", "shard": 0}
    shards = [{"shard": k, "step": 812, "waiting": waiting if k else None, "waited": {"0": 65.0} if k else {}} for k in range(2)]
    (folder / "actors.json").write_text(json.dumps({"shards": shards}))
    with Lock(folder):
        yield folder


WAITS = "step 812, waits for `activation` of step 812 from shard 0; waited 1 min"


def test_a_screen_has_who_waits_for_whom(tmp_path, writer, on_actors):
    rows = Status(tmp_path).rows()
    lines = screen(rows, 24, tmp_path).splitlines()
    assert lines[-5:-1] == ["", RUN, "shard 0  step 812", f"shard 1  {WAITS}"]
    planned(tmp_path, *(f"backprop-exact-00000000/seed-{k}" for k in range(30)))
    lines = screen(Status(tmp_path).rows(), 9, tmp_path).splitlines()
    assert len(lines) <= 9
    assert RUN in lines[3]
    assert lines[-1] == "... and 2 more lines"


def test_a_pipe_has_who_waits_for_whom(tmp_path, on_actors):
    out = io.StringIO()
    thread = threading.Thread(target=watch, args=(tmp_path, out))
    thread.start()
    deadline = time.monotonic() + 10
    while "shard 1" not in out.getvalue() and time.monotonic() < deadline:
        time.sleep(0.01)
    (on_actors / "result.json").write_text("{}")
    thread.join(10)
    lines = out.getvalue().splitlines()
    assert "running" in lines[1]
    assert lines[2] == " " * 9 + "shard 0  step 812"
    assert lines[3].startswith(" " * 9 + "shard 1  step 812, waits for `activation` of step 812 from shard 0")
    assert max(map(len, lines)) <= 80
    assert sum("shard 0  step" in line for line in lines) == 1


def test_watching_has_no_format(tmp_path, capsys):
    assert code_of(["status", str(tmp_path), "--watch", "--format", "csv"]) == 2
    assert "--watch has no --format" in capsys.readouterr().err


def test_only_what_differs():
    assert differing([{"a": 1, "b": 2, "c": [1]}, {"a": 1, "b": 3, "c": [1], "d": None}, {"a": 1, "b": 2, "c": [2], "d": 4}]) == {
        "b": [2, 3, 2],
        "c": [[1], [1], [2]],
        "d": [None, None, 4],
    }


def test_compare(made, capsys):
    """Rates 0.01 and 0.003, accuracies 0.90 and 0.85, 4 and 2 million bytes."""
    runs = [str(made / f"{rule}-exact-00000000" / "seed-0") for rule in ("backprop", "mono_forward")]
    assert code_of(["compare", *runs]) == 0
    shown = capsys.readouterr().out
    lines = [line.split() for line in shown.splitlines()]
    assert ["[2]", runs[1]] in lines
    assert ["train.optimizer.rate", "0.01", "0.003"] in lines
    assert ["test_accuracy", "0.9000", "0.8500", "(-5.0)"] in lines
    assert ["bytes", "3.81", "MiB", "1.91", "MiB", "(x0.5)"] in lines
    assert not any(line[:1] == ["data.name"] for line in lines)
    assert code_of(["compare", *runs, "--format", "json"]) == 0
    (rate,) = [row for row in json.loads(capsys.readouterr().out) if row["key"] == "train.optimizer.rate"]
    assert list(rate.values()) == ["settings", "train.optimizer.rate", 0.01, 0.003]
    many = [str(path.parent) for path in sorted(made.glob("*/seed-*/result.json"))]
    assert code_of(["compare", *many]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["[1]", "finished", "100", "0.8000", "0.9000", "1.0000", "3.81", "MiB", "10", "s"] in lines
    assert code_of(["compare", runs[0], runs[0]]) == 0
    assert "no setting differs" in capsys.readouterr().out
    assert code_of(["compare", runs[0], str(made)]) == 1
    assert "there is no run here" in capsys.readouterr().err


@pytest.mark.parametrize("state", ["finished", "failed"])
def test_show_as_json(tmp_path, writer, capsys, state):
    writer(tmp_path, "backprop", "exact", 0, failure="gone" if state == "failed" else None)
    directory = next(tmp_path.glob("*/seed-0"))
    assert code_of(["show", str(directory), "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["state"], told["config"], len(told["records"])) == (state, Store(directory).read_config(), 2 * (state == "finished"))
    assert code_of(["show", str(directory)]) == 0
    assert "begun 2026-01-02T03:04:05+00:00 on here, cpu, local" in capsys.readouterr().out
