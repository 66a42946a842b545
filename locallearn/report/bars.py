"""Traffic by kind as bars, and diagnostics by depth as lines."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from locallearn.report.figure import DASHED
from locallearn.report.ink import COLORS, GREY, INK, STYLE, settle, sheet, shorter
from locallearn.report.material import Material
from locallearn.report.summary import Group, foremost
from locallearn.report.table import diagnostics_of
from locallearn.rule import KINDS
from locallearn.traffic import ASIDE
from locallearn.words import size

BARS = 14
LINES = 9


def by_kind(material: Material, group: Group) -> dict[str, float]:
    """Bytes a training step of each kind that is training's, the mean over its runs."""
    ends = [material.courses[run][-1] for run in group.runs if run in material.courses]
    kinds = [kind for kind in KINDS if kind not in ASIDE and any(end.get(f"bytes_{kind}") for end in ends)]
    return {kind: statistics.fmean((end.get(f"bytes_{kind}") or 0) / max(1, end["step"]) for end in ends) for kind in kinds}


def traffic(material: Material, panels: Sequence[str]) -> Any:
    """The figure: what share of a step's bytes each kind of message has. None if nothing was sent."""
    import matplotlib
    from matplotlib.lines import Line2D

    found = {panel: [(g, by_kind(material, g)) for g in foremost(material.panels[panel], BARS)] for panel in panels}
    found = {panel: own for panel, rows in found.items() if (own := [(g, kinds) for g, kinds in rows if sum(kinds.values())])}
    if not found:
        return None
    used = [kind for kind in KINDS if any(kind in kinds for rows in found.values() for _, kinds in rows)]
    colors: dict[str, str] = dict(zip(KINDS, COLORS, strict=False))
    with matplotlib.rc_context(STYLE):
        figure, axes = sheet(list(found), height=1.3 + 0.24 * max(map(len, found.values())))
        for panel, rows in found.items():
            _bars(axes[panel], rows, colors)
        handles = [Line2D([], [], linestyle="", marker="s", color=colors[kind], markersize=7, label=kind) for kind in used]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(5, len(used)), frameon=False, fontsize=8, labelcolor=INK)
        settle(figure)
    return figure


def _bars(axes: Any, rows: Sequence[tuple[Group, Mapping[str, float]]], colors: Mapping[str, str]) -> None:
    for line, (_, kinds) in enumerate(rows):
        total, left = sum(kinds.values()), 0.0
        for kind, amount in kinds.items():
            axes.barh(line, amount / total, left=left, height=0.66, color=colors[kind], linewidth=0)
            left += amount / total
        axes.text(1.02, line, size(total), va="center", fontsize=8, color=INK)
    axes.set_yticks(range(len(rows)), [shorter(group.words, 30) for group, _ in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.22)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25%", "50%", "75%", "100%"])
    axes.set_xlabel("share of a step's bytes, and bytes a step")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")


def traffic_rows(material: Material) -> list[dict[str, Any]]:
    """Bytes a step by kind, of every group."""
    return [{**g.facts, "bytes_per_step": g.bytes_per_step, **by_kind(material, g)} for groups in material.panels.values() for g in groups]


def diagnosed(material: Material, panel: str) -> list[tuple[Group, dict[str, dict[int, float]]]]:
    """The last diagnostics of groups that have some, means over seeds: by name, then by block."""
    found = []
    for group in foremost(material.panels[panel], LINES):
        ends = diagnostics_of(material.courses[run][-1] for run in group.runs if run in material.courses)
        told = {name: means for name, row in ends.items() if (means := _means(row))}
        if told:
            found.append((group, told))
    return found


def _means(row: Mapping[int, Sequence[Any]]) -> dict[int, float]:
    """Of each block's values, where it has some."""
    known = {block: [value for value in row[block] if value is not None] for block in sorted(row)}
    return {block: statistics.fmean(values) for block, values in known.items() if values}


def depth(material: Material, panel: str) -> Any:
    """The figure: each diagnostic over the blocks, from the bottom. None if no run has any."""
    import matplotlib
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    found = diagnosed(material, panel)
    names = list(dict.fromkeys(name for _, told in found for name in told))
    if not names:
        return None
    with matplotlib.rc_context(STYLE):
        figure, axes = sheet([name.replace("_", " ") for name in names], height=2.6)
        for name, own in zip(names, axes.values(), strict=True):
            for group, told in found:
                if name in told:
                    style = DASHED if material.baseline(group.rule) else "-"
                    look = {"color": material.colors[group.rule], "linestyle": style, "marker": "o", "markersize": 4}
                    own.plot(*zip(*told[name].items(), strict=True), **look)
            own.xaxis.set_major_locator(MaxNLocator(integer=True))
            own.set_xlabel("block, from the bottom")
            own.tick_params(colors=GREY)
        labels = [(shorter(g.words, 28), material.colors[g.rule]) for g, _ in found]
        handles = [Line2D([], [], color=color, marker="o", markersize=4, label=label) for label, color in labels]
        figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=8, labelcolor=INK)
        settle(figure)
    return figure


def depth_rows(material: Material) -> list[dict[str, Any]]:
    """What the figures of depth show."""
    return [
        {**group.facts, "diagnostic": name, "block": block, "mean": mean}
        for panel in material.panels
        for group, told in diagnosed(material, panel)
        for name, row in told.items()
        for block, mean in row.items()
    ]
