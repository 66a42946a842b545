"""YAML text to a Document, in bounded time and memory, with a line for every key."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from locallearn.config.document import Document, KeyPath, Place, printable
from locallearn.errors import ConfigError, Problem

MAX_BYTES = 2**20
MAX_NODES = 20_000
MAX_DEPTH = 50

_CORE = {f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float")}
_MERGE = "tag:yaml.org,2002:merge"
# YAML 1.1 reads 010 as eight and 1:30 as ninety; nobody who writes a configuration means that.
_TRAP = re.compile(r"[-+]?0[0-7_]+|.*:.*", re.DOTALL)


class _Refused(Exception):
    def __init__(self, what: str, line: int = 1):
        self.what, self.line = what, line


def read(path: str | Path, rank: int = 0) -> Document:
    """The document in a file. ConfigError, with a line, if there is none; rank orders the mistakes of several files."""
    path = Path(path)
    name = printable(str(path))
    try:
        if path.is_dir():
            raise _Refused("is a folder; give a YAML file")
        if path.exists() and not path.is_file():
            raise _Refused("is not a regular file")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise _Refused("is larger than 1 MiB, which no configuration is")
        text = content.decode("utf-8-sig")
    except _Refused as error:
        raise ConfigError([Problem(name, error.what)]) from None
    except UnicodeDecodeError:
        raise ConfigError([Problem(name, "is not text in UTF-8")]) from None
    except FileNotFoundError:
        raise ConfigError([Problem(name, "there is no such file")]) from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise ConfigError([Problem(name, f"cannot be read: {getattr(error, 'strerror', None) or error}")]) from None
    document = parse(text, name, rank, path.parent)
    if not isinstance(document.data, dict):
        kind = "a list" if isinstance(document.data, list) else "a single value"
        raise ConfigError([Problem(f"{name}:1", f"a configuration is keys with values, this is {kind}")])
    return document


def parse(text: str, name: str, rank: int = 0, folder: Path = Path(), empty: bool = False) -> Document:
    """The document in a text. empty: whether no text at all stands for null; otherwise it is a ConfigError."""
    try:
        _survey(text)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except _Refused as error:
        raise ConfigError([Problem(f"{name}:{error.line}", error.what)]) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        what = printable(", ".join(part for part in (error.context, error.problem) if part))
        raise ConfigError([Problem(f"{name}:{line}", f"is not valid YAML: {what}")]) from None
    except yaml.YAMLError:
        raise ConfigError([Problem(name, "is not text: it has control characters")]) from None
    builder = _Builder(name, rank)
    if node is None and not empty:
        raise ConfigError([Problem(name, "is empty")])
    data = None if node is None else builder.build(node, (), 1)
    if builder.problems:
        raise ConfigError(builder.problems)
    builder.places.setdefault((), Place(f"{name}:1", (rank, 1)))
    return Document(data, builder.places, folder)


def _survey(text: str) -> None:
    """Refuse, from the stream of events alone, what would be large or foreign: nothing is expanded to find out."""
    total, documents = 0, 0
    sizes: dict[str, int] = {}
    nesting: list[tuple[str | None, int]] = []
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1
        if getattr(event, "tag", None) is not None:
            raise _Refused(f"the tag `{printable(event.tag)}` is not allowed; write plain values", line)
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise _Refused("a second document begins here (`---`); a file holds one", line)
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise _Refused(f"`*{event.anchor}` stands for nothing that was finished before it", line)
            total += sizes[event.anchor]
        elif isinstance(event, yaml.CollectionStartEvent):
            nesting.append((event.anchor, total))
            total += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = nesting.pop()
            if anchor:
                sizes[anchor] = total - before
        elif isinstance(event, yaml.ScalarEvent):
            total += 1
            if event.anchor:
                sizes[event.anchor] = 1
        if len(nesting) > MAX_DEPTH:
            raise _Refused(f"is nested more than {MAX_DEPTH} levels deep", line)
        if total > MAX_NODES:
            raise _Refused(f"has more than {MAX_NODES} values (aliases count as what they stand for)", line)


class _Builder:
    """Plain data from YAML nodes; notes the place of every key, and collects what is wrong with keys and scalars."""

    def __init__(self, name: str, rank: int):
        self.name, self.rank = name, rank
        self.places: dict[KeyPath, Place] = {}
        self.problems: list[Problem] = []
        self._scalars = yaml.constructor.SafeConstructor()

    def build(self, node: yaml.Node, path: KeyPath, line: int) -> Any:
        text = node.value if isinstance(node, yaml.ScalarNode) else None
        self.places[path] = Place(f"{self.name}:{line}", (self.rank, line), text)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, line)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, (*path, k), _line(item)) for k, item in enumerate(node.value)]
        return self._mapping(node, path) if isinstance(node, yaml.MappingNode) else None

    def _scalar(self, node: yaml.ScalarNode, line: int) -> Any:
        if node.tag not in _CORE or _TRAP.fullmatch(node.value):
            return node.value
        try:
            return self._scalars.construct_object(node)
        except ValueError:  # a number of many thousand digits
            self._wrong(line, "cannot read this number")

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        built: dict[str, Any] = {}
        lines: dict[str, int] = {}
        merges = [value for key, value in node.value if key.tag == _MERGE]
        for key, value in node.value:
            if key.tag == _MERGE:
                continue
            name = self._key(key)
            if name in lines:
                self._wrong(_line(key), f"the key `{printable(name)}` is already on line {lines[name]}")
            elif name is not None:
                lines[name] = _line(key)
                built[name] = self.build(value, (*path, name), _line(key))
        for merge in merges:
            for source in merge.value if isinstance(merge, yaml.SequenceNode) else [merge]:
                self._merge(source, built, path, _line(merge))
        return built

    def _merge(self, source: yaml.Node, built: dict[str, Any], path: KeyPath, line: int) -> None:
        """`<<`: the keys of another mapping, where they are not given here."""
        if not isinstance(source, yaml.MappingNode):
            self._wrong(line, "`<<` takes a mapping or a list of mappings")
            return
        before = dict(self.places)
        for key, value in self._mapping(source, path).items():
            built.setdefault(key, value)
        self.places |= before

    def _key(self, key: yaml.Node) -> str | None:
        if isinstance(key, yaml.ScalarNode) and key.tag not in _CORE:
            return key.value
        shown = printable(getattr(key, "value", "")) if isinstance(key, yaml.ScalarNode) else "a list or mapping"
        self._wrong(_line(key), f"a key must be text, and YAML does not read `{shown}` as text; put it in quotes")

    def _wrong(self, line: int, what: str) -> None:
        self.problems.append(Problem(f"{self.name}:{line}", what))


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1
