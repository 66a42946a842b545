"""What is submitted: a run or a sweep as the command that a person could type, with an identity by which it is found again."""

from __future__ import annotations

import datetime
import hashlib
import json
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from locallearn.config import sweep as sweeps
from locallearn.config.reading import read
from locallearn.config.run import resolve, slug
from locallearn.config.selection import selected
from locallearn.errors import ConfigError, Problem
from locallearn.experiment.how import How, runnable
from locallearn.experiment.run import run_name
from locallearn.words import WIDTH

DIGITS = 8


@dataclass(frozen=True)
class Job:
    """A job that can be submitted.

    prefix: equal for equal jobs; a submission adds the time. words: the command on the cluster. results: what it makes there, below
    its folder of runs.
    """

    address: str
    working_dir: Path
    prefix: str
    words: tuple[str, ...]
    runs: str
    results: Path

    def new_id(self, now: datetime.datetime) -> str:
        """An id that was not there before."""
        return f"{self.prefix}-{now:%Y%m%d-%H%M%S}"

    def command(self, submission_id: str) -> list[str]:
        """As a person would type it; `--no-wait`, since the log is followed by other means, which survive a lost connection."""
        return [
            *("ray", "job", "submit", "--address", self.address, "--submission-id", submission_id),
            *("--working-dir", str(self.working_dir), "--no-wait", "--", *self.words),
        ]


def job_of(
    path: Path,
    *,
    address: str,
    working_dir: Path,
    runs: str,
    how: Mapping[str, Any],
    sets: Sequence[str] = (),
    only: Sequence[str] = (),
    options: Sequence[str] = (),
) -> Job:
    """The job for a file. ConfigError for every mistake in it: nothing is sent to a cluster that would end there.

    how: `on`, `transport` and `network`. options: further words of the command.
    """
    How(**how)
    document = read(path)
    file = _inside(path, working_dir)
    if sweeps.is_sweep(document.data):
        if sets:
            raise ConfigError([Problem("--set", "changes a run; a sweep is changed in its file, or narrowed with --only")])
        base = document.data.get("base")
        if isinstance(base, str):
            _inside(path.parent / base, working_dir)
        for each in selected(sweeps.load(document), only).first:
            runnable(each.config, how["on"])
        command, results = "sweep", Path(path.stem)
        content: Any = [document.data, read(path.parent / base).data if isinstance(base, str) else None, list(only)]
    else:
        if only:
            raise ConfigError([Problem("--only", "narrows a sweep; this is a run")])
        config = resolve(document, sets)
        runnable(config, how["on"])
        command, results = "run", path.stem / run_name(config, how["on"])
        content = [config.digest(), config.seed]
    digest = hashlib.sha256(json.dumps([content, dict(how)], sort_keys=True, default=str).encode()).hexdigest()
    words = ["python", "-m", "locallearn", command, file, "--on", how["on"], "--runs", runs]
    for option, values in (("--set", sets), ("--only", only)):
        words += [word for value in values for word in (option, value)]
    if how["on"] != "ray" or command == "sweep":
        words += ["--address", "auto"]  # on all nodes, as many runs at a time as fit; without it one by one, or where the driver is
    if how["on"] == "ray":
        words += ["--transport", how["transport"]] if how["transport"] else []
        words += ["--network", how["network"]] if how["network"] else []
    return Job(address, working_dir, f"{slug(path.stem)}-{digest[:DIGITS]}", (*words, *options), runs, results)


def _inside(path: Path, folder: Path) -> str:
    """The path as seen from the working directory. ConfigError if it lies elsewhere, for then it does not travel."""
    try:
        return path.resolve().relative_to(folder.resolve()).as_posix()
    except ValueError:
        what = f"lies outside the working directory `{folder}`, which is what travels to the cluster; give another with --working-dir"
        raise ConfigError([Problem(str(path), what)]) from None


def typed(words: Sequence[str]) -> str:
    """A command to be shown, and to be copied: in lines of at most 80 columns where its words allow it."""
    quoted = [shlex.quote(word).replace(" ", "\0") for word in words]
    lines = textwrap.wrap(" ".join(quoted), WIDTH - 4, break_long_words=False, break_on_hyphens=False)
    return " \\\n    ".join(lines).replace("\0", " ")
