"""Data sets: embedded, generated, or read from published files; `DATASETS` names them all."""

from __future__ import annotations

from typing import Any

from locallearn.data.cifar import Cifar10, Cifar100
from locallearn.data.dataset import Arrays, Dataset, Split, batches, order, split, trickle
from locallearn.data.fashion14 import Fashion14
from locallearn.data.fetch import download
from locallearn.data.hierarchy import Hierarchy
from locallearn.data.images import FashionMnist, KuzushijiMnist, Mnist
from locallearn.data.source import Source
from locallearn.data.strokes import Strokes1d
from locallearn.data.text import TinyShakespeare

# Name in YAML -> class, each of which is a `Source`. A data set more is a line more.
DATASETS: dict[str, type[Any]] = {
    "strokes1d": Strokes1d,
    "hierarchy": Hierarchy,
    "fashion14": Fashion14,
    "fashion_mnist": FashionMnist,
    "mnist": Mnist,
    "kmnist": KuzushijiMnist,
    "cifar10": Cifar10,
    "cifar100": Cifar100,
    "tiny_shakespeare": TinyShakespeare,
}


def describe() -> list[dict[str, object]]:
    """One dictionary for each data set with its default settings, for a table; nothing is loaded.

    Keys: name, summary, shape, classes, train and test (numbers of examples), source, available, licence.
    """
    return [_description(cls()) for cls in DATASETS.values()]


def _description(data: Source) -> dict[str, object]:
    return {
        "name": data.name,
        "summary": (type(data).__doc__ or "").partition("\n")[0],
        "shape": data.example_shape,
        "classes": data.classes,
        "train": data.train_size,
        "test": data.test_size,
        "source": data.source(),
        "available": data.available(),
        "licence": data.licence,
    }


__all__ = [
    "DATASETS",
    "Arrays",
    "Dataset",
    "Source",
    "Split",
    "batches",
    "describe",
    "download",
    "order",
    "split",
    "trickle",
]
