"""What varies in a sweep: axes of choices, each choice a few changes to the base."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from locallearn.config.document import Document, KeyPath, split_key
from locallearn.config.mistakes import Mistake, nearest, unknown_key
from locallearn.config.run import RUN_KEYS


@dataclass(frozen=True)
class Choice:
    """One entry of an axis. changes: value by dotted key. label: the name of the entry, of an axis that has labels."""

    changes: Mapping[str, Document]
    label: str | None = None

    def columns(self) -> list[str]:
        """The dotted keys that this choice sets, down to single values; none if it has a label instead."""
        if self.label is not None:
            return []
        return [deep for key, value in self.changes.items() for deep in _leaves(key, value.data)]


@dataclass(frozen=True)
class Axis:
    """An entry under `vary`: its name, and what it ranges over."""

    name: str
    choices: tuple[Choice, ...]


def axes_of(sweep: Document, vary: Mapping[str, Any]) -> tuple[list[Axis], list[Mistake]]:
    """The axes of a sweep in file order, and what is wrong with them; what the values say is checked with each run."""
    axes, mistakes = [], []
    for name, values in vary.items():
        path = ("vary", name)
        wrong = list(_wrong(name, values, path))
        mistakes += wrong
        if not wrong:
            choices = tuple(_choice(sweep, name, value, (*path, k)) for k, value in enumerate(values))
            axes.append(Axis(name, choices))
    return axes, mistakes


def _choice(sweep: Document, name: str, value: Any, path: KeyPath) -> Choice:
    if _is_key(name):
        return Choice({name: sweep.under(path)})
    changes = {key: sweep.under((*path, key)) for key in value if key != "label"}
    return Choice(changes, str(value["label"]))


def _wrong(name: str, values: Any, path: KeyPath) -> Iterator[Mistake]:
    if not isinstance(values, list | tuple) or not values:
        yield Mistake(path, "value", "must be a list of the values to try")
    elif split_key(name)[0] == "seed":
        yield Mistake(path, "value", "seeds have a place of their own: `seeds: [0, 1, 2]` beside `vary`")
    elif not all(split_key(name)):
        yield Mistake(path, "value", "is no dotted key")
    elif not _is_key(name):
        yield from _wrong_labels(name, values, path)


def _wrong_labels(name: str, values: Sequence[Any], path: KeyPath) -> Iterator[Mistake]:
    if not any(isinstance(value, Mapping) and "label" in value for value in values):
        near = nearest(split_key(name)[0], RUN_KEYS)
        if near:
            yield unknown_key(path, RUN_KEYS)._replace(text=f"; did you mean `{near}`?", near=near)
        else:
            how = "; to vary several keys together, give each entry a `label`: {label: a, model: {...}, data: {...}}"
            yield Mistake(path, "unknown", how)
        return
    labels = []
    for k, value in enumerate(values):
        label = value.get("label") if isinstance(value, Mapping) else None
        if label is None or isinstance(label, bool | list | dict):
            yield Mistake((*path, k, "label"), "missing", f" (every entry of `{name}` needs a name of its own, as text)")
        elif str(label) in labels:
            yield Mistake((*path, k, "label"), "value", "another entry has this label")
        labels.append(str(label))


def _is_key(name: str) -> bool:
    return split_key(name)[0] in RUN_KEYS


def _leaves(key: str, value: Any) -> Iterator[str]:
    if isinstance(value, Mapping) and value:
        for name, item in value.items():
            yield from _leaves(f"{key}.{name}", item)
    else:
        yield key
