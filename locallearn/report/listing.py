"""What there is: rules, codecs and data sets, as rows of plain data and as text."""

from __future__ import annotations

import dataclasses
import inspect
import textwrap
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from locallearn.report.tabular import cell, shown

WIDTH = 80


def rule_rows() -> list[dict[str, Any]]:
    """Every rule: what it is, what it sends and assumes, and its hyperparameters with their defaults."""
    from locallearn.rules import RULES

    return [
        {
            "name": name,
            "family": rule.family,
            "summary": first_line(rule),
            "assumes": rule.assumes,
            "messages": {key: f"{message.kind} {message.direction}" for key, message in rule.messages.items()},
            "parameters": defaults(rule),
        }
        for name, rule in RULES.items()
    ]


def codec_rows() -> list[dict[str, Any]]:
    """Every codec: what it is, and its parameters with their defaults; one that wraps another says so."""
    from locallearn.codec import CODECS, COMBINATORS

    rows = []
    for name, make in CODECS.items():
        parameters = {key: p.default for key, p in inspect.signature(make).parameters.items() if key != "inner"}
        plain = {key: "required" if value is inspect.Parameter.empty else value for key, value in parameters.items()}
        rows.append({"name": name, "wraps": name in COMBINATORS, "summary": first_line(make), "parameters": plain})
    return rows


def dataset_rows() -> list[dict[str, Any]]:
    """Every data set with its default settings; nothing is loaded."""
    from locallearn.data import describe

    return describe()


def rules_text(rows: Iterable[Mapping[str, Any]]) -> str:
    """Each rule in a few lines of 80 columns."""
    blocks = []
    for row in rows:
        sent = ", ".join(f"{name} ({what})" for name, what in row["messages"].items())
        blocks.append(
            [row["name"], *_indented(row["summary"]), *_indented(f"sends {sent}"), *_indented(f"assumes {row['assumes']}")]
            + (_indented(cell(row["parameters"])) if row["parameters"] else [])
        )
    return "\n".join(line for block in blocks for line in block)


def codecs_text(rows: Iterable[Mapping[str, Any]]) -> str:
    """Each codec in a few lines of 80 columns."""
    lines = []
    for row in rows:
        inside = ", ".join(key if value == "required" else f"{key}={cell(value)}" for key, value in row["parameters"].items())
        lines.append(row["name"] + (f"({inside})" if inside else "") + ("  wraps the codec after it" if row["wraps"] else ""))
        lines += _indented(row["summary"])
    return "\n".join(lines)


def datasets_text(rows: Iterable[Mapping[str, Any]]) -> str:
    """Each data set in a few lines of 80 columns."""
    lines = []
    for row in rows:
        shape = "x".join(map(str, row["shape"]))
        ready = "" if row["available"] else "  (not here yet)"
        lines.append(f"{row['name']}  {row['train']} + {row['test']} examples of {shape}, {row['classes']} classes{ready}")
        lines += _indented(row["summary"]) + _indented(f"from {row['source']}")
    return "\n".join(lines)


def listed(rows: list[dict[str, Any]], form: str, text: Callable[[Iterable[Mapping[str, Any]]], str]) -> str:
    """The rows in one of the formats; as a table in words of their own."""
    return text(rows) if form == "table" else shown(rows, form)


def first_line(thing: Any) -> str:
    """The first sentence of a docstring."""
    return (inspect.getdoc(thing) or "").partition("\n")[0]


def defaults(cls: type) -> dict[str, Any]:
    """The fields of a dataclass with their defaults."""
    found = {}
    for field in dataclasses.fields(cls):
        made = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        found[field.name] = "required" if made is dataclasses.MISSING else made
    return found


def _indented(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False)
