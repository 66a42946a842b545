"""`locallearn report`: the figure and the table of all runs below a directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from locallearn.experiment.files import make_folder
from locallearn.report.summary import groups_of
from locallearn.report.table import Row, write_csv


def write_report(rows: Sequence[Row], folder: Path) -> list[Path]:
    """results.csv, frontier.svg and frontier.png; the paths that were written. If no finished run sent anything there is no figure."""
    from locallearn.report.figure import frontier, save

    make_folder(folder)
    write_csv(folder / "results.csv", rows)
    written = [folder / "results.csv"]
    groups = [group for group in groups_of(rows) if group.accuracies]
    if any(group.bytes for group in groups):
        figure = frontier(groups)
        written += [save(figure, folder / "frontier.svg"), save(figure, folder / "frontier.png")]
    return written
