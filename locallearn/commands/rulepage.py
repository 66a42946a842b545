"""The page of one rule: its paper, its equations, its hyperparameters, its messages, and what it costs."""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
import types
import typing
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal, NamedTuple, Union

from locallearn.commands.listing import rule_row
from locallearn.config.mistakes import hint
from locallearn.errors import ConfigError, Problem
from locallearn.report.costs import Costs, costs_by_name
from locallearn.report.tabular import setting
from locallearn.words import WIDTH, size

_BOUNDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
EXAMPLE = 512


class Parameter(NamedTuple):
    """A field of a dataclass: what values it takes, its default, and what it is, in words."""

    name: str
    kind: str
    default: Any
    doc: str


def rule_named(name: str, where: str = "rules") -> Any:
    """A rule of the table; ConfigError with what was probably meant."""
    from locallearn.rules import RULES

    if name not in RULES:
        raise ConfigError([Problem(where, f"`{name}` is no rule{hint(name, list(RULES), 'rules')}")])
    return RULES[name]


def rule_page(name: str) -> str:
    """`locallearn rules NAME`."""
    rule = rule_named(name)
    module = inspect.getmodule(rule)
    parts = [f"{name}  ({rule.family})", wrapped(inspect.getdoc(module) or "")]
    if not all(parameter.doc for parameter in parameters(rule)):
        parts.append(wrapped(inspect.getdoc(rule) or ""))
    parts += ["\n".join(["hyperparameters", *parameter_lines(rule)])]
    parts += ["\n".join(["messages", *_message_lines(rule)])]
    costs = costs_by_name(name)
    parts += [
        "\n".join(_cost_lines(costs)),
        filled(f"assumes {rule.assumes}", ""),
        f"a file that runs: locallearn new --rule {name}",
    ]
    return "\n\n".join(part for part in parts if part)


def rule_parts(name: str) -> dict[str, Any]:
    """The same as plain data: its row of the list, with what is said of the rule, its messages and its hyperparameters."""
    rule = rule_named(name)
    about = {"about": inspect.getdoc(inspect.getmodule(rule))}
    messages = {key: message._asdict() for key, message in rule.messages.items()}
    told = {p.name: {"kind": p.kind, "default": _plain(p.default), "doc": p.doc} for p in _flattened(parameters(rule))}
    return {**rule_row(name, rule), **about, "messages": messages, "parameters": told}


def parameters(cls: type) -> list[Parameter]:
    """The fields that a configuration can give, in order."""
    hints = typing.get_type_hints(cls, include_extras=True)
    docs = _docs(cls)
    found = []
    for field in dataclasses.fields(cls):
        made = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        found.append(Parameter(field.name, kind_of(hints[field.name]), made, docs.get(field.name, "")))
    return found


def kind_of(hint: Any) -> str:
    """A type in words: `float > 0`, `relu | tanh`, `int >= 1 or none`."""
    if typing.get_origin(hint) is Annotated:
        bounds = [f"{sign} {getattr(mark, name)}" for mark in hint.__metadata__ for name, sign in _BOUNDS.items() if hasattr(mark, name)]
        return " ".join([kind_of(hint.__origin__), " and ".join(bounds)]).strip()
    arms = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return " | ".join(map(str, arms))
    if typing.get_origin(hint) in (Union, types.UnionType):
        return " or ".join(kind_of(arm) for arm in arms)
    if dataclasses.is_dataclass(hint):
        return "section"
    if typing.get_origin(hint) is tuple:
        return f"list of {kind_of(arms[0])}"
    return {type(None): "none", bool: "true | false"}.get(hint, getattr(hint, "__name__", str(hint)))


def _plain(default: Any) -> Any:
    if default is dataclasses.MISSING:
        return "required"
    return dataclasses.asdict(default) if dataclasses.is_dataclass(default) and not isinstance(default, type) else default


def _docs(cls: type) -> dict[str, str]:
    """What the class's docstring says of each field, `name: text` or `name, name: text`, and the comments beside fields."""
    names = [field.name for field in dataclasses.fields(cls)]
    text = " ".join((inspect.getdoc(cls) or "").split())
    one = "|".join(map(re.escape, names)) or "-"
    heads = list(re.finditer(rf"(?:(?<=[.:] )|^)((?:{one})(?:, (?:{one}))*): ", text))
    found = {}
    ends = [*(head.start() for head in heads[1:]), len(text)]
    for head, end in zip(heads, ends, strict=False):
        found |= dict.fromkeys(head[1].split(", "), text[head.end() : end].strip().removesuffix("."))
    beside = {name: text for base in reversed(cls.__mro__) for name, text in _comments(base).items() if name in names}
    return found | beside


