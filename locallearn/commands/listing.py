"""What there is: rules, codecs and data sets, as rows of plain data and as text."""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from locallearn.config.mistakes import hint
from locallearn.errors import ConfigError, Problem
from locallearn.report.tabular import setting, shown
from locallearn.words import WIDTH

BATCH = (128, 256)
"""The message whose bits are told of a codec."""


def rule_rows() -> Iterator[dict[str, Any]]:
    """Every rule, family by family: what it is, what it sends, assumes and waits for, and its hyperparameters with their defaults."""
    from locallearn.rules import RULES

    rules = dict(RULES.items())
    for family in dict.fromkeys(rule.family for rule in rules.values()):
        yield from (rule_row(name, rule) for name, rule in rules.items() if rule.family == family)


def rule_row(name: str, rule: Any) -> dict[str, Any]:
    """One of them."""
    return {
        "name": name,
        "family": rule.family,
        "summary": title(rule),
        "assumes": rule.assumes,
        **_costs(name),
        "messages": {key: f"{message.kind} {message.direction}" for key, message in rule.messages.items()},
        "parameters": defaults(rule),
    }


def _costs(name: str) -> dict[str, Any]:
    """What a rule with its default settings costs; null where none of the standard networks suits it."""
    from locallearn.report.costs import Unsuited, costs_by_name

    try:
        costs = costs_by_name(name)
    except Unsuited:
        return {"locking": None, "bytes_up": None, "bytes_down": None}
    return {"locking": list(costs.locking), "bytes_up": str(costs.up), "bytes_down": str(costs.down)}


def codec_rows(only: str | None = None) -> list[dict[str, Any]]:
    """Every codec, or only one: what it is and suits, its parameters with their defaults, and bits for each number of a batch.

    Of one that wraps another, with `exact` after it; `at_most` where its frames vary in size.
    """
    from locallearn.codec import CODECS, COMBINATORS, Spec, build, nbytes, packet_spec

    if only is not None and only not in CODECS:
        raise ConfigError([Problem("codecs", f"`{only}` is no codec{hint(only, list(CODECS), 'codecs')}")])
    rows = []
    for name in CODECS if only is None else [only]:
        make = CODECS[name]
        parameters = {key: p.default for key, p in inspect.signature(make).parameters.items() if key != "inner"}
        plain = {key: "required" if value is inspect.Parameter.empty else value for key, value in parameters.items()}
        codec, message = build(((name, ()),)), Spec(BATCH, np.dtype(np.int32 if name == "packed" else np.float32))
        bits = 8 * nbytes(packet_spec(codec, message)) / message.size
        row = {"name": name, "wraps": name in COMBINATORS, "summary": first_line(make), "parameters": plain}
        rows.append(row | {"bits": round(bits, 3), "at_most": codec.wire is not None, "suits": suits(make)})
    return rows


def dataset_rows() -> list[dict[str, Any]]:
    """Every data set with its default settings; nothing is loaded."""
    from locallearn.data import describe

    return describe()


def rule_lines(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Each rule in a few lines of 80 columns, under its family, as soon as its row is there."""
    yield "Bytes that arrive above and below a boundary of n units, for each example,"
    yield "uncompressed. Locked: what a block's update waits for: the blocks below it"
    yield "(forward), what those above make of the batch (update), all of them in turn"
    yield "(backward). `locallearn rules NAME` prints the page of one."
    family = None
    for row in rows:
        if row["family"] != family:
            family = row["family"]
            yield from ("", family)
        sent = ", ".join(f"{name} ({what.partition(' ')[2]})" for name, what in row["messages"].items())
        yield f"  {row['name']}"
        yield from _indented(row["summary"])
        locked = "?" if row["locking"] is None else ", ".join(row["locking"]) or "not at all"
        yield from _indented(f"bytes {row['bytes_up'] or '?'} up, {row['bytes_down'] or '?'} down; locked: {locked}")
        yield from _indented(f"sends {sent}; assumes {row['assumes']}")


def codecs_text(rows: Iterable[Mapping[str, Any]]) -> str:
    """Each codec in a few lines of 80 columns."""
    lines = [f"Bits for each number of a message of {BATCH[0]} rows of {BATCH[1]} numbers, scales among them."]
    lines += ["`locallearn codecs NAME` prints the page of one.", ""]
    for row in rows:
        lines += [_codec_head(row), *_indented(row["summary"]), *_indented(row["suits"])]
    return "\n".join(lines)


def codec_page(rows: Iterable[Mapping[str, Any]]) -> str:
    """All that is said of a codec."""
    from locallearn.codec import CODECS
    from locallearn.commands.rulepage import wrapped

    return "\n\n".join(f"{_codec_head(row)}\n\n{wrapped(inspect.getdoc(CODECS[row['name']]) or '')}" for row in rows)


def _codec_head(row: Mapping[str, Any]) -> str:
    words = {key: setting(value) for key, value in row["parameters"].items()}
    inside = ", ".join(key if word == "required" else f"{key}={word}" for key, word in words.items())
    bits = f"{'at most ' if row['at_most'] else ''}{row['bits']:.3g} bits"
    return f"{row['name']}{f'({inside})' if inside else ''}  {f'wraps another; {bits} alone' if row['wraps'] else bits}"


def datasets_text(rows: Iterable[Mapping[str, Any]]) -> str:
    """Each data set in a few lines of 80 columns."""
    lines = []
    for row in rows:
        shape = "x".join(map(str, row["shape"]))
        ready = "" if row["available"] else "  (not here yet)"
        lines.append(f"{row['name']}  {row['train']} + {row['test']} examples of {shape}, {row['classes']} classes{ready}")
        lines += _indented(row["summary"]) + _indented(f"{'from ' if '/' in row['source'] else ''}{row['source']}")
    return "\n".join(lines)


def listed(rows: list[dict[str, Any]], form: str, text: Callable[[Iterable[Mapping[str, Any]]], str]) -> str:
    """The rows in one of the formats; as a table in words of their own."""
    return text(rows) if form == "table" else shown(rows, form)


def title(rule: type) -> str:
    """The first line of a rule's file, or of its own docstring."""
    return first_line(inspect.getmodule(rule)) or first_line(rule)


def first_line(thing: Any) -> str:
    """The first sentence of a docstring."""
    return (inspect.getdoc(thing) or "").partition("\n")[0]


def suits(codec: Any) -> str:
    """The sentence of a codec's docstring that says which messages it suits."""
    text = " ".join((inspect.getdoc(codec) or "").split())
    found = re.search(r"Suits .*?[.;](?= [A-Z0-9|]|$)", text)
    return found[0] if found else ""


def defaults(cls: type) -> dict[str, Any]:
    """The fields of a dataclass with their defaults."""
    found = {}
    for field in dataclasses.fields(cls):
        made = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        found[field.name] = "required" if made is dataclasses.MISSING else made
    return found


def _indented(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False)
