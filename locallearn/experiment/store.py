"""A run directory. Whatever a run is doing can be told from its files alone.

config.yaml      the configuration, resolved: every default is written out
meta.json        command, versions, commit, host, devices, threads
plan.json        what will be sent, by message and link
metrics.jsonl    one line for each evaluation
log.txt          what the terminal showed
checkpoints/     <step>/shard-<k>.npz and DONE, written last
result.json      written last of all: the run is finished
actors.json      on Ray: where each shard is, whom it waits for, and for how long it has waited for whom
failure.json     the run failed, and how
lock             while it runs: host and process
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from locallearn.experiment.files import StoreError, make_folder, parse_yaml, read_json, unusable, unwritable, write_json, write_whole
from locallearn.experiment.lock import holder_of
from locallearn.traffic import Traffic

FINISHED, FAILED, RUNNING, INTERRUPTED, NEW = "finished", "failed", "running", "interrupted", "new"
DIVERGED = "diverged"
"""Why a run is finished whose loss was not finite any more."""
SUFFIX = {"local": "", "eager": "@eager", "ray": "@ray"}
FABRICS = {"local": "fused", "eager": "eager", "ray": "ray"}
ROOM = 64 * 2**10


class Store:
    """The files of one run."""

    def __init__(self, directory: Path | str):
        self.directory = Path(directory)
        self.checkpoints = self.directory / "checkpoints"

    @property
    def state(self) -> str:
        """`finished`, `failed`, `running`, `interrupted`, or `new` if nothing has been started here."""
        for name, state in (("result.json", FINISHED), ("failure.json", FAILED)):
            if (self.directory / name).exists():
                return state
        if holder_of(self.directory):
            return RUNNING
        return INTERRUPTED if (self.directory / "config.yaml").exists() else NEW

    def begun(self) -> None:
        """StoreError if nothing has been started here."""
        if self.state == NEW:
            raise StoreError(f"{self.directory}: there is no run here; `locallearn status {self.directory}` lists those below")

    def make(self) -> None:
        """The directory, and a first look whether it can be written and there is room. UnusableFolder if not."""
        probe = self.directory / ".room"
        make_folder(self.directory)
        try:
            probe.write_bytes(bytes(ROOM))
            probe.unlink(missing_ok=True)  # another process may look at the same time
        except OSError as error:
            with contextlib.suppress(OSError):
                probe.unlink()
            raise unusable(self.directory, error) from error

    def holds(self, canonical: Mapping[str, Any]) -> bool:
        """Whether the directory is this configuration's. StoreError if it is another's: nothing is ever mixed."""
        found = self.read_config()
        if found is None:
            return False
        if found != json.loads(json.dumps(canonical)):
            keys = ", ".join(sorted(_different(found, canonical)))
            raise StoreError(f"{self.directory}: holds another configuration ({keys} differ); move it away, or use --fresh")
        return True

    def begin(self, config_yaml: str, meta: Mapping[str, Any]) -> None:
        """Write what is known before anything is computed; config.yaml last, for it makes the directory a run."""
        self.write_meta(meta)
        write_whole(self.path("config.yaml"), lambda file: file.write(config_yaml.encode()))

    def write_meta(self, meta: Mapping[str, Any]) -> None:
        """meta.json."""
        write_json(self.path("meta.json"), meta)

    def write_actors(self, said: Mapping[str, Any]) -> None:
        """actors.json."""
        write_json(self.path("actors.json"), said)

    def write_plan(self, plan: Mapping[str, Any]) -> None:
        """plan.json."""
        write_json(self.path("plan.json"), plan)

    def clean(self) -> None:
        """Remove what killed processes left behind."""
        for leftover in (*self.directory.glob(".*.[0-9]*"), *self.checkpoints.glob("*/.*.[0-9]*")):
            leftover.unlink(missing_ok=True)

    def read_config(self) -> dict[str, Any] | None:
        """The configuration as plain data; None if there is none."""
        import yaml

        try:
            return parse_yaml(self.path("config.yaml").read_text())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, yaml.YAMLError) as error:
            raise StoreError(f"{self.path('config.yaml')}: cannot be read: {error}") from error

    def path(self, name: str) -> Path:
        """The path of one of the run's files."""
        return self.directory / name

    def read(self, name: str) -> dict[str, Any]:
        """One of the JSON files; empty if it is not there."""
        return read_json(self.path(name)) or {}

    def traffic(self) -> Traffic:
        """All that a finished run sent, counted as the run counts."""
        return Traffic.of_rows(self.read("result.json").get("traffic", ())).at(self.read("plan.json").get("count", "framed"))

    # metrics.jsonl

    def records(self) -> list[dict[str, Any]]:
        """The evaluations so far; a last line that was torn by a crash is no evaluation."""
        try:
            lines = self.path("metrics.jsonl").read_text(errors="replace").splitlines()
        except (FileNotFoundError, NotADirectoryError):
            return []
        found = []
        for number, line in enumerate(lines, start=1):
            try:
                found.append(json.loads(line))
            except ValueError as error:
                if number < len(lines):
                    raise StoreError(f"{self.path('metrics.jsonl')}:{number}: is damaged: {error}") from error
        return found

    def rewind(self, step: int) -> list[dict[str, Any]]:
        """Keep the evaluations up to a step, from which the run goes on; they are returned."""
        kept = [record for record in self.records() if record["step"] <= step]
        write_whole(self.path("metrics.jsonl"), lambda file: file.write(b"".join(map(_line, kept))))
        return kept

    def append(self, record: Mapping[str, Any]) -> None:
        """One evaluation more, flushed."""
        self._append("metrics.jsonl", _line(record))

    def log(self, text: str) -> None:
        """A line more of log.txt."""
        self._append("log.txt", f"{text}\n".encode())

    def _append(self, name: str, data: bytes) -> None:
        path = self.path(name)
        try:
            with path.open("ab", buffering=0) as file:
                if file.write(data) != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise unwritable(path, error) from error

    # the end

    def finish(self, result: Mapping[str, Any]) -> None:
        """The last file of a run."""
        write_json(self.path("result.json"), result)

    def fail(self, failure: Mapping[str, Any]) -> None:
        """Note that, and how, the run failed."""
        write_json(self.path("failure.json"), failure)

    def retry(self) -> None:
        """Forget a failure: the run goes on from its last checkpoint."""
        self.path("failure.json").unlink(missing_ok=True)


