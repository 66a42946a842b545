"""`locallearn time`: seconds on networks, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from locallearn.report.tabular import aligned, shown
from locallearn.words import span


def time_text(folder: Path, networks: Sequence[str], shards: Sequence[int], accuracy: float | None, step: float | None, form: str) -> str:
    """A row for each network and number of shards."""
    from locallearn.experiment.course import course_of
    from locallearn.experiment.predict import predict
    from locallearn.networks import NETWORKS, parse_network

    course = course_of(folder, accuracy, step)
    chosen = [parse_network(text) for text in networks] or list(NETWORKS.values())
    rows = [predict(course, network, count)._asdict() for network in chosen for count in (shards or [None])]
    if form != "table":
        return shown(rows, form)
    times = [[span(row[key]) for key in ("first", "step", "seconds")] for row in rows]
    body = [[row["network"], str(row["shards"]), str(row["steps"]), *three] for row, three in zip(rows, times, strict=True)]
    return aligned([["network", "shards", "steps", "first step", "each step", "in all"], *body], (1, 2, 3, 4, 5))
