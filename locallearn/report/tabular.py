"""Rows of plain data as an aligned table, JSON or CSV."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from locallearn.experiment.files import finite
from locallearn.report.table import to_csv


def shown(rows: Sequence[Mapping[str, Any]], form: str, words: Mapping[str, Callable[[Any], str]] | None = None) -> str:
    """The rows in one of the formats. words: for the table, how a column is written; columns without an entry are left out."""
    if form == "json":
        return json.dumps(finite(list(rows)), indent=1, ensure_ascii=False, default=str)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    if form == "csv":
        filled = [{key: cell(value) for key, value in row.items() if value is not None} for row in rows]
        return to_csv(filled, columns).rstrip("\n")
    words = words if words is not None else dict.fromkeys(columns, cell)
    body = [[write(row.get(column)) for column, write in words.items()] for row in rows]
    numeric = [column for column in words if any(_is_number(row.get(column)) for row in rows)]
    return aligned([list(words), *body], [k for k, column in enumerate(words) if column in numeric])


def aligned(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Columns two spaces apart, those in `right` flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [word.rjust(n) if k in right else word.ljust(n) for k, (word, n) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def cell(value: Any) -> str:
    """A value in a table; `-` stands for nothing."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {cell(item)}" for key, item in value.items()) or "-"
    if isinstance(value, list | tuple):
        return ", ".join(map(cell, value)) or "-"
    return str(value)


def setting(value: Any) -> str:
    """A value of an option: lists in brackets, `none` for nothing."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(setting, value))}]"
    return "none" if value is None else cell(value)


def flattened(config: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Dotted keys."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= flattened(value, f"{above}{key}.") if isinstance(value, Mapping) else {f"{above}{key}": value}
    return found


def short(name: str, width: int = 36) -> str:
    """A long name without its middle: both the beginning and the seed tell runs apart."""
    return name if len(name) <= width else f"{name[: width - 20]}…{name[-19:]}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
