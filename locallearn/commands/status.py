"""The state of all runs of a folder, once or again and again: from files alone, whoever runs them and wherever."""

from __future__ import annotations

import math
import textwrap
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from locallearn.commands.waits import waits_below, waits_of
from locallearn.errors import LocallearnError
from locallearn.experiment.files import parse_yaml
from locallearn.experiment.store import DIVERGED, FAILED, FINISHED, INTERRUPTED, NEW, RUNNING, Store, run_directories
from locallearn.report.tabular import short, shown
from locallearn.words import WIDTH, decimal, duration, plural, size

LOOK_SECONDS = 1.0
"""Between looks at a folder that is watched."""
OVER = (FINISHED, FAILED, DIVERGED)
ORDER = (RUNNING, FAILED, INTERRUPTED, DIVERGED, FINISHED, NEW)
"""In which they are counted, and shown where there is no room for all."""
WAITS_SECONDS = 10.0
"""Least time between two lines of who waits for whom, where a run has no other news."""


def _since(seconds: float | None) -> str:
    """Roughly: `3 min`."""
    return "-" if seconds is None else " ".join(duration(seconds).split()[:2])


COLUMNS = {"state": str, "step": str, "valid": decimal, "test": decimal, "bytes": size, "age": _since}


class Status:
    """Looks at a folder; what is over is read once."""

    def __init__(self, root: Path):
        self.root = root
        self._over: dict[Path, dict[str, Any]] = {}
        self._read: dict[Path, tuple[float, Mapping[str, Any]]] = {}

    def rows(self) -> list[dict[str, Any]]:
        """Every run below the folder, then those that a sweep there has not begun."""
        found = {directory: self._row(directory) for directory in run_directories(self.root)}
        return [*found.values(), *(_blank(name) for path, name in self._planned() if path not in found)]

    def over(self, rows: Sequence[Mapping[str, Any]]) -> bool:
        """Whether nothing is left to do: also no choice of a tuned sweep."""
        return all(row["state"] in OVER for row in rows) and not any(map(_undecided, self._plans().values()))

    def _row(self, directory: Path) -> dict[str, Any]:
        if directory in self._over:
            return {**self._over[directory], "age": _age(self._over[directory]["written"])}
        row = _row(directory, self.root)
        if row["state"] in OVER and row["state"] != FAILED:  # a failure may be retried
            self._over[directory] = row
        return row

    def _plans(self) -> dict[Path, Mapping[str, Any]]:
        """Every sweep.yaml at most one level below."""
        paths = [self.root / "sweep.yaml", *sorted(self.root.glob("*/sweep.yaml"))]
        for path in (path for path in paths if path.exists()):
            written = path.stat().st_mtime
            if self._read.get(path.parent, (None,))[0] != written:
                self._read[path.parent] = written, parse_yaml(path.read_text()) or {}
        return {folder: plan for folder, (_, plan) in self._read.items()}

    def _planned(self) -> Iterator[tuple[Path, str]]:
        for folder, plan in self._plans().items():
            for entry in (*plan.get("trials", ()), *plan.get("runs", ())):
                path = folder / entry["run"]
                yield path, path.relative_to(self.root).as_posix()


def _row(directory: Path, root: Path) -> dict[str, Any]:
    store = Store(directory)
    state, records, ending = store.state, store.records(), store.read("result.json")
    last = records[-1] if records else {}
    written = max((path.stat().st_mtime for path in directory.iterdir() if path.exists()), default=0.0)
    return {
        "run": directory.relative_to(root).as_posix() if directory != root else directory.name,
        "state": DIVERGED if ending.get("reason") == DIVERGED else state,
        "step": last.get("step", 0),
        "valid": last.get("validation_accuracy"),
        "test": ending.get("test_accuracy"),
        "bytes": last.get("bytes", 0),
        "age": _age(written),
        "written": written,
    }


def _blank(name: str) -> dict[str, Any]:
    return {"run": name, "state": NEW, "step": 0, "valid": None, "test": None, "bytes": 0, "age": None, "written": None}


def _age(written: float) -> float:
    return round(max(0.0, time.time() - written), 1)


