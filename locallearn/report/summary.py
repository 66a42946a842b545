"""Seeds together: what each combination of a sweep reached, and for how many bytes."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from locallearn.experiment.store import DIVERGED, FINISHED
from locallearn.report.spread import Estimate, estimate
from locallearn.report.table import COLUMNS, DIAGNOSTIC, Row, combination_of, is_trial, last_rows, task_of
from locallearn.words import WIDTH, duration, size

SLACK = 0.002
"""Of accuracy: so much a reference may lose by its cheaper settings."""
FIXED = ("task", "data.name", "codecs.default")


@dataclass(frozen=True)
class Group:
    """The finished runs of one combination, over its seeds. panel: its task. variant: what sets it apart from others of its rule.

    told: the variant says which codecs these are, so a name need not list them.

    diverged: how many of the finished runs did; they count with the accuracy that they had. unfinished: states of the other runs.
    runs, seeds: of the tested runs, in the order of the accuracies; a seed is (study, seed). first: any run of it, finished or not.
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
    runs: tuple[str, ...] = ()
    seeds: tuple[tuple[int, int], ...] = ()
    first: str = ""
    told: bool = False

    @cached_property
    def estimate(self) -> Estimate:
        """Mean test accuracy and its 95 % interval. ValueError without a tested run."""
        return estimate(self.accuracies)

    @property
    def facts(self) -> dict[str, str]:
        """What it is, as the first columns of a table."""
        return {"task": self.panel, "rule": self.rule, "variant": self.variant, "codecs": self.codecs}

    @property
    def by_seed(self) -> dict[tuple[int, int], float]:
        """Test accuracies."""
        return dict(zip(self.seeds, self.accuracies, strict=True))

    @property
    def label(self) -> str:
        """The rule and its variant, which may have the rule's name in it: `backprop, 4 bits`, `four solos`."""
        said = {word.strip(",.").removesuffix("s") for word in self.variant.split()}
        return self.variant if said & {self.rule, self.rule.rpartition("_")[2]} else f"{self.rule} {self.variant}".strip()

    @property
    def name(self) -> str:
        """The rule, its variant, and the codecs unless the variant tells them."""
        return self.label if self.told or self.codecs == "exact" else f"{self.label} {self.codecs}"

    @property
    def words(self) -> str:
        """The name as people write it."""
        return self.name.replace("_", " ")

    @property
    def missing(self) -> str:
        """What a reader must know of the runs behind a mean: `1 failed, 2 diverged`."""
        counts = {state: self.unfinished.count(state) for state in self.unfinished} | {DIVERGED: self.diverged}
        return ", ".join(f"{count} {state}" for state, count in counts.items() if count)


def groups_of(rows: Sequence[Row]) -> list[Group]:
    """All combinations in the order of the rows, without trials of tuning; one without a finished run has no accuracies."""
    together: dict[str, list[Row]] = {}
    rules: dict[str, list[Row]] = {}
    for row in last_rows(row for row in rows if not is_trial(row)):
        together.setdefault(combination_of(row), []).append(row)
        rules.setdefault(str(row["rule"]), []).append(row)
    telling = {rule: _telling(own) for rule, own in rules.items()}
    firsts = [runs[0] for runs in together.values()]
    labels = {rule: _labelled([row for row in firsts if str(row["rule"]) == rule], keys) for rule, keys in telling.items()}
    groups = [_group(runs, telling[rule], labels[rule]) for runs in together.values() for rule in [str(runs[0]["rule"])]]
    return _told_apart(groups, firsts)


def _told_apart(groups: Sequence[Group], firsts: Sequence[Row]) -> list[Group]:
    """Combinations of several sweeps that would have one name have their sweep's in it."""
    sweeps: dict[tuple[str, str], set[str]] = {}
    for group, row in zip(groups, firsts, strict=True):
        sweeps.setdefault((group.panel, group.name), set()).add(str(row.get("sweep") or ""))
    return [
        replace(group, variant=f"{group.variant} {row.get('sweep') or ''}".strip()) if len(sweeps[group.panel, group.name]) > 1 else group
        for group, row in zip(groups, firsts, strict=True)
    ]


def _telling(rows: Sequence[Row]) -> list[str]:
    """The varied keys that tell runs of one rule apart, and that are told nowhere else."""
    keys = dict.fromkeys(key for row in rows for key in row if key not in COLUMNS and not key.startswith(("bytes_", DIAGNOSTIC)))
    tuned = {key for row in rows for key in (row.get("tuned") or "").split()}
    free = [key for key in keys if key not in FIXED and key not in tuned and key.split(".")[0] != "codecs"]
    return [key for key in free if len({str(row.get(key)) for row in rows}) > 1]


