"""Run directories: states from files alone, whole files, and locks."""

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from locallearn.experiment.files import StoreError, read_json, write_json, write_whole
from locallearn.experiment.lock import Held, Lock, _space, holder_of
from locallearn.experiment.provenance import command, here, relative
from locallearn.experiment.store import Store, move_away, run_directories

CONFIG = {"rule": {"name": "backprop", "rate": 1.0}, "train": {"steps": None, "sizes": [1, 2]}, "seed": 0}
YAML = "# a comment\nrule: {name: backprop, rate: 1.0}\ntrain: {steps: null, sizes: [1, 2]}\nseed: 0\n"


def begun(directory):
    store = Store(directory)
    store.make()
    store.begin(YAML, {"format": 1})
    return store


def test_states_follow_from_files(tmp_path):
    store = Store(tmp_path / "run")
    assert store.state == "new"
    store = begun(tmp_path / "run")
    assert store.state == "interrupted"
    with Lock(store.directory):
        assert store.state == "running"
    assert store.state == "interrupted"
    store.fail({"type": "E"})
    assert store.state == "failed"
    store.retry()
    assert store.state == "interrupted"
    store.finish({"reason": "steps"})
    assert store.state == "finished"
    assert sorted(path.name for path in store.directory.iterdir()) == ["config.yaml", "meta.json", "result.json"]


def test_the_whole_configuration_is_compared(tmp_path):
    store = begun(tmp_path)
    assert store.holds(CONFIG)
    assert store.holds({**CONFIG, "train": {"steps": None, "sizes": (1, 2)}})
    other = {**CONFIG, "train": {"steps": 3, "sizes": [1]}}
    with pytest.raises(StoreError, match=r"another configuration \(train.sizes, train.steps differ\)"):
        store.holds(other)
    assert not Store(tmp_path / "elsewhere").holds(CONFIG)


def test_a_torn_last_line_is_dropped_and_others_are_not(tmp_path):
    store = begun(tmp_path)
    for step in (5, 10, 15):
        store.append({"step": step, "loss": 1 / 3})
    path = store.path("metrics.jsonl")
    whole = path.read_bytes()
    for cut in range(len(whole) - 1):
        path.write_bytes(whole[:cut])
        steps = [record["step"] for record in store.records()]
        assert steps == [5, 10, 15][: len(steps)]
    path.write_bytes(whole)
    assert [record["step"] for record in store.rewind(10)] == [5, 10]
    assert path.read_bytes() == b"".join(whole.splitlines(keepends=True)[:2])
    path.write_bytes(b"{torn\n" + whole)
    with pytest.raises(StoreError, match=r"metrics.jsonl:1: is damaged"):
        store.records()


def test_a_full_disk_damages_nothing(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    write_json(path, {"old": True})

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left on device"):
        write_json(path, {"new": True})
    assert read_json(path) == {"old": True}
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_an_unwritable_place_is_one_error_at_the_start(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        Store(tmp_path / "file" / "run").make()


def test_numbers_that_json_does_not_know_become_null(tmp_path):
    write_json(tmp_path / "x.json", {"a": float("nan"), "b": [float("inf"), 1.5], 3: None})
    assert read_json(tmp_path / "x.json") == {"a": None, "b": [None, 1.5], "3": None}
    write_whole(tmp_path / "x.json", lambda file: file.write(b"{"))
    with pytest.raises(StoreError, match="cannot be read"):
        read_json(tmp_path / "x.json")
    assert read_json(tmp_path / "none.json") is None


def lock_by(directory, **changes):
    holder = {"host": socket.gethostname(), "space": _space(), "pid": os.getpid(), "begun": "0"} | changes
    (directory / "lock").write_text(json.dumps(holder))


def test_a_lock_is_its_process(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    begun_at = json.loads(_lock_text(tmp_path))["begun"]
    lock_by(tmp_path, begun=begun_at)
    assert holder_of(tmp_path)["pid"] == os.getpid()
    lock_by(tmp_path, begun="another time")  # the number was used again
    assert holder_of(tmp_path) is None
    child.communicate(b"\n")
    lock_by(tmp_path, pid=child.pid, begun="")
    assert holder_of(tmp_path) is None
    (tmp_path / "lock").write_text("{to")
    assert holder_of(tmp_path) is None


def _lock_text(directory):
    with Lock(directory):
        return (directory / "lock").read_text()


def test_a_lock_of_another_host_lives_by_its_heartbeat(tmp_path):
    lock_by(tmp_path, host="elsewhere", pid=1)
    with pytest.raises(StoreError, match="process 1 on elsewhere is running it"), Lock(tmp_path):
        pass
    old = time.time() - 120
    os.utime(tmp_path / "lock", (old, old))
    with Lock(tmp_path), pytest.raises(StoreError, match="is running it"), Lock(tmp_path):
        pass
    assert not (tmp_path / "lock").exists()


def test_a_container_of_the_same_name_is_another_host(tmp_path):
    """Its processes have numbers of their own: that none has this one here says nothing."""
    lock_by(tmp_path, space="pid:[another]", pid=2**22 - 1)
    with pytest.raises(Held), Lock(tmp_path):
        pass
    os.utime(tmp_path / "lock", (0, 0))
    with Lock(tmp_path):
        pass


def test_a_host_whose_clock_is_ahead_takes_no_living_lock(tmp_path, monkeypatch):
    lock_by(tmp_path, host="elsewhere", pid=1)
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 3600)
    assert holder_of(tmp_path) is None, "by this clock it is gone; by the file system's, it is not"
    with pytest.raises(Held), Lock(tmp_path):
        pass
    assert json.loads((tmp_path / "lock").read_text())["host"] == "elsewhere"
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


@pytest.mark.parametrize(("code", "error"), [(errno.EPERM, None), (errno.EIO, StoreError)])
def test_without_links_a_lock_is_put_in_place_and_other_trouble_is_told(tmp_path, monkeypatch, code, error):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refuse)
    for found in (None, "gone"):
        if found:
            lock_by(tmp_path, host=found)
            os.utime(tmp_path / "lock", (0, 0))
        if error:
            with pytest.raises(error, match="cannot be written"), Lock(tmp_path):
                pass
        else:
            with Lock(tmp_path), pytest.raises(Held), Lock(tmp_path):
                pass


def test_what_a_holder_sweeps_up_is_no_failure_of_who_came_second(tmp_path, monkeypatch):
    """Two hosts at the same moment: the first has the lock and cleans its folder before the second has linked."""
    link = os.link

    def late(beside, path):
        if Path(path).name == "lock" and not holder_of(tmp_path):
            lock_by(tmp_path, host="quicker")
            Store(tmp_path).clean()
        link(beside, path)

    monkeypatch.setattr(os, "link", late)
    with pytest.raises(Held), Lock(tmp_path):
        pass


def test_two_processes_look_for_room_and_write_one_file_at_the_same_time(tmp_path, monkeypatch):
    """In containers both may have the same number."""
    write_bytes = Path.write_bytes

    def meanwhile(path, data):
        monkeypatch.setattr(Path, "write_bytes", write_bytes)
        write_bytes(path, data)
        Store(tmp_path).make()

    monkeypatch.setattr(Path, "write_bytes", meanwhile)
    Store(tmp_path).make()

    def during(file):
        file.write(b"one")
        write_whole(tmp_path / "sweep.yaml", lambda other: other.write(b"two"))

    write_whole(tmp_path / "sweep.yaml", during)
    assert (tmp_path / "sweep.yaml").read_bytes() == b"one"
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.yaml"]


def test_hosts_that_share_a_folder_hold_its_lock_one_at_a_time(tmp_path, monkeypatch):
    """On a file system where folders cannot be locked; the first of them finds the lock of a host that is gone."""

    def refuse(*_):
        raise OSError(errno.EBADF, "no such locks here")

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(socket, "gethostname", lambda: f"host-{threading.get_ident()}")
    lock_by(tmp_path, host="gone", pid=1)
    os.utime(tmp_path / "lock", (0, 0))
    inside, most, held, begin = [], [], [], threading.Barrier(8)

    def one():
        begin.wait()
        for _ in range(20):
            try:
                with Lock(tmp_path):
                    inside.append(1)
                    most.append(len(inside))
                    time.sleep(0.002)
                    inside.pop()
            except Held:
                held.append(1)

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1}
    assert len(most) + len(held) == 160
    assert [path.name for path in tmp_path.iterdir()] == []


