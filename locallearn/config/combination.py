"""One combination of a sweep, and what sets it apart from the others: columns of the table, the name of the folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from locallearn.config.axes import Choice
from locallearn.config.baselines import BASELINE
from locallearn.config.document import MISSING, Document, split_key
from locallearn.config.run import Config, slug


class Tuned(NamedTuple):
    """Of a run of a tuned sweep: the study, the values that it chose or tries, and the number of the trial, None of a run on its choice."""

    study: int
    values: Mapping[str, Any]
    trial: int | None = None


@dataclass(frozen=True)
class Run:
    """One run of a sweep. varied: what sets it apart, by column of the table. name: its folder, which all its seeds share."""

    config: Config
    varied: Mapping[str, Any]
    name: str
    tuned: Tuned | None = None


@dataclass(frozen=True)
class Combination:
    """The base with one choice of each axis. labels: of the axes that have them."""

    run: Document
    choices: tuple[Choice, ...]
    labels: Mapping[str, str]


def written_values(combination: Combination) -> dict[str, Any]:
    """What varies, as it is written."""
    columns = [key for choice in combination.choices for key in choice.columns()]
    return {**combination.labels, **{key: _cell(key, combination.run.at(split_key(key))) for key in columns}}


def varied_values(combination: Combination, config: Config) -> dict[str, Any]:
    """What varies, as it was resolved: numbers are numbers."""
    resolved = Document(config.canonical())
    found = {key: resolved.at(split_key(key)) for key in written_values(combination) if key not in combination.labels}
    return written_values(combination) | {key: _cell(key, value) for key, value in found.items() if value is not MISSING}


def _cell(key: str, value: Any) -> Any:
    """One value for a column: lists in one word."""
    if isinstance(value, list | tuple):
        return ("+" if key.startswith("codecs") else "-").join(map(str, value))
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def folder(config: Config, varied: Mapping[str, Any]) -> str:
    """The name of a combination's folder, but for the identity: the rule, and every value that varies."""
    words = [str(value) for key, value in varied.items() if key != "rule.name" and value is not None]
    said = any(key.split(".")[0] in ("codecs", BASELINE) for key in varied)
    return slug("-".join([config.rule_name if said else config.label(), *words]))


def in_words(varied: Mapping[str, Any]) -> str:
    """What varies, for a message."""
    return ", ".join(f"{key} {value}" for key, value in varied.items()) or "the base"
