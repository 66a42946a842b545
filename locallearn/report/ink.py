"""What all figures share: colours for any eyes and for light and dark paper, markers, and how a figure becomes a file or part of a page."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from locallearn.experiment.files import write_whole

# Okabe & Ito (2008), then Tol's muted scheme: told apart with any kind of colour vision, on white. Backprop is black, though not the black
# that an SVG leaves out because it is the default: a page has to give it another colour on dark paper.
# Beside each, a lighter one of the same hue, for dark paper.
COLORS = {
    "#0072B2": "#4FA3DD",
    "#D55E00": "#F08A3C",
    "#009E73": "#2FBF95",
    "#AA4499": "#D583C8",
    "#B8860B": "#D9A93B",
    "#56A0D3": "#9CCDF0",
    "#882255": "#CF6FA0",
    "#117733": "#5DB377",
    "#CC6677": "#EBA3AE",
    "#332288": "#9A91E0",
    "#44AA99": "#84D3C6",
    "#999933": "#C9C96B",
}
BLACK, WHITE, INK, GREY, PALE, FRONT = "#101010", "#FFFFFF", "#222222", "#555555", "#E6E6E6", "#9A9A9A"
DARK = COLORS | {BLACK: "#F4F4F4", WHITE: "#14171B", INK: "#E8E8E8", GREY: "#A9AFB6", PALE: "#2B3138", FRONT: "#858C94"}
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h", "p", "*")
UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "svg.hashsalt": "locallearn",
    "svg.fonttype": "path",
    "pdf.fonttype": 42,  # letters stay letters: a journal's submission system wants it so
}


def sheet(panels: Sequence[str], height: float = 4.1) -> tuple[Any, dict[str, Any]]:
    """An empty figure and the axes of each panel, at most two side by side. To be called, and drawn on, within STYLE."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(2, max(1, len(panels)))
    rows = max(1, math.ceil(len(panels) / columns))
    figure = Figure(figsize=(5.6 if columns == 1 else 10.4, height * rows), dpi=200, layout="constrained", facecolor=WHITE)
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    for axes, panel in zip(grid, panels, strict=False):
        axes.set_title(panel, loc="left", fontsize=10.5, fontweight="bold", color=INK)
        axes.grid(color=PALE, linewidth=0.6, zorder=0)
        axes.set_axisbelow(True)
    return figure, dict(zip(panels, grid, strict=False))


def settle(figure: Any) -> None:
    """Fix the layout: only then is it known how much room a name takes, and no later drawing works it out again."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")


def save(figure: Any, path: Path) -> Path:
    """Write the figure, in the format of the path's suffix; the same figure gives the same bytes."""
    import matplotlib

    form = path.suffix.removeprefix(".")
    metadata: dict[str, Any] = {"svg": {"Date": None}, "png": {"Software": None}, "pdf": {"CreationDate": None}}[form]
    with matplotlib.rc_context(STYLE):
        write_whole(path, lambda file: figure.savefig(file, format=form, metadata=metadata))
    return path


def inline(figure: Any, name: str, told: str) -> str:
    """The figure as an <svg> for a page: its colours are the page's variables, its ids its own.

    told: what it shows, for a screen reader.
    """
    import matplotlib

    file = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = file.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r"#[0-9a-f]{6}\b", lambda found: variables().get(found[0], found[0]), text)
    text = re.sub(r"\n\s*", "\n", text)
    head = f'<svg role="img" aria-label="{escape(told, quote=True)}" '
    return re.sub(r'^<svg (?:[^>]*?)(viewBox="[^"]*")[^>]*>', rf'{head}xmlns:xlink="http://www.w3.org/1999/xlink" \1>', text)


def variables() -> dict[str, str]:
    """What stands for each colour in a page."""
    return {color.lower(): f"var(--c{k})" for k, color in enumerate(DARK)}


def css_colors(dark: bool) -> str:
    """The declarations of those variables."""
    return " ".join(f"--c{k}: {DARK[color] if dark else color};" for k, color in enumerate(DARK))


def swatch(color: str) -> str:
    """A colour in a page's style."""
    return variables()[color.lower()]


