"""What tuning costs before it begins, and what it found: for each combination, study by study."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from locallearn.config.run import Config
from locallearn.config.tuning import Study
from locallearn.experiment.tuning import bytes_to_target
from locallearn.report.table import Row, combination_of, is_trial
from locallearn.report.tabular import short, shown
from locallearn.words import plural, size


def tuning_plan(studies: Sequence[Study], form: str) -> str:
    """`locallearn sweep --dry-run` of a tuned sweep: trials and runs of each combination, and their bytes.

    Bytes of the runs are at most so many: they depend on what is chosen.
    """
    rows = _planned(studies)
    if form != "table":
        return shown(rows, form)
    words = {"run": short, "trials": str, "trial_bytes": size, "runs": str, "run_bytes": size}
    trials, runs = (sum(row[name] for row in rows) for name in ("trials", "runs"))
    tried, sent = (sum(row[name] for row in rows) for name in ("trial_bytes", "run_bytes"))
    total = f"{plural(trials, 'trial')} send {size(tried)}, {plural(runs, 'run')} on what they choose at most {size(sent)}"
    return f"{shown(rows, form, words)}\n\n{total}"


def _planned(studies: Sequence[Study]) -> list[dict[str, Any]]:
    from locallearn.experiment.planning import plan
    from locallearn.experiment.prepare import cached_loader, prepare

    remember = cached_loader()
    known: dict[str, int] = {}

    def sent(config: Config) -> int:
        optimizer = type(config.train.optimizer)()
        key = replace(config, train=replace(config.train, optimizer=optimizer)).digest()  # which no message depends on
        if key not in known:
            known[key] = plan(prepare(config, remember))["bytes"]
        return known[key]

    rows: dict[str, dict[str, Any]] = {}
    for study in studies:
        names = dict.fromkeys(_combination(run.name) for run in (*study.trials, *study.follow[0]))
        for name in names:
            rows.setdefault(name, {"run": name, "trials": 0, "trial_bytes": 0, "runs": 0, "run_bytes": 0})
        for run in study.trials:
            row = rows[_combination(run.name)]
            row["trials"] += 1
            row["trial_bytes"] += sent(run.config)
        for k, run in enumerate(study.follow[0]):
            row = rows[_combination(run.name)]
            row["runs"] += 1
            row["run_bytes"] += max(sent(runs[k].config) for runs in study.follow)
    return list(rows.values())


def _combination(name: str) -> str:
    return name.partition("/")[0]


class Searched(NamedTuple):
    """A study as its rows tell it.

    trials: how many there were, with how many bytes and steps in all. chosen: values by key. valid: of the chosen trial; None where
    nothing was run on a choice yet. to_target: bytes, least over the trials.
    """

    combination: str
    study: int
    trials: int
    bytes: int
    steps: int
    chosen: dict[str, Any]
    valid: float | None
    to_target: float


def searched(rows: Iterable[Row], accuracy: float | None) -> list[Searched]:
    """Every study among the rows of a table, in their order. accuracy: the target."""
    together: dict[tuple[str, int], dict[str, list[Row]]] = {}
    chosen: dict[tuple[str, int], Row] = {}
    for row in rows:
        if row.get("study") is None:
            continue
        key = _tuned_name(row), int(row["study"])
        if is_trial(row):
            together.setdefault(key, {}).setdefault(str(row["run"]), []).append(row)
        else:
            chosen[key] = row
    return [_searched(key, list(trials.values()), chosen.get(key), accuracy) for key, trials in together.items()]


def _tuned_name(row: Row) -> str:
    name = combination_of(row)
    return name.removesuffix("/trials")


def _searched(key: tuple[str, int], trials: Sequence[Sequence[Row]], chosen: Row | None, accuracy: float | None) -> Searched:
    ends = [rows[-1] for rows in trials]
    values = {name: chosen.get(name) for name in str(chosen.get("tuned") or "").split()} if chosen else {}
    same = [end for end in ends if values and all(end.get(name) == value for name, value in values.items())]
    reached = [math.inf if accuracy is None else bytes_to_target(rows, accuracy) for rows in trials]
    return Searched(
        *key,
        len(trials),
        sum(end.get("bytes") or 0 for end in ends),
        sum(end.get("step") or 0 for end in ends),
        values,
        same[0].get("validation_accuracy") if same else None,
        min(reached, default=math.inf),
    )


def median_to_target(studies: Sequence[Searched]) -> float:
    """Bytes to the target: the median over studies of the least over trials; a study that never gets there counts as infinite."""
    return statistics.median_high([study.to_target for study in studies])
