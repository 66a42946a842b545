"""Names beside points, so that no name covers another name, a point or a line: the reader needs no legend."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

Box = tuple[float, float, float, float]
"""Left, bottom, right, top, in pixels."""

ANGLES = (0, 180, 90, 270, 45, 315, 135, 225, 22, 338, 158, 202, 67, 113, 247, 293)
FAR = (8, 12, 17, 24, 34, 48, 66)
NEAR = 17
MARK = 4.5
TRIED = 120
GAP = 6.0


class Label(NamedTuple):
    """A name, its colour, and the points (data coordinates) that it may stand beside, the best first."""

    text: str
    color: str
    points: Sequence[tuple[float, float]]


class Spot(NamedTuple):
    """A place for a name: where its point is, the room it takes, and how far (in points) it stands off."""

    point: tuple[float, float]
    box: Box
    far: float
    rank: float


def place(axes: Any, labels: Sequence[Label], taken: Sequence[Box]) -> None:
    """Write each name where it covers least; one that stands off its point gets a thin line to it. taken: boxes to keep clear of."""
    from matplotlib.patheffects import withStroke

    scale = axes.figure.dpi / 72
    renderer = axes.figure.canvas.get_renderer()
    inside = axes.get_window_extent(renderer)
    frame = (inside.x0 + 3, inside.y0 + 3, inside.x1 - 3, inside.y1 - 3)
    known = np.array(taken).reshape(-1, 4)
    texts, choices = [], []
    for label in labels:
        text = axes.text(0, 0, label.text, fontsize=8.5, color=label.color, va="bottom", ha="left", zorder=5)
        text.set_path_effects([withStroke(linewidth=2, foreground="white")])
        extent = text.get_window_extent(renderer)
        texts.append(text)
        choices.append(_cheapest(list(_spots(axes, label, extent.width, extent.height)), known, frame, scale))
    for text, spot in zip(texts, best_together(choices, scale), strict=True):
        text.set_position(axes.transData.inverted().transform(spot.box[:2]))
        if spot.far > NEAR:
            ends = axes.transData.inverted().transform(_leader(spot))
            axes.plot(ends[:, 0], ends[:, 1], color=text.get_color(), linewidth=0.6, alpha=0.6, zorder=2)


def best_together(choices: Sequence[Sequence[tuple[float, Spot]]], scale: float) -> list[Spot]:
    """One spot for each name, of its (cost, spot) pairs: every name in turn chooses first, and the cheapest of these rounds wins."""
    prices = [np.array([price for price, _ in pairs]) for pairs in choices]
    rooms = [np.array([_room(spot) for _, spot in pairs]) for pairs in choices]
    rounds = []
    for first in range(len(choices)):
        chosen: dict[int, int] = {}
        total = 0.0
        for k in [*range(first, len(choices)), *range(first)]:
            others = np.concatenate([rooms[j][c] for j, c in chosen.items()]) if chosen else np.zeros((0, 4))
            both = prices[k] + 8 * overlap(rooms[k], others).sum(-1) / scale
            chosen[k] = int(np.argmin(both))
            total += both[chosen[k]]
        rounds.append((total, chosen))
    chosen = min(rounds, key=lambda item: item[0])[1] if rounds else {}
    return [choices[k][chosen[k]][1] for k in range(len(choices))]


def _room(spot: Spot) -> list[Box]:
    """What a name takes up, with its line: as many boxes for every spot."""
    left, bottom, right, top = spot.box
    line = _along([_leader(spot)], 1.0, 8) if spot.far > NEAR else [(0.0, 0.0, 0.0, 0.0)] * 9
    return [(left - GAP, bottom, right + GAP, top), *line]


def _spots(axes: Any, label: Label, width: float, height: float) -> Iterator[Spot]:
    scale = axes.figure.dpi / 72
    for rank, point in enumerate(label.points):
        x, y = axes.transData.transform(point)
        for far, (turn, angle) in itertools.product(FAR, enumerate(ANGLES)):
            dx, dy = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            left = x + dx * far * scale + (dx - 1) / 2 * width
            bottom = y + dy * far * scale + (dy - 1) / 2 * height
            yield Spot((x, y), (left, bottom, left + width, bottom + height), far, 0.3 * rank + 0.05 * turn)


def _cheapest(spots: Sequence[Spot], taken: np.ndarray, frame: Box, scale: float) -> list[tuple[float, Spot]]:
    """The best of the spots, with what they cost: what a name covers there, how far off it is, what its line would cross; far more for
    leaving the frame."""
    boxes = np.array([spot.box for spot in spots])
    outside = np.clip(np.array(frame[:2]) - boxes[:, :2], 0, None).sum(1) + np.clip(boxes[:, 2:] - np.array(frame[2:]), 0, None).sum(1)
    near = (taken[:, :2] <= boxes[:, 2:].max(0)).all(1) & (taken[:, 2:] >= boxes[:, :2].min(0)).all(1)
    taken = taken[near]  # of hundreds of points, few are where this name could be
    apart = np.array([spot.far + 10 * spot.rank + 60 * (spot.far > NEAR) for spot in spots])
    costs = 1000 * outside + 4 * overlap(boxes, taken) / scale + apart
    best = []
    for k in np.argsort(costs, kind="stable")[:TRIED]:
        lines = np.array(_along([_leader(spots[k])], 0.5)[3:]) if spots[k].far > NEAR else np.zeros((0, 4))
        best.append((float(costs[k]) + 40 * int(np.count_nonzero(overlap(lines, taken))), spots[k]))
    return sorted(best, key=lambda item: item[0])


def overlap(boxes: Any, others: np.ndarray) -> np.ndarray:
    """The area that each box, [..., 4], shares with others, [N, 4]: [...]."""
    boxes = np.asarray(boxes, float)[..., None, :]
    width = np.minimum(boxes[..., 2], others[:, 2]) - np.maximum(boxes[..., 0], others[:, 0])
    height = np.minimum(boxes[..., 3], others[:, 3]) - np.maximum(boxes[..., 1], others[:, 1])
    return (np.maximum(width, 0) * np.maximum(height, 0)).sum(-1)


def _leader(spot: Spot) -> list[tuple[float, float]]:
    (x, y), box = spot.point, spot.box
    return [(x, y), (min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3]))]


def boxes_of_points(axes: Any, points: Sequence[tuple[float, float, float, float]]) -> list[Box]:
    """Room taken by points with their bars: (x, y, lowest, highest) in data coordinates."""
    mark = MARK * axes.figure.dpi / 72
    boxes = []
    for x, y, low, high in points:
        (px, py), (_, bottom), (_, top) = axes.transData.transform([(x, y), (x, low), (x, high)])
        boxes += [(px - mark, py - mark, px + mark, py + mark), (px - 2, bottom, px + 2, top)]
    return boxes


def boxes_of_line(axes: Any, points: Sequence[tuple[float, float]], pieces: int = 24) -> list[Box]:
    """Room taken by a polyline in data coordinates, as small boxes along it."""
    return _along([axes.transData.transform(points)], 2.0, pieces) if points else []


def _along(lines: Sequence[Any], half: float, pieces: int = 24) -> list[Box]:
    boxes = []
    for line in lines:
        for (x0, y0), (x1, y1) in itertools.pairwise(line):
            for k in range(pieces + 1):
                x, y = x0 + (x1 - x0) * k / pieces, y0 + (y1 - y0) * k / pieces
                boxes.append((x - half, y - half, x + half, y + half))
    return boxes
