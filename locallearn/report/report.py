"""`locallearn report`: the page, the table and the figures of all runs below a directory."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from locallearn.experiment.files import make_folder, write_whole
from locallearn.report.bars import depth, depth_rows, traffic, traffic_rows
from locallearn.report.curves import curve_rows, curves
from locallearn.report.figure import frontier
from locallearn.report.ink import save
from locallearn.report.material import Material
from locallearn.report.networktimes import network_times, time_rows
from locallearn.report.summary import pareto
from locallearn.report.table import Row, to_csv, write_csv
from locallearn.report.targets import Target, target_of
from locallearn.report.tensorboard import write_events
from locallearn.report.web.page import page

PAGE = "report.html"


def write_report(rows: Sequence[Row], root: Path, out: Path | None = None, tensorboard: bool = False) -> list[Path]:
    """report.html, results.csv beside it, and the folder `figures`; the paths that were written. Without a finished run there is no figure.

    rows: those of the runs below `root`. out: the folder, or the page's own name in it if that ends in `.html`; by default `root`.
    tensorboard: whether to write its event files, too.
    """
    out = out or root
    folder, name = (out.parent, out.name) if out.suffix == ".html" else (out, PAGE)
    material = Material(root, rows)
    make_folder(folder)
    table = to_csv(rows).encode()
    write_whole(folder / "results.csv", lambda file: file.write(table))
    wanted = {panel: target_of(material, panel) for panel in material.panels}
    times = network_times(material, {panel: target.accuracy for panel, target in wanted.items() if target})
    figures = [*write_figures(material, wanted, folder / "figures")] if material.panels else []
    if times:
        write_csv(folder / "figures" / "networks.csv", time_rows(times))
    command = shlex.join(["locallearn", "report", str(root) if not root.is_absolute() else root.name])
    text = page(material, wanted, times, table, command).encode()
    write_whole(folder / name, lambda file: file.write(text))
    written = [folder / name, folder / "results.csv", *figures]
    if tensorboard:
        write_events(material, folder / "tensorboard")
        written.append(folder / "tensorboard")
    return written


def write_figures(material: Material, wanted: dict[str, Target | None], folder: Path) -> Iterator[Path]:
    """Each figure as SVG and PDF, with its numbers as CSV."""
    make_folder(folder)
    panels = list(material.panels)
    levels = {panel: target.accuracy for panel, target in wanted.items() if target}
    groups = [group for own in material.panels.values() for group in own]
    lines = curve_rows(material)
    drawn: dict[str, tuple[Any, Sequence[Row]]] = {
        "frontier": (frontier(groups, material.colors, material.markers, material.baseline), frontier_rows(material)),
        "curves-examples": (curves(material, panels, "examples", levels), lines),
        "curves-bytes": (curves(material, panels, "bytes", levels), lines),
        "traffic": (traffic(material, panels), traffic_rows(material)),
    }
    depths = depth_rows(material)
    for k, panel in enumerate(panels):
        name = "depth" if len(panels) == 1 else f"depth-{k}"
        drawn[name] = (depth(material, panel), [row for row in depths if row["task"] == panel])
    for name, (figure, numbers) in drawn.items():
        if figure is not None:
            write_whole(folder / f"{name}.csv", lambda file, numbers=numbers: file.write(to_csv(numbers, _columns(numbers)).encode()))
            yield save(figure, folder / f"{name}.svg")
            yield save(figure, folder / f"{name}.pdf")


def frontier_rows(material: Material) -> list[Row]:
    """What the figure shows, a row for each combination."""
    front = {id(group) for own in material.panels.values() for group in pareto(own)}
    return [
        {**g.facts, "baseline": material.baseline(g.rule), "bytes": g.bytes, **g.estimate._asdict(), "front": id(g) in front}
        for own in material.panels.values()
        for g in own
    ]


def _columns(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row))