def _labelled(rows: Sequence[Row], telling: Sequence[str]) -> bool:
    """Whether the labels that a sweep gives its entries say which codecs a run has."""
    labels = [key for key in telling if "." not in key]
    codecs: dict[tuple[str, ...], set[str]] = {}
    for row in rows:
        codecs.setdefault(tuple(str(row.get(key)) for key in labels), set()).add(str(row["codecs"]))
    return bool(labels) and all(len(found) == 1 for found in codecs.values())


def _group(runs: Sequence[Row], telling: Sequence[str], told: bool) -> Group:
    first, done = runs[0], [row for row in runs if row["state"] == FINISHED]
    tested = [row for row in done if row.get("test_accuracy") is not None]
    return Group(
        panel=task_of(first),
        rule=str(first["rule"]),
        codecs=str(first["codecs"]),
        variant=_variant(first, telling),
        accuracies=tuple(float(row["test_accuracy"]) for row in tested),
        bytes=statistics.median(row["bytes"] for row in tested) if tested else 0.0,
        bytes_per_step=statistics.median(row["bytes"] / row["step"] for row in tested) if tested else 0.0,
        seconds=statistics.median(row["seconds"] for row in tested) if tested else 0.0,
        diverged=sum(row.get("reason") == DIVERGED for row in done),
        unfinished=tuple(row["state"] for row in runs if row["state"] != FINISHED),
        runs=tuple(str(row["run"]) for row in tested),
        seeds=tuple((int(row.get("study") or 0), int(row["seed"] or 0)) for row in tested),
        first=str(first["run"]),
        told=told,
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
    """What the others of a panel are compared with: backprop, every bit sent; of several settings the cheapest near the best."""
    known = [g for g in groups if g.panel == panel and g.rule == "backprop" and g.codecs == "exact" and g.accuracies]
    best = max((g.estimate.mean for g in known), default=0.0)
    return min((g for g in known if g.estimate.mean >= best - SLACK), key=lambda g: g.bytes, default=None)


def pareto(groups: Sequence[Group]) -> list[Group]:
    """Those whose mean accuracy no other has for the same bytes or fewer, by rising bytes."""
    front: list[Group] = []
    for group in sorted((g for g in groups if g.accuracies), key=lambda g: (g.bytes, -g.estimate.mean)):
        if not front or group.estimate.mean > front[-1].estimate.mean:
            front.append(group)
    return front


def foremost(groups: Sequence[Group], limit: int) -> list[Group]:
    """At most so many of one panel, in their order: the reference, the front, the best of each rule, then the most accurate."""
    tested = [group for group in groups if group.accuracies]
    ranked = sorted(tested, key=lambda g: -g.estimate.mean)
    best = {group.rule: group for group in reversed(ranked)}
    against = [reference(tested, group.panel) for group in tested[:1]]
    wanted = [*(group for group in against if group), *pareto(tested), *sorted(best.values(), key=lambda g: -g.estimate.mean), *ranked]
    kept = list({id(group): None for group in wanted})[:limit]
    return [group for group in tested if id(group) in kept]


def summary(rows: Sequence[Row]) -> str:
    """A table for each panel: accuracy (mean and standard deviation over seeds), bytes, ratio to backprop's bytes, time."""
    groups = groups_of(rows)
    lines: list[str] = []
    for panel in dict.fromkeys(group.panel for group in groups):
        inside = [group for group in groups if group.panel == panel]
        lines += ["", _line((panel, "test", "bytes", "a step", "/backprop", "time"))]
        lines += [_line(_cells(group, reference(groups, panel))) for group in inside]
    return "\n".join(lines[1:])


def _cells(group: Group, against: Group | None) -> tuple[str, ...]:
    name = f"{group.name} ({group.missing})" if group.missing else group.name
    if not group.accuracies:
        return (name, "-", "-", "-", "-", "-")
    spread = f" ±{statistics.stdev(group.accuracies):.3f}" if len(group.accuracies) > 1 else ""
    ratio = f"{group.bytes / against.bytes:.3g}" if against and against.bytes else "-"
    mean = f"{statistics.fmean(group.accuracies):.3f}{spread}"
    return (name, mean, size(group.bytes), size(group.bytes_per_step), ratio, duration(group.seconds))


def _line(cells: Sequence[str]) -> str:
    """The first column takes what the others leave; a name that needs more has a line of its own."""
    rest = f"{cells[1]:>13}{cells[2]:>10}{cells[3]:>10}{cells[4]:>10}{cells[5]:>12}"
    room = WIDTH - len(rest)
    return f"{cells[0]:<{room}}{rest}" if len(cells[0]) <= room else f"{cells[0]}\n{'':<{room}}{rest}"
