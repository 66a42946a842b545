"""The tables of names that a configuration chooses from."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

SINGULAR = {"rules": "rule", "models": "model", "datasets": "data set", "codecs": "codec"}


def _codecs() -> Mapping[str, Callable[..., Any]]:
    from locallearn.codec import CODECS

    return CODECS


@dataclass(frozen=True)
class Catalog:
    """What there is, by YAML name. Rules, models and data sets are frozen dataclasses, a codec is a function of its parameters."""

    rules: Mapping[str, type]
    models: Mapping[str, type]
    datasets: Mapping[str, type]
    codecs: Mapping[str, Callable[..., Any]] = field(default_factory=_codecs)
    _names: dict[tuple[type, str | None], str | None] = field(default_factory=dict, init=False, repr=False, compare=False)

    def name_of(self, thing: Any, table: str | None = None) -> str | None:
        """The name of the class of a rule, model or data set, in one table or in any; None if it is not there."""
        key = type(thing), table
        if key not in self._names:  # to look through all rules imports them, and a sweep asks for each setting of each run
            tables = [getattr(self, table)] if table else [self.rules, self.models, self.datasets]
            self._names[key] = next((name for names in tables for name, cls in names.items() if cls is type(thing)), None)
        return self._names[key]


@functools.cache
def default_catalog() -> Catalog:
    """Everything that comes with locallearn; imports models and data sets, and a rule when it is asked for; starts no device."""
    from locallearn.data import DATASETS
    from locallearn.models import MODELS
    from locallearn.rules import RULES

    return Catalog(RULES, MODELS, DATASETS)
