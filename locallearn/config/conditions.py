"""Conditions on a combination of a sweep: `{rule.name: backprop, task: 1-D}`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from locallearn.config.catalog import Catalog
from locallearn.config.codecs import EXACT, spelled
from locallearn.config.document import MISSING, Document, KeyPath, split_key
from locallearn.config.fieldtypes import fields_of, nested_keys
from locallearn.config.mistakes import Mistake, hint, nearest
from locallearn.config.run import RUN_KEYS, RunFile


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
    """Dotted keys that some combination has or could have."""
    keys = {"codecs.default", *(name for name, field in fields_of(RunFile).items() if not (field.named or field.section))}
    for run, _ in runs:
        for head in RUN_KEYS:
            keys |= {f"{head}.{name}" for cls in _classes(head, run, catalog) for name in (*fields_of(cls), *nested_keys(cls))}
    return keys


def _default(path: KeyPath, run: Document, catalog: Catalog) -> Any:
    head, *rest = path
    if path == ("codecs", "default"):
        return spelled(EXACT)
    if not rest:
        return _deep(RunFile, path)
    found = (_deep(cls, rest) for cls in _classes(head, run, catalog))
    return next((value for value in found if value is not MISSING), MISSING)


def _deep(cls: type, path: Sequence[str | int]) -> Any:
    """The default of a field, or of a field of the section that it is; a section as a whole has none."""
    field = next((field for field in dataclasses.fields(cls) if field.name == path[0]), None)
    if field is None:
        return MISSING
    made = field.default_factory is not dataclasses.MISSING
    value = field.default_factory() if made else field.default  # pyright: ignore[reportCallIssue]
    for key in path[1:]:
        value = getattr(value, str(key), MISSING)
    return MISSING if value is dataclasses.MISSING or dataclasses.is_dataclass(value) else value


def _classes(head: str | int, run: Document, catalog: Catalog) -> list[type]:
    """The dataclasses whose fields a section holds, as far as its name is known."""
    field = fields_of(RunFile).get(str(head))
    if field is None or field.named is None:
        return [field.section] if field and field.section else []
    name = run.at((head, "name"))
    chosen = getattr(catalog, field.named.table).get(name) if isinstance(name, str) else None
    return [cls for cls in (chosen, field.named.extra) if cls]


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
