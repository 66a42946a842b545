"""Results of a job come back over its log, as an archive in text: nothing but the dashboard's port need be open."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import os
import re
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from locallearn.errors import LocallearnError
from locallearn.experiment.lock import holder_of
from locallearn.experiment.store import run_directories
from locallearn.words import size

LIMIT = 64 * 2**20
"""Bytes of an archive that may come over a log; larger results belong on shared storage."""
UNPACKED = 16 * LIMIT
_BEGIN, _END = "-----BEGIN LOCALLEARN RESULTS", "-----END LOCALLEARN RESULTS"
_FRAME = re.compile(rf"{_BEGIN} ([0-9a-f]{{64}})-----\n(.*?){_END}-----", re.DOTALL)


class NoResults(LocallearnError):
    """Nothing came back."""


class Fetched(NamedTuple):
    """What came: run directories and files in all. kept: run directories that are here already with more than came."""

    runs: int
    files: int
    bytes: int
    kept: int


def pack(runs: Path, results: Path, checkpoints: bool = False) -> str:
    """The files below `runs / results` as text: all but locks, and without checkpoints unless they are wanted."""
    folder = runs.expanduser() / results
    if not folder.exists():
        raise NoResults(f"{folder}: there is nothing")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz", preset=3) as archive:
        for path in _files(folder, checkpoints):
            archive.add(path, path.relative_to(runs.expanduser()).as_posix(), recursive=False, filter=_anonymous)
    data = buffer.getvalue()
    if len(data) > LIMIT:
        raise NoResults(f"{folder}: {size(len(data))} are too much to come over a log; put --runs on storage that both sides see")
    text = base64.encodebytes(data).decode()
    return f"{_BEGIN} {hashlib.sha256(data).hexdigest()}-----\n{text}{_END}-----"


def unpack(log: str, into: Path, checkpoints: bool = False) -> Fetched:
    """Put what `pack` printed below a folder. A run that is here with its checkpoints, or is running here, is left as it is."""
    data = _data(log)
    aside = into / f".fetched-{os.getpid()}"
    aside.mkdir(parents=True)
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:xz") as archive:
            members = archive.getmembers()
            if sum(member.size for member in members) > UNPACKED or not all(member.isfile() for member in members):
                raise NoResults("what came is no archive of results")
            archive.extractall(aside, filter="data")
        kept = _settle(aside, into, checkpoints)
    except (tarfile.TarError, OSError) as error:
        raise NoResults(f"what came cannot be unpacked into {into}: {error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return Fetched(len({m.name.rpartition("/")[0] for m in members if m.name.endswith("/config.yaml")}), len(members), len(data), kept)


def _data(log: str) -> bytes:
    found = _FRAME.search(log.replace("\r\n", "\n"))
    if found is None:
        reason = next((line for line in reversed(log.strip().splitlines()) if line.strip()), "its log is empty")
        raise NoResults(f"no results came: {reason}")
    try:
        data = base64.b64decode(found[2], validate=False)
    except binascii.Error as error:
        raise NoResults(f"what came is damaged: {error}") from error
    if hashlib.sha256(data).hexdigest() != found[1]:
        raise NoResults("what came is damaged: its checksum does not match")
    return data


def _settle(aside: Path, into: Path, checkpoints: bool) -> int:
    """Each run directory whole, then the files beside them; how many run directories were left as they are."""
    kept = 0
    for run in run_directories(aside):
        target = into / run.relative_to(aside)
        if target.exists() and (holder_of(target) or (not checkpoints and (target / "checkpoints").exists())):
            kept += 1
            shutil.rmtree(run)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        run.rename(target)
    for path in sorted(p for p in aside.rglob("*") if p.is_file()):
        target = into / path.relative_to(aside)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)
    return kept


def _files(folder: Path, checkpoints: bool) -> Iterator[Path]:
    for place, below, names in os.walk(folder):
        below[:] = sorted(n for n in below if "~" not in n and not n.startswith(".") and (checkpoints or n != "checkpoints"))
        yield from (Path(place, name) for name in sorted(names) if name != "lock" and not name.startswith("."))


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Nobody's account on the cluster is of interest here; links and devices are left out."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member if member.isfile() else None
