"""`locallearn submit`: hand a run or sweep over to a cluster, follow it, and bring its results home."""

from __future__ import annotations

import contextlib
import datetime
import secrets
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from locallearn.submission.job import Job, typed
from locallearn.submission.results import NoResults, unpack
from locallearn.submission.server import Refused, Server, State
from locallearn.words import duration, plural, size

CODES = {"SUCCEEDED": 0, "FAILED": 1, "STOPPED": 130}


def submit(job: Job, *, submission_id: str | None, wait: bool, into: Path | None, checkpoints: bool, dry_run: bool) -> int:
    """The exit code of the job's command; 0 where nobody waits for it.

    A job that runs already is followed in the place of a new one. into: where results come to here; None for nowhere.
    """
    name = submission_id or job.new_id(datetime.datetime.now(datetime.UTC))
    if dry_run:
        print(typed(job.command(name)))
        return 0
    server = Server(job.address)
    running = None if submission_id else server.running(job.prefix)
    if running is None:
        print(typed(job.command(name)), flush=True)
        server.submit(job, name)
        print(f"job      {name}", flush=True)
    else:
        name = running
        print(f"job      {name}, which runs already", flush=True)
    if not wait:
        print(f"         the same command without --no-wait follows it\n{_hints(job, name)}")
        return 0
    with interruptible():
        try:
            state, seconds = _followed(server, name)
            print(f"job      {state.word.lower()} after {duration(seconds)}", flush=True)
            if into is not None:
                _fetch(server, job, name, into, checkpoints)
        except KeyboardInterrupt:
            print(f"\nthe job goes on; the same command follows it again\n{_hints(job, name)}", file=sys.stderr)
            return 130
    return CODES[state.word] if state.code is None else state.code


def _followed(server: Server, name: str) -> tuple[State, float]:
    began = time.monotonic()

    def show(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    state = server.follow(name, show)
    return state, time.monotonic() - began


def _fetch(server: Server, job: Job, name: str, into: Path, checkpoints: bool) -> None:
    """What the job made, unless it lies on storage that is this machine's, too."""
    there = Path(job.runs) / job.results
    if there.is_absolute() and there.exists():
        print(f"results  {there}, on shared storage")
        return
    words = ["python", "-m", "locallearn", "pack", job.runs, job.results.as_posix()]
    try:
        words += ["--checkpoints"] if checkpoints else []
        log = server.output(f"{name}-results-{secrets.token_hex(3)}", words, job.working_dir)
        found = unpack(log, into, checkpoints)
    except (NoResults, Refused) as error:
        print(f"results  none: {error}", file=sys.stderr)
        return
    left = f"; {plural(found.kept, 'run')} left as it is here" if found.kept else ""
    print(f"results  {into / job.results}: {plural(found.runs, 'run')}, {plural(found.files, 'file')}, {size(found.bytes)}{left}")


def _hints(job: Job, name: str) -> str:
    return f"stop     ray job stop {name} --address {job.address}"


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C leaves the job alone; it ends the following of it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
