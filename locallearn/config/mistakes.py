"""Mistakes in a configuration: what is wrong at which key, put into words that say where and what to do."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

from locallearn.config.document import MISSING, Document, KeyPath, dotted, printable
from locallearn.errors import ConfigError, Problem


class Mistake(NamedTuple):
    """One mistake.

    kind: `unknown` key, `missing` key, wrong `value`, or a `name` that is in no table. text: the rest of the sentence.
    near: for an unknown key, the key that was probably meant.
    """

    path: KeyPath
    kind: Literal["unknown", "missing", "value", "name"]
    text: str = ""
    near: str | None = None


class Located(NamedTuple):
    """A problem with its place in the order of the report."""

    order: tuple[int, int]
    problem: Problem


def nearest(word: Any, words: Iterable[str]) -> str | None:
    """The word that was probably meant, if any is close."""
    return next(iter(difflib.get_close_matches(str(word), list(words), 1)), None)


def hint(word: Any, words: Sequence[str], label: str) -> str:
    """`; did you mean X?`, or the list of what there is if nothing is close."""
    near = nearest(word, words)
    return f"; did you mean `{near}`?" if near else f" ({label}: {', '.join(words) or 'none'})"


def unknown_key(path: KeyPath, allowed: Sequence[str], nested: Iterable[str] = ()) -> Mistake:
    """An unknown key. nested: dotted keys of the sections below, for a key that was put one level too high."""
    key = str(path[-1])
    below = {deep.rpartition(".")[2]: deep for deep in reversed(list(nested))}
    near = below.get(key) or nearest(key, allowed) or below.get(nearest(key, below) or "")
    text = f"; did you mean `{near}`?" if near else f" (keys: {', '.join(allowed)})"
    return Mistake(path, "unknown", text, near)


def tidy(mistakes: Sequence[Mistake]) -> list[Mistake]:
    """Without the missing keys that stand there misspelt: the two are one mistake."""
    meant = {(*m.path[:-1], *m.near.split(".")) for m in mistakes if m.kind == "unknown" and m.near}
    return [m for m in mistakes if not (m.kind == "missing" and m.path in meant)]


def locate(mistakes: Sequence[Mistake], document: Document) -> list[Located]:
    """The mistakes in words, each at its line of the document."""
    located = []
    for mistake in tidy(mistakes):
        place = document.place(mistake.path)
        name = dotted(mistake.path)
        shown = _shown(document, mistake.path)
        if place is None:
            located.append(Located((0, 0), Problem(name, _brief(mistake, shown))))
        else:
            located.append(Located(place.order, Problem(place.where, _sentence(mistake, name, shown))))
    return located


def fail(located: Iterable[Located]) -> None:
    """ConfigError with all problems in the order of their lines, each once; nothing if there are none."""
    problems = dict.fromkeys(item.problem for item in sorted(located, key=lambda item: item.order))
    if problems:
        raise ConfigError(problems)


def _sentence(mistake: Mistake, name: str, shown: str) -> str:
    if mistake.kind == "unknown":
        return f"unknown key `{name}`{mistake.text}"
    if mistake.kind == "missing":
        return f"`{name}` is missing{mistake.text}"
    if not name:
        return mistake.text
    subject = f"`{name}: {shown}`" if shown else f"`{name}`"
    return f"{subject} {mistake.text}" if mistake.kind == "name" else f"{subject}: {mistake.text}"


def _brief(mistake: Mistake, shown: str) -> str:
    """The sentence without the key, for a mistake whose place is the key."""
    if mistake.kind == "unknown":
        return f"unknown key{mistake.text}"
    if mistake.kind == "missing":
        return f"is missing{mistake.text}"
    if not shown:
        return mistake.text
    return f"`{shown}` {mistake.text}" if mistake.kind == "name" else f"`{shown}`: {mistake.text}"


def _shown(document: Document, path: KeyPath) -> str:
    value = document.at(path)
    place = document.place(path)
    if place is not None and place.text is not None:
        text = place.text
    elif value is MISSING or isinstance(value, dict):
        return ""
    elif isinstance(value, str):
        text = value
    else:
        text = json.dumps(value, default=lambda thing: type(thing).__name__)
    text = printable(text)
    return text if len(text) <= 60 else text[:57] + "..."
