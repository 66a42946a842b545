"""The frontier: test accuracy against bytes sent, a panel for each task."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from locallearn.experiment.files import write_whole
from locallearn.report.labels import Label, boxes_of_line, boxes_of_points, place
from locallearn.report.summary import Group, reference

BASELINES = {"backprop": "#000000", "deep_supervision": "#6e6e6e", "solo": "#4f4f4f"}
"""What rules are compared with is black or grey."""
# Okabe & Ito (2008), then Tol's muted scheme: told apart with any kind of colour vision, on white.
COLORS = (
    *("#0072B2", "#D55E00", "#009E73", "#AA4499", "#B8860B", "#56A0D3"),
    *("#882255", "#117733", "#CC6677", "#332288", "#44AA99", "#999933"),
)
MARKERS = ["o", "s", "^", "D", "v", "P", "X", "<", ">", "h", "p", "*"]
UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.labelcolor": "#222222",
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "svg.hashsalt": "locallearn",
    "svg.fonttype": "path",
}


def frontier(groups: Sequence[Group]) -> Any:
    """The figure: medians over seeds with bars from the lowest to the highest, the Pareto front, and backprop as a reference.

    Bytes are on a logarithmic axis: who sends none is a dotted line across, in panels where others send some.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = list(dict.fromkeys(group.panel for group in groups if group.accuracies and group.bytes > 0))
    drawn = [group for group in groups if group.accuracies and group.panel in panels]
    columns = min(2, max(1, len(panels)))
    rows = max(1, math.ceil(len(panels) / columns))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 4.9 if columns == 1 else 3.9 * rows), dpi=200, layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in grid[len(panels) :]:
            axes.set_visible(False)
        colors, markers = _colors(drawn), _markers(drawn)
        for axes, panel in zip(grid, panels, strict=False):
            _panel(axes, panel, [group for group in drawn if group.panel == panel], colors, markers)
        _legend(figure, markers, [group for group in drawn if not group.bytes])
        figure.canvas.draw()  # settles the layout: only now is it known how much room a name takes
        for axes, panel in zip(grid, panels, strict=False):
            _name(axes, [group for group in drawn if group.panel == panel], colors)
    return figure


def save(figure: Any, path: Path) -> Path:
    """Write the figure, in the format of the path's suffix; the same figure gives the same bytes."""
    import matplotlib

    form = path.suffix.removeprefix(".")
    metadata: dict[str, Any] = {"svg": {"Date": None}, "png": {"Software": None}}.get(form, {})
    with matplotlib.rc_context(STYLE):
        write_whole(path, lambda file: figure.savefig(file, format=form, metadata=metadata))
    return path