def _comments(cls: type) -> dict[str, str]:
    try:
        source = inspect.getsource(cls)
    except (OSError, TypeError):
        return {}
    return dict(re.findall(r"^    (\w+): [^#\n]*  # (.*)$", source, re.MULTILINE))


def parameter_lines(cls: type) -> Iterator[str]:
    """Each field: its name, default and kind, then what it is."""
    for name, kind, default, doc in _flattened(parameters(cls)):
        fields = [field.name for field in dataclasses.fields(default)] if dataclasses.is_dataclass(default) else []
        value = f"{{{', '.join(fields)}}}" if fields else setting(default)
        head = f"  {name}   {kind}; required" if default is dataclasses.MISSING else f"  {name} = {value}   {kind}"
        yield from folded(head, "", "      ")
        yield from folded(doc, "      ")
    if not dataclasses.fields(cls):
        yield "  none"


def _flattened(found: Iterable[Parameter]) -> Iterator[Parameter]:
    """The fields of a section after the section, under dotted names."""
    for parameter in found:
        yield parameter
        if dataclasses.is_dataclass(parameter.default):
            inner = parameters(type(parameter.default))
            yield from _flattened(field._replace(name=f"{parameter.name}.{field.name}") for field in inner)


def _message_lines(rule: Any) -> Iterator[str]:
    for name, (kind, direction, doc) in rule.messages.items():
        yield from folded(f"{name}, of kind {kind}, {direction}: {doc}", "  ", "      ")


def _cost_lines(costs: Costs) -> Iterator[str]:
    yield "costs"
    yield f"  at a boundary of n units, for each example: {costs.up} bytes up, {costs.down} down"
    up, down = (size(round(amount.example(EXAMPLE))) for amount in (costs.up, costs.down))
    yield f"  with {EXAMPLE} units: {up} up, {down} down, uncompressed"
    yield f"  messages that wait for one another, in 5 blocks: {costs.hops}"
    yield f"  locked: {', '.join(costs.locking) or 'not at all'}"


def wrapped(text: str) -> str:
    """Prose in 80 columns; citations one by one; what is indented (equations, tables) stays as it is, where it is not too long."""
    found: list[str] = []
    for paragraph in text.split("\n\n"):
        lines = paragraph.splitlines()
        if any(line.startswith("  ") for line in lines):
            found.append("\n".join(part for line in lines for part in equation(line)))
        else:
            found.append("\n".join(filled(part, "") for part in (citations(lines) if "https://" in paragraph else [paragraph])))
    return "\n\n".join(found)


def citations(lines: Iterable[str]) -> Iterator[str]:
    """Each ends with its address."""
    one = ""
    for line in lines:
        one = f"{one} {line}".strip()
        if re.search(r"https?://\S+$", one):
            yield one
            one = ""
    yield from [one] if one else []


def equation(line: str) -> list[str]:
    """A line as it is; if it is too long, what stands apart in it goes below, further in, and what is too long even so is folded."""
    inside = len(line) - len(line.lstrip()) + 4
    found, rest = [], line
    while len(rest) > WIDTH:
        gaps = [gap for gap in re.finditer(r"(?<=\S) {3,}(?![ =←∝~≈])", rest) if gap.start() <= WIDTH]
        if not gaps:
            break
        found.append(rest[: gaps[-1].start()])
        rest = " " * inside + rest[gaps[-1].end() :]
    short = len(rest) <= WIDTH
    return [*found, *([rest] if short else textwrap.wrap(rest, WIDTH, subsequent_indent=" " * (inside + 4), break_long_words=False))]


def filled(text: str, indent: str) -> str:
    """One paragraph in 80 columns."""
    return "\n".join(folded(" ".join(text.split()), indent))


def folded(text: str, indent: str, later: str | None = None) -> list[str]:
    """The lines of one paragraph in 80 columns, all but the first of them behind `later`."""
    later = indent if later is None else later
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=later, break_on_hyphens=False, break_long_words=False)