def _undecided(plan: Mapping[str, Any]) -> bool:
    """Whether a tuned sweep has studies that have not chosen."""
    studies = {(str(entry["run"]).partition("/")[0], entry["study"]) for entry in plan.get("trials", ())}
    return len(plan.get("chosen", ())) < len(studies)


def counted(rows: Sequence[Mapping[str, Any]]) -> str:
    """`25 runs: 3 running, 14 finished, 8 new`."""
    if not rows:
        return "no runs yet"
    counts = Counter(str(row["state"]) for row in rows)
    return f"{plural(len(rows), 'run')}: {', '.join(f'{counts[state]} {state}' for state in ORDER if counts[state])}"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line for each run, in which its name gets the room that is left."""
    rest = max(map(len, shown(rows, "table", COLUMNS).splitlines()))
    return shown(rows, "table", {"run": lambda name: short(name, max(22, WIDTH - rest - 2)), **COLUMNS})


def status_text(root: Path, form: str) -> str:
    """`locallearn status`."""
    rows = Status(root).rows()
    if not rows:
        raise LocallearnError(f"{root}: there are no runs here")
    if form == "table":
        waits = waits_below(rows, root)
        return f"{table(rows)}\n\n{counted(rows)}" + (f"\n\n{waits}" if waits else "")
    return shown([{key: row[key] for key in ("run", *COLUMNS)} for row in rows], form)


def watch(root: Path, out: TextIO) -> None:
    """`locallearn status --watch`: until every run is over. A terminal is redrawn; otherwise there is a line for each change."""
    if out.isatty():
        _redraw(Status(root), out)
    else:
        _tell(Status(root), out)


def _redraw(status: Status, out: TextIO) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(file=out, highlight=False)
    with Live(console=console, auto_refresh=False) as live:
        while True:
            rows = status.rows()
            live.update(Text(screen(rows, console.height, status.root), overflow="ellipsis", no_wrap=True), refresh=True)
            if rows and status.over(rows):
                return
            time.sleep(LOOK_SECONDS)


def screen(rows: Sequence[Mapping[str, Any]], height: int, root: Path) -> str:
    """What fits: the count, what runs, then what is of most interest, the latest first; below, on a third of it, who waits for whom."""
    if not rows:
        return f"{root}: {counted(rows)}"
    ranked = sorted(rows, key=lambda row: (ORDER.index(row["state"]), row["age"] or 0.0))
    waits, most = waits_below(rows, root).splitlines(), max(2, height // 3)
    below = ["", *(waits if len(waits) <= most else [*waits[: most - 1], f"... and {len(waits) - most + 1} more lines"])] if waits else []
    room = max(1, height - 4 - len(below))
    kept = ranked if len(ranked) <= room else ranked[: max(1, room - 1)]
    more = [f"... and {len(ranked) - len(kept)} more"] if len(kept) < len(ranked) else []
    return "\n".join([counted(rows), "", table(kept), *more, *below])


def _tell(status: Status, out: TextIO) -> None:
    known: dict[str, tuple[Any, ...]] = {}
    waits: dict[str, tuple[str, float]] = {}
    _print(counted(status.rows()), out)
    while True:
        rows = status.rows()
        for row in rows:
            run, now = row["run"], (row["state"], row["step"])
            if changed := row["state"] != NEW and known.get(run) != now:
                known[run] = now
                _print(_line(row), out)
            text, (before, when) = waits_of(row, status.root, WIDTH - 9), waits.get(run, ("", -math.inf))
            if text and text != before and (changed or time.monotonic() - when > WAITS_SECONDS):
                waits[run] = text, time.monotonic()
                print(textwrap.indent(text if changed else f"{short(run, 26)}\n{text}", " " * 9), file=out, flush=True)
        if rows and status.over(rows):
            _print(counted(rows), out)
            return
        time.sleep(LOOK_SECONDS)


def _print(line: str, out: TextIO) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=out, flush=True)


def _line(row: Mapping[str, Any]) -> str:
    figures = f"{row['step']:>7}  valid {decimal(row['valid']):<6}{size(row['bytes']):>9}"
    return f"{short(row['run'], 26):<26} {row['state']:<11}{figures}"
