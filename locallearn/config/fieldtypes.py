"""How the fields of a dataclass are read from plain data, worked out from its annotations."""

from __future__ import annotations

import dataclasses
import functools
import re
import types
import typing
from collections.abc import Callable, Iterator
from typing import Annotated, Any, NamedTuple, Union

from pydantic import ConfigDict, TypeAdapter, ValidationError

from locallearn.config.document import KeyPath
from locallearn.config.mistakes import nearest
from locallearn.markers import Named, Parsed

# PyYAML reads 1e-3 as text, for YAML 1.1 wants 1.0e-3.
_EXPONENT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+")
_PLAIN = ConfigDict(allow_inf_nan=False, arbitrary_types_allowed=True)
TRUTH = "is a truth value, as YAML reads on, off, yes, no, true and false; put it in quotes if it is meant as text"


class Field(NamedTuple):
    """How one field of a dataclass is read: a leaf by pydantic, a section, a list of sections, or a section chosen by name."""

    hint: Any
    required: bool
    optional: bool
    named: Named | None
    section: type | None
    many: bool
    parse: Callable[[Any], Any] | None


@functools.cache
def fields_of(cls: type) -> dict[str, Field]:
    """The fields of a dataclass that a configuration can give."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {
        field.name: _field(hints[field.name], field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING)
        for field in dataclasses.fields(cls)
        if field.init
    }


def _field(hint: Any, required: bool) -> Field:
    arms = _arms(hint)
    inner = next((arm for arm in arms if arm is not type(None)), hint)
    inner, marks = _unwrapped(inner)
    inner_marks = [*_unwrapped(hint)[1], *marks]
    args = typing.get_args(inner)
    many = typing.get_origin(inner) is tuple and len(args) == 2 and dataclasses.is_dataclass(args[0])
    section: Any = args[0] if many else inner if dataclasses.is_dataclass(inner) else None
    named = next((mark for mark in inner_marks if isinstance(mark, Named)), None)
    parse = next((mark.function for mark in inner_marks if isinstance(mark, Parsed)), None)
    return Field(hint, required, type(None) in arms, named, section, many, parse)


def _arms(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)


def _unwrapped(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    return (hint.__origin__, hint.__metadata__) if typing.get_origin(hint) is Annotated else (hint, ())


@functools.cache
def adapter(hint: Any) -> TypeAdapter[Any]:
    """What checks a plain type and its range."""
    return TypeAdapter(hint, config=_PLAIN)


def values_of(instance: Any) -> dict[str, Any]:
    """What was given to make the instance."""
    return {name: getattr(instance, name) for name in fields_of(type(instance))}


def nested_keys(cls: type) -> Iterator[str]:
    """Dotted keys of the sections inside a section."""
    for name, field in fields_of(cls).items():
        section = field.section if not field.many else None
        for inner in (section, field.named.extra if field.named else None):
            yield from (f"{name}.{deep}" for deep in fields_of(inner)) if inner else ()


def mentions(hint: Any, wanted: tuple[Any, ...]) -> bool:
    """Whether a type is, or holds, one of these types."""
    return hint in wanted or any(mentions(arg, wanted) for arg in typing.get_args(hint) if not isinstance(arg, list))


def has_truth(value: Any) -> bool:
    """Whether a value is a boolean, or a list with one."""
    return isinstance(value, bool) or (isinstance(value, list | tuple) and any(map(has_truth, value)))


def prepared(value: Any, hint: Any) -> Any:
    """Text such as 1e-3 as a number where no text is wanted, and a numpy scalar as what it holds."""
    if isinstance(value, list | tuple):
        return [prepared(item, hint) for item in value]
    if isinstance(value, str) and _EXPONENT.fullmatch(value) and not mentions(hint, (str, Any)):
        return float(value)
    item = getattr(value, "item", None)
    return item() if item is not None and getattr(value, "shape", None) == () else value


def explained(error: ValidationError, value: Any) -> dict[KeyPath, str]:
    """Pydantic's messages by list position; the arms of a union are alternatives."""
    texts: dict[KeyPath, list[str]] = {}
    for item in error.errors(include_url=False):
        place = tuple(key for key in item["loc"] if isinstance(key, int))
        text = item["msg"].removeprefix("Value error, ").replace("valid tuple", "list").replace("valid dictionary", "mapping")
        if item["type"] == "literal_error":
            near = nearest(value, re.findall(r"'([^']*)'", str(item.get("ctx", {}).get("expected"))))
            text += f"; did you mean `{near}`?" if near else ""
        texts.setdefault(place, []).append(text[0].lower() + text[1:])
    return {place: "; or ".join(dict.fromkeys(found)) for place, found in texts.items()}