def colors_of(rules: Sequence[str]) -> dict[str, str]:
    """A colour for each rule; backprop is black."""
    others = [rule for rule in dict.fromkeys(rules) if rule != "backprop"]
    return {"backprop": BLACK} | {rule: list(COLORS)[k % len(COLORS)] for k, rule in enumerate(others)}


def markers_of(codecs: Sequence[str]) -> dict[str, str]:
    """A marker for each codec; `exact` has the first."""
    names = sorted(dict.fromkeys(codecs), key=lambda name: name != "exact")
    return {name: MARKERS[k % len(MARKERS)] for k, name in enumerate(names)}


def byte_axis(axes: Any, zero: float | None = None) -> None:
    """A logarithmic axis with bytes in binary units. zero: where nothing at all is drawn, left of all else."""
    from matplotlib.ticker import NullLocator

    low, high = axes.get_xlim()
    ticks = [(tick, byte_word(tick)) for tick in byte_ticks(low if zero is None else zero * 2, high)]
    if zero is not None:
        ticks = [(zero, "0 B"), *ticks]
        axes.axvline(zero * 1.6, color=FRONT, linewidth=0.8, linestyle=(0, (1, 2)))
    axes.set_xticks(*zip(*ticks, strict=True))
    axes.xaxis.set_minor_locator(NullLocator())


TIMES = (("ms", 1e-3), ("s", 1.0), ("min", 60.0), ("h", 3600.0), ("d", 86400.0), ("y", 365.25 * 86400))
"""Units of time."""


def time_axis(axes: Any) -> None:
    """A logarithmic axis of seconds with marks at round numbers of people's units."""
    from matplotlib.ticker import NullLocator

    ticks = time_ticks(*axes.get_xlim())
    if len(ticks) > 1:
        axes.set_xticks(*zip(*ticks, strict=True))
        axes.xaxis.set_minor_locator(NullLocator())


def time_ticks(low: float, high: float) -> list[tuple[float, str]]:
    """(seconds, in words), not too many."""
    fine = tuple(quarters / 4 * 10**power for power in range(3) for quarters in range(4, 40))
    inside: list[tuple[float, str]] = []
    for steps in ((1, 10, 100), (1, 2, 5, 10, 20, 30, 50, 100, 200, 500), fine):
        marks = []
        for (unit, length), (_, longer) in zip(TIMES, (*TIMES[1:], ("", math.inf)), strict=True):
            marks += [(step * length, f"{step:g} {unit}") for step in steps if step * length < longer]
        inside = [mark for mark in marks if low <= mark[0] <= high]
        if len(inside) >= 3:
            break
    return inside[:: max(1, math.ceil(len(inside) / 6))]


def percent_axis(axes: Any) -> None:
    """Shares as percentages."""
    from matplotlib.ticker import FuncFormatter

    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}%"))


def byte_ticks(low: float, high: float) -> list[float]:
    """Round numbers of bytes, not too many."""
    fine = tuple(step * 10**power for power in range(3) for step in (1, 1.5, 2, 3, 5, 7))
    for steps in ((1, 10, 100), (1, 2, 5, 10, 20, 50, 100, 200, 500), fine):
        ticks = [step * 1024.0**power for power in range(len(UNITS)) for step in steps]
        inside = [tick for tick in ticks if low <= tick <= high]
        if len(inside) >= 3:
            return inside[:: math.ceil(len(inside) / 6)]
    from matplotlib.ticker import MaxNLocator

    unit = 1024.0 ** min(int(math.log(max(low, 1), 1024)), len(UNITS) - 1)
    return [float(tick) * unit for tick in MaxNLocator(4).tick_values(low / unit, high / unit) if low <= tick * unit <= high]


def byte_word(count: float) -> str:
    """A round number of bytes."""
    power = min(int(math.log(max(count, 1), 1024) + 1e-9), len(UNITS) - 1)
    return f"{count / 1024**power:g} {UNITS[power]}"


def shorter(text: str, room: int = 34) -> str:
    """A name that fits."""
    return text if len(text) <= room else f"{text[: room - 1]}…"


Palette = Mapping[str, str]
"""A colour for each rule, or a marker for each codec."""
