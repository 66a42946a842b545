"""What came out: in sentences, in figures, in tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from locallearn.report.material import Material
from locallearn.report.spread import Estimate, paired
from locallearn.report.summary import Group, foremost, pareto
from locallearn.report.targets import Target, reached
from locallearn.report.web.elements import Html, bullets, folded, named, section, table, tag, together
from locallearn.words import duration, plural, size

NEAR = 0.005
"""As good as: half a point."""


def points(share: float, digits: int = 1) -> str:
    """A difference of accuracies."""
    return f"{100 * share:+.{digits}f}".replace("-", "−")


def accuracy(found: Estimate) -> str:
    """`82.1 ± 0.5 %`."""
    return f"{100 * found.mean:.1f}{f' ± {100 * found.half:.1f}' if found.n > 1 else ''} %"


def interval(found: Estimate) -> str:
    """`−1.2 to +0.4`."""
    return "–" if found.low is None or found.high is None else f"{points(found.low)} to {points(found.high)}"


def times_fewer(more: float, less: float) -> str:
    """How bytes compare."""
    if not less:
        return "no bytes at all"
    ratio = more / less
    return f"{ratio:.3g} times fewer bytes" if ratio > 1.005 else f"{1 / ratio:.3g} times the bytes" if ratio < 0.995 else "as many bytes"


def findings(material: Material) -> Html:
    """For each task: who is most accurate, whether backprop is beaten and for how many bytes, and where nothing beats it."""
    parts = [together([tag("h3", panel), bullets(_findings(material, panel))]) for panel in material.panels]
    return section("findings", "What the runs say", *parts)


def _findings(material: Material, panel: str) -> list[object]:
    groups = material.panels[panel]
    against = material.reference(panel)
    best = max(groups, key=lambda g: g.estimate.mean)
    told: list[object] = [_sentence("Most accurate: ", material, best, f", {accuracy(best.estimate)} for {size(best.bytes)}.")]
    others = [group for group in groups if not material.baseline(group.rule)]
    if against is None:
        return [*told, "No run of backprop with codec exact on this task: there is no reference."]
    if not others:
        return told
    told.append(_duel(material, max(others, key=lambda g: g.estimate.mean), against))
    level = against.estimate.mean - NEAR
    near = [group for group in groups if group.estimate.mean >= level]
    cheapest = min(near, key=lambda g: g.bytes)
    if cheapest is against:
        told.append("Nothing is within half a point of backprop for fewer bytes: backprop wins here.")
    else:
        ratio = times_fewer(against.bytes, cheapest.bytes)
        won = " So a baseline wins here." if material.baseline(cheapest.rule) else ""
        text = f", {accuracy(cheapest.estimate)} for {size(cheapest.bytes)}, {ratio}.{won}"
        told.append(_sentence("Cheapest within half a point of backprop (by means): ", material, cheapest, text))
    held = [group for group in pareto(groups) if material.baseline(group.rule)]
    front = pareto(groups)
    if held:
        names = [f"{group.words} from {size(group.bytes)} up" for group in held]
        told.append(f"Baselines on the Pareto front: {', '.join(names)} ({len(held)} of {len(front)} steps).")
    else:
        told.append("No baseline is on the Pareto front.")
    return told


def _sentence(before: str, material: Material, group: Group, after: str) -> Html:
    return together([before, tag("b", named(material, group)), after])


def _duel(material: Material, best: Group, against: Group) -> Html:
    found = paired(best.by_seed, against.by_seed)
    name = tag("b", named(material, best))
    if found is None:
        return together(["The best other rule, ", name, ", has no seed in common with backprop."])
    told = f"{points(found.mean)} points on the same {plural(found.n, 'seed')} (95 % interval {interval(found)})"
    if found.n == 1:
        told = f"{points(found.mean)} points on the one seed that both have, which has no interval"
    if found.sign < 0:
        return together(["Backprop wins on accuracy: the best other rule is ", name, f", {told}."])
    verdict = "is above backprop" if found.sign > 0 else "cannot be told from backprop by these seeds"
    return together(["The best other rule, ", name, f", {verdict}: {told}."])


def results(material: Material, panel: str) -> Html:
    """The table of a task, the most accurate first."""
    groups = sorted(material.panels[panel], key=lambda g: -g.estimate.mean)
    against = material.reference(panel)
    front = pareto(groups)
    head = ["", "test accuracy", "seeds", "bytes", "a step", "/ backprop", "computing", "front"]
    rows = []
    for group in groups:
        ratio = f"{group.bytes / against.bytes:.3g}" if against and against.bytes else "–"
        cells = [accuracy(group.estimate), len(group.seeds), size(group.bytes), size(group.bytes_per_step), ratio, duration(group.seconds)]
        rows.append([together([named(material, group), _missing(group)]), *cells, "●" if group in front else ""])
    return together([tag("h3", panel), folded(head, rows)])


def _missing(group: Group) -> Html:
    return tag("small", f" {group.missing}", class_="warn") if group.missing else Html("")


def targets(material: Material, wanted: Mapping[str, Target | None]) -> Html:
    """Bytes and seconds to the target."""
    parts: list[object] = []
    for panel, target in wanted.items():
        parts.append(tag("h3", panel))
        if target is None:
            parts.append(tag("p", "Nothing was held back for validation, so that no target can be reached before the test."))
            continue
        parts.append(tag("p", f"Target: a validation accuracy of {target.accuracy:.1%}, {target.why}."))
        parts.append(_target_table(material, panel, target.accuracy))
    text = "Median over seeds (least to most), at the first evaluation that has the target; a seed that misses it never ends."
    return section("targets", "To the target", tag("p", text), *parts)


def _target_table(material: Material, panel: str, wanted: float) -> Html:
    found = [(group, reached(material, group, wanted)) for group in material.panels[panel]]
    found.sort(key=lambda item: item[1].bytes)
    against = next((costs.bytes[0] for group, costs in found if group is material.reference(panel)), math.inf)
    rows = []
    for group, costs in found:
        ratio = f"{costs.bytes[0] / against:.3g}" if math.isfinite(costs.bytes[0]) and 0 < against < math.inf else "–"
        missed = "all" if not costs.missed else f"{costs.n - costs.missed} of {costs.n}"
        rows.append([named(material, group), _span(costs.bytes, size), ratio, _span(costs.seconds, duration), missed])
    head = ["", "bytes", "/ backprop", "computing", "seeds there"]
    return folded(head, rows)


def _span(values: tuple[float, float, float], word) -> str:
    middle, least, most = (word(value) if math.isfinite(value) else "never" for value in values)
    if middle == "never" and least == "never":
        return "not reached"
    return middle if least == most else f"{middle} ({least} to {most})"


def statistics(material: Material) -> Html:
    """Differences to backprop, and to the most accurate of the other baselines, seed by seed."""
    parts: list[object] = []
    for panel, groups in material.panels.items():
        others = [group for group in groups if material.baseline(group.rule) and group.rule != "backprop"]
        best = max(others, key=lambda g: g.estimate.mean, default=None)
        for against in (one for one in (material.reference(panel), best) if one and len(groups) > 1):
            shown = [group for group in foremost(groups, 40) if group is not against]
            rows = [_difference(material, group, against) for group in sorted(shown, key=lambda g: -g.estimate.mean)]
            head = ["", "points", "95 % interval", "seeds", ""]
            parts += [tag("h3", f"{panel}, against {against.name.replace('_', ' ')}"), table(head, rows)]
    text = (
        "Test accuracy minus the baseline's on the same seeds, which share data order and validation split. "
        "Intervals are Student's t, not corrected for how many are looked at."
    )
    return section("statistics", "Differences to baselines", tag("p", text), *parts) if parts else Html("")


def _difference(material: Material, group: Group, against: Group) -> Sequence[object]:
    found = paired(group.by_seed, against.by_seed)
    if found is None:
        return [named(material, group), "–", "no seed in common", 0, ""]
    verdict = "" if found.low is None else {1: "above", -1: "below", 0: "not told apart"}[found.sign]
    return [named(material, group), points(found.mean, 2), interval(found), found.n, verdict]
