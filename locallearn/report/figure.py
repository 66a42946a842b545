"""The frontier: test accuracy against bytes sent, a panel for each task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from locallearn.report.ink import (
    BLACK,
    FRONT,
    GREY,
    INK,
    STYLE,
    WHITE,
    Palette,
    byte_axis,
    colors_of,
    markers_of,
    percent_axis,
    settle,
    sheet,
    shorter,
)
from locallearn.report.labels import Label, boxes_of_line, boxes_of_points, place
from locallearn.report.material import Material
from locallearn.report.summary import Group, foremost, pareto, reference

NAMED, CROWD, FEWER = 14, 40, 8
"""Names in a panel, fewer where there are more points than CROWD: more would cover what they name."""
SHAPES = 12
"""Codecs in the legend."""
BELOW = 0.1
"""How far below the lowest mean seeds are shown, of the distance from there to the best."""
DASHED: Any = (0, (4, 3))


def frontier(
    groups: Sequence[Group],
    colors: Palette | None = None,
    markers: Palette | None = None,
    baseline: Callable[[str], bool] = lambda rule: rule == "backprop",
) -> Any:
    """The figure: means over seeds with 95 % intervals, each seed as a dot, the Pareto front, and backprop as a reference.

    colors, markers: by rule and by codec, those of other figures beside this one. baseline: whether a rule is one; drawn hollow.
    """
    import matplotlib

    drawn = [group for group in groups if group.accuracies]
    colors, markers = colors or colors_of([g.rule for g in drawn]), markers or markers_of([g.codecs for g in drawn])
    with matplotlib.rc_context(STYLE):
        figure, panels = sheet(list(dict.fromkeys(group.panel for group in drawn)))
        inside = {panel: [group for group in drawn if group.panel == panel] for panel in panels}
        for panel, axes in panels.items():
            _panel(axes, inside[panel], colors, markers, baseline)
        words = _codecs_words(drawn)
        used = {words[name]: mark for name, mark in markers.items() if name in words}
        _legend(figure, used, any(reference(own, panel) for panel, own in inside.items()))
        settle(figure)
        for panel, axes in panels.items():
            _name(axes, inside[panel], colors)
    return figure


def _nothing(groups: Sequence[Group]) -> float | None:
    """Where on the logarithmic axis those stand that send nothing; None if all send something."""
    if all(group.bytes > 0 for group in groups):
        return None
    return min((group.bytes for group in groups if group.bytes > 0), default=1024.0) / 6


def _x(group: Group, zero: float | None) -> float:
    return group.bytes if group.bytes > 0 else zero or 1.0


def _panel(axes: Any, groups: Sequence[Group], colors: Palette, markers: Palette, baseline: Callable[[str], bool]) -> None:
    zero = _nothing(groups)
    axes.set_xscale("log")
    for label in dict.fromkeys(group.label for group in groups):
        line = _line(groups, label, zero)
        if len(line) > 1:
            axes.plot(*zip(*line, strict=True), color=colors[_rule_of(groups, label)], linewidth=1, alpha=0.35, zorder=2)
    for rule in dict.fromkeys(group.rule for group in groups):
        _points(axes, [group for group in groups if group.rule == rule], colors[rule], markers, baseline(rule), zero)
    _limits(axes, groups, zero)
    steps = _steps(axes, groups, zero)
    axes.plot(*zip(*steps, strict=True), color=FRONT, linewidth=4, alpha=0.28, solid_joinstyle="miter", zorder=1)
    against = reference(groups, groups[0].panel)
    if against:
        axes.axhline(against.estimate.mean, color=BLACK, linewidth=0.8, linestyle=DASHED, alpha=0.45, zorder=1)
    axes.set_xlabel("bytes sent in training")
    axes.set_ylabel("test accuracy")
    percent_axis(axes)
    byte_axis(axes, zero)


def _points(axes: Any, groups: Sequence[Group], color: str, markers: Palette, hollow: bool, zero: float | None) -> None:
    """All points of a rule, few artists: a report of thousands of runs takes seconds."""
    spread = [(_x(group, zero), group) for group in groups if group.estimate.n > 1]
    if spread:
        xs, lows, highs = zip(*((x, group.estimate.low, group.estimate.high) for x, group in spread), strict=True)
        axes.vlines(xs, lows, highs, color=color, linewidth=1.4, zorder=3)
        seeds = [(x, accuracy) for x, group in spread for accuracy in group.accuracies]
        axes.plot(*zip(*seeds, strict=True), "_", color=color, markersize=5, markeredgewidth=0.9, alpha=0.75, zorder=3)
    face, edge, width = (WHITE, color, 1.5) if hollow else (color, WHITE, 0.9)
    for codecs in dict.fromkeys(group.codecs for group in groups):
        means = [(_x(group, zero), group.estimate.mean) for group in groups if group.codecs == codecs]
        look = {"color": face, "markeredgecolor": edge, "markeredgewidth": width}
        axes.plot(*zip(*means, strict=True), markers[codecs], markersize=6.5, zorder=4, **look)


def _limits(axes: Any, groups: Sequence[Group], zero: float | None) -> None:
    """Room around the points for their names. What lies far below all means is cut off, not they pressed together."""
    xs = [_x(group, zero) for group in groups]
    room = max(1.6, (max(xs) / min(xs)) ** 0.15)
    axes.set_xlim(min(xs) / room, max(xs) * room)
    lowest, bottom = min(g.estimate.mean for g in groups), min(min(g.accuracies) for g in groups)
    top = max(max(g.accuracies) for g in groups)
    bottom = max(bottom, lowest - BELOW * (top - lowest))
    height = max(top - bottom, 0.02)
    axes.set_ylim(max(0.0, bottom - 0.12 * height), min(1.0 + 0.04 * height, top + 0.12 * height))


def _steps(axes: Any, groups: Sequence[Group], zero: float | None) -> list[tuple[float, float]]:
    """What accuracy so many bytes buy."""
    front = [(_x(group, zero), group.estimate.mean) for group in pareto(groups)]
    corners = [(x, y) for (x, _), (_, y) in zip(front[1:], front, strict=False)]
    steps = [point for pair in zip(front, corners, strict=False) for point in pair]
    return [*steps, front[-1], (axes.get_xlim()[1], front[-1][1])]


def _name(axes: Any, groups: Sequence[Group], colors: Palette) -> None:
    """A name for each rule and variant, beside one of its points."""
    zero = _nothing(groups)
    bars = [(_x(g, zero), g.estimate.mean, g.estimate.low or min(g.accuracies), g.estimate.high or max(g.accuracies)) for g in groups]
    taken = boxes_of_points(axes, bars) + boxes_of_line(axes, _steps(axes, groups, zero), 60)
    labels = []
    named = dict.fromkeys(group.label for group in foremost(groups, NAMED if len(groups) <= CROWD else FEWER))
    for label in dict.fromkeys(group.label for group in groups):
        line = _line(groups, label, zero)
        taken += boxes_of_line(axes, line)
        if label in named:
            labels.append(Label(shorter(label.replace("_", " ")), colors[_rule_of(groups, label)], line[::-1][:8]))
    against = reference(groups, groups[0].panel)
    if against:
        level = against.estimate.mean
        taken += boxes_of_line(axes, [(axes.get_xlim()[0], level), (axes.get_xlim()[1], level)], 200)
    place(axes, labels, taken)


def _line(groups: Sequence[Group], label: str, zero: float | None) -> list[tuple[float, float]]:
    """The points of a rule and variant over its codecs, by rising bytes."""
    return sorted((_x(g, zero), g.estimate.mean) for g in groups if g.label == label)


def _rule_of(groups: Sequence[Group], label: str) -> str:
    return next(group.rule for group in groups if group.label == label)


def _codecs_words(groups: Sequence[Group]) -> dict[str, str]:
    """What a legend calls codecs: as the sweep does, if it has a word for them that is shorter and means nothing else."""
    words = {g.codecs: g.codecs for g in groups}
    for g in groups:
        if g.told and g.variant and g.codecs != "exact":
            words[g.codecs] = min(words[g.codecs], g.variant, key=len)
    twice = {word for word, count in Counter(words.values()).items() if count > 1}
    return {codecs: codecs if word in twice else word for codecs, word in words.items()}


def _legend(figure: Any, markers: Palette, referred: bool) -> None:
    """What shape and line mean; colours are named in place."""
    from matplotlib.lines import Line2D

    def shape(marker: str, label: str, **look: Any) -> Line2D:
        return Line2D([], [], linestyle="", marker=marker, label=label, **({"color": GREY, "markersize": 6} | look))

    shapes = [shape(marker, shorter(name)) for name, marker in list(markers.items())[:SHAPES]]
    hollow = shape("o", "baseline", color=WHITE, markeredgecolor=GREY, markeredgewidth=1.5)
    lines = [
        *([Line2D([], [], color=BLACK, linewidth=0.8, linestyle=DASHED, alpha=0.6, label="backprop, exact"), hollow] if referred else []),
        Line2D([], [], color=FRONT, linewidth=4, alpha=0.4, label="Pareto front"),
        shape("|", "mean, 95 % interval", markersize=9),
        shape("_", "a seed"),
    ]
    handles = [*(shapes if len(shapes) > 1 else []), *lines]
    longest = max(len(str(handle.get_label())) for handle in handles)
    columns = max(1, min(6, int(figure.get_figwidth() / (0.5 + 0.065 * longest))))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=8, labelcolor=INK)


def frontier_rows(material: Material) -> list[dict[str, Any]]:
    """What the figure shows, a row for each combination."""
    front = {id(group) for own in material.panels.values() for group in pareto(own)}
    return [
        {**g.facts, "baseline": material.baseline(g.rule), "bytes": g.bytes, **g.estimate._asdict(), "front": id(g) in front}
        for own in material.panels.values()
        for g in own
    ]
