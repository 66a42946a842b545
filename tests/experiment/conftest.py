"""A small catalog of stand-ins: the schema must work for dataclasses that it has never seen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from locallearn.config.catalog import Catalog
from locallearn.config.document import Document
from locallearn.config.reading import parse
from locallearn.config.run import Config, resolve
from locallearn.fields import Count, Fraction, NonNegative, Positive
from locallearn.train import Optimizer

SGD = Optimizer("sgd")


class Sent:
    """A message, as far as checking needs it."""


@dataclass(frozen=True)
class Backprop:
    messages: ClassVar[dict[str, Any]] = {"activation": Sent(), "error": Sent()}


@dataclass(frozen=True)
class PredictiveCoding:
    messages: ClassVar[dict[str, Any]] = {"activation": Sent(), "prediction_error": Sent()}
    additive_over_batch: ClassVar[bool] = False

    steps: Count = 20
    rate: Positive = 0.1
    noise: NonNegative = 0  # an integer as the default of a float, which YAML gives back as 0 or 0.0
    start: Literal["forward", "zeros"] = "forward"
    inner: Optimizer = SGD

    def problems(self, blocks: list[int]) -> list[str]:
        return [] if len(blocks) > 1 else ["needs two blocks"]


@dataclass(frozen=True)
class Mlp:
    widths: tuple[Count, ...]
    activation: Literal["relu", "tanh"] = "relu"

    def problems(self, example_shape: tuple[int, ...], classes: int) -> list[tuple[str, str]]:
        found = [] if self.widths[0] == example_shape[0] else [("widths", f"begins with {self.widths[0]}, not {example_shape[0]}")]
        return found if self.widths[-1] == classes else [*found, ("widths", f"ends with {self.widths[-1]}, not {classes}")]

    def blocks(self, example_shape: tuple[int, ...], classes: int) -> list[int]:
        return list(self.widths[1:])


@dataclass(frozen=True)
class Strokes:
    samples: Count = 1000
    shift: Fraction | None = None

    example_shape: ClassVar[tuple[int, ...]] = (40,)
    classes: ClassVar[int] = 10

    @property
    def train_size(self) -> int:
        return self.samples

    def problems(self) -> list[tuple[str, str]]:
        return [("samples", "must be even")] if self.samples % 2 else []


def exact() -> None: ...
def int8() -> None: ...
def topk(fraction: Fraction = 0.1, signed: bool = False) -> None: ...
def error_feedback(inner: Any) -> None: ...
def delayed(inner: Any, rounds: Count) -> None: ...


CATALOG = Catalog(
    rules={"backprop": Backprop, "predictive_coding": PredictiveCoding},
    models={"mlp": Mlp},
    datasets={"strokes": Strokes},
    codecs={f.__name__: f for f in (exact, int8, topk, error_feedback, delayed)},
)

GOOD = """\
rule: {name: predictive_coding, steps: 5}
model: {name: mlp, widths: [40, 30, 20, 10], shards: 2}
data: {name: strokes}
train: {epochs: 2, batch: 50}
"""


@pytest.fixture(scope="session")
def catalog() -> Catalog:
    return CATALOG


@pytest.fixture
def good() -> str:
    return GOOD


@pytest.fixture
def load_text():
    """Resolve YAML text as if it were the file `run.yaml`."""

    def load(text: str, *sets: str) -> Config:
        return resolve(document(text), sets, CATALOG)

    return load


@pytest.fixture
def document_of():
    return document


def document(text: str, folder: Path = Path()) -> Document:
    return parse(text, "run.yaml", folder=folder)
