"""Whatever stops a run, the same command goes on and ends bit-equal to a run that was never stopped."""

import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from itertools import chain

import numpy as np
import pytest
import yaml

from locallearn.errors import LocallearnError
from locallearn.experiment.api import configuration
from locallearn.experiment.how import How
from locallearn.experiment.record import TIMES
from locallearn.experiment.result import load
from locallearn.experiment.run import Interrupted, execute
from locallearn.experiment.store import Store
from locallearn.experiment.threads import as_it_began, threads
from locallearn.runtime.training import Evaluated, Progress, Snapshot

CONFIG = {
    "rule": {"name": "backprop"},
    "model": {"name": "mlp", "widths": [40, 8, 10], "shards": 2},
    "data": {"name": "strokes1d", "samples": 200, "test_samples": 50},
    "train": {"steps": 120, "batch": 16, "evaluate_every": 3},
    "codecs": {"error": ["error_feedback", "int8"]},
}
PHASES = [{"learn": [0], "steps": 10}, {"learn": "all", "steps": 10}]

EAGER = How("eager")  # compiles least

SCRIPT = """
import sys
from pathlib import Path
from locallearn.experiment.api import configuration
from locallearn.experiment.how import How
from locallearn.experiment.run import execute
from locallearn.experiment.signals import polite
with polite() as interrupted:
    execute(configuration(sys.argv[2]), How(sys.argv[3], keep_seconds=0.0, interrupted=interrupted), Path(sys.argv[1]))
"""


def timeless(records):
    return [{key: value for key, value in record.items() if key not in TIMES} for record in records]


def assert_same(one, other):
    """Equal records, equal traffic, and equal arrays bit for bit."""
    assert timeless(one.curve) == timeless(other.curve)
    assert one.traffic == other.traffic
    assert (one.step, one.reason, one.test_accuracy) == (other.step, other.reason, other.test_accuracy)
    assert list(one.arrays) == list(other.arrays)
    for name, array in one.arrays.items():
        assert array.dtype == other.arrays[name].dtype
        assert array.tobytes() == other.arrays[name].tobytes(), name


