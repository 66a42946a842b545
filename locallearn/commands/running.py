"""What the commands do that run something. Each returns the exit code."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from locallearn.commands.progress import shown_on
from locallearn.commands.sweepprogress import SweepProgress, failures
from locallearn.config import sweep as sweeps
from locallearn.config.reading import read
from locallearn.config.selection import selected
from locallearn.errors import LocallearnError
from locallearn.experiment.api import configuration
from locallearn.experiment.files import NoRoom
from locallearn.experiment.how import How, silent
from locallearn.experiment.run import execute, run_name
from locallearn.experiment.signals import polite
from locallearn.experiment.store import FAILED
from locallearn.experiment.sweeping import Course, write_sweep
from locallearn.experiment.threads import settle
from locallearn.experiment.tuning import Chosen, Tuning, known_choices
from locallearn.networks import parse_network
from locallearn.report.depth import endings
from locallearn.report.summary import summary
from locallearn.report.table import rows_below, write_csv


def run(path: Path, *, sets: Sequence[str], how: Mapping[str, Any], runs: Path, fresh: bool, quiet: bool) -> int:
    """`locallearn run`. how: `on`, `address`, `transport` and `network`."""
    config, on = configuration(path, sets), how["on"]
    directory = runs / path.stem / run_name(config, on)
    if on != "ray" and how["address"] is None:
        settle(config, on, None if fresh else directory)
    with contextlib.ExitStack() as stack:
        interrupted = stack.enter_context(polite())
        tell = silent if quiet else stack.enter_context(shown_on(sys.stdout))
        execute(config, How(**how, tell=tell, interrupted=interrupted, source=str(path)), directory, fresh)
    return 0


def sweep(
    path: Path, *, only: Sequence[str], how: Mapping[str, Any], runs: Path, quiet: bool, flags: Mapping[str, bool], jobs: int | None = None
) -> int:
    """`locallearn sweep`. flags: `retry_failed`, `fail_fast` and `keep_going`."""
    document = read(path)
    found = sweeps.load(document)
    chosen = selected(found, only)
    folder = runs / path.stem
    if how["on"] == "eager" and how["address"] is None and found.runs:
        settle(found.runs[0].config, "eager")
    with contextlib.ExitStack() as stack:
        interrupted = stack.enter_context(polite())
        progress = stack.enter_context(SweepProgress(sys.stdout, quiet))
        each = How(**how, tell=progress.of_run, interrupted=interrupted, source=str(path))
        course = Course(folder, each, progress, flags["retry_failed"], flags["fail_fast"], flags["keep_going"], jobs)
        write = functools.partial(write_sweep, course, found, path, document.data)
        stack.enter_context(course.on_ray(chosen.first))
        write(known_choices(course, found))
        choices: list[Chosen] = []
        room = True
        try:
            if found.tune:
                choices = Tuning(course, found, write, progress).go(chosen.studies)
            else:
                course.go(chosen.runs)
        except NoRoom:
            room = False
            raise
        finally:
            stack.close()
            _conclude(course, choices, quiet, room)
    return 1 if any(outcome.state == FAILED for outcome in course.outcomes) or any(c.trial is None for c in choices) else 0


def _conclude(course: Course, choices: Sequence[Chosen], quiet: bool, room: bool) -> None:
    """The table of what there is now, as a file if there is room, and the failures once more."""
    rows, table = rows_below(course.folder), course.folder / "results.csv"
    if rows and not quiet:
        print(f"\n{summary(rows)}\n", flush=True)
    if rows and room:
        write_csv(table, rows)
        print(table, flush=True) if not quiet else None
    undecided = [f"{found.study.name}: {found.why}" for found in choices if found.trial is None]
    for line in [*failures(course.outcomes), *undecided]:
        print(line, file=sys.stderr, flush=True)


def report(folder: Path, out: Path | None, tensorboard: bool, network: str) -> int:
    """`locallearn report`. out: a folder, or the page's file in it. network: by its name, or in words."""
    from locallearn.report.report import write_report

    chosen = parse_network(network)
    rows = rows_below(folder)
    if not rows:
        raise LocallearnError(f"{folder}: there are no runs here")
    written = write_report(rows, folder, out, tensorboard, chosen)
    print("\n\n".join(part for part in (summary(rows), endings(rows)) if part))
    print()
    for path in written:
        print(path)
    return 0
