"""Seeds together: what each combination of a sweep reached, and for how many bytes."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from locallearn.report.table import COLUMNS, DIAGNOSTIC, Row, combination_of, last_rows
from locallearn.words import duration, size

FIXED = ("task", "data.name", "codecs.default")


@dataclass(frozen=True)
class Group:
    """The finished runs of one combination, over its seeds. panel: its task. variant: what sets it apart from others of its rule.

    diverged: how many of the finished runs did; they count with the accuracy that they had. unfinished: states of the other runs.
    """

    panel: str
    rule: str
    codecs: str
    variant: str
    accuracies: tuple[float, ...]
    bytes: float
    bytes_per_step: float
    seconds: float
    diverged: int = 0
    unfinished: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The rule and its variant."""
        return f"{self.rule} {self.variant}".strip()

    @property
    def name(self) -> str:
        """The rule, its variant, and the codecs."""
        return f"{self.label} {self.codecs}" if self.codecs != "exact" else self.label


def groups_of(rows: Sequence[Row]) -> list[Group]:
    """All combinations in the order of the rows; one without a finished run has no accuracies."""
    together: dict[str, list[Row]] = {}
    rules: dict[str, list[Row]] = {}
    for row in last_rows(rows):
        together.setdefault(combination_of(row), []).append(row)
        rules.setdefault(str(row["rule"]), []).append(row)
    telling = {rule: _telling(own) for rule, own in rules.items()}
    return [_group(runs, telling[str(runs[0]["rule"])]) for runs in together.values()]


def _telling(rows: Sequence[Row]) -> list[str]:
    """The varied keys that tell runs of one rule apart, and that are told nowhere else."""
    keys = dict.fromkeys(key for row in rows for key in row if key not in COLUMNS and not key.startswith(("bytes_", DIAGNOSTIC)))
    free = [key for key in keys if key not in FIXED and key.split(".")[0] != "codecs"]
    return [key for key in free if len({str(row.get(key)) for row in rows}) > 1]


def _group(runs: Sequence[Row], telling: Sequence[str]) -> Group:
    first, done = runs[0], [row for row in runs if row["state"] == "finished"]
    tested = [row for row in done if row.get("test_accuracy") is not None]
    return Group(
        panel=str(first.get("task") or first["data"]),
        rule=str(first["rule"]),
        codecs=str(first["codecs"]),
        variant=_variant(first, telling),
        accuracies=tuple(float(row["test_accuracy"]) for row in tested),
        bytes=statistics.median(row["bytes"] for row in tested) if tested else 0.0,
        bytes_per_step=statistics.median(row["bytes"] / row["step"] for row in tested) if tested else 0.0,
        seconds=statistics.median(row["seconds"] for row in tested) if tested else 0.0,
        diverged=sum(row.get("reason") == "diverged" for row in done),
        unfinished=tuple(row["state"] for row in runs if row["state"] != "finished"),
    )


def _variant(row: Row, telling: Sequence[str]) -> str:
    words = [_word(key, row.get(key)) for key in telling]
    suffix = "" if row["fabric"] == "fused" else f"on {row['fabric']}"
    return " ".join([*(word for word in words if word), suffix]).strip()


def _word(key: str, value: Any) -> str:
    if value is None:
        return ""
    return str(value) if "." not in key else f"{key.rpartition('.')[2]} {value}"


def reference(groups: Sequence[Group], panel: str) -> Group | None:
    """What the others of a panel are compared with: backprop, every bit sent."""
    return next((g for g in groups if g.panel == panel and g.rule == "backprop" and g.codecs == "exact" and g.accuracies), None)


def summary(rows: Sequence[Row], width: int = 80) -> str:
    """A table for each panel: accuracy (mean and standard deviation over seeds), bytes, ratio to backprop's bytes, time."""
    groups = groups_of(rows)
    lines: list[str] = []
    for panel in dict.fromkeys(group.panel for group in groups):
        inside = [group for group in groups if group.panel == panel]
        lines += ["", _line((panel, "test", "bytes", "a step", "/backprop", "time"), width)]
        lines += [_line(_cells(group, reference(groups, panel)), width) for group in inside]
    return "\n".join(lines[1:])


def _cells(group: Group, against: Group | None) -> tuple[str, ...]:
    name = " ".join([group.name, *_missing(group)])
    if not group.accuracies:
        return (name, "-", "-", "-", "-", "-")
    spread = f" ±{statistics.stdev(group.accuracies):.3f}" if len(group.accuracies) > 1 else ""
    ratio = f"{group.bytes / against.bytes:.3g}" if against and against.bytes else "-"
    mean = f"{statistics.fmean(group.accuracies):.3f}{spread}"
    return (name, mean, size(group.bytes), size(group.bytes_per_step), ratio, duration(group.seconds))


def _missing(group: Group) -> list[str]:
    """What a reader must know of the runs behind a mean."""
    counts = [f"{group.unfinished.count(state)} {state}" for state in dict.fromkeys(group.unfinished)]
    return [f"({', '.join([*counts, *([f'{group.diverged} diverged'] if group.diverged else [])])})"] if counts or group.diverged else []


def _line(cells: Sequence[str], width: int) -> str:
    """The first column takes what the others leave; a name that needs more has a line of its own."""
    rest = f"{cells[1]:>13}{cells[2]:>10}{cells[3]:>10}{cells[4]:>10}{cells[5]:>12}"
    room = width - len(rest)
    return f"{cells[0]:<{room}}{rest}" if len(cells[0]) <= room else f"{cells[0]}\n{'':<{room}}{rest}"