def started(directory, config, on="local"):
    """The run in a process of its own; the processes share what they compile, which is most of their time."""
    cache = {"JAX_COMPILATION_CACHE_DIR": str(config.parent), "JAX_PERSISTENT_COMPILATION_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    command = [sys.executable, "-c", SCRIPT, str(directory), str(config), on]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **cache})


def wait_for(condition, process, seconds=120.0):
    end = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None:
            raise AssertionError(process.stderr.read())
        assert time.monotonic() < end, "the run does not get there"
        time.sleep(0.002)


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(yaml.safe_dump(CONFIG))
    return path


@pytest.fixture(scope="module")
def uninterrupted(config_file):
    return execute(configuration(config_file), How())


@pytest.fixture(scope="module")
def phased():
    train = {"phases": PHASES, "batch": 16, "evaluate_every": 5}
    return execute(configuration({**CONFIG, "codecs": {}, "train": train}), EAGER)


def test_killed_at_random_moments(tmp_path, config_file, uninterrupted):
    directory = tmp_path / "run"
    store, chance = Store(directory), random.Random(time.time_ns())
    reached = 0
    for _ in range(3):
        process = started(directory, config_file)
        goal = reached + chance.randint(1, 8)
        wait_for(lambda goal=goal: lines_of(store) >= goal, process)
        time.sleep(chance.uniform(0, 0.02))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stderr.close()
        if store.state == "finished":
            break
        assert store.state == "interrupted"
        reached = lines_of(store)
    result = execute(configuration(config_file), How(), directory)
    assert store.state == "finished"
    assert_same(load(directory), uninterrupted)
    assert_same(result, uninterrupted)
    assert not list(directory.rglob(".*"))
    assert len(list((directory / "checkpoints").iterdir())) <= 2


def lines_of(store):
    try:
        return store.path("metrics.jsonl").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def test_ctrl_c_leaves_an_interrupted_run(tmp_path, config_file):
    directory = tmp_path / "run"
    process = started(directory, config_file)
    wait_for(lambda: lines_of(Store(directory)) >= 2, process)
    assert Store(directory).state == "running"
    with pytest.raises(LocallearnError, match=f"process {process.pid} on"):
        execute(configuration(config_file), How(), directory)
    with pytest.raises(LocallearnError, match="is running"):
        execute(configuration(config_file), How(), directory, fresh=True)
    process.send_signal(signal.SIGINT)
    message = process.communicate()[1]
    assert "press Ctrl-C again to leave at once" in message
    assert "the same command goes on from step" in message
    assert Store(directory).state == "interrupted"


@pytest.mark.parametrize("stop", [5, 10, 15])
def test_phases_go_on_from_every_snapshot(tmp_path, stop, phased):
    """At 10 the snapshot belongs to the first phase, and the second begins from it."""
    config = phased.config
    seen = []

    def tell(event):
        seen.append(event)

    def interrupted():
        return isinstance(seen[-1], Snapshot) and seen[-1].step == stop

    with pytest.raises(Interrupted, match=f"goes on from step {stop}"):
        execute(config, How("eager", keep_seconds=0.0, tell=tell, interrupted=interrupted), tmp_path)
    assert_same(execute(config, EAGER, tmp_path), phased)


@pytest.mark.parametrize("on", ["eager", "local"])
def test_ctrl_c_keeps_every_step_even_between_evaluations(tmp_path, on):
    config = configuration({**CONFIG, "train": {"steps": 12, "batch": 16, "evaluate_every": 12}})
    seen, leave = [], partial(_step_of_progress, 3)
    with pytest.raises(Interrupted) as stopped:
        execute(config, How(on, tell=seen.append, interrupted=lambda: leave(seen)), tmp_path)
    reached = max(event.step for event in seen if isinstance(event, Progress))
    assert 3 <= reached < 12
    assert f"goes on from step {reached}" in str(stopped.value)
    assert_same(execute(config, How(on), tmp_path), execute(config, How(on)))


def _step_of_progress(least, seen):
    return any(isinstance(event, Progress) and event.step >= least for event in seen)


def test_without_a_checkpoint_it_begins_again(tmp_path):
    config = configuration({**CONFIG, "train": {"steps": 9, "batch": 16, "evaluate_every": 3}})

    def die(event):
        if isinstance(event, Evaluated):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(config, How("eager", tell=die), tmp_path)
    Store(tmp_path).append({"step": 6, "torn": 1})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "tr')
    assert_same(execute(config, EAGER, tmp_path), execute(config, EAGER))


def test_half_written_snapshots_cost_no_whole_one(tmp_path):
    """Killed while it wrote one, gone on, and killed again after another."""
    steps, kept = [], tmp_path / "checkpoints"

    def die(event):
        if isinstance(event, Snapshot):
            steps.append(event.step)
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            execute(configuration(CONFIG), How("eager", tell=die, keep_seconds=0.0), tmp_path)
        assert [int(folder.name) for folder in kept.iterdir() if (folder / "DONE").exists()] == sorted(steps)
        for step in (100, 110):
            (kept / f"{step:08d}").mkdir()
            (kept / f"{step:08d}" / "shard-0.npz").write_bytes(b"half")
    assert steps[0] < steps[1]


def test_a_final_snapshot_is_not_gone_on_from(tmp_path):
    """Killed after the weights and before the result: an early stop must not become a longer run."""
    train = {"steps": 12, "batch": 16, "evaluate_every": 3}
    config = configuration({**CONFIG, "train": train, "stop": {"accuracy": 0.0}})
    first = execute(config, EAGER, tmp_path)
    assert (first.reason, first.step) == ("accuracy", 3)
    (tmp_path / "result.json").unlink()
    assert_same(execute(config, EAGER, tmp_path), first)


def test_bfloat16_and_scalars_survive(tmp_path):
    import ml_dtypes

    from locallearn.experiment import checkpoint
    from locallearn.traffic import Traffic

    shards = [
        [np.arange(6, dtype=ml_dtypes.bfloat16).reshape(2, 3), np.array(7, np.uint32)],
        [np.zeros((0, 4), np.float32), np.array(1.5, ml_dtypes.float8_e4m3fn)],
    ]
    checkpoint.save(tmp_path, [["a/b", "c"], ["d", "e"]], Snapshot(3, 0.5, Traffic(), shards))
    found = checkpoint.latest(tmp_path)
    assert (found.step, found.seconds) == (3, 0.5)
    for old, new in zip(chain(*shards), chain(*found.shards), strict=True):
        assert (old.dtype, old.shape, old.tobytes()) == (new.dtype, new.shape, new.tobytes())
    for file in tmp_path.rglob("*.npz"):
        np.load(file, allow_pickle=False).close()


def test_nothing_absolute_is_stored(tmp_path, config_file):
    directory = tmp_path / "run"
    execute(configuration(config_file, ["train.steps=3"]), How("eager", source=str(config_file)), directory)
    texts = [path for path in directory.rglob("*") if path.is_file() and path.suffix != ".npz"]
    assert texts
    for path in texts:
        assert str(tmp_path) not in path.read_text(), path


def test_a_run_goes_on_with_as_many_threads_as_it_began_with_or_says_so(tmp_path, monkeypatch):
    """Wide products have other bits on another number."""
    config = configuration(CONFIG)
    monkeypatch.setenv("NPROC", "3")
    with pytest.raises(Interrupted):
        execute(config, How("eager", keep_seconds=0.0, interrupted=lambda: any(tmp_path.glob("checkpoints/*/DONE"))), tmp_path)
    meta = Store(tmp_path).read("meta.json")
    assert meta["threads"] == 3
    monkeypatch.setenv("NPROC", "2")
    told = []
    execute(config, How("eager", tell=told.append), tmp_path)
    assert told[0].notes == ("begun on 3 threads, 2 now: the result may differ in its last bits; NPROC=3 keeps them",)
    asked = configuration(CONFIG | {"cluster": {"cpus": [4, 0.5]}})
    assert threads(asked, How("ray")) == (4, 1)
    assert threads(asked, How(address="somewhere:1")) == 4
    assert as_it_began(asked, meta).cluster.computing == 3
    assert as_it_began(asked, {"threads": [1, 2]}).cluster.computing == (1, 2)
    assert as_it_began(asked, {}) is asked, "begun before this was noted"


@pytest.mark.parametrize(("on", "said", "found"), [("eager", None, 4), ("eager", "2", 2), ("local", None, "cores")])
def test_a_process_computes_message_by_message_as_a_shard_would(on, said, found):
    """One that computes nothing yet, and unless it was told otherwise. XLA counts once, so that later it is too late."""
    script = """
import sys
from locallearn.experiment.api import configuration
from locallearn.experiment.threads import settle
from locallearn.runtime.placement import threads_here
settle(configuration(sys.argv[1], ["cluster.cpus=4"]), sys.argv[2])
import jax
jax.numpy.ones(3)
before = threads_here()
settle(configuration(sys.argv[1], ["cluster.cpus=7"]), sys.argv[2])
import os
print(before, threads_here(), len(os.sched_getaffinity(0)))
"""
    own = {name: value for name, value in os.environ.items() if name != "NPROC"} | ({} if said is None else {"NPROC": said})
    words = [sys.executable, "-c", script.replace("sys.argv[1]", repr(CONFIG)), "", on]
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=own, timeout=120)
    before, after, cores = map(int, done.stdout.split())
    assert before == after == (cores if found == "cores" else found)


