"""A real head and two worker nodes, each a set of processes on this machine: jobs are submitted, fail, are stopped, go on, and come home.

python -m pytest tests/cluster/test_cluster.py -m "slow or not slow"
"""

import json
import os
import re
import subprocess
import sys
import time

import pytest
import yaml

import locallearn
from locallearn.experiment.store import Store

pytestmark = pytest.mark.ray

RUN = {
    "rule": {"name": "direct_feedback"},
    "model": {"name": "mlp", "widths": [196, 12, 11, 10], "shards": 3},
    "data": {"name": "fashion14", "limit": 300, "validation": 40},
    "train": {"steps": 12, "batch": 16, "evaluate_every": 6},
    "codecs": {"default": ["error_feedback", "int8"]},
    "cluster": {"spread": "strict", "timeout": "60 s"},
}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    (folder / "some.yaml").write_text(yaml.safe_dump(RUN))
    long = {**RUN, "train": {**RUN["train"], "steps": 60000, "evaluate_every": 200}}
    (folder / "long.yaml").write_text(yaml.safe_dump(long))
    return folder


@pytest.fixture(scope="module")
def call(processes, project):
    """`call(*words, **environment)`: a command of locallearn in the project's folder, from outside of the cluster."""

    def run(*words, check=True, timeout=300, **environment):
        done = subprocess.run(
            [sys.executable, "-m", "locallearn", *words],
            cwd=project,
            env={**processes.environment, **environment},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    return run


def submit(processes, name, *words):
    return ["submit", name, "--address", processes.url, *words]


def the_run(folder):
    """The one run below a folder."""
    (found,) = [path.parent for path in folder.rglob("config.yaml")]
    return found


def test_a_job_on_three_nodes_gives_the_bits_of_one_process(processes, project, call):
    call("run", "some.yaml", "--on", "eager", "--runs", "alone", "-q")
    done = call(*submit(processes, "some.yaml", "--checkpoints"))
    assert done.stdout.startswith(f"ray job submit --address {processes.url}")
    assert "job      succeeded" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    there, here = locallearn.load(the_run(project / "runs")), locallearn.load(the_run(project / "alone"))
    assert there.arrays.keys() == here.arrays.keys()
    assert all(there.arrays[name].tobytes() == here.arrays[name].tobytes() for name in here.arrays)
    assert there.traffic == here.traffic
    assert (there.test_accuracy, there.curve[-1]["validation_accuracy"]) == (here.test_accuracy, here.curve[-1]["validation_accuracy"])
    meta = Store(the_run(project / "runs")).read("meta.json")
    assert meta["cluster"] == {"spread": "strict"}
    assert (meta["on"], Store(the_run(project / "alone")).read("meta.json")["on"]) == ("ray", "eager")


@pytest.mark.slow
def test_the_same_command_again_finds_what_is_finished(processes, project, call):
    done = call(*submit(processes, "some.yaml", "--into", "again"))
    assert re.search(r"^already ", done.stdout, re.M)
    assert Store(the_run(project / "again")).state == "finished"
    assert not (the_run(project / "again") / "checkpoints").exists()


@pytest.mark.slow
def test_what_is_there_is_told_from_afar(processes, project, call):
    name = the_run(project / "runs").relative_to(project / "runs").as_posix()
    words = ["status", "--address", processes.url]
    (row,) = json.loads(call(*words, "--format", "json").stdout)
    assert (row["run"], row["state"], row["step"]) == (name, "finished", 12)
    watched = call(*words, "--watch").stdout.splitlines()
    assert watched[0].endswith("1 run: 1 finished")
    assert " finished " in watched[1]
    nothing = call("status", "nothing", "--address", processes.url, check=False)
    assert (nothing.returncode, nothing.stdout.endswith("/locallearn-runs/nothing: there are no runs here\n")) == (1, True)


@pytest.mark.slow
def test_a_job_that_is_stopped_goes_on_from_its_last_snapshot(processes, project, call):
    first = call(*submit(processes, "long.yaml", "--no-wait"))
    name = re.search(r"long-[0-9a-f]{8}-\d{8}-\d{6}", first.stdout)[0]
    again = call(*submit(processes, "long.yaml", "--no-wait"))
    assert f"{name}, which runs already" in again.stdout
    log = wait_for(processes, name, r"^ +\d{3,} ")
    assert "resume" not in log
    until(lambda: list((processes.folder / "home").rglob("checkpoints/*/DONE")))
    ray(processes, "stop", name)
    done = call(*submit(processes, "long.yaml", "--no-wait"))
    second = re.findall(r"long-[0-9a-f]{8}-\d{8}-\d{6}", done.stdout)[-1]
    assert second != name
    assert re.search(r"^resume   from step [1-9]\d* of 60000", wait_for(processes, second, r"^resume .*"), re.M)
    ray(processes, "stop", second)


def ray(processes, *words):
    done = subprocess.run(
        [sys.executable, "-m", "ray.scripts.scripts", "job", *words, "--address", processes.url],
        env=processes.environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.stdout


def wait_for(processes, name, pattern):
    """The log of a job, as soon as it has a line like this."""
    log = [""]

    def said():
        log[0] = ray(processes, "logs", name)
        return re.search(pattern, log[0], re.M)

    until(said, f"a line {pattern}")
    return log[0]


def until(holds, what="a snapshot"):
    """Actors may start slowly on a busy machine."""
    deadline = time.monotonic() + 400
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(1)


@pytest.mark.slow
def test_who_has_no_token_is_told_so(processes, call):
    without = call(*submit(processes, "some.yaml"), check=False, RAY_AUTH_MODE="disabled", RAY_AUTH_TOKEN_PATH="")
    assert (without.returncode, without.stdout) == (2, "")
    assert without.stderr.startswith(f"{processes.url} asks for a token: set RAY_AUTH_MODE=token")
    assert len(without.stderr.splitlines()) == 1
    wrong = call(*submit(processes, "some.yaml"), check=False, RAY_AUTH_TOKEN="0" * 64)
    assert wrong.stderr.startswith(f"{processes.url} does not accept this token")


@pytest.mark.slow
def test_an_id_that_is_taken_is_refused_in_a_sentence(processes, call):
    words = submit(processes, "some.yaml", "--submission-id", "mine", "--no-wait", "--no-fetch")
    call(*words)
    again = call(*words, check=False)
    assert again.returncode == 2
    assert again.stderr.strip() == "there is a job mine already; leave --submission-id out, or choose another"


@pytest.mark.slow
def test_a_working_directory_that_is_too_large_is_refused_in_a_sentence(processes, project, call):
    (project / "weights.bin").write_bytes(os.urandom(105 * 2**20))
    refused = call(*submit(processes, "some.yaml", "--no-wait"), check=False)
    assert refused.returncode == 2
    assert refused.stderr.startswith("the working directory `.` is too large: Ray takes 100 MiB")
    (project / ".rayignore").write_text("*.bin\n")
    assert call(*submit(processes, "some.yaml", "--no-wait")).returncode == 0


@pytest.mark.slow
def test_what_cannot_be_placed_ends_the_job_with_what_there_is(processes, project, call):
    failed = call(
        *submit(processes, "some.yaml", "--set", "cluster.cpus=2", "--set", "cluster.timeout=2 s", "--set", "seed=5"), check=False
    )
    assert failed.returncode == 1
    assert "3 shards found no place within 2.0 s" in failed.stdout
    assert failed.stdout.count(": 1 CPU") == 3
    assert Store(next(path.parent for path in project.rglob("failure.json"))).read("failure.json")["type"] == "Unplaced"