def move_away(directory: Path) -> Path | None:
    """Rename an existing directory to the first free `...~1`, `...~2`; nothing is ever deleted."""
    if not directory.exists():
        return None
    if holder_of(directory):
        raise StoreError(f"{directory}: is running; stop it before starting afresh")
    number = 1
    while (aside := directory.with_name(f"{directory.name}~{number}")).exists():
        number += 1
    directory.rename(aside)
    return aside


def run_directories(root: Path) -> list[Path]:
    """Every run at or below a directory, in order; those moved away (`...~1`) are left out."""
    found = []
    for folder, below, files in os.walk(root):
        below[:] = sorted(name for name in below if "~" not in name and not name.startswith("."))
        if "config.yaml" in files and "meta.json" in files:
            below.clear()
            found.append(Path(folder))
    return found


def _line(record: Mapping[str, Any]) -> bytes:
    return (json.dumps(record, allow_nan=False) + "\n").encode()


def _different(one: Mapping[str, Any], other: Mapping[str, Any], above: str = "") -> Iterable[str]:
    """Dotted keys that differ."""
    for key in {*one, *other}:
        a, b = one.get(key), other.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from _different(a, b, f"{above}{key}.")
        elif json.dumps(a) != json.dumps(b):
            yield f"{above}{key}"
