"""A sweep's runs in several processes: the same results, each run once, and nothing lost whatever is killed."""

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import ray
import yaml

from locallearn.cli import code_of
from locallearn.config.run import resolve
from locallearn.data.dataset import Dataset
from locallearn.experiment.abreast import Abreast, Unseated
from locallearn.experiment.files import NoRoom
from locallearn.experiment.how import How
from locallearn.experiment.lock import holder_of
from locallearn.experiment.run import Interrupted, execute
from locallearn.experiment.store import INTERRUPTED, Store
from locallearn.runtime.placement import Unplaced
from locallearn.runtime.training import Recovered, RolledBack, Snapshot
from tests.experiment.sweeps import SWEEP, done, endings, started


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


def test_two_sweeps_at_once_in_several_processes_do_each_run_once(place, undisturbed):
    both = [started(place, place / "both", "--jobs", str(jobs)) for jobs in (2, 1)]
    shown = [process.communicate(timeout=600) for process in both]
    assert [process.returncode for process in both] == [0, 0], shown
    assert sum(done(out) for out, _ in shown) == 4
    assert endings(place / "both") == undisturbed


def test_a_run_that_fails_is_noted_and_the_others_go_on(place, undisturbed, capsys):
    (place / "failing" / "all").mkdir(parents=True)
    name = next(iter(undisturbed)).split("/")[1]
    (place / "failing" / "all" / name).write_text("in the way")
    command = ["sweep", str(place / "all.yaml"), "--runs", str(place / "failing"), "--jobs", "2"]
    assert code_of(command) == 1
    assert capsys.readouterr().out.count("FAILED UnusableFolder") == 2
    assert endings(place / "failing") == {run: end for run, end in undisturbed.items() if name not in run}


def progress(runs):
    """How much there is below a folder: files, and lines of metrics."""
    files = [Path(folder, name) for folder, _, names in os.walk(runs) for name in names]  # unlike rglob, it bears that folders go
    return len(files) + sum(path.read_bytes().count(b"\n") for path in files if path.name == "metrics.jsonl")


def killed(place, runs, kills, stride):
    """A sweep that was killed so often, each time at a random moment, and went on; in a folder that was moved before the end."""
    for _ in range(kills):
        process, goal = started(place, runs, "--jobs", "2"), progress(runs) + random.randint(1, stride)
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
    process = started(place, moved, "--jobs", "2")
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
    process = started(tmp_path, tmp_path / "undisturbed", "--jobs", "2")
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


# on Ray


