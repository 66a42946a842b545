"""`locallearn report`: the page, the table and the figures of all runs below a directory."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from locallearn.experiment.files import make_folder, write_whole
from locallearn.networks import NETWORKS, Network
from locallearn.report.drawings import Drawings
from locallearn.report.ink import save
from locallearn.report.material import Material
from locallearn.report.networktimes import WIDE, network_times, time_rows
from locallearn.report.table import Row, write_csv
from locallearn.report.targets import target_of
from locallearn.report.tensorboard import write_events
from locallearn.report.web.page import page

PAGE = "report.html"


def write_report(
    rows: Sequence[Row], root: Path, out: Path | None = None, tensorboard: bool = False, network: Network = NETWORKS[WIDE]
) -> list[Path]:
    """report.html, results.csv beside it, and the folder `figures`; the paths that were written. Without a finished run there is no figure.

    rows: those of the runs below `root`. out: the folder, or the page's own name in it if that ends in `.html`; by default `root`.
    tensorboard: whether to write its event files, too. network: on which the figure of accuracy against time is drawn.
    """
    out = out or root
    folder, name = (out.parent, out.name) if out.suffix == ".html" else (out, PAGE)
    material = Material(root, rows)
    make_folder(folder)
    table = write_csv(folder / "results.csv", rows)
    wanted = {panel: target_of(material, panel) for panel in material.panels}
    levels = {panel: target.accuracy for panel, target in wanted.items() if target}
    times, drawings = network_times(material, levels), Drawings(material, levels, network)
    figures: list[Path] = []
    if material.panels:
        figures += write_figures(drawings, folder / "figures")
        write_table(folder / "figures" / "networks.csv", time_rows(times))
    chosen = [] if network.name == WIDE else ["--network", network.name]
    command = shlex.join(["locallearn", "report", str(root) if not root.is_absolute() else root.name, *chosen])
    text = page(drawings, wanted, times, table, command).encode()
    write_whole(folder / name, lambda file: file.write(text))
    written = [folder / name, folder / "results.csv", *figures]
    if tensorboard:
        write_events(material, folder / "tensorboard")
        written.append(folder / "tensorboard")
    return written


def write_figures(drawings: Drawings, folder: Path) -> Iterator[Path]:
    """Each figure as SVG and PDF, with its numbers as CSV."""
    make_folder(folder)
    for file, (name, panels) in drawings.files().items():
        figure = drawings.draw(name, *panels)
        if figure is not None:
            write_table(folder / f"{file}.csv", drawings.numbers(name, panels))
            yield save(figure, folder / f"{file}.svg")
            yield save(figure, folder / f"{file}.pdf")


def write_table(path: Path, rows: Sequence[Row]) -> None:
    """Rows with their own columns and no others."""
    write_csv(path, rows, list(dict.fromkeys(key for row in rows for key in row)))
