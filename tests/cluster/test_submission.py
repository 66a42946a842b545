"""What is submitted and under which name, what is said when a cluster refuses, and how results come home; no cluster is needed."""

import asyncio
import base64
import datetime
import hashlib
import io
import os
import shlex
import socket
import tarfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from locallearn.cli import code_of
from locallearn.errors import ConfigError
from locallearn.experiment.lock import Lock
from locallearn.submission import results, server, submit, watching
from locallearn.submission.job import job_of, typed
from locallearn.submission.results import NoResults, pack, unpack
from locallearn.submission.server import Refused, Server, State, sentence

RUN = {
    "rule": {"name": "direct_feedback"},
    "model": {"name": "mlp", "widths": [196, 12, 11, 10], "shards": 3},
    "data": {"name": "fashion14", "limit": 300, "validation": 40},
    "train": {"steps": 6, "batch": 16},
}
HOW = {"on": "ray", "transport": None, "network": None}
URL = "http://head:8265"
NOON = datetime.datetime(2026, 11, 27, 12, 0, 5)


@pytest.fixture
def project(tmp_path):
    """A folder with a run, `experiments/some.yaml`, and a sweep over it, `experiments/many.yaml`."""
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "some.yaml").write_text(yaml.safe_dump(RUN))
    (tmp_path / "experiments" / "many.yaml").write_text(yaml.safe_dump({"base": "some.yaml", "vary": {"train.batch": [16, 32]}}))
    return tmp_path


@pytest.fixture
def made(project):
    """`made(name, ...)`: the job of a file."""

    def make(name="some", how=HOW, **options):
        return job_of(project / "experiments" / f"{name}.yaml", address=URL, working_dir=project, runs="/shared/runs", how=how, **options)

    return make


# what is submitted


def test_the_command_is_the_one_that_a_person_would_type(made, project):
    job = made(sets=["train.steps=9"], options=["--data", "/data"], how={**HOW, "transport": "ray", "network": "1 Mbit/s, 20 ms"})
    name = job.new_id(NOON)
    assert name == f"{job.prefix}-20261127-120005"
    assert job.command(name) == [
        *["ray", "job", "submit", "--address", URL, "--submission-id", name, "--working-dir", str(project), "--no-wait", "--"],
        *["python", "-m", "locallearn", "run", "experiments/some.yaml", "--on", "ray", "--runs", "/shared/runs"],
        *["--set", "train.steps=9", "--transport", "ray", "--network", "1 Mbit/s, 20 ms", "--data", "/data"],
    ]
    assert made("many").words[3:5] == ("sweep", "experiments/many.yaml")
    assert made("many").words[5:] == ("--on", "ray", "--runs", "/shared/runs", "--address", "auto")
    for name in ("some", "many"):
        words = made(name, how={**HOW, "on": "local"}).words
        assert words[5:] == ("--on", "local", "--runs", "/shared/runs", "--address", "auto"), "runs are tasks of the cluster"


def test_what_is_shown_can_be_copied(made):
    command = made(sets=["codecs.default=[error_feedback, int8]", "train.steps=9"]).command("some id")
    text = typed(command)
    assert shlex.split(text.replace("\\\n", "")) == command
    assert len(text.splitlines()) > 2
    assert all(len(line) <= 80 for line in text.splitlines() if "/" not in line)


def test_equal_jobs_have_equal_names_and_others_have_not(made):
    first = made()
    assert made().prefix == first.prefix
    others = [made(sets=["seed=1"]), made(sets=["train.batch=20"]), made(how={**HOW, "on": "local"}), made("many")]
    others += [made("many", only=["train.batch=16"]), made(how={**HOW, "network": "1mbit"})]
    assert len({job.prefix for job in (first, *others)}) == 7
    assert made(sets=["cluster.spread=pack"]).prefix == first.prefix, "where shards live is no part of what they compute"


def test_results_are_those_of_the_run_or_of_the_whole_sweep(made):
    assert str(made().results).startswith("some/direct_feedback-")
    assert str(made().results).endswith("/seed-0@ray")
    assert str(made("many").results) == "many"


