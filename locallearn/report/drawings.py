"""Every figure of a report by its name, drawn once: for one task, as the page has it, or for several side by side, as files have it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from locallearn.networks import Network
from locallearn.report.bars import depth, depth_rows, traffic, traffic_rows
from locallearn.report.curves import Lines, curve_rows, curves, drawn_in, race_rows
from locallearn.report.figure import frontier, frontier_rows
from locallearn.report.material import Material
from locallearn.report.networktimes import races
from locallearn.report.table import Row

FRONTIER, TRAFFIC, DEPTH = "frontier", "traffic", "depth"
BY_EXAMPLES, BY_BYTES, BY_SECONDS = "curves-examples", "curves-bytes", "curves-seconds"


class Drawings:
    """levels: the target accuracy of each task that has one. network: on which seconds are told."""

    def __init__(self, material: Material, levels: Mapping[str, float], network: Network):
        self.material, self.levels, self.network = material, levels, network
        self._drawn: dict[tuple[str, tuple[str, ...]], Any] = {}

    def draw(self, name: str, *panels: str) -> Any:
        """The figure, None if there is nothing to show. Diagnostics have one of each task."""
        if (name, panels) not in self._drawn:
            self._drawn[name, panels] = self._draw(name, panels)
        return self._drawn[name, panels]

    def _draw(self, name: str, panels: Sequence[str]) -> Any:
        material = self.material
        if name == FRONTIER:
            groups = [group for panel in panels for group in material.panels[panel]]
            return frontier(groups, material.colors, material.markers, material.baseline)
        if name == TRAFFIC:
            return traffic(material, panels)
        if name == DEPTH:
            return depth(material, panels[0])
        lines = self.races if name == BY_SECONDS else {panel: drawn_in(material, panel) for panel in panels}
        return curves(material, {panel: lines[panel] for panel in panels}, name.removeprefix("curves-"), self.levels)

    @cached_property
    def races(self) -> Mapping[str, Lines]:
        """Accuracy against seconds, by task."""
        return races(self.material, self.network)

    def files(self) -> dict[str, tuple[str, list[str]]]:
        """The figures that become files, by the file's name: the figure's name, and the tasks in it."""
        panels = list(self.material.panels)
        together = {name: (name, panels) for name in (FRONTIER, BY_EXAMPLES, BY_BYTES, BY_SECONDS, TRAFFIC)}
        return together | {depth_file(k, panels): (DEPTH, [panel]) for k, panel in enumerate(panels)}

    def numbers(self, name: str, panels: Sequence[str]) -> list[Row]:
        """What a figure shows, as a table."""
        if name == BY_SECONDS:
            return race_rows({panel: self.races[panel] for panel in panels}, self.network.name)
        rows = {FRONTIER: frontier_rows, TRAFFIC: traffic_rows, DEPTH: depth_rows}.get(name, curve_rows)(self.material)
        return [row for row in rows if row["task"] in panels]


def depth_file(number: int, panels: Sequence[str]) -> str:
    """The file of the diagnostics of a task."""
    return DEPTH if len(panels) == 1 else f"{DEPTH}-{number}"
