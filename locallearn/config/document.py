"""Configuration as plain data that knows, for every key, where it was written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

KeyPath = tuple[str | int, ...]
"""Keys and list positions from the top: ("model", "widths", 0)."""


class _Missing:
    def __repr__(self) -> str:
        return "MISSING"


MISSING: Any = _Missing()


class Place(NamedTuple):
    """Where a key was written.

    where: `run.yaml:3` or `--set k=v`. order: (rank of the source, line), which mistakes are sorted by. text: a scalar as it was written.
    """

    where: str
    order: tuple[int, int]
    text: str | None = None


class NotAMapping(Exception):
    """A key was to be set below something that has no keys."""

    def __init__(self, path: KeyPath):
        self.path = path
        super().__init__(dotted(path))


@dataclass(frozen=True)
class Document:
    """Plain data, and the places of its keys. From Python there are no places, and the key path says where a mistake is."""

    data: Any
    places: Mapping[KeyPath, Place] = field(default_factory=dict)
    folder: Path = Path()

    def place(self, path: KeyPath) -> Place | None:
        """Where the key was written, or for a key that is not there, what it belongs to."""
        cut = next((n for n in range(len(path), -1, -1) if path[:n] in self.places), None)
        if cut is None:
            return None
        found = self.places[path[:cut]]
        return found if cut == len(path) else found._replace(text=None)

    def at(self, path: KeyPath) -> Any:
        """The value at a path, or MISSING."""
        value = self.data
        for key in path:
            if (isinstance(value, Mapping) and key in value) or (_is_list(value) and isinstance(key, int) and key < len(value)):
                value = value[key]
            else:
                return MISSING
        return value

    def under(self, path: KeyPath) -> Document:
        """The part of the document below a path, as a document of its own."""
        n = len(path)
        places = {key[n:]: place for key, place in self.places.items() if key[:n] == path}
        return replace(self, data=self.at(path), places=places)

    def put(self, path: KeyPath, value: Document) -> Document:
        """This document with the value at a path replaced, whole; mappings on the way are made. Raises NotAMapping."""
        data = _put(self.data, path, value.data, ())
        n = len(path)
        places = {key: place for key, place in self.places.items() if key[:n] != path}
        top = value.places.get(())
        if top is not None:
            for k in range(1, n):
                places.setdefault(path[:k], top._replace(text=None))
        places |= {path + key: place for key, place in value.places.items()}
        return replace(self, data=data, places=places)


def _put(data: Any, path: KeyPath, value: Any, done: KeyPath) -> Any:
    if not path:
        return value
    if data is None or data is MISSING:
        data = {}
    if not isinstance(data, Mapping):
        raise NotAMapping(done)
    key = path[0]
    return {**data, key: _put(data.get(key, MISSING), path[1:], value, (*done, key))}


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def split_key(key: str) -> KeyPath:
    """The path that a dotted key names."""
    return tuple(key.split("."))


def dotted(path: KeyPath) -> str:
    """A path as users write it: `train.phases[0].steps`."""
    text = ""
    for key in path:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else str(key)
    return printable(text)


def printable(text: str) -> str:
    """The text in one line, without control characters: what comes from a file must not steer a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
