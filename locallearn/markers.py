"""Markers inside `Annotated`, for fields whose YAML form needs more than a type and a range."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

from annotated_types import Gt


class Parsed(NamedTuple):
    """The value as written goes through `function` first, which raises ValueError with a sentence for the user."""

    function: Callable[[Any], Any]


class WrongKeys(ValueError):
    """What is wrong with a value that has keys of its own: (key, sentence) for each."""

    def __init__(self, problems: Sequence[tuple[str, str]]):
        super().__init__("; ".join(f"`{key}` {what}" for key, what in problems))
        self.problems = problems


class Named(NamedTuple):
    """A section whose key `name` chooses a dataclass from the table (`rules`, `models`, `datasets`).

    extra: a dataclass whose fields stand in the same section; the field's value is then the pair (chosen, extra).
    bare: the extra's keys for a section that is given as an object, in Python.
    """

    table: str
    extra: type | None = None
    bare: Mapping[str, Any] | None = None


class Aside(NamedTuple):
    """Where something lies or how it is fetched, not what it is: the field is left out of a run's identity."""


class Later(NamedTuple):
    """A key that came after runs had been named by their settings: at its default it is left out, so that those keep their names."""


_UNITS = {"": 1} | {letter + i: (1024 if i else 1000) ** power for power, letter in enumerate("kMGT", start=1) for i in ("", "i")}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]*)?(?:[eE][+]?[0-9]+)?)\s*(?:([kKMGT]i?|)B)?")


def parse_size(value: Any) -> int:
    """Bytes from a number or from text such as `4 GiB`, `32 MiB` or `10 kB`."""
    match = _SIZE.fullmatch(str(value).strip())
    if match is None or isinstance(value, bool):
        raise ValueError("is no size; sizes are written as 4 GiB, 32 MiB, 10 kB or a number of bytes")
    unit = (match[2] or "").replace("K", "k")
    size = float(match[1]) * _UNITS[unit]
    if size >= 2**63:
        raise ValueError("is too large for a number of bytes")
    return int(match[1]) * _UNITS[unit] if match[1].isdigit() else round(size)


Size = Annotated[int, Parsed(parse_size), Gt(0)]

_TIMES = {"ms": 1e-3, "s": 1, "": 1, "min": 60, "h": 3600}
_TIME = re.compile(r"([0-9]+(?:\.[0-9]*)?)\s*([a-z]*)")


def parse_seconds(value: Any) -> float:
    """Seconds from a number or from text such as `60 s`, `2 min` or `1.5 h`."""
    match = _TIME.fullmatch(str(value).strip())
    if match is None or isinstance(value, bool) or match[2] not in _TIMES:
        raise ValueError("is no time; times are written as 60 s, 2 min, 1.5 h or a number of seconds")
    return float(match[1]) * _TIMES[match[2]]


Seconds = Annotated[float, Parsed(parse_seconds), Gt(0)]
