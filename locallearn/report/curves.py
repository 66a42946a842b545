"""Learning curves: validation accuracy against the examples seen, the bytes sent, and the seconds that it takes on a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from locallearn.report.figure import DASHED
from locallearn.report.ink import GREY, STYLE, byte_axis, percent_axis, settle, sheet, shorter, time_axis
from locallearn.report.labels import Label, boxes_of_line, place
from locallearn.report.material import Material, Point
from locallearn.report.summary import Group, foremost

DRAWN = 9
"""Curves in a panel."""


Lines = Sequence[tuple[Group, Sequence[Point]]]
"""The curves of a panel."""


def curves(material: Material, lines: Mapping[str, Lines], against: str, targets: Mapping[str, float]) -> Any:
    """The figure; None where no run was evaluated twice. lines: by panel. against: `examples`, `bytes` or `seconds`.

    targets: an accuracy to mark, by panel.
    """
    import matplotlib

    found = {panel: own for panel, own in lines.items() if own}
    if not found:
        return None
    with matplotlib.rc_context(STYLE):
        figure, axes = sheet(list(found))
        for panel, own in found.items():
            _panel(axes[panel], material, own, against, targets.get(panel))
        settle(figure)
        for panel, own in found.items():
            _names(axes[panel], material, own, against, targets.get(panel))
    return figure


def drawn_in(material: Material, panel: str) -> list[tuple[Group, list[Point]]]:
    """The curves of a panel, of those groups that are worth a line."""
    groups = foremost(material.panels[panel], DRAWN)
    measure = material.measure(groups)
    return [(group, points) for group in groups if len(points := material.curve(group, measure)) > 1]


def _xy(points: Sequence[Point], against: str) -> list[tuple[float, float]]:
    return [(getattr(p, against), p.value.mean) for p in points if getattr(p, against) > 0]


def _panel(axes: Any, material: Material, found: Lines, against: str, target: float | None) -> None:
    accuracy = material.measure([group for group, _ in found]) == "validation_accuracy"
    for group, points in found:
        color = material.colors[group.rule]
        xy = _xy(points, against)
        look: dict[str, Any] = {"linestyle": DASHED} if material.baseline(group.rule) else {}
        look["drawstyle"] = "steps-post" if against == "seconds" else "default"  # the best so far stays until there is a better one
        axes.plot(*zip(*(xy or [(1, 0)]), strict=True), color=color, linewidth=1.6, zorder=3, **look)
        band = [(getattr(p, against), p.lowest, p.highest) for p in points if p.value.n > 1 and getattr(p, against) > 0]
        if band:
            step = "post" if against == "seconds" else None
            axes.fill_between(*zip(*band, strict=True), step=step, color=color, alpha=0.13, linewidth=0, zorder=2)
    means = [p.value.mean for _, points in found for p in points]
    height = max(max(means) - min(means), 0.02)
    axes.set_ylim(min(means) - 0.08 * height, max(means) + 0.12 * height)
    axes.set_ylabel("validation accuracy" if accuracy else "training loss (a rule's own)")
    if accuracy:
        percent_axis(axes)
        if target is not None:
            axes.axhline(target, color=GREY, linewidth=0.9, linestyle=(0, (1, 2)), zorder=1)
    if against == "bytes":
        axes.set_xscale("log")
        axes.set_xlabel("bytes sent in training")
        byte_axis(axes)
    elif against == "seconds":
        axes.set_xscale("log")
        axes.set_xlabel("time, predicted")
        axes.set_ylabel("best validation accuracy so far")
        time_axis(axes)
    else:
        from matplotlib.ticker import EngFormatter, MaxNLocator

        axes.set_xlim(left=0)
        axes.set_xlabel("examples seen")
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def _names(axes: Any, material: Material, found: Lines, against: str, target: float | None) -> None:
    taken, labels = [], []
    if target is not None and axes.get_ylim()[0] < target < axes.get_ylim()[1]:
        left, right = axes.transAxes.transform([(0, 0), (1, 0)])[:, 0]
        along = [(axes.transData.inverted().transform((left + (right - left) * share, 0))[0], target) for share in (0.05, 0.3, 0.6, 0.95)]
        taken += boxes_of_line(axes, along)
        labels.append(Label(f"target {target:.1%}", GREY, along))
    for group, points in found:
        line = _xy(points, against)
        taken += boxes_of_line(axes, line)
        if line:
            labels.append(Label(shorter(group.words), material.colors[group.rule], line[::-1][:4]))
    place(axes, labels, taken)


def race_rows(lines: Mapping[str, Lines], network: str) -> list[dict[str, Any]]:
    """What the figure against seconds shows, as a table."""
    return [
        {**group.facts, "network": network, "step": p.step, "seconds": p.seconds, **p.value._asdict()}
        for own in lines.values()
        for group, points in own
        for p in points
    ]


def curve_rows(material: Material) -> list[dict[str, Any]]:
    """What the other figures show, as a table."""
    rows = []
    for panel in material.panels:
        groups = foremost(material.panels[panel], DRAWN)
        measure = material.measure(groups)
        for group, points in drawn_in(material, panel):
            facts = {**group.facts, "measure": measure}
            rows += [{**facts, "step": p.step, "examples": p.examples, "bytes": p.bytes, **p.value._asdict()} for p in points]
    return rows
