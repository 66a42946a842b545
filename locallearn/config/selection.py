"""What `--only` leaves of a sweep: the runs that meet every condition `key=value`, or the studies that have such runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from locallearn.config.combination import Run
from locallearn.config.conditions import holds, lookup
from locallearn.config.document import MISSING, Document, printable, split_key
from locallearn.config.reading import parse
from locallearn.config.sweep import Sweep
from locallearn.config.tuning import Study
from locallearn.errors import ConfigError, Problem


def selected(sweep: Sweep, only: Sequence[str]) -> Sweep:
    """The sweep with those of its runs, or studies, alone. ConfigError for a condition on what no run has, or if none is left."""
    if not only:
        return sweep
    if sweep.tune is None:
        return replace(sweep, runs=tuple(_runs(sweep.runs, only)))
    return replace(sweep, studies=tuple(_studies(sweep.studies, only)))


def _runs(runs: Sequence[Run], only: Sequence[str]) -> list[Run]:
    chosen = list(runs)
    for condition in only:
        where = f"--only {printable(condition)}"
        key, equals, text = condition.partition("=")
        if not equals:
            raise ConfigError([Problem(where, "write key=value, such as --only rule.name=backprop")])
        wanted, before = {key: parse(text, where, empty=True).data}, chosen
        if not any(key in run.varied or Document(run.config.canonical()).at(split_key(key)) is not MISSING for run in runs):
            raise ConfigError([Problem(where, f"no run has the key `{key}`")])
        chosen = [run for run in before if holds(wanted, Document(run.config.canonical()), run.varied, run.config.catalog)]
        if not chosen:
            values = dict.fromkeys(_value(key, run) for run in before)
            raise ConfigError([Problem(where, f"no run is left: `{key}` is {' or '.join(values)}")])
    return chosen


def _value(key: str, run: Run) -> str:
    value = lookup(key, Document(run.config.canonical()), run.varied, run.config.catalog)
    return printable(value if isinstance(value, str) else json.dumps(value, default=str))


def _studies(studies: Sequence[Study], only: Sequence[str]) -> list[Study]:
    """Those that have such runs, with these runs alone to follow."""
    wanted = _runs([run for study in studies for run in study.follow[0]], only)
    names = {(run.name, run.config.seed) for run in wanted}
    chosen = []
    for study in studies:
        places = [k for k, run in enumerate(study.follow[0]) if (run.name, run.config.seed) in names]
        if places:
            chosen.append(replace(study, follow=tuple(tuple(runs[k] for k in places) for runs in study.follow)))
    return chosen
