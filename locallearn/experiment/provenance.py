"""Where a result comes from: command, versions, commit, machine. Recorded beside a run, and no part of its identity."""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import os
import platform
import shlex
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PACKAGES = ("locallearn", "jax", "jaxlib", "flax", "optax", "numpy", "ray")
FORMAT = 1


def provenance() -> dict[str, Any]:
    """The facts of this process as plain data."""
    return {
        "format": FORMAT,
        "command": command(sys.argv),
        "started": now(),
        "versions": {"python": platform.python_version(), **versions()},
        "git": commit(),
        "host": socket.gethostname(),
        "system": f"{platform.system()} {platform.machine()}",
        "devices": devices(),
    }


def now() -> str:
    """The time as ISO 8601, in UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def command(words: Sequence[str]) -> str:
    """The command line, with the program by its name and files relative to the working directory."""
    program = Path(words[0] or "python").name
    return shlex.join([*(["python", "-m", "locallearn"] if program == "__main__.py" else [program]), *map(relative, words[1:])])


def relative(word: str) -> str:
    """A path below the working directory without what leads there, any other absolute path by its last part."""
    path = Path(word)
    if not path.is_absolute():
        return word
    return str(path.relative_to(here())) if path.is_relative_to(here()) else path.name


def here() -> Path:
    """The working directory, or where it was: a cluster may remove that of a job before the job has ended."""
    try:
        return Path.cwd()
    except FileNotFoundError:
        return Path(os.environ.get("PWD", "/"))


@functools.cache
def versions() -> dict[str, str]:
    """Of the packages that decide a result."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def commit() -> str | None:
    """The commit of the working directory, `1a2b3c4d (+2 files changed)`; None outside a repository."""
    head = _git("rev-parse", "--short=8", "HEAD")
    if not head:
        return None
    changed = len((_git("status", "--porcelain", "--untracked-files=no") or "").splitlines())
    return head + (f" (+{changed} file{'s' * (changed > 1)} changed)" if changed else "")


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(["git", *words], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def devices() -> list[str]:
    """The kinds of device that JAX uses here."""
    import jax

    return sorted({device.device_kind for device in jax.devices()})
