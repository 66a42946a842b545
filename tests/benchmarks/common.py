"""What the benchmarks share: a run of any rule on random data."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from locallearn.codec import exact
from locallearn.data.dataset import Arrays
from locallearn.models import MLP
from locallearn.rules import RULES
from locallearn.runtime.setup import Setup, Split, Stage
from locallearn.runtime.wiring import Wiring, choose_codecs, deal
from locallearn.train import Optimizer


def random_setup(rule: Any, widths: tuple[int, ...], *, examples: int = 1000, batch: int = 32, steps: int = 10, shards: int = 2) -> Setup:
    """A run of a multi-layer perceptron on Gaussian noise with random labels. rule: a name, or a rule."""
    rng = np.random.default_rng(0)

    def part(count: int) -> Arrays:
        x = rng.normal(size=(count, widths[0])).astype(np.float32)
        return Arrays(x, rng.integers(0, widths[-1], count).astype(np.int32))

    rule = RULES[rule]() if isinstance(rule, str) else rule
    blocks = tuple(replace(b, tx=Optimizer().build(steps, b.index)) for b in MLP(widths=widths).blocks(widths[:1]))
    wiring = Wiring(deal(len(blocks), shards), rule.messages, choose_codecs(rule.messages, {}, exact()))
    split = Split(part(examples), part(10), part(10))
    return Setup((Stage(rule, blocks, wiring, 0, steps),), split, batch, steps, seed=0)
