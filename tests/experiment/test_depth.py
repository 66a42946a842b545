"""Diagnostics as tables, by depth, and as columns that tell no runs apart."""

import pytest
import yaml

from locallearn.cli import code_of
from locallearn.experiment.store import Store
from locallearn.report.depth import course, endings
from locallearn.report.summary import groups_of
from locallearn.report.table import columns_of, facts_of, rows_below

RUN = {
    "rule": {"name": "backprop"},
    "model": {"name": "mlp", "widths": [40, 8, 10], "shards": 2},
    "data": {"name": "strokes1d", "samples": 200, "test_samples": 50},
    "train": {"steps": 4, "batch": 16, "evaluate_every": 2},
    "diagnostics": ["angle", "norms"],
}


def record(step, **rows):
    return {"step": step, "diagnostics": rows}


def test_the_course_of_a_run():
    text = course([record(5, angle=[80.12345, 3.0], margin=[None, 1]), {"step": 7}, record(9, angle=[40.0, 2.5], margin=[0.5, 2])])
    assert text.splitlines() == [
        "by depth, after step 5 > step 9",
        "block       angle   margin",
        "0      80.12 > 40  - > 0.5",
        "1         3 > 2.5    1 > 2",
    ]
    assert course([record(5, angle=[1.0])]) == "by depth, after step 5\nblock  angle\n0          1"
    assert course([{"step": 1}]) == course([]) == ""


def row(run, state="finished", **columns):
    return {"run": run, "state": state, **columns}


def test_the_ends_of_several_runs():
    """Means over seeds; runs that are not over, or have none, do not count."""
    text = endings(
        [
            row("a/seed-0", diagnostic_angle_0=10.0, diagnostic_angle_1=1.0),
            row("a/seed-0", diagnostic_angle_0=20.0, diagnostic_angle_1=None),
            row("a/seed-1", diagnostic_angle_0=30.0, diagnostic_angle_1=2.0),
            row("a/seed-2", "failed", diagnostic_angle_0=500.0, diagnostic_angle_1=2.0),
            row("b/seed-0"),
        ]
    )
    assert text.splitlines() == ["a, by depth at the end", "block  angle", "0         25", "1          -"]
    assert endings([row("b/seed-0")]) == ""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run with diagnostics, two seeds."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(RUN))
    for seed in (0, 1):
        assert code_of(["run", str(folder / "tiny.yaml"), "-q", "--runs", str(folder / "runs"), "--set", f"seed={seed}"]) == 0
    return folder / "runs" / "tiny"


def test_show_and_report_tell_them(folder, capsys):
    (directory,) = folder.glob("*/seed-0")
    assert code_of(["show", str(directory)]) == 0
    assert "by depth, after step 2 > step 4\nblock" in capsys.readouterr().out
    assert code_of(["report", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "by depth at the end\nblock  angle  parameter_norm" in shown
    assert "diagnostic_angle_0" in (folder / "results.csv").read_text().splitlines()[0]
    page = (folder / "report.html").read_text()
    assert "diagnostics at the end of training by depth" in page
    assert "broadband" in page.split('id="networks"')[1].split("<table")[1]  # real runs have their times on networks


def test_they_are_columns_of_their_own_and_vary_nothing(folder):
    rows = rows_below(folder)
    assert columns_of(rows)[-1].startswith("diagnostic_")
    (group,) = groups_of(rows)
    assert group.variant == ""
    assert len(group.accuracies) == 2


def test_unverified_files_are_told_in_every_table(tmp_path):
    for unverified, data in ((True, "cifar10 (unverified files)"), (False, "cifar10")):
        (tmp_path / "config.yaml").write_text(yaml.safe_dump({"data": {"name": "cifar10", "unverified": unverified}}))
        assert facts_of(Store(tmp_path), tmp_path)["data"] == data
