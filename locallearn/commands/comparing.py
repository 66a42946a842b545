"""`locallearn compare`: in what runs differ, in settings and in result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from locallearn.experiment.store import Store
from locallearn.report.table import last_rows, rows_of
from locallearn.report.tabular import aligned, cell, flattened, shown
from locallearn.words import WIDTH, decimal, duration, size

SHARES = ("validation_accuracy", "validation_accuracy_lossless", "test_accuracy", "test_accuracy_lossless")


def compare_text(directories: Sequence[Path], form: str) -> str:
    """Two parts: settings in which the runs differ, and what came out, each with a column for each run."""
    for directory in directories:
        Store(directory).begun()
    settings = differing([_settings(directory) for directory in directories])
    results = [last_rows(rows_of(directory))[0] for directory in directories]
    if form != "table":
        names = [str(directory) for directory in directories]
        rows = [{"part": "settings", "key": key, **dict(zip(names, values, strict=True))} for key, values in settings.items()]
        rows += [{"part": "result", "key": key, **dict(zip(names, values, strict=True))} for key, values in _results(results).items()]
        return shown(rows, form)
    heads = [f"[{k}]" for k in range(1, len(directories) + 1)]
    legend = [f"{head} {directory}" for head, directory in zip(heads, directories, strict=True)]
    parts = ["\n".join(legend)]
    if settings:
        parts.append(_fitting(["settings", *heads], [[key, *map(cell, values)] for key, values in settings.items()]))
    else:
        parts.append("no setting differs")
    together = aligned([["result", *heads], *([key, *_beside(key, values)] for key, values in _results(results).items())], range(1, 99))
    parts.append(together if _fits(together) else _by_run(heads, results))
    return "\n\n".join(parts)


def differing(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The keys that have not the same value everywhere, in their order; None where a run has no such key."""
    keys = dict.fromkeys(key for config in configs for key in config)
    found = {key: [config.get(key) for config in configs] for key in keys}
    return {key: values for key, values in found.items() if any(value != values[0] for value in values)}


def _settings(directory: Path) -> dict[str, Any]:
    """The resolved configuration, and where it ran."""
    store = Store(directory)
    meta = store.read("meta.json")
    circumstances = {name: meta.get(name) for name in ("on", "devices", "threads", "host", "git")}
    versions = {f"versions.{name}": version for name, version in meta.get("versions", {}).items()}
    return flattened(store.read_config() or {}) | circumstances | versions


def _results(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """State, accuracies, costs and bytes by kind; without what is nowhere told."""
    kinds = sorted({key for row in rows for key in row if key.startswith("bytes_")})
    names = ["state", "reason", "step", *SHARES, "train_loss", "bytes", "payload_bytes", *kinds, "messages", "hops"]
    names += ["seconds", "compile_seconds"]
    found = {name: [row.get(name) for row in rows] for name in names}
    return {name: values for name, values in found.items() if any(value is not None for value in values)}


def _beside(key: str, values: Sequence[Any]) -> list[str]:
    """Values in words, all but the first with how they compare to it."""
    write = _writer(key)
    first = values[0]
    told = []
    for k, value in enumerate(values):
        text = cell(value) if value is None or isinstance(value, str) else write(value)
        comparable = k and not isinstance(value, str) and None not in (value, first)
        if comparable and key in SHARES:
            text += f" ({100 * (value - first):+.1f})"
        elif comparable and first and key != "step":
            text += f" (x{value / first:.3g})"
        told.append(text)
    return told


def _writer(key: str) -> Callable[[Any], str]:
    if key in (*SHARES, "train_loss"):
        return lambda value: decimal(value, 4)
    if "bytes" in key:
        return size
    return duration if "seconds" in key else cell


def _fits(text: str) -> bool:
    return max(map(len, text.splitlines())) <= WIDTH


def _fitting(head: list[str], rows: list[list[str]]) -> str:
    """A table; with runs below one another where they do not fit side by side."""
    text = aligned([head, *rows])
    if _fits(text):
        return text
    lines = [head[0]]
    for key, *values in rows:
        lines += [f"  {key}", *(f"    {name} {value}" for name, value in zip(head[1:], values, strict=True))]
    return "\n".join(lines)


def _by_run(heads: Sequence[str], results: Sequence[Mapping[str, Any]]) -> str:
    """The figures that matter most, a line for each of many runs."""
    names = {"validation_accuracy": "valid", "test_accuracy": "test", "train_loss": "loss", "bytes": "bytes", "seconds": "time"}
    rows = [["result", "state", "step", *names.values()]]
    for head, row in zip(heads, results, strict=True):
        figures = ["-" if row.get(name) is None else _writer(name)(row[name]) for name in names]
        state = row["reason"] if row.get("reason") not in (None, "steps") else row["state"]
        rows.append([head, str(state), cell(row.get("step")), *figures])
    return aligned(rows, range(2, len(rows[0])))
