"""Files that are whole or not there: written beside their place, then moved into it."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from locallearn.errors import LocallearnError

FULL = (errno.ENOSPC, errno.EDQUOT)


class StoreError(LocallearnError):
    """A run directory cannot be written, or holds something else."""


class NoRoom(StoreError):
    """The disk is full: what would come next could not be written either."""


class UnusableFolder(StoreError):
    """Results cannot go where they were to go; nothing was begun."""

    exit_code = 2


def make_folder(path: Path) -> None:
    """The folder, with those above it. UnusableFolder if it cannot be made."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unusable(path, error) from error


def unusable(folder: Path, error: OSError) -> StoreError:
    """The error for a folder in which nothing can be begun, in one sentence."""
    if error.errno in FULL:
        return unwritable(folder, error)
    return UnusableFolder(f"{folder}: cannot be written: {error.strerror or error}; nothing was run")


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """The file appears complete, or not at all: whoever is killed here leaves at most a hidden file, which nobody reads.

    So also if the machine loses its power. StoreError if the disk is full or the folder cannot be written.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}")  # processes of two hosts may have one number
    try:
        with beside.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise unwritable(path, error) from error


def unwritable(path: Path, error: OSError) -> StoreError:
    """The error for a file that could not be written, in one sentence."""
    kind, after = (NoRoom, "; make room, and the same command goes on") if error.errno in FULL else (StoreError, "")
    return kind(f"{path}: cannot be written: {error.strerror or error}; nothing that was complete is damaged{after}")


def write_json(path: Path, value: Any) -> None:
    """Plain data, readable by people."""
    text = json.dumps(finite(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_whole(path, lambda file: file.write(text.encode()))


def read_json(path: Path) -> Any:
    """What `write_json` wrote; None if there is no such file. StoreError if it is damaged."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: cannot be read: {error}") from error


def parse_yaml(text: str) -> Any:
    """Plain data, by the parser in C where there is one."""
    import yaml

    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def finite(value: Any) -> Any:
    """The value with null for numbers that JSON does not know (NaN and infinity)."""
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
