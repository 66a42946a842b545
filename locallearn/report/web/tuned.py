"""What tuning found: values, budgets, and what it took to a target with the budget that everyone had."""

from __future__ import annotations

import math

from locallearn.report.material import Material
from locallearn.report.table import task_of
from locallearn.report.tabular import cell
from locallearn.report.targets import target_of
from locallearn.report.tuning import Searched, median_to_target, searched
from locallearn.report.web.elements import Html, section, table, tag
from locallearn.words import decimal, number, size


def tuning(material: Material) -> Html:
    """A row for each tuned combination; empty if nothing was tuned."""
    parts: list[object] = []
    for panel in dict.fromkeys(task_of(row) for row in material.rows if row.get("study") is not None):
        rows = [row for row in material.rows if task_of(row) == panel]
        target = target_of(material, panel) if panel in material.panels else None
        together: dict[str, list[Searched]] = {}
        for study in searched(rows, target.accuracy if target else None):
            together.setdefault(study.combination, []).append(study)
        if together:
            wanted = f" Target: a validation accuracy of {target.accuracy:.1%}, {target.why}." if target else ""
            parts += [tag("h3", panel), tag("p", wanted) if wanted else "", _table(together)]
    text = (
        "Every combination has the same number of trials, each a training of its own on the training set, of which a study chooses one by "
        "the validation set; the test set is read by the runs on its choice alone. Results above are over all studies and seeds. Bytes to "
        "the target: the median over studies of the least over trials."
    )
    return section("tuning", "What tuning chose", tag("p", text), *parts) if parts else Html("")


def _table(together: dict[str, list[Searched]]) -> Html:
    rows = []
    for name, studies in together.items():
        budget = [f"{len(studies)} × {studies[0].trials}", number(sum(s.steps for s in studies)), size(sum(s.bytes for s in studies))]
        least = median_to_target(studies)
        chosen = "; ".join(_values(study) for study in studies)
        rows.append([name.rpartition("-")[0].replace("_", " "), chosen, *budget, size(least) if math.isfinite(least) else "not reached"])
    return table(["", "chosen in each study", "studies × trials", "steps", "bytes", "to the target"], rows, words=2)


def _values(study: Searched) -> str:
    if not study.chosen:
        return "not yet"
    values = ", ".join(f"{key.rpartition('.')[2]} {cell(value)}" for key, value in study.chosen.items())
    return f"{values} (valid {decimal(study.valid)})" if study.valid is not None else values
