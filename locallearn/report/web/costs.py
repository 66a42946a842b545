"""What it cost: messages by kind and link, held against the plan, and seconds on networks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from locallearn.networks import NETWORKS, Network
from locallearn.report.material import Material
from locallearn.report.networktimes import WIDE, Times
from locallearn.report.summary import Group, foremost
from locallearn.report.targets import Target
from locallearn.report.web.elements import Html, bullets, details, named, section, table, tag, together
from locallearn.words import number, plural, size, span

LINKS = 12
"""Columns of a table of links."""


def traffic(material: Material, drawings: Html) -> Html:
    """Bytes by kind and by link, messages and hops; and whether all of it was planned."""
    parts: list[object] = [against_plan(material), drawings]
    for panel, groups in material.panels.items():
        shown = foremost(groups, 30)
        rows = [_a_step(material, group) for group in shown]
        head = ["", "bytes a step", "busiest link, in all", "messages a step", "in a row"]
        parts.append(details(f"{panel}: messages", table(head, rows)))
        parts.append(details(f"{panel}: bytes a step by link", _links(material, shown)))
    return section("traffic", "Traffic", *parts)


def _a_step(material: Material, group: Group) -> Sequence[object]:
    end = next((material.courses[run][-1] for run in group.runs if run in material.courses), {})
    steps = max(1, end.get("step", 1))
    counts = [number((end.get(name) or 0) / steps) for name in ("messages", "hops")]
    return [named(material, group), size(group.bytes_per_step), size(end.get("bytes_worst_link") or 0), *counts]


def _links(material: Material, groups: Sequence[Group]) -> Html:
    found = [(group, _by_link(material, group)) for group in groups]
    links = sorted({link for _, own in found for link in own})
    rows = [[named(material, group), *(size(own[link]) if link in own else "–" for link in links[:LINKS])] for group, own in found]
    more = tag("p", f"{plural(len(links) - LINKS, 'link')} more in result.json of each run.") if len(links) > LINKS else ""
    return together([table(["", *(f"{src} ring" if src == dst else f"{src} → {dst}" for src, dst in links[:LINKS])], rows), more])


def _by_link(material: Material, group: Group) -> dict[tuple[int, int], float]:
    """Bytes of training a step, of a group's first run; of replicas' links and of those of a shard's ring the busiest."""
    steps = max(1, material.read(group.runs[0], "result.json").get("step", 1))
    found: dict[tuple[int, int], float] = {}
    for (src, dst, *_), amount in material.traffic(group.runs[0]).by_link().items():
        found[src, dst] = max(found.get((src, dst), 0.0), amount / steps)
    return found


def against_plan(material: Material) -> Html:
    """What was sent must be what was planned: to the byte, or at most that where codecs vary in size.

    Runs that went on without some of their replicas sent less than was planned for all: nothing is said of them.
    """
    equal, bounded, wrong = 0, 0, []
    for group in (group for groups in material.panels.values() for group in groups):
        for run in group.runs:
            plan, result = material.read(run, "plan.json"), material.read(run, "result.json")
            if result.get("reason") != "steps" or result.get("present") or "bytes_by_kind" not in plan:
                continue
            planned, sent = plan["bytes_by_kind"], material.traffic(run).by_kind()
            off = [kind for kind in {*planned, *sent} if _off(planned.get(kind, 0), sent.get(kind, 0), plan.get("at_most", False))]
            wrong += [f"{run}: {kind} {sent.get(kind, 0):,} bytes sent, {planned.get(kind, 0):,} planned" for kind in sorted(off)]
            bounded += not off and plan.get("at_most", False)
            equal += not off and not plan.get("at_most", False)
    if wrong:
        return tag("div", tag("p", tag("b", "Plan and measurement disagree.")), bullets(wrong[:20]), class_="alarm")
    words = [f"{plural(equal, 'run')} sent what was planned, to the byte"] if equal else []
    words += [f"{plural(bounded, 'run')} with codecs of variable size stayed within their bound"] if bounded else []
    return tag("p", f"{'; '.join(words)}.") if words else Html("")


def _off(planned: int, sent: int, at_most: bool) -> bool:
    return sent > planned if at_most else sent != planned


def networks(times: Mapping[str, Sequence[Times]], wanted: Mapping[str, Target | None], material: Material, drawn: Html) -> Html:
    """Seconds on named networks. drawn: the figure of one of them."""
    parts: list[object] = []
    for panel, own in times.items():
        target = wanted.get(panel)
        timed = [each for each in own if each.seconds]
        least = {name: min((each.seconds[name] for each in timed), default=math.inf) for name in NETWORKS}
        rows = [[named(material, each.group), *(_time(each.seconds[name], least[name]) for name in NETWORKS)] for each in timed]
        until = f"to a validation accuracy of {target.accuracy:.1%}" if target else "to the end of training"
        parts += [tag("h3", f"{panel}, {until}"), table(["", *NETWORKS], rows)]
        parts.append(_shards(material, own))
        missing = [f"{each.group.name.replace('_', ' ')}: {each.why}" for each in own if not each.seconds]
        parts.append(details(f"Not in this table ({len(missing)})", bullets(missing)) if missing else "")
    text = (
        "Computed, not measured: the messages and dependencies of a step are replayed on the clocks of a network, with the seconds of "
        "computing that the median run took on its machine. "
    )
    known = [f"{n.name}: {told(n)}" for n in NETWORKS.values()]
    return section(
        "networks",
        "If the link were …",
        tag("p", text, tag("b", "Bold"), ": the fastest of a column."),
        drawn,
        *parts,
        details("Networks", bullets(known)),
    )


def _shards(material: Material, own: Sequence[Times]) -> Html:
    rows = [each for each in own if each.shards]
    counts = sorted({count for each in rows for count in each.shards})
    cells = [[named(material, each.group), *(span(each.shards[n]) if n in each.shards else "–" for n in counts)] for each in rows]
    text = f"The same on {WIDE}, cut into more shards, the blocks of the middle recurring:"
    return together([tag("p", text), table(["shards", *counts], cells)]) if rows else Html("")


def _time(seconds: float, least: float) -> Html:
    return tag("b", span(seconds)) if seconds <= least * 1.005 else tag("span", span(seconds))


def told(network: Network) -> str:
    """Its rates and latency."""
    return f"{_rate(network.up)} up, {_rate(network.down)} down, {span(network.latency)}"


def _rate(rate: float) -> str:
    return f"{number(rate)}B/s"
