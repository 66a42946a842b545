"""The job server of a Ray cluster: jobs are handed over, found again and followed; what may go wrong is told in a sentence."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple

from locallearn.errors import LocallearnError
from locallearn.runtime.knock import TOKEN
from locallearn.submission.job import Job
from locallearn.words import duration

WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds before each attempt to find a log again whose connection was lost."""
KNOCK_SECONDS = 10.0
ANSWER_SECONDS = 60.0
"""For a question, and without news of a log before it is asked whether the job still runs."""
ENDS_SECONDS = 600.0
"""For a hand-over, with 100 MiB of working directory, and for a short command there."""


class Refused(LocallearnError):
    """The cluster did not take the job, or cannot be reached."""

    exit_code = 2


class State(NamedTuple):
    """Of a job. word: as Ray says it. code: the exit code of its command, where it has ended."""

    word: str
    code: int | None

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        return self.word in ("SUCCEEDED", "FAILED", "STOPPED")


_MUTE = "look whether it is the dashboard's, and whether the tunnel to it still stands"
_SENTENCES = (
    (r"Authentication required|Missing authentication token|status code 401", f"{{address}} asks for a token: {TOKEN}"),
    (r"Authentication failed|Invalid authentication token|status code 403", f"{{address}} does not accept this token: {TOKEN}"),
    (
        r"Failed to connect|Connection refused|Max retries exceeded",
        "no cluster answers at {address}; an address is that of the dashboard, such as http://localhost:8265 through "
        "`ray dashboard`, `kubectl port-forward` or `ssh -L`",
    ),
    (r"Version check returned|Jobs API is not supported", "what answers at {address} is no dashboard of Ray"),
    (
        r"status code 413|exceeds the maximum size|Maximum request body size",
        "the working directory `{folder}` is too large: Ray takes 100 MiB; name what the job does not need in .rayignore or .gitignore, or "
        "give a smaller folder with --working-dir",
    ),
    (r"timed out", f"{{address}} does not answer in time: {_MUTE}"),
    (r"already exists", "there is a job {id} already; leave --submission-id out, or choose another"),
    (r"ray client address|Internal error: unexpected", "{address} is no address of a dashboard; write http://HOST:8265"),
)


def sentence(text: str, **known: Any) -> str:
    """What went wrong, from whatever Ray printed."""
    for pattern, told in _SENTENCES:
        if re.search(pattern, text, re.IGNORECASE):
            return told.format_map({"address": "the cluster", "folder": ".", "id": "of this id", **known})
    lines = [line.strip() for line in text.splitlines() if line.strip(" .")]
    last = next((line for line in reversed(lines) if re.match(r"[\w.]*(Error|Exception)\b", line)), lines[-1] if lines else "no reason")
    return f"the cluster refused: {last[:300]}"


class _Once:
    """Shows of a log that comes from its beginning each time only what was not shown before. shown: characters so far."""

    def __init__(self, show: Callable[[str], None]):
        self._show, self.shown, self._at = show, 0, 0

    def again(self) -> None:
        """The log begins anew."""
        self._at = 0

    def __call__(self, text: str) -> None:
        fresh = text[max(0, self.shown - self._at) :]
        self._at += len(text)
        self.shown = max(self.shown, self._at)
        if fresh:
            self._show(fresh)


