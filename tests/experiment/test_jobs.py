"""A sweep's runs in several processes: the same results, each run once, and nothing lost whatever is killed."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml

from locallearn.cli import code_of
from locallearn.experiment.lock import holder_of
from locallearn.experiment.record import TIMES
from locallearn.experiment.result import load
from locallearn.experiment.store import FINISHED, Store

SWEEP = """
base:
  rule: {name: backprop}
  model: {name: mlp, widths: [40, 8, 10], shards: 2}
  data: {name: strokes1d, samples: 200, test_samples: 50}
  train: {steps: 60, batch: 16, evaluate_every: 20}
vary: {codecs.default: [exact, int8]}
seeds: [0, 1]
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a sweep, and what its processes compile, which is most of their time."""
    folder = tmp_path_factory.mktemp("jobs")
    (folder / "all.yaml").write_text(SWEEP)
    return folder


@pytest.fixture(scope="module")
def undisturbed(place):
    assert code_of(["sweep", str(place / "all.yaml"), "--runs", str(place / "undisturbed"), "-q"]) == 0
    return endings(place / "undisturbed")


def endings(runs):
    """{run: (curve without times, result.json without times, arrays)} of every finished run."""
    found = {}
    for directory in sorted(path.parent for path in runs.glob("all/**/config.yaml")):
        assert Store(directory).state == FINISHED
        result = load(directory)
        curve = [{key: value for key, value in record.items() if key not in TIMES} for record in result.curve]
        arrays = {name: (array.dtype, array.tobytes()) for name, array in result.arrays.items()}
        lines = (directory / "result.json").read_text().splitlines()
        told = [line for line in lines if line.split('"')[1:2] not in (["seconds"], ["compile_seconds"], ["finished"])]
        assert len(told) == len(lines) - 3
        found[str(directory.relative_to(runs))] = (curve, told, arrays)
    return found


def started(place, runs, jobs):
    cache = {"JAX_COMPILATION_CACHE_DIR": str(place / "compiled"), "JAX_PERSISTENT_COMPILATION_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    command = [sys.executable, "-m", "locallearn", "sweep", str(place / "all.yaml"), "--runs", str(runs), "--jobs", str(jobs)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env={**os.environ, **cache}, **pipes)


def test_two_sweeps_at_once_in_several_processes_do_each_run_once(place, undisturbed):
    both = [started(place, place / "both", jobs) for jobs in (2, 1)]
    shown = [process.communicate(timeout=600) for process in both]
    assert [process.returncode for process in both] == [0, 0], shown
    assert sum(len(re.findall(r"seed \d +0\.\d", line)) for out, _ in shown for line in out.split("\n\n")[0].splitlines()) == 4
    assert endings(place / "both") == undisturbed


def test_a_run_that_fails_is_noted_and_the_others_go_on(place, undisturbed, capsys):
    (place / "failing" / "all").mkdir(parents=True)
    name = next(iter(undisturbed)).split("/")[1]
    (place / "failing" / "all" / name).write_text("in the way")
    command = ["sweep", str(place / "all.yaml"), "--runs", str(place / "failing"), "--jobs", "2"]
    assert code_of(command) == 1
    assert capsys.readouterr().out.count("FAILED UnusableFolder") == 2
    assert endings(place / "failing") == {run: end for run, end in undisturbed.items() if name not in run}


def test_actors_have_no_jobs(place, capsys):
    assert code_of(["sweep", str(place / "all.yaml"), "--jobs", "2", "--on", "ray"]) == 1
    assert "take one of the two" in capsys.readouterr().err


def progress(runs):
    """How much there is below a folder: files, and lines of metrics."""
    files = [path for path in runs.rglob("*") if path.is_file()]
    return len(files) + sum(path.read_bytes().count(b"\n") for path in files if path.name == "metrics.jsonl")


def killed(place, runs, kills, stride):
    """A sweep that was killed so often, each time at a random moment, and went on; in a folder that was moved before the end."""
    for _ in range(kills):
        process, goal = started(place, runs, 2), progress(runs) + random.randint(1, stride)
        while process.poll() is None and progress(runs) < goal:
            time.sleep(0.02)
        time.sleep(random.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        end = time.monotonic() + 60
        while any(holder_of(lock.parent) for lock in runs.glob("all/**/lock")):
            assert time.monotonic() < end, "a worker outlives its sweep"
            time.sleep(0.05)
    moved = runs.with_name(f"{runs.name}-moved")
    runs.rename(moved)
    process = started(place, moved, 2)
    _, told = process.communicate(timeout=3600)
    assert process.returncode == 0, told
    return moved


def test_killed_at_random_moments(place, undisturbed):
    assert endings(killed(place, place / "killed", 3, 15)) == undisturbed


@pytest.mark.slow
def test_a_tuned_sweep_killed_twenty_times(tmp_path):
    """Trials, choices and what follows from them are those of a sweep that nothing happened to."""
    longer = SWEEP.replace("steps: 60", "steps: 600").replace("evaluate_every: 20", "evaluate_every: 50")
    (tmp_path / "all.yaml").write_text(longer + "tune: {trials: 4, studies: 2, space: {train.optimizer.rate: {log: [1e-4, 1e-1]}}}\n")
    process = started(tmp_path, tmp_path / "undisturbed", 2)
    _, told = process.communicate(timeout=3600)
    assert process.returncode == 0, told
    moved = killed(tmp_path, tmp_path / "killed", 20, 25)
    assert endings(moved) == endings(tmp_path / "undisturbed")
    plans = [yaml.safe_load((runs / "all" / "sweep.yaml").read_text()) for runs in (moved, tmp_path / "undisturbed")]
    assert plans[0] == plans[1]
    assert len(plans[0]["chosen"]) == 4


MOUNT = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs"]


@pytest.fixture
def small_disk(tmp_path):
    """A file system with so little room that the sweep does not fit."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not shutil.which("mount") or subprocess.run([*MOUNT, folder], capture_output=True, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_full_disk_is_one_error_and_with_room_the_sweep_goes_on(place, small_disk, capsys, jobs):
    wide = SWEEP.replace("[40, 8, 10]", "[40, 64, 10]")
    (place / "wide").mkdir(exist_ok=True)
    (place / "wide" / "all.yaml").write_text(wide)
    command = ["sweep", str(place / "wide" / "all.yaml"), "--jobs", str(jobs), "--runs"]
    assert code_of([*command, str(small_disk)]) == 1
    shown = capsys.readouterr()
    assert "FAILED" not in shown.out
    assert re.fullmatch(r".*cannot be written: No space left on device; .* make room, and the same command goes on\n", shown.err)
    assert not list(small_disk.rglob("failure.json"))
    assert 0 < len(list(small_disk.rglob("result.json"))) < 4
    subprocess.run(["mount", "-o", "remount,size=20m", small_disk], check=True)
    assert code_of([*command, str(small_disk)]) == 0
    if not (place / "room").exists():
        assert code_of([*command, str(place / "room")]) == 0
    assert endings(small_disk) == endings(place / "room")