def pareto(groups: Sequence[Group]) -> list[tuple[float, float]]:
    """(bytes, median accuracy) of those that no other beats for the same bytes or fewer, by rising bytes."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(((g.bytes, statistics.median(g.accuracies)) for g in groups), key=lambda p: (p[0], -p[1])):
        if not front or y > front[-1][1]:
            front.append((x, y))
    return front


def _colors(groups: Sequence[Group]) -> dict[str, str]:
    others = [rule for rule in dict.fromkeys(group.rule for group in groups) if rule not in BASELINES]
    return BASELINES | {rule: COLORS[k % len(COLORS)] for k, rule in enumerate(others)}


def _markers(groups: Sequence[Group]) -> dict[str, str]:
    names = sorted(dict.fromkeys(group.codecs for group in groups), key=lambda name: name != "exact")
    return {name: MARKERS[k % len(MARKERS)] for k, name in enumerate(names)}


def _panel(axes: Any, panel: str, groups: Sequence[Group], colors: dict[str, str], markers: dict[str, str]) -> None:
    from matplotlib.ticker import FuncFormatter, NullLocator

    axes.set_xscale("log")
    silent, sending = _parted(groups)
    for label in dict.fromkeys(group.label for group in sending):
        line = _line(sending, label)
        axes.plot(*zip(*line, strict=True), color=colors[_rule_of(groups, label)], linewidth=1, alpha=0.35, zorder=2)
    for group in silent:
        axes.axhline(statistics.median(group.accuracies), color=colors[group.rule], linewidth=1.2, linestyle=(0, (1, 1.5)), zorder=2)
        axes.axhspan(min(group.accuracies), max(group.accuracies), color=colors[group.rule], alpha=0.08, linewidth=0, zorder=1)
    for group in sending:
        middle, color = statistics.median(group.accuracies), colors[group.rule]
        low, high = min(group.accuracies), max(group.accuracies)
        axes.plot([group.bytes] * 2, [low, high], color=color, linewidth=1.4, solid_capstyle="butt", zorder=3)
        axes.plot(group.bytes, middle, markers[group.codecs], color=color, markersize=6.5, markeredgecolor="white", zorder=4)
    _limits(axes, groups)
    _front(axes, groups)
    against = reference(groups, panel)
    if against:
        axes.axhline(statistics.median(against.accuracies), color="#000000", linewidth=0.8, linestyle=(0, (4, 3)), alpha=0.45, zorder=1)
    axes.set_title(panel, loc="left", fontsize=10.5, fontweight="bold", color="#222222")
    axes.set_xlabel("bytes sent in training")
    axes.set_ylabel("test accuracy")
    axes.grid(color="#e6e6e6", linewidth=0.6, zorder=0)
    axes.set_axisbelow(True)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}%"))
    ticks = _byte_ticks(*axes.get_xlim())
    axes.set_xticks(ticks, [_byte_word(tick) for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())


def _limits(axes: Any, groups: Sequence[Group]) -> None:
    """Room around the points for their names."""
    sent = [g.bytes for g in groups if g.bytes]
    low, high = min(sent), max(sent)
    room = max(1.6, (high / low) ** 0.15)
    axes.set_xlim(low / room, high * room)
    bottom, top = min(min(g.accuracies) for g in groups), max(max(g.accuracies) for g in groups)
    height = max(top - bottom, 0.02)
    axes.set_ylim(max(0.0, bottom - 0.12 * height), min(1.0 + 0.02 * height, top + 0.12 * height))


def _front(axes: Any, groups: Sequence[Group]) -> None:
    """Steps: what accuracy so many bytes buy."""
    axes.plot(*zip(*_steps(axes, groups), strict=True), color="#9a9a9a", linewidth=4, alpha=0.28, solid_joinstyle="miter", zorder=1)


def _steps(axes: Any, groups: Sequence[Group]) -> list[tuple[float, float]]:
    front = pareto(groups)
    front = [(max(x, axes.get_xlim()[0]), y) for x, y in front]
    corners = [(x, y) for (x, _), (_, y) in zip(front[1:], front, strict=False)]
    steps = [point for pair in zip(front, corners, strict=False) for point in pair]
    return [*steps, front[-1], (axes.get_xlim()[1], front[-1][1])]


def _name(axes: Any, groups: Sequence[Group], colors: dict[str, str]) -> None:
    """A name for each rule and variant, beside one of its points."""
    silent, sending = _parted(groups)
    bars = [(g.bytes, statistics.median(g.accuracies), min(g.accuracies), max(g.accuracies)) for g in sending]
    taken = boxes_of_points(axes, bars) + boxes_of_line(axes, _steps(axes, groups), 60)
    labels = []
    low, high = axes.get_xlim()
    across = np.geomspace(low, high, 9)[1:-1]
    for group in silent:
        level = statistics.median(group.accuracies)
        taken += boxes_of_line(axes, [(x, level) for x in axes.get_xlim()], 200)
        labels.append(Label(f"{group.label}, 0 bytes".replace("_", " "), colors[group.rule], [(x, level) for x in across]))
    for label in dict.fromkeys(group.label for group in sending):
        line = _line(sending, label)
        taken += boxes_of_line(axes, line)
        labels.append(Label(label.replace("_", " "), colors[_rule_of(groups, label)], line[::-1]))
    against = reference(groups, groups[0].panel)
    if against:
        level = statistics.median(against.accuracies)
        taken += boxes_of_line(axes, [(axes.get_xlim()[0], level), (axes.get_xlim()[1], level)], 200)
    place(axes, labels, taken)


def _parted(groups: Sequence[Group]) -> tuple[list[Group], list[Group]]:
    """Those that send nothing, and the others."""
    return [g for g in groups if not g.bytes], [g for g in groups if g.bytes]


def _line(groups: Sequence[Group], label: str) -> list[tuple[float, float]]:
    return sorted((g.bytes, statistics.median(g.accuracies)) for g in groups if g.label == label)


def _rule_of(groups: Sequence[Group], label: str) -> str:
    return next(group.rule for group in groups if group.label == label)


def _legend(figure: Any, markers: dict[str, str], silent: Sequence[Group]) -> None:
    """What shape and line mean; colours are named in place."""
    from matplotlib.lines import Line2D

    grey = "#555555"
    shapes = [Line2D([], [], linestyle="", marker=m, color=grey, markersize=6, label=name) for name, m in markers.items()]
    lines = [
        Line2D([], [], color="#9a9a9a", linewidth=4, alpha=0.4, label="Pareto front"),
        Line2D([], [], color="#000000", linewidth=0.8, linestyle=(0, (4, 3)), alpha=0.6, label="backprop, exact"),
        Line2D([], [], linestyle="", marker="|", color=grey, markersize=9, label="lowest to highest seed"),
        Line2D([], [], linestyle="", marker="o", color="#000000", markersize=6, label="baselines in black and grey"),
    ]
    if silent:
        lines.append(Line2D([], [], color=BASELINES["solo"], linewidth=1.2, linestyle=(0, (1, 1.5)), label="sends nothing"))
    handles = [*(shapes if len(shapes) > 1 else []), *lines]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(7, len(handles)), frameon=False, fontsize=8.5, labelcolor="#333333"
    )


def _byte_ticks(low: float, high: float) -> list[float]:
    """Round numbers of bytes, not too many."""
    for steps in ((1, 10, 100), (1, 2, 5, 10, 20, 50, 100, 200, 500), tuple(range(1, 1000))):
        ticks = [step * 1024.0**power for power in range(len(UNITS)) for step in steps]
        inside = [tick for tick in ticks if low <= tick <= high]
        if len(inside) >= 3:
            return inside[:: math.ceil(len(inside) / 7)]
    return [low, high]


def _byte_word(count: float) -> str:
    power = min(int(math.log(max(count, 1), 1024) + 1e-9), len(UNITS) - 1)
    return f"{count / 1024**power:g} {UNITS[power]}"
