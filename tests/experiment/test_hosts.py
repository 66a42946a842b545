"""Two machines on one folder: each in namespaces of its own, with another name, where it sees no process of the other.

As root, with `unshare`; skipped elsewhere. All processes of both have the same numbers, as in containers.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import time

import pytest

from locallearn.cli import code_of
from locallearn.experiment.lock import SILENT_SECONDS, holder_of
from locallearn.experiment.store import FINISHED, Store
from tests.experiment.sweeps import SWEEP, done, endings, started

NAMESPACES = ["unshare", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]


def can():
    return shutil.which("unshare") and subprocess.run([*NAMESPACES, "true"], capture_output=True, check=False).returncode == 0


pytestmark = pytest.mark.skipif(not can(), reason="takes root, and the program unshare")

LONGER = SWEEP.replace("steps: 60", "steps: 12000").replace("evaluate_every: 20", "evaluate_every: 3000")


def place_with(folder, sweep):
    (folder / "all.yaml").write_text(sweep)
    assert code_of(["sweep", str(folder / "all.yaml"), "--runs", str(folder / "undisturbed"), "-q"]) == 0
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return place_with(tmp_path_factory.mktemp("hosts"), SWEEP)


@pytest.fixture(scope="module")
def longer(tmp_path_factory):
    return place_with(tmp_path_factory.mktemp("longer"), LONGER)


@contextlib.contextmanager
def hosts(folder, *names, runs="both"):
    """A sweep on each, in the same folder. At the end none is left."""
    begun = [started(folder, folder / runs, within=[*NAMESPACES, "sh", "-c", f'hostname {name}; exec "$@"', "sh"]) for name in names]
    try:
        yield begun
    finally:
        for process in begun:
            process.send_signal(signal.SIGKILL)
            process.communicate()


def ended(process):
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, (out, err)
    return out


def test_two_hosts_do_each_run_once(place):
    with hosts(place, "alpha", "beta") as begun:
        shown = [ended(process) for process in begun]
    assert sum(map(done, shown)) == 4, shown
    assert endings(place / "both") == endings(place / "undisturbed")
    assert {Store(path.parent).read("meta.json")["host"] for path in (place / "both").rglob("meta.json")} <= {"alpha", "beta"}


def one_that_runs(runs, host):
    """A run that a host is at, and that it has trained for a while."""
    for lock in runs.rglob("lock"):
        holder = holder_of(lock.parent)
        if holder and holder["host"] == host and Store(lock.parent).records():
            return lock.parent
    return None


@pytest.mark.parametrize("waits", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_what_a_host_was_at_that_is_gone_another_takes_up(longer, waits):
    """Not before it was silent for so long: whether it is gone cannot be seen from there."""
    runs = longer / f"killed-{waits}"
    with hosts(longer, "alpha", runs=runs.name) as (alpha,):
        end = time.monotonic() + 120
        while (lost := one_that_runs(runs, "alpha")) is None:
            assert alpha.poll() is None
            assert time.monotonic() < end
            time.sleep(0.02)
    died = time.time()
    with hosts(longer, "beta", runs=runs.name) as (beta,):
        shown = ended(beta)
    assert "running elsewhere" in shown
    assert Store(lost).state != FINISHED
    assert holder_of(lost)["host"] == "alpha"
    if waits:
        time.sleep(max(0.0, died + SILENT_SECONDS + 5 - time.time()))
    else:
        os.utime(lost / "lock", (0, 0))
    with hosts(longer, "beta", runs=runs.name) as (beta,):
        ended(beta)
    assert endings(runs) == endings(longer / "undisturbed")
    assert not list(runs.rglob("lock"))