@pytest.fixture(scope="module")
def address():
    """Of a Ray of two nodes with two CPUs each; this process has joined it."""
    from ray.cluster_utils import Cluster as Machines

    machines = Machines(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    machines.add_node(num_cpus=2)
    ray.init(address=machines.address, log_to_driver=False, logging_level="ERROR")
    yield machines.address
    ray.shutdown()
    machines.shutdown()


on_ray = [pytest.mark.ray, pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")]


def marked(test):
    for mark in on_ray:
        test = mark(test)
    return test


@marked
def test_a_sweep_as_tasks_is_the_sweep_in_this_process(place, undisturbed, address, capsys):
    """Nodes need not share a disk: all is written here."""
    words = ["sweep", str(place / "all.yaml"), "--runs", str(place / "tasks"), "--address", address]
    assert code_of(words) == 0
    assert endings(place / "tasks") == undisturbed
    assert done(capsys.readouterr().out) == 4
    assert code_of([*words[:-1], "127.0.0.1:1"]) == 0, "nothing is left to do, and nobody is asked"
    assert "4 runs: 4 finished" in capsys.readouterr().out


@marked
def test_runs_on_actors_have_their_places_at_the_same_time(place, undisturbed, address):
    """Two runs of two shards fit."""
    words = ["sweep", str(place / "all.yaml"), "--runs", str(place / "actors"), "--address", address, "--on", "ray", "--only", "seed=0"]
    assert code_of(words) == 0
    begun = [Store(path.parent).read("meta.json")["started"] for path in (place / "actors").rglob("config.yaml")]
    ended = [Store(path.parent).read("result.json")["finished"] for path in (place / "actors").rglob("config.yaml")]
    assert max(begun) < min(ended)
    for run, (theirs, _, _) in endings(place / "actors").items():
        curve = undisturbed[run.removesuffix("@ray")][0]
        assert [record["bytes"] for record in theirs] == [record["bytes"] for record in curve]
        assert np.allclose([r["train_loss"] for r in theirs], [r["train_loss"] for r in curve], atol=1e-4)


LONG = {**yaml.safe_load(SWEEP)["base"], "train": {"steps": 30000, "batch": 16, "evaluate_every": 10000}}


@marked
def test_a_task_that_is_killed_begins_again_from_its_snapshot(tmp_path, address):
    told = []

    def tell(event):
        told.append(event)
        if isinstance(event, Snapshot) and not any(isinstance(event, RolledBack) for event in told):
            for process in tasks():
                os.kill(process, signal.SIGKILL)

    config = resolve(LONG)
    result = execute(config, How(address=address, keep_seconds=0, tell=tell), tmp_path)
    assert result.rollbacks == sum(isinstance(event, RolledBack) for event in told) == 1
    assert any(isinstance(event, Recovered) for event in told)
    assert_same_run(result, execute(config, How()))


def assert_same_run(one, other):
    curves = [[(r["step"], r["train_loss"], r["validation_accuracy"], r["bytes"]) for r in run.curve] for run in (one, other)]
    assert curves[0] == curves[1]
    assert {name: array.tobytes() for name, array in one.arrays.items()} == {n: a.tobytes() for n, a in other.arrays.items()}


def tasks():
    """The processes that train a run as a task."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (place / "cmdline").read_bytes().startswith(b"ray::locallearn:backprop"):
                found.append(int(place.name))
    return found


@marked
def test_a_task_goes_on_after_an_interruption(tmp_path, address):
    told = []
    how = How(address=address, keep_seconds=0, tell=told.append, interrupted=lambda: any(isinstance(event, Snapshot) for event in told))
    config = resolve(LONG)
    with pytest.raises(Interrupted, match="goes on from step"):
        execute(config, how, tmp_path)
    kept = Store(tmp_path)
    assert kept.state == INTERRUPTED
    assert_same_run(execute(config, How(), tmp_path), execute(config, How()))
    assert Store(tmp_path).read("meta.json")["resumed"]


@pytest.mark.slow
@marked
def test_the_driver_is_killed_while_its_tasks_train(tmp_path, address):
    """They end with it, wherever they are, and the same command does what is left."""
    (tmp_path / "all.yaml").write_text(SWEEP.replace("steps: 60", "steps: 30000").replace("evaluate_every: 20", "evaluate_every: 5000"))
    assert code_of(["sweep", str(tmp_path / "all.yaml"), "--runs", str(tmp_path / "undisturbed"), "-q"]) == 0
    runs, kills = tmp_path / "tasks", 0
    for least in (1, 9):
        process = started(tmp_path, runs, "--address", address)
        wait_until(lambda least=least: sum(len(Store(path.parent).records()) for path in runs.rglob("metrics.jsonl")) >= least)
        kills += process.poll() is None and len(tasks()) > 0
        process.send_signal(signal.SIGKILL)
        process.communicate()
        wait_until(lambda: not tasks())
    assert kills
    process = started(tmp_path, runs, "--address", address)
    _, told = process.communicate(timeout=600)
    assert process.returncode == 0, told
    assert endings(runs) == endings(tmp_path / "undisturbed")
    assert not list(runs.rglob("lock"))


def wait_until(holds, seconds=180):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


class Elsewhere:
    """Data that can be read in one process alone."""

    name, classes, example_shape, train_size, test_size = "elsewhere", 3, (12,), 60, 17

    def __init__(self, split):
        self.process, self.split = os.getpid(), split

    def load(self):
        if os.getpid() != self.process:
            raise OSError("no such data on this node")
        return Dataset.of("elsewhere", self.split.train, self.split.test)


@marked
def test_what_a_task_raises_is_told_as_if_it_had_run_here(tiny_split, tmp_path, address):
    data = {"name": Elsewhere(tiny_split), "validation": 11}
    config = resolve({**LONG, "model": {"name": "mlp", "widths": [12, 8, 3], "shards": 2}, "data": data})
    with pytest.raises(OSError, match="no such data on this node"):
        execute(config, How(address=address), tmp_path)
    assert Store(tmp_path).read("failure.json")["type"] == "OSError"


@marked
def test_a_task_that_finds_no_place_ends_with_what_there_is(address):
    with pytest.raises(Unplaced, match=r"the run found no place within 1\.0 s\n  asked for  5 CPU\n  there is   node .*2 CPU"):
        execute(resolve({**LONG, "cluster": {"cpus": 5, "timeout": 1}}), How(address=address))


# as many as there is room for


def test_no_more_tasks_at_a_time_than_there_is_room_for():
    peak, lock, present = [0], threading.Lock(), []

    def work(task, tell, stop):
        with lock:
            present.append(task)
            peak[0] = max(peak[0], len(present))
        time.sleep(0.02)
        with lock:
            present.remove(task)
        tell(task)

    room = lambda others, another: len(others) < 3  # noqa: E731
    assert sorted(Abreast(work, lambda task: task, room, lambda: False).go(range(20))) == list(range(20))
    assert peak == [3]
    full = lambda others, another: False  # noqa: E731
    assert list(Abreast(work, lambda task: task, full, lambda: False).go(range(3))) == [0, 1, 2], "one at least"


def test_a_task_without_a_place_waits_for_one_that_has_its_own():
    turns = []
    first = threading.Event()

    def work(task, tell, stop):
        turns.append(task)
        if task == "homeless" and turns.count(task) == 1:
            tell(Unseated(task, "failed"))
            first.set()
        else:
            assert first.wait(10)
            tell(f"{task} done")

    told = list(Abreast(work, lambda task: task, lambda others, another: True, lambda: False).go(["homeless", "other"]))
    assert sorted(told) == ["homeless done", "other done"]
    assert list(Abreast(lambda task, tell, stop: tell(Unseated(task, "failed")), id, bool, lambda: False).go(["homeless"])) == ["failed"]


def test_trouble_of_all_ends_all():
    stopped = []

    def work(task, tell, stop):
        if task == 0:
            raise NoRoom("full")
        while not stop():
            time.sleep(0.01)
        stopped.append(task)

    with pytest.raises(NoRoom):
        list(Abreast(work, lambda task: task, lambda others, another: len(others) < 3, lambda: False).go(range(9)))
    assert set(stopped) <= {1, 2}
    assert list(Abreast(work, lambda task: task, lambda others, another: True, lambda: True).go([1, 2])) == []