@pytest.mark.ray
def test_actors_go_on_after_a_stop_and_equal_the_eager_fabric(tmp_path):
    config = configuration({**CONFIG, "train": {"steps": 9, "batch": 16, "evaluate_every": 3}})
    seen = []
    interrupted = partial(_is_snapshot, seen)
    with pytest.raises(Interrupted, match=r"goes on from step [3-8]"):
        execute(config, How("ray", keep_seconds=0.0, tell=seen.append, interrupted=interrupted), tmp_path)
    assert Store(tmp_path).state == "interrupted"
    assert Store(tmp_path).read("meta.json")["threads"] == 1
    more, told = configuration(config.canonical() | {"cluster": {"cpus": 2}}), []
    assert_same(execute(more, How("ray", tell=told.append), tmp_path), execute(config, EAGER))
    assert told[0].notes == ("computes on as many threads as it began with (1), not on those of `cluster:` now (2)",)


@pytest.mark.ray
def test_a_run_on_actors_that_was_killed_goes_on_and_equals_the_eager_fabric(tmp_path):
    """The driver is killed; its private Ray goes with it."""
    directory, config_file = tmp_path / "run", tmp_path / "long.yaml"
    config_file.write_text(yaml.safe_dump(CONFIG | {"train": {"steps": 2000, "batch": 16, "evaluate_every": 50}}))
    process = started(directory, config_file, "ray")
    wait_for(lambda: any((directory / "checkpoints").glob("*/DONE")), process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    assert Store(directory).state == "interrupted"
    seen = []
    result = execute(configuration(config_file), How("ray", tell=seen.append), directory)
    assert seen[0].resumed, "it began again"
    assert_same(result, execute(configuration(config_file), EAGER))


def _is_snapshot(seen):
    return isinstance(seen[-1], Snapshot)
