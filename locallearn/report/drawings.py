"""Every figure of a report by its name, drawn once: for one task, as the page has it, or for several side by side, as files have it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from locallearn.report.bars import depth, depth_rows, traffic, traffic_rows
from locallearn.report.curves import curve_rows, curves
from locallearn.report.figure import frontier, frontier_rows
from locallearn.report.material import Material
from locallearn.report.table import Row

FRONTIER, BY_EXAMPLES, BY_BYTES, TRAFFIC, DEPTH = "frontier", "curves-examples", "curves-bytes", "traffic", "depth"


class Drawings:
    """levels: the target accuracy of each task that has one."""

    def __init__(self, material: Material, levels: Mapping[str, float]):
        self.material, self.levels = material, levels
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
        return curves(material, panels, name.removeprefix("curves-"), self.levels)

    def files(self) -> dict[str, tuple[str, list[str]]]:
        """The figures that become files, by the file's name: the figure's name, and the tasks in it."""
        panels = list(self.material.panels)
        together = {name: (name, panels) for name in (FRONTIER, BY_EXAMPLES, BY_BYTES, TRAFFIC)}
        return together | {depth_file(k, panels): (DEPTH, [panel]) for k, panel in enumerate(panels)}

    def numbers(self, name: str, panels: Sequence[str]) -> list[Row]:
        """What a figure shows, as a table."""
        rows = {FRONTIER: frontier_rows, TRAFFIC: traffic_rows, DEPTH: depth_rows}.get(name, curve_rows)(self.material)
        return [row for row in rows if row["task"] in panels]


def depth_file(number: int, panels: Sequence[str]) -> str:
    """The file of the diagnostics of a task."""
    return DEPTH if len(panels) == 1 else f"{DEPTH}-{number}"