def test_who_was_taken_for_dead_notices_and_leaves_the_lock_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("locallearn.experiment.lock.BEAT_SECONDS", 0.01)
    with Lock(tmp_path) as lock:
        lock.check()
        lock_by(tmp_path, host="elsewhere", pid=1)
        lock._beat.join(5)
        with pytest.raises(StoreError, match="another process took it over"):
            lock.check()
    assert holder_of(tmp_path)["host"] == "elsewhere"


def test_a_run_that_ended_while_its_lock_was_waited_for_is_not_done_again(tmp_path, monkeypatch):
    from locallearn.experiment import run
    from locallearn.experiment.api import configuration

    config = configuration(
        {
            "rule": {"name": "backprop"},
            "model": {"name": "mlp", "widths": [40, 8, 10], "shards": 2},
            "data": {"name": "strokes1d", "samples": 200, "test_samples": 50},
            "train": {"steps": 2, "batch": 16},
        }
    )
    told = []

    class Late(Lock):
        def __enter__(self):  # another process was quicker
            run.execute(config, run.How("eager"), tmp_path / "other")
            for path in (tmp_path / "other").iterdir():
                path.rename(tmp_path / "run" / path.name)
            return super().__enter__()

    with monkeypatch.context() as patch:
        patch.setattr(run, "Lock", lambda directory: (Late if directory.name == "run" else Lock)(directory))
        run.execute(config, run.How("eager", tell=told.append), tmp_path / "run")
    assert [type(event).__name__ for event in told] == ["Ended"]


def test_moving_away_keeps_everything(tmp_path):
    run = tmp_path / "a" / "seed-0"
    begun(run)
    assert move_away(run) == tmp_path / "a" / "seed-0~1"
    assert move_away(run) is None
    begun(run)
    assert move_away(run) == tmp_path / "a" / "seed-0~2"
    begun(run)
    begun(tmp_path / "b" / "seed-1@ray")
    assert run_directories(tmp_path) == [run, tmp_path / "b" / "seed-1@ray"]
    assert run_directories(run) == [run]


def test_commands_hold_no_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["/opt/venv/bin/locallearn", "run", f"{tmp_path}/x.yaml", "--runs", "/elsewhere/runs", "--set", "a=b c"]
    assert command(words) == "locallearn run x.yaml --runs runs --set 'a=b c'"
    assert relative("plain") == "plain"


def test_a_working_directory_that_was_removed_is_no_failure(tmp_path, monkeypatch):
    """Ray may remove a job's before the job has ended."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    monkeypatch.setenv("PWD", str(gone))
    gone.rmdir()
    assert here() == gone
    assert relative(str(gone / "runs" / "a")) == "runs/a"
    assert relative("/elsewhere/b") == "b"