@pytest.mark.parametrize(
    ("name", "options", "mistake"),
    [
        ("some", {"sets": ["train.stepz=1"]}, "train.stepz.*did you mean `steps`"),
        ("some", {"sets": ["diagnostics=[norms]"]}, "need the whole network in one process"),
        ("some", {"only": ["seed=1"]}, "narrows a sweep"),
        ("many", {"sets": ["seed=1"]}, "changes a run"),
        ("many", {"only": ["train.batch=17"]}, "no run is left"),
    ],
)
def test_mistakes_are_found_here(made, name, options, mistake):
    with pytest.raises(ConfigError, match=mistake):
        made(name, **options)


@pytest.mark.parametrize("more", [{}, {"tune": {"trials": 2, "space": {"train.optimizer.rate": {"log": [0.001, 0.1]}}}}])
def test_what_actors_cannot_do_is_found_here_in_sweeps_too(made, project, more):
    sweep = {"base": {**RUN, "diagnostics": ["norms"]}, "vary": {"train.batch": [16, 32]}, **more}
    (project / "experiments" / "looked.yaml").write_text(yaml.safe_dump(sweep))
    with pytest.raises(ConfigError, match="need the whole network in one process"):
        made("looked")
    assert made("looked", how={**HOW, "on": "local"}).words[3] == "sweep"


def test_a_file_that_would_not_travel_is_refused(made, project):
    with pytest.raises(ConfigError, match="lies outside the working directory"):
        job_of(project / "experiments" / "some.yaml", address=URL, working_dir=project / "..folder", runs="r", how=HOW)
    (project / "experiments" / "far.yaml").write_text(yaml.safe_dump({"base": "../../some.yaml", "vary": {"train.batch": [16]}}))
    with pytest.raises(ConfigError, match="lies outside the working directory"):
        made("far")


