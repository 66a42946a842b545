"""Conditions on a combination of a sweep: `{rule.name: backprop, task: 1-D}`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from locallearn.config.catalog import Catalog
from locallearn.config.codecs import EXACT, spelled
from locallearn.config.document import MISSING, Document, KeyPath, split_key
from locallearn.config.mistakes import Mistake, hint, nearest
from locallearn.config.run import Held, Placement
from locallearn.replicas import Replicas
from locallearn.schedule import Schedule
from locallearn.train import Stop, Train

_SECTIONS: dict[str | int, type] = {"train": Train, "stop": Stop, "schedule": Schedule, "replicas": Replicas}
_TABLES = {"rule": "rules", "model": "models", "data": "datasets"}
_EXTRAS = {"model": Placement, "data": Held}


def holds(when: Mapping[str, Any], run: Document, labels: Mapping[str, Any], catalog: Catalog) -> bool:
    """Whether every key has the value wanted, or one of the values if a list is wanted."""
    return all(_matches(lookup(key, run, labels, catalog), wanted) for key, wanted in when.items())


def lookup(key: str, run: Document, labels: Mapping[str, Any], catalog: Catalog) -> Any:
    """The value of a dotted key, be it a label, written, or a default; MISSING if the run has no such key."""
    if key in labels:
        return labels[key]
    path = split_key(key)
    value = run.at(path)
    return _default(path, run, catalog) if value is MISSING else value


def useless(
    when: Mapping[str, Any], path: KeyPath, runs: Iterable[tuple[Document, Mapping[str, Any]]], catalog: Catalog
) -> Iterator[Mistake]:
    """Keys of a condition that no combination has, and values that cannot be: the condition would silently never hold."""
    runs = list(runs)
    labels: dict[str, set[str]] = {}
    for _, given in runs:
        for name, label in given.items():
            labels.setdefault(name, set()).add(str(label))
    for key, wanted in when.items():
        words = [str(item) for item in (wanted if isinstance(wanted, list) else [wanted])]
        names, what = (sorted(labels[key]), "labels") if key in labels else (list(catalog.rules), "rules")
        if key in labels or key == "rule.name":
            for word in words:
                if word not in names:
                    yield Mistake((*path, key), "name", f"is not among the {what}{hint(word, names, what)}")
        elif runs and all(lookup(key, run, given, catalog) is MISSING for run, given in runs):
            near = nearest(key, [*labels, *_keys(runs, catalog)])
            yield Mistake((*path, key), "value", f"no combination has this key{f'; did you mean `{near}`?' if near else ''}")


def _keys(runs: list[tuple[Document, Mapping[str, Any]]], catalog: Catalog) -> set[str]:
    """Dotted keys of sections that some combination has or could have."""
    keys = {f"train.optimizer.{name}" for name in _names(type(Train().optimizer))}
    keys |= {f"{head}.{name}" for head, cls in _SECTIONS.items() if head != "stop" for name in _names(cls)}
    for run, _ in runs:
        for head in _TABLES:
            keys |= {f"{head}.{name}" for cls in _classes(head, run, catalog) for name in _names(cls)}
    return keys


def _default(path: KeyPath, run: Document, catalog: Catalog) -> Any:
    head, *rest = path
    if path == ("codecs", "default"):
        return spelled(EXACT)
    if head == "seed":
        return MISSING if rest else 0
    classes = [_SECTIONS[head]] if head in _SECTIONS else _classes(head, run, catalog)
    for cls in classes:
        for field in dataclasses.fields(cls) if rest else ():
            if field.name == rest[0]:
                return _deep(field, rest[1:])
    return MISSING


def _deep(field: dataclasses.Field[Any], rest: list[str | int]) -> Any:
    made = field.default_factory is not dataclasses.MISSING
    value = field.default_factory() if made else field.default  # pyright: ignore[reportCallIssue]
    for key in rest:
        value = getattr(value, str(key), MISSING)
    return MISSING if value is dataclasses.MISSING else value


def _classes(head: str | int, run: Document, catalog: Catalog) -> list[type]:
    """The dataclasses whose fields a section holds, as far as its name is known."""
    if head not in _TABLES:
        return []
    name = run.at((head, "name"))
    cls = getattr(catalog, _TABLES[str(head)]).get(name) if isinstance(name, str) else None
    return [c for c in (cls, _EXTRAS.get(str(head))) if c]


def _names(cls: type) -> list[str]:
    return [field.name for field in dataclasses.fields(cls)]


def _matches(value: Any, wanted: Any) -> bool:
    value, wanted = _comparable(value), _comparable(wanted)
    return value == wanted or (isinstance(wanted, list) and value in wanted)


def _comparable(value: Any) -> Any:
    """Numbers as floats, also those that YAML reads as text; tuples as lists."""
    if isinstance(value, Mapping):
        return {key: _comparable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_comparable(item) for item in value]
    if isinstance(value, bool) or value is None:
        return str(value)  # not equal to 1 and 0
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return value
