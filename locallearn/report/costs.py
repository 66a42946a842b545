"""What a rule sends across a boundary and what its blocks wait for, measured on the standard networks: nothing of it is typed by hand."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from locallearn.block import Block
from locallearn.errors import LocallearnError
from locallearn.rule import Rule
from locallearn.runtime.influence import study

BATCH = 1009
"""A prime beyond all widths: an array with so many rows, or a multiple of it, has rows for examples."""

_WIDTHS = (40, 80, 120, 160)  # of hidden blocks: whole bytes of bits, and as many units for each class
_CLASSES = 10


class Unsuited(LocallearnError):
    """A rule that takes none of the standard networks."""


class Amount(NamedTuple):
    """Bytes as a function of a boundary's width n: `unit * n + rest` for each example, `step_unit * n + step_rest` for each step."""

    unit: float = 0
    rest: float = 0
    step_unit: float = 0
    step_rest: float = 0

    def example(self, n: int) -> float:
        """Bytes for each example at n units."""
        return self.unit * n + self.rest

    def __str__(self) -> str:
        parts = [_linear(self.unit, self.rest), _linear(self.step_unit, self.step_rest)]
        parts[1] = f"{parts[1]} a step" if parts[1] else ""
        return " + ".join(part for part in parts if part) or "0"


class Costs(NamedTuple):
    """up, down: what arrives above and below a boundary between two hidden blocks, uncompressed. hops: messages in a row in a network of 5
    blocks. locking: what an update waits for. model: the settings of the network that was looked at."""

    up: Amount
    down: Amount
    hops: int
    locking: tuple[str, ...]
    model: dict[str, Any]


TABLE = Path(__file__).parent / "costs.json"
"""The costs of our rules with their default settings: a listing need not measure them. `python -m locallearn.report.costs` writes it."""


def costs_by_name(name: str) -> Costs:
    """The costs of a rule with its default settings: from the table, or measured if it is another package's."""
    from locallearn.rules import OURS, RULES

    known = _table().get(name) if name in OURS else None
    if known is None:
        return costs_of(RULES[name]())
    return Costs(Amount(*known["up"]), Amount(*known["down"]), known["hops"], tuple(known["locking"]), known["model"])


@functools.cache
def _table() -> dict[str, Any]:
    return json.loads(TABLE.read_text())


def measured() -> dict[str, Any]:
    """The table, measured anew."""
    from locallearn.rules import OURS, RULES

    return json.loads(json.dumps({name: costs_of(RULES[name]())._asdict() for name in OURS}))


@functools.lru_cache(maxsize=256)
def costs_of(rule: Rule) -> Costs:
    """One step of a rule with these hyperparameters, on shapes alone."""
    settings, networks = _networks(rule)
    ups, downs, hops, locking = [], [], 0, ()
    for blocks in networks:
        plan, locking, *_ = study(rule, blocks, BATCH)
        alone = not any(rule.deployed(blocks, range(len(blocks)))[1])  # a baseline that lives on one machine
        hops = 0 if alone else max(hops, plan.hops)
        for low in range(1, len(blocks) - 2):  # the boundary above block `low`, where neither the bottom nor the top is next to it
            n = math.prod(blocks[low].out_shape)
            arrived: dict[bool, list[float]] = {True: [0, 0], False: [0, 0]}
            for channel, spec in plan.channels.items():
                rising = channel.src < channel.dst
                if channel.dst == (low + 1 if rising else low):
                    times = plan.traffic.messages[channel]
                    whole, part = divmod(spec.shape[0], BATCH) if spec.shape else (0, 1)
                    row = math.prod(spec.shape[1:]) * spec.dtype.itemsize * times
                    arrived[rising][0] += whole * row
                    arrived[rising][1] += part * row
            if alone:
                arrived = {True: [0, 0], False: [0, 0]}
            ups.append((n, *arrived[True]))
            downs.append((n, *arrived[False]))
    return Costs(_fitted(ups), _fitted(downs), hops, rule.locking if rule.locking is not None else locking, settings)


def suited(rule: Rule, width: int, classes: int, hidden: Sequence[int] = (120, 60, 60)) -> dict[str, Any] | None:
    """The settings of the first of the standard networks that a rule takes; None if it takes none of them."""
    from locallearn.models import MODELS

    for settings in _candidates(width, classes, hidden):
        model = MODELS[settings["name"]](**{key: value for key, value in settings.items() if key != "name"})
        blocks = [dataclasses.replace(block, batch=BATCH) for block in model.blocks((width,), classes)]
        if not rule.problems(blocks):
            return settings
    return None


def _candidates(width: int, classes: int, hidden: Sequence[int]) -> list[dict[str, Any]]:
    dense = {"name": "mlp", "widths": (width, *hidden, classes)}
    bounded = [{"activation": name, "init": "glorot", "gain": 0.5} for name in ("hard_sigmoid", "tanh", "sigmoid")]
    denoiser = {"name": "denoiser", "widths": (width, hidden[0], classes), "depth": 5}
    return [*({**dense, **function} for function in [{"activation": "relu"}, *bounded]), denoiser]


def _networks(rule: Rule) -> tuple[dict[str, Any], list[list[Block]]]:
    """Networks with at least two boundaries of different widths between hidden blocks, as many as that takes."""
    from locallearn.models import MODELS
    from locallearn.train import ADAM

    networks, settings = [], {}
    for width in (196, 144):
        settings = suited(rule, width, _CLASSES, _WIDTHS)
        if settings is None:
            raise Unsuited(f"{type(rule).__name__} takes none of the standard networks")
        model = MODELS[settings["name"]](**{key: value for key, value in settings.items() if key != "name"})
        blocks = model.blocks((width,), _CLASSES)
        networks.append([dataclasses.replace(block, batch=BATCH, tx=ADAM.build(1, block.index)) for block in blocks])
        if settings["name"] == "mlp":
            break
    return settings, networks


def _fitted(points: Sequence[tuple[int, float, float]]) -> Amount:
    """The lines through what was counted at two widths or more, which must lie on them."""
    (n, *first), (m, *last) = points[0], points[-1]
    units = [(b - a) / (m - n) for a, b in zip(first, last, strict=True)]
    rests = [a - unit * n for a, unit in zip(first, units, strict=True)]
    for at, *found in points:
        if any(abs(unit * at + rest - one) > 1e-6 for unit, rest, one in zip(units, rests, found, strict=True)):
            raise ValueError(f"bytes are not linear in the width: {points}")
    return Amount(units[0], rests[0], units[1], rests[1])


def _linear(unit: float, rest: float) -> str:
    if not unit:
        return f"{rest:g}" if rest else ""
    return f"{unit:g}n" + (f" {'+' if rest > 0 else '-'} {abs(rest):g}" if rest else "")


if __name__ == "__main__":
    TABLE.write_text("{\n" + ",\n".join(f'"{name}": {json.dumps(row)}' for name, row in measured().items()) + "\n}\n")