class Server:
    """The job server at an address. Refused where there is none, or where it does not let us in."""

    def __init__(self, address: str):
        from ray.job_submission import JobSubmissionClient

        for name in ("job.sdk", "dashboard_sdk"):
            logging.getLogger(f"ray.dashboard.modules.{name}").setLevel(logging.ERROR)
        self.address = address
        if not re.match(r"https?://", address):
            raise Refused(f"{address} is no address of a dashboard; write http://HOST:8265")
        self._told(lambda: _knock(address), KNOCK_SECONDS)
        self._client: Any = self._told(lambda: JobSubmissionClient(address))

    def running(self, prefix: str) -> str | None:
        """The id of a job of this prefix that has not ended."""
        jobs = self._told(self._client.list_jobs)
        ids = sorted(job.submission_id for job in jobs if job.submission_id and not State(job.status.value, None).over)
        return next((one for one in reversed(ids) if re.fullmatch(rf"{re.escape(prefix)}-\d{{8}}-\d{{6}}", one)), None)

    def submit(self, job: Job, submission_id: str) -> None:
        """Hand a job over, by the command that `Job.command` gives."""
        words = [ray_program(), *job.command(submission_id)[1:]]
        known = {"address": self.address, "folder": job.working_dir, "id": submission_id}
        try:
            options: Any = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "timeout": ENDS_SECONDS}
            done = subprocess.run(words, check=False, **options)
        except subprocess.TimeoutExpired as error:
            raise Refused(sentence(str(error), **known)) from error
        if done.returncode:
            raise Refused(sentence(done.stdout + done.stderr, **known))

    def follow(self, submission_id: str, show: Callable[[str], None]) -> State:
        """Show the log as it grows, until the job has ended. A connection that breaks is made again, and nothing is shown twice."""
        once, lost = _Once(show), 0
        while True:
            before = once.shown
            try:
                asyncio.run(self._tail(submission_id, once))
                state = self.state(submission_id)
                if state.over:
                    return state
            except Exception as error:
                if lost >= len(WAITS):
                    raise Refused(f"{sentence(str(error), address=self.address)}; the job may go on") from error
            lost = 0 if once.shown > before else lost + 1
            time.sleep(WAITS[min(lost, len(WAITS) - 1)])

    def state(self, submission_id: str) -> State:
        """How a job is."""
        info = self._told(lambda: self._client.get_job_info(submission_id))
        return State(info.status.value, info.driver_exit_code)

    def begin(self, submission_id: str, words: Sequence[str], working_dir: Path | None = None) -> None:
        """Have a command of ours begun there, as a job; without a working directory with what is installed there."""
        runtime = {"working_dir": str(working_dir)} if working_dir else {}
        options: Any = {"entrypoint": shlex.join(words), "submission_id": submission_id, "runtime_env": runtime}
        self._told(lambda: self._client.submit_job(**options), ENDS_SECONDS)

    def output(self, submission_id: str, words: Sequence[str], working_dir: Path | None = None) -> str:
        """What a short command prints there; its job is deleted afterwards. Refused where it does not end."""
        self.begin(submission_id, words, working_dir)
        deadline = time.monotonic() + ENDS_SECONDS
        try:
            while not self.state(submission_id).over:
                if time.monotonic() > deadline:
                    raise Refused(f"`{shlex.join(words)}` did not end on the cluster within {duration(ENDS_SECONDS)}")
                time.sleep(0.5)
            return self._told(lambda: self._client.get_job_logs(submission_id), ENDS_SECONDS)
        finally:
            self.remove(submission_id)

    def remove(self, submission_id: str) -> None:
        """Have a job of ours ended, if it has not, and forgotten; a cluster that does not let us keeps it."""
        with contextlib.suppress(Refused):
            if not self.state(submission_id).over:
                self._told(lambda: self._client.stop_job(submission_id))
            deadline = time.monotonic() + KNOCK_SECONDS
            while not self.state(submission_id).over and time.monotonic() < deadline:
                time.sleep(0.2)
            self._told(lambda: self._client.delete_job(submission_id))

    async def _tail(self, submission_id: str, once: _Once) -> None:
        """Show the log to its end. A connection may go without a word, so a silent one is asked about."""
        once.again()
        log = self._client.tail_job_logs(submission_id)
        while True:
            coming = asyncio.ensure_future(anext(log, None))
            while not (await asyncio.wait([coming], timeout=ANSWER_SECONDS))[0]:
                if self.state(submission_id).over:
                    coming.cancel()
                    return
            text = coming.result()
            if text is None:
                return
            once(text)

    def _told(self, call: Callable[[], Any], seconds: float = ANSWER_SECONDS) -> Any:
        try:
            return _within(seconds, call)
        except Exception as error:
            raise Refused(sentence(f"{type(error).__name__}: {error}", address=self.address)) from error


def _knock(address: str) -> None:
    """Wait for anything that somebody says there. Whatever else is wrong the client of Ray finds out, but that one waits without limit."""
    with contextlib.suppress(OSError, HTTPException, ValueError):
        urllib.request.urlopen(f"{address.rstrip('/')}/api/version", timeout=2 * KNOCK_SECONDS).close()


def _within(seconds: float, call: Callable[[], Any]) -> Any:
    """What a call gives. TimeoutError if it takes longer: the client of Ray waits without limit, so it is left behind in its thread."""
    told: queue.SimpleQueue[tuple[Any, Exception | None]] = queue.SimpleQueue()

    def ask() -> None:
        try:
            told.put((call(), None))
        except Exception as error:
            told.put((None, error))

    threading.Thread(target=ask, daemon=True, name="job server").start()
    try:
        found, error = told.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError("timed out") from None
    if error is not None:
        raise error
    return found


def ray_program() -> str:
    """The command `ray` of this Python, or the first in the path."""
    beside = Path(sys.executable).parent
    found = shutil.which("ray", path=str(beside)) or shutil.which("ray")
    if found is None:
        raise Refused("there is no command `ray` beside this Python, nor in the path; pip install 'ray[default]'")
    return found
