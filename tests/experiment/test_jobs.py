"""A sweep's runs in several processes: the same results, each run once, and nothing lost whatever is killed."""

import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest

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
    """{run: (curve without times, traffic, arrays)} of every finished run."""
    found = {}
    for directory in sorted(runs.glob("all/*/seed-*")):
        assert Store(directory).state == FINISHED
        result = load(directory)
        curve = [{key: value for key, value in record.items() if key not in TIMES} for record in result.curve]
        arrays = {name: (array.dtype, array.tobytes()) for name, array in result.arrays.items()}
        found[str(directory.relative_to(runs))] = (curve, result.traffic, result.test_accuracy, arrays)
    return found


def started(place, runs, jobs):
    cache = {"JAX_COMPILATION_CACHE_DIR": str(place / "compiled"), "JAX_PERSISTENT_COMPILATION_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    command = [sys.executable, "-m", "locallearn", "sweep", str(place / "all.yaml"), "--runs", str(runs), "--jobs", str(jobs)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env={**os.environ, **cache}, **pipes)


def test_two_sweeps_at_once_in_several_processes_do_each_run_once(place, undisturbed):
    both = [started(place, place / "both", jobs) for jobs in (2, 1)]
    shown = [process.communicate(timeout=120) for process in both]
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


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments(place, undisturbed, kills):
    random.seed(kills)
    runs, longest = place / f"killed-{kills}", 6.0
    for _ in range(kills):
        process = started(place, runs, 2)
        time.sleep(random.uniform(0.5, longest))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        end = time.monotonic() + 10
        while any(holder_of(lock.parent) for lock in runs.glob("all/*/*/lock")):
            assert time.monotonic() < end, "a worker outlives its sweep"
            time.sleep(0.05)
    moved = place / f"moved-{kills}"
    if runs.exists():
        runs.rename(moved)
    process = started(place, moved, 2)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 0, told
    assert endings(moved) == undisturbed
