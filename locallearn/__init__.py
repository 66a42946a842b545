"""Which learning rule, cut over many machines, with which messages, reaches which accuracy, for how many bytes?"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from locallearn.block import Block, State
    from locallearn.data.dataset import Dataset
    from locallearn.errors import ConfigError, DataError, LocallearnError, RuleError, ShardLost
    from locallearn.experiment.api import run
    from locallearn.experiment.result import Result, load
    from locallearn.rule import Batch, Info, Message, Rule
    from locallearn.traffic import Traffic

_HOMES = {
    "run": "locallearn.experiment.api",
    "load": "locallearn.experiment.result",
    "Result": "locallearn.experiment.result",
    "Dataset": "locallearn.data.dataset",
    "Block": "locallearn.block",
    "State": "locallearn.block",
    "Rule": "locallearn.rule",
    "Message": "locallearn.rule",
    "Batch": "locallearn.rule",
    "Info": "locallearn.rule",
    "Traffic": "locallearn.traffic",
    "LocallearnError": "locallearn.errors",
    "ConfigError": "locallearn.errors",
    "DataError": "locallearn.errors",
    "RuleError": "locallearn.errors",
    "ShardLost": "locallearn.errors",
}

__all__ = [  # noqa: RUF022 (in the order in which a reader meets them)
    "run",
    "load",
    "Result",
    "Dataset",
    "Block",
    "State",
    "Rule",
    "Message",
    "Batch",
    "Info",
    "Traffic",
    "LocallearnError",
    "ConfigError",
    "DataError",
    "RuleError",
    "ShardLost",
]


def __getattr__(name: str) -> Any:
    """Import on first use: `import locallearn` costs nothing, and the command line stays quick."""
    if name not in _HOMES:
        raise AttributeError(f"module `locallearn` has no attribute `{name}`")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
