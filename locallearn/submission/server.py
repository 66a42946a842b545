"""The job server of a Ray cluster: jobs are handed over, found again and followed; what may go wrong is told in a sentence."""

from __future__ import annotations

import asyncio
import logging
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from locallearn.errors import LocallearnError
from locallearn.submission.job import Job

WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds before each attempt to find a log again whose connection was lost."""


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


_TOKEN = "set RAY_AUTH_MODE=token, with the token in RAY_AUTH_TOKEN, in the file RAY_AUTH_TOKEN_PATH or in ~/.ray/auth_token"
_SENTENCES = (
    (r"Authentication required|Missing authentication token|status code 401", f"{{address}} asks for a token: {_TOKEN}"),
    (r"Authentication failed|Invalid authentication token|status code 403", f"{{address}} does not accept this token: {_TOKEN}"),
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
        self._client: Any = self._told(lambda: JobSubmissionClient(address))

    def running(self, prefix: str) -> str | None:
        """The id of a job of this prefix that has not ended."""
        jobs = self._told(self._client.list_jobs)
        ids = sorted(job.submission_id for job in jobs if job.submission_id and not State(job.status.value, None).over)
        return next((one for one in reversed(ids) if re.fullmatch(rf"{re.escape(prefix)}-\d{{8}}-\d{{6}}", one)), None)

    def submit(self, job: Job, submission_id: str) -> None:
        """Hand a job over, by the command that `Job.command` gives."""
        words = job.command(submission_id)
        done = subprocess.run([ray_program(), *words[1:]], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode:
            told = sentence(done.stdout + done.stderr, address=self.address, folder=job.working_dir, id=submission_id)
            raise Refused(told)

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

    def output(self, job: Job, submission_id: str, words: Sequence[str]) -> str:
        """What a short command prints on the cluster, where the job's own files are; the job is deleted afterwards."""
        runtime: Mapping[str, Any] = {"working_dir": str(job.working_dir)}
        entry = " ".join(words)
        self._told(lambda: self._client.submit_job(entrypoint=entry, submission_id=submission_id, runtime_env=runtime))
        while not self.state(submission_id).over:
            time.sleep(0.5)
        log = self._told(lambda: self._client.get_job_logs(submission_id))
        self._told(lambda: self._client.delete_job(submission_id))
        return log

    async def _tail(self, submission_id: str, once: _Once) -> None:
        once.again()
        async for text in self._client.tail_job_logs(submission_id):
            once(text)

    def _told(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:
            raise Refused(sentence(f"{type(error).__name__}: {error}", address=self.address)) from error


def ray_program() -> str:
    """The command `ray` of this Python, or the first in the path."""
    beside = Path(sys.executable).parent
    found = shutil.which("ray", path=str(beside)) or shutil.which("ray")
    if found is None:
        raise Refused("there is no command `ray` beside this Python, nor in the path; pip install 'ray[default]'")
    return found