def test_a_dry_run_only_prints(project, capsys, monkeypatch):
    monkeypatch.chdir(project)
    assert code_of(["submit", "experiments/some.yaml", "--address", URL, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    words = shlex.split(printed.replace("\\\n", ""))
    assert words[:5] == ["ray", "job", "submit", "--address", URL]
    assert words[-1] == "~/locallearn-runs"


# what is said


TEXTS = {
    "asks for a token: set RAY_AUTH_MODE=token": "ray.exceptions.AuthenticationError: Authentication required: Unauthorized: Missing",
    "does not accept this token": "ray.exceptions.AuthenticationError: Authentication failed: Forbidden: Invalid authentication token",
    f"no cluster answers at {URL}": "ConnectionError: Failed to connect to Ray at address: http://head:8265.",
    "is no dashboard of Ray": "RuntimeError: Version check returned 404. Jobs API is not supported on the Ray cluster.",
    "the working directory `here` is too large": "RuntimeError: Request failed with status code 413: Maximum request body size 10485",
    "there is a job some-1 already": "ValueError: Job with submission_id X already exists. Please use a different submission_id.\n.\n.",
    "the cluster refused: ValueError: of another kind": "Traceback\n  File x\nValueError: of another kind\n.\n",
    "the cluster refused: no reason": "",
}


@pytest.mark.parametrize("told", TEXTS)
def test_what_ray_says_becomes_one_sentence(told):
    """The texts are those of Ray 2.60; `test_cluster.py` meets the same ones alive."""
    found = sentence(TEXTS[told], address=URL, folder="here", id="some-1")
    assert told in found
    assert "\n" not in found


def test_where_no_cluster_is_nothing_is_waited_for(project, capsys, monkeypatch):
    monkeypatch.chdir(project)
    assert code_of(["submit", "experiments/some.yaml", "--address", "http://127.0.0.1:1"]) == 2
    shown = capsys.readouterr()
    assert "no cluster answers at http://127.0.0.1:1" in shown.err
    assert "Traceback" not in shown.err
    assert "ray job submit" not in shown.out


@pytest.mark.parametrize("address", ["127.0.0.1:8265", "ray://127.0.0.1:10001", "auto"])
def test_other_addresses_are_not_tried(capsys, address):
    assert code_of(["status", "--address", address]) == 2
    assert capsys.readouterr().err == f"{address} is no address of a dashboard; write http://HOST:8265\n"


def test_who_accepts_and_says_nothing_is_not_waited_for(project, capsys, monkeypatch):
    monkeypatch.chdir(project)
    monkeypatch.setattr(server, "KNOCK_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"http://127.0.0.1:{mute.getsockname()[1]}"
        for words in (["submit", "experiments/some.yaml"], ["status"]):
            assert code_of([*words, "--address", address]) == 2
            assert capsys.readouterr().err.startswith(f"{address} does not answer in time: look whether it is the dashboard's")


def test_a_question_that_is_not_answered_ends():
    with pytest.raises(TimeoutError):
        server._within(0.01, lambda: time.sleep(1))
    assert server._within(5, lambda: 3) == 3
    with pytest.raises(ValueError, match="what it raises"):
        server._within(5, lambda: int("what it raises"))


def test_a_command_that_does_not_end_is_stopped(monkeypatch):
    asked = []

    class Endless:
        def get_job_info(self, submission_id):
            return SimpleNamespace(status=SimpleNamespace(value="STOPPED" if "stop_job" in asked else "PENDING"), driver_exit_code=None)

        def __getattr__(self, name):
            return lambda *args, **options: asked.append(name)

    monkeypatch.setattr(server, "ENDS_SECONDS", 0.2)
    busy = object.__new__(Server)
    busy.address, busy._client = URL, Endless()
    with pytest.raises(Refused, match="`pack 'a b'` did not end on the cluster within"):
        busy.output("some", ["pack", "a b"])
    assert asked == ["submit_job", "stop_job", "delete_job"]


WELL = State("SUCCEEDED", 0)


class Told(Server):
    """A job server that is told what to answer."""

    def __init__(self, *, running=None, state=WELL, log=""):
        self.address, self.asked = URL, []
        self._running, self._state, self._log = running, state, log

    def running(self, prefix):
        return self._running

    def submit(self, job, submission_id):
        self.asked.append(("submit", submission_id))

    def follow(self, submission_id, show):
        self.asked.append(("follow", submission_id))
        show(self._log or "a line of the log\n")
        if self._state is None:
            raise KeyboardInterrupt
        return self._state

    def begin(self, submission_id, words, working_dir=None):
        self.asked.append(("begin", shlex.join(words)))

    def remove(self, submission_id):
        self.asked.append(("remove", submission_id))

    def output(self, submission_id, words, working_dir=None):
        self.asked.append(("output", *words))
        return self._log


class Breaking:
    """In the place of Ray's client: a log whose connection breaks, and a job that ends after it was followed to its end."""

    def __init__(self, *tries):
        self.tries = list(tries)

    async def tail_job_logs(self, submission_id):
        for text in self.tries.pop(0):
            if text is None:
                raise RuntimeError("WebSocket connection closed unexpectedly")
            yield text

    def get_job_info(self, submission_id):
        over = not self.tries
        return SimpleNamespace(status=SimpleNamespace(value="SUCCEEDED" if over else "RUNNING"), driver_exit_code=0 if over else None)


def followed(monkeypatch, *tries):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    server, shown = Told(), []
    server._client = Breaking(*tries)
    state = Server.follow(server, "some", shown.append)
    return "".join(shown), state


def test_a_log_whose_connection_breaks_is_shown_once(monkeypatch):
    text, state = followed(monkeypatch, ["one\ntwo\n", None], [None], ["one\n"], ["one\ntw", "o\nthree\n", "four\n"])
    assert text == "one\ntwo\nthree\nfour\n"
    assert state == State("SUCCEEDED", 0)


def test_a_connection_that_cannot_be_made_again_is_given_up(monkeypatch):
    with pytest.raises(Refused, match="the job may go on"):
        followed(monkeypatch, *([[None]] * 50))


def test_a_log_of_which_nothing_is_heard_any_more_ends_with_the_job(monkeypatch):
    class Silent(Breaking):
        async def tail_job_logs(self, submission_id):
            for text in self.tries.pop(0):
                yield text
            await asyncio.Event().wait()

    monkeypatch.setattr(server, "ANSWER_SECONDS", 0.05)
    told, shown = Told(), []
    told._client = Silent(["one\n"])
    assert Server.follow(told, "some", shown.append) == State("SUCCEEDED", 0)
    assert shown == ["one\n"]


@pytest.mark.parametrize("state", [State("FAILED", 1), None])
def test_status_of_a_cluster_is_what_is_told_there(state, capsys, monkeypatch):
    log = "2026-11-27 12:00:05,1\tINFO job_manager.py:581 -- Runtime env is setting up.\nRunning entrypoint for job a: b\n1 run: 1 new\n"
    told = Told(state=state, log=log)
    monkeypatch.setattr(watching, "Server", lambda address: told)
    assert code_of(["status", "--watch", "--address", URL]) == (1 if state else 130)
    assert capsys.readouterr().out == "1 run: 1 new\n"
    (_, command), (_, name), (removed, again) = told.asked
    assert command == "python -m locallearn status '~/locallearn-runs' --watch"
    assert (removed, name) == ("remove", again)


@pytest.mark.parametrize(
    ("asked", "there"), [(None, "~/locallearn-runs"), ("some", "~/locallearn-runs/some"), ("/runs", "/runs"), ("~/x", "~/x")]
)
def test_where_status_looks_on_a_cluster(asked, there):
    assert watching.folder_there(asked and Path(asked)) == there


@pytest.fixture
def handed_over(made, monkeypatch):
    """`handed_over(server, **options)`: the exit code of a submission to it."""

    def hand(server, job=None, **options):
        monkeypatch.setattr(submit, "Server", lambda address: server)
        usual = {"submission_id": None, "wait": True, "into": None, "checkpoints": False, "dry_run": False}
        return submit.submit(job or made(), **{**usual, **options})

    return hand


def test_a_job_that_runs_already_is_followed(handed_over, capsys):
    server = Told(running="some-1234-20261127-110000")
    assert handed_over(server) == 0
    assert server.asked == [("follow", "some-1234-20261127-110000")]
    assert "some-1234-20261127-110000, which runs already\na line of the log\njob      succeeded" in capsys.readouterr().out


@pytest.mark.parametrize(("state", "code"), [(State("FAILED", 2), 2), (State("FAILED", None), 1), (State("STOPPED", None), 130)])
def test_the_exit_code_is_that_of_the_job(handed_over, state, code):
    assert handed_over(Told(state=state)) == code


def test_ctrl_c_leaves_the_job_alone(handed_over, capsys):
    assert handed_over(Told(state=None)) == 130
    told = capsys.readouterr().err
    assert "the job goes on; the same command follows it again" in told
    assert "ray job stop some-" in told


def test_who_does_not_wait_is_told_how_to_follow(handed_over, capsys):
    server = Told()
    assert handed_over(server, wait=False) == 0
    assert [what for what, *_ in server.asked] == ["submit"]
    assert "the same command without --no-wait follows it" in capsys.readouterr().out


def test_results_on_storage_that_this_machine_sees_are_not_fetched(made, handed_over, project, capsys):
    job = job_of(project / "experiments" / "some.yaml", address=URL, working_dir=project, runs=str(project / "runs"), how=HOW)
    (project / "runs" / job.results).mkdir(parents=True)
    server = Told()
    assert handed_over(server, job, into=project / "home") == 0
    assert [what for what, *_ in server.asked] == ["submit", "follow"]
    assert "on shared storage" in capsys.readouterr().out


# how results come home


@pytest.fixture
def there(tmp_path):
    """A folder of runs as a cluster has it: a sweep of two runs, one of them with checkpoints and a lock."""
    runs = tmp_path / "there"
    for name in ("a-1/seed-0", "b-2/seed-0", "b-2/seed-0~1", "a-1/seed-0/checkpoints/00000006"):
        folder = runs / "many" / name
        folder.mkdir(parents=True)
        for file in ("shard-0.npz",) if "checkpoints" in name else ("config.yaml", "meta.json", "metrics.jsonl"):
            (folder / file).write_bytes(f"{name} {file}".encode() * 50)
    (runs / "many" / "results.csv").write_text("run\n")
    (runs / "many" / "a-1" / "seed-0" / "lock").write_text("{}")
    (runs / "other").mkdir()
    (runs / "other" / "config.yaml").write_text("x: 1\n")
    return runs


def below(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_results_come_whole_and_without_what_is_large_or_private(there, tmp_path):
    log = f"a warning of Ray\n{pack(there, 'many')}\nand another\n".replace("\n", "\r\n")
    found = unpack(log, tmp_path / "here")
    kept = {name: data for name, data in below(there).items() if name.startswith("many") and "~" not in name}
    kept = {name: data for name, data in kept.items() if "checkpoints" not in name and not name.endswith("lock")}
    assert below(tmp_path / "here") == kept
    assert (found.runs, found.files, found.kept) == (2, 7, 0)
    with tarfile.open(fileobj=io.BytesIO(results._data(log))) as names:
        assert {(member.uid, member.uname) for member in names} == {(0, "")}


def test_weights_come_if_they_are_asked_for(there, tmp_path):
    unpack(pack(there, "many", checkpoints=True), tmp_path / "here", checkpoints=True)
    assert "many/a-1/seed-0/checkpoints/00000006/shard-0.npz" in below(tmp_path / "here")


def test_what_was_run_here_is_left_as_it_is(there, tmp_path):
    here = tmp_path / "here"
    own = here / "many" / "a-1" / "seed-0"
    (own / "checkpoints").mkdir(parents=True)
    (own / "metrics.jsonl").write_text("mine")
    old = here / "many" / "b-2" / "seed-0"
    old.mkdir(parents=True)
    (old / "failure.json").write_text("{}")
    assert unpack(pack(there, "many"), here).kept == 1
    assert below(own) == {"metrics.jsonl": b"mine"}
    assert set(below(old)) == {"config.yaml", "meta.json", "metrics.jsonl"}, "an earlier state of the same run goes"
    with Lock(old):
        assert unpack(pack(there, "many"), here).kept == 2


def framed(data):
    text = base64.encodebytes(data).decode()
    return f"{results._BEGIN} {hashlib.sha256(data).hexdigest()}-----\n{text}{results._END}-----"


def archive(name, kind=tarfile.REGTYPE, size=3):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz") as file:
        member = tarfile.TarInfo(name)
        member.type, member.size, member.linkname = kind, size if kind == tarfile.REGTYPE else 0, "/etc/passwd"
        file.addfile(member, io.BytesIO(b"x" * size))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("log", "told"),
    [
        ("Traceback\nModuleNotFoundError: No module named 'locallearn'\n", "no results came: ModuleNotFoundError"),
        ("", "its log is empty"),
        (framed(b"no archive"), "cannot be unpacked"),
        (framed(archive("../outside")), "cannot be unpacked"),
        (framed(archive("/tmp/outside")), None),
        (framed(archive("link", tarfile.SYMTYPE)), "is no archive of results"),
        (framed(archive("fifo", tarfile.FIFOTYPE)), "is no archive of results"),
        (framed(archive("x")).replace("\n", "\nAA", 2), "damaged"),
    ],
)
def test_what_is_no_archive_changes_nothing(tmp_path, log, told):
    here = tmp_path / "deep" / "here"
    if told is None:  # made relative, as tar does
        unpack(log, here)
        assert list(below(tmp_path)) == ["deep/here/tmp/outside"]
        return
    with pytest.raises(NoResults, match=told):
        unpack(log, here)
    assert below(tmp_path) == {}
    assert not os.path.exists(here / f".fetched-{os.getpid()}")


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "UNPACKED", 2**20)
    with pytest.raises(NoResults, match="is no archive"):
        unpack(framed(archive("x", size=2**20 + 1)), tmp_path)


def test_results_that_are_too_large_for_a_log_say_where_to_put_them(there, monkeypatch):
    monkeypatch.setattr(results, "LIMIT", 100)
    with pytest.raises(NoResults, match="too much to come over a log; put --runs on storage that both sides see"):
        pack(there, "many")


def test_packing_what_is_not_there(tmp_path, capsys):
    assert code_of(["pack", str(tmp_path), "nothing"]) == 1
    assert "there is nothing" in capsys.readouterr().err


def test_results_are_unpacked_where_the_user_wants_them(made, handed_over, there, tmp_path, capsys):
    job = made("many")
    server = Told(log=pack(there, "many"))
    assert handed_over(server, job, into=tmp_path / "home") == 0
    assert server.asked[-1] == ("output", "python", "-m", "locallearn", "pack", "/shared/runs", "many")
    assert "home/many: 2 runs, 7 files" in capsys.readouterr().out.replace("\n", "")


def test_a_job_without_results_ends_with_its_own_code(handed_over, tmp_path, capsys):
    assert handed_over(Told(state=State("FAILED", 2), log="nothing"), into=tmp_path) == 2
    assert "results  none" in capsys.readouterr().err


def test_a_cluster_that_is_gone_before_results_came_changes_no_exit_code(handed_over, tmp_path, capsys, monkeypatch):
    server = Told()
    monkeypatch.setattr(server, "output", lambda *_: (_ for _ in ()).throw(Refused("no cluster answers")))
    assert handed_over(server, into=tmp_path) == 0
    assert "results  none: no cluster answers" in capsys.readouterr().err


def test_refused_is_no_failure_of_a_run():
    assert Refused("x").exit_code == 2
