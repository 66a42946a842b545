"""The page: everything that a report tells, in one file that is read from disk without a network and needs no script."""

from __future__ import annotations

import base64
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from locallearn.experiment.provenance import commit, now
from locallearn.experiment.store import DIVERGED, FAILED, FINISHED
from locallearn.report.drawings import BY_BYTES, BY_EXAMPLES, BY_SECONDS, DEPTH, FRONTIER, TRAFFIC, Drawings, depth_file
from locallearn.report.ink import css_colors, inline
from locallearn.report.material import Material
from locallearn.report.networktimes import Times
from locallearn.report.targets import Target
from locallearn.report.web import costs, origin, results, tuned
from locallearn.report.web.elements import Html, figures, section, tag, together
from locallearn.words import size

EMBEDDED = 3 * 2**20
"""Bytes: a longer table is not carried in the page."""


def page(drawings: Drawings, wanted: Mapping[str, Target | None], times: Mapping[str, Sequence[Times]], csv: bytes, command: str) -> str:
    """The whole of it, as HTML. csv: results.csv. command: what was typed."""
    material = drawings.material
    sections = [
        results.findings(material),
        _frontier(drawings),
        results.targets(material, wanted) if wanted else Html(""),
        tuned.tuning(material),
        _curves(drawings),
        costs.traffic(material, _traffic(drawings)) if material.panels else Html(""),
        _depth(drawings),
        costs.networks(times, wanted, material, _races(drawings)) if times else Html(""),
        results.statistics(material),
        origin.rules(material),
        origin.failures(material),
        origin.provenance(material),
        origin.reproduce(material, command),
    ]
    title = ", ".join(dict.fromkeys(str(row["sweep"] or "runs") for row in material.last))
    head = [
        Html('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
        Html("<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">"),
        tag("title", f"{title} · locallearn"),
        Html(f"<style>{_style()}</style>"),
    ]
    main = tag("main", _header(material, title, csv, command), _nav(sections), *sections)
    return f'<!DOCTYPE html>\n<html lang="en">\n<head>{together(head)}</head>\n<body>\n{main}\n</body>\n</html>\n'


@cache
def _style() -> str:
    """Colours for light and dark screens; paper is light."""
    text = Path(__file__).with_name("style.css").read_text()
    light, dark = (f":root {{ {css_colors(dark)} }}" for dark in (False, True))
    return f"{light}\n@media screen and (prefers-color-scheme: dark) {{ {dark} }}\n{text}"


def _header(material: Material, title: str, csv: bytes, command: str) -> Html:
    states = Counter(str(row["state"]) for row in material.last)
    tiles: dict[str, object] = {"runs": states.total(), FINISHED: states[FINISHED], FAILED: states[FAILED]}
    tiles[DIVERGED] = len(material.diverged)
    tiles |= {state: count for state, count in states.items() if state not in (FINISHED, FAILED)}
    tiles["bytes, all runs"] = size(sum(row.get("bytes") or 0 for row in material.last))
    boxes = [tag("div", tag("dt", name), tag("dd", value)) for name, value in tiles.items()]
    made = f"Made {now()} by locallearn{f', commit {found}' if (found := commit()) else ''}: "
    note = tag("p", made, tag("code", command), class_="quiet")
    return together([tag("h1", title), note, tag("dl", *boxes, class_="tiles"), _table_link(csv)])


def _table_link(csv: bytes) -> Html:
    if len(csv) > EMBEDDED:
        return tag("p", tag("a", "results.csv", href="results.csv"), f" beside this page has a row for each evaluation ({size(len(csv))}).")
    link = tag("a", "results.csv", href=f"data:text/csv;base64,{base64.b64encode(csv).decode()}", download="results.csv")
    return tag("p", link, f", a row for each evaluation, is inside this page ({size(len(csv))}).")


def _nav(sections: Sequence[Html]) -> Html:
    heads = [re.match(r'<section id="(\w+)"><h2>(.*?)</h2>', part) for part in sections]
    return tag("nav", *(tag("a", Html(found[2]), href=f"#{found[1]}") for found in heads if found), aria_label="Sections")


def _drawn(drawings: Drawings, name: str, told: str) -> list[Html]:
    """One drawing for each task."""
    found = [(k, panel, drawings.draw(name, panel)) for k, panel in enumerate(drawings.material.panels)]
    return [Html(inline(drawing, f"{name}-{k}", f"{panel}: {told}")) for k, panel, drawing in found if drawing is not None]


def _frontier(drawings: Drawings) -> Html:
    drawn = _drawn(drawings, FRONTIER, "test accuracy against bytes sent; the numbers are in the table below")
    caption = (
        "Test accuracy against all bytes that crossed a shard boundary in training (without evaluation). "
        "Points are means over seeds, bars 95 % intervals, dashes single seeds; baselines are hollow; the grey steps are the Pareto front."
    )
    tables = [results.results(drawings.material, panel) for panel in drawings.material.panels]
    seeds = tag("p", "± is half of the 95 % interval of the mean (Student's t); one seed has none.", class_="quiet")
    return section("frontier", "Accuracy against bytes", figures(drawn, caption, FRONTIER), *tables, seeds) if drawn else Html("")


def _curves(drawings: Drawings) -> Html:
    parts = []
    for name, against in ((BY_EXAMPLES, "examples seen"), (BY_BYTES, "bytes sent")):
        caption = f"Means over seeds against {against}; bands from the lowest to the highest seed; baselines dashed."
        parts.append(figures(_drawn(drawings, name, f"curves against {against}"), caption, name))
    return section("curves", "Learning curves", tag("div", *parts, class_="drawings")) if any(parts) else Html("")


def _races(drawings: Drawings) -> Html:
    net = drawings.network
    caption = (
        f"The best validation accuracy so far against the time that training would take on {net.name} ({costs.told(net)}), means over "
        "seeds, bands from the lowest to the highest. Another network: --network."
    )
    return figures(_drawn(drawings, BY_SECONDS, f"best validation accuracy against predicted time on {net.name}"), caption, BY_SECONDS)


def _traffic(drawings: Drawings) -> Html:
    drawn = _drawn(drawings, TRAFFIC, "what share of a step's bytes each kind of message has")
    return figures(drawn, "What a training step sends, by kind of message.", TRAFFIC)


def _depth(drawings: Drawings) -> Html:
    panels = list(drawings.material.panels)
    parts = []
    for k, panel in enumerate(panels):
        drawing = drawings.draw(DEPTH, panel)
        if drawing is not None:
            told = f"{panel}: diagnostics at the end of training by depth, means over seeds"
            parts.append(figures([Html(inline(drawing, f"{DEPTH}-{k}", told))], told, depth_file(k, panels)))
    return section("depth", "By depth", *parts)
