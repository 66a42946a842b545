"""Diagnostics by depth, as tables: a line for each block, from the bottom."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from locallearn.experiment.store import FINISHED
from locallearn.report.table import DIAGNOSTIC, Row, combination_of, diagnostics_of, is_trial, last_rows
from locallearn.report.tabular import aligned


def course(records: Sequence[Mapping[str, Any]]) -> str:
    """How a run's diagnostics went, `first > last`; empty without any."""
    told = [record for record in records if record.get("diagnostics")]
    if not told:
        return ""
    first, last = told[0], told[-1]
    names = list(last["diagnostics"])
    rows = [["block", *names]]
    for block in range(_blocks(last)):
        ends = [[_number(record["diagnostics"][name][block]) for record in (first, last)] for name in names]
        rows.append([str(block), *(a if first is last else f"{a} > {b}" for a, b in ends)])
    when = f"after step {last['step']}" if first is last else f"after step {first['step']} > step {last['step']}"
    return f"by depth, {when}\n{aligned(rows, range(1, len(names) + 1))}"


def endings(rows: Sequence[Row]) -> str:
    """For each combination of a sweep the mean over its runs' last diagnostics, from the rows of a table; empty without any."""
    together: dict[str, list[Row]] = {}
    for row in last_rows(rows):
        if row["state"] == FINISHED and not is_trial(row) and any(key.startswith(DIAGNOSTIC) for key in row):
            together.setdefault(combination_of(row), []).append(row)
    return "\n\n".join(_ending(name, runs) for name, runs in together.items())


def _ending(name: str, runs: Sequence[Row]) -> str:
    found = diagnostics_of(runs)
    blocks = sorted({block for row in found.values() for block in row})
    table = [["block", *found], *([str(block), *(_mean(row.get(block, [None])) for row in found.values())] for block in blocks)]
    return f"{name}, by depth at the end\n{aligned(table, range(1, len(found) + 1))}"


def _mean(values: Sequence[Any]) -> str:
    return _number(None if None in values else statistics.fmean(values))


def _blocks(record: Mapping[str, Any]) -> int:
    return max(map(len, record["diagnostics"].values()))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
