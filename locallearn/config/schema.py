"""From plain data to frozen dataclasses, whatever dataclasses: their fields are the schema, so a new rule needs no schema code.

A field's type and range are checked by pydantic. Here stands what pydantic does not do: all mistakes with their key paths, suggestions,
and sections chosen by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from pydantic import ValidationError

from locallearn.config.catalog import SINGULAR, Catalog
from locallearn.config.document import KeyPath
from locallearn.config.fieldtypes import (
    TRUTH,
    Field,
    adapter,
    explained,
    fields_of,
    has_truth,
    mentions,
    nested_keys,
    prepared,
    values_of,
)
from locallearn.config.mistakes import Mistake, hint, nearest, unknown_key
from locallearn.markers import Named, WrongKeys

BAD: Any = type("_Bad", (), {"__repr__": lambda self: "BAD"})()
"""Stands for a value that had mistakes."""


class Reader:
    """Reads sections and collects every mistake in them."""

    def __init__(self, catalog: Catalog):
        self.catalog = catalog
        self.mistakes: list[Mistake] = []

    def section(self, cls: type, value: Any, path: KeyPath) -> Any:
        """An instance of the dataclass, or BAD."""
        return self._sections((cls,), values_of(value) if isinstance(value, cls) else value, path)[0]

    def found(self, cls: type, value: Mapping[str, Any], path: KeyPath) -> dict[str, Any]:
        """The fields of a dataclass that were given without mistakes."""
        found = {}
        for name, field in fields_of(cls).items():
            if name in value:
                found[name] = self.field(field, value[name], (*path, name))
            elif field.required:
                self._add((*path, name), "missing")
        return {name: item for name, item in found.items() if item is not BAD}

    def keys(self, value: Mapping[str, Any], path: KeyPath, classes: Iterable[type], also: Sequence[str] = ()) -> None:
        """Note the unknown keys of a section that holds the fields of these dataclasses."""
        classes = list(classes)
        allowed = [*also, *(name for cls in classes for name in fields_of(cls))]
        for key in value:
            if key not in allowed:
                nested = [deep for cls in classes for deep in nested_keys(cls)]
                self.mistakes.append(unknown_key((*path, key), allowed, nested))

    def field(self, field: Field, value: Any, path: KeyPath) -> Any:
        """The value of one field, or BAD."""
        if value is None and field.optional:
            return None
        if field.named:
            return self.named(field.named, value, path)
        if field.section and field.many:
            return self._many(field.section, value, path)
        if field.section:
            return self.section(field.section, value, path)
        return self.leaf(field.hint, value, path, field.parse)

    def leaf(self, hint: Any, value: Any, path: KeyPath, parse: Callable[[Any], Any] | None = None) -> Any:
        """A value of a plain type, with its range; or BAD."""
        value = prepared(value, hint)
        if has_truth(value) and not mentions(hint, (bool, Any, object)):
            return self._add(path, "value", TRUTH)
        try:
            return adapter(hint).validate_python(parse(value) if parse else value)
        except ValidationError as error:
            for place, text in explained(error, value).items():
                self._add((*path, *place), "value", text)
        except WrongKeys as error:
            self.mistakes += hooked(error.problems, path)
        except ValueError as error:
            self._add(path, "value", str(error))
        return BAD

    def named(self, mark: Named, value: Any, path: KeyPath) -> Any:
        """What a section chooses by its `name`: the instance, or (instance, extra); or BAD.

        From Python the name, or the whole section, may be an object. One of a class in the table is checked like a section; any
        other is taken as it is.
        """
        if not isinstance(value, Mapping):
            if _is_plain(value):
                return self._add(path, "value", f"must be a mapping, such as {{name: {value or '...'}}}")
            value = {"name": value, **(mark.bare or {})}
        chosen, rest = value.get("name"), {key: item for key, item in value.items() if key != "name"}
        extra = (mark.extra,) if mark.extra else ()
        known = None if _is_plain(chosen) else self.catalog.name_of(chosen, mark.table)
        if known:
            chosen, rest = known, {**values_of(chosen), **rest}
        if _is_plain(chosen):
            cls = self._chosen(mark.table, chosen, rest, path)
            read = (BAD,) if cls is BAD else self._sections((cls, *extra), rest, path, chosen=cls)
        else:
            read = (chosen, *self._sections(extra, rest, path, chosen=chosen))
        if any(part is BAD for part in read):
            return BAD
        return read if extra else read[0]

    def _chosen(self, table: str, name: Any, rest: Mapping[str, Any], path: KeyPath) -> Any:
        names = getattr(self.catalog, table)
        if isinstance(name, str) and name in names:
            return names[name]
        where = (*path, "name")
        if name is None:
            self.mistakes += [unknown_key((*path, key), ["name"]) for key in rest if nearest(key, ["name"])]
            return self._add(where, "missing", f" ({table}: {', '.join(names)})")
        if isinstance(name, bool):
            return self._add(where, "value", TRUTH)
        return self._add(where, "name", f"is no {SINGULAR[table]}{hint(name, list(names), table)}")

    def _many(self, cls: type, value: Any, path: KeyPath) -> Any:
        if not isinstance(value, list | tuple):
            return self._add(path, "value", "must be a list")
        read = tuple(self.section(cls, item, (*path, k)) for k, item in enumerate(value))
        return BAD if any(item is BAD for item in read) else read

    def _sections(self, classes: Sequence[type], value: Any, path: KeyPath, chosen: Any = None) -> tuple[Any, ...]:
        """Instances of several dataclasses whose fields share one section; BAD for each that has mistakes.

        chosen: what the section's `name` chose, if it has one.
        """
        if not isinstance(value, Mapping):
            keys = ", ".join(f"{name}: ..." for name in list(fields_of(classes[0]))[:2])
            return (self._add(path, "value", f"must be a mapping, such as {{{keys}}}"),) * len(classes)
        self.keys(value, path, classes, () if chosen is None else ("name",))
        return tuple(self._build(cls, value, path, ask=cls is not chosen) for cls in classes)

    def _build(self, cls: type, value: Mapping[str, Any], path: KeyPath, ask: bool) -> Any:
        """ask: whether `problems()` is asked now; a chosen rule or model is asked later, with what it needs to know."""
        before = len(self.mistakes)
        found = self.found(cls, value, path)
        if len(self.mistakes) > before:
            return BAD
        try:
            instance = cls(**found)
        except ValueError as error:
            return self._add(path, "value", str(error))
        if ask and hasattr(instance, "problems"):
            self.mistakes += hooked(instance.problems(), path)
        return instance

    def _add(self, path: KeyPath, kind: Literal["missing", "value", "name"], text: str = "") -> Any:
        self.mistakes.append(Mistake(path, kind, text))
        return BAD


def hooked(problems: Iterable[str | tuple[str, str]], path: KeyPath) -> Iterator[Mistake]:
    """The mistakes that a `problems` hook reports: sentences, or (field, sentence)."""
    for problem in problems:
        name, text = ("", problem) if isinstance(problem, str) else problem
        where = (*path, *name.split(".")) if name else path
        missing = text.startswith("is missing")
        yield Mistake(where, "missing", text.removeprefix("is missing")) if missing else Mistake(where, "value", text)


def _is_plain(value: Any) -> bool:
    """Whether a value could come from YAML, and so is no object of a rule, model or data set."""
    return value is None or isinstance(value, str | int | float | list | tuple | dict)
