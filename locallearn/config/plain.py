"""From dataclasses back to plain data, for YAML and JSON."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import typing
from collections.abc import Mapping
from typing import Any

from locallearn.config.catalog import Catalog
from locallearn.markers import Aside, Later

_HOOKS = ("messages", "blocks", "load")
"""What tells a rule, a model and a data set from other dataclasses."""


def plain(value: Any, catalog: Catalog, identity: bool = False) -> Any:
    """The value as dictionaries, lists, numbers, text, truth values and None.

    A rule, model or data set becomes its `name` and fields. What is not in the catalog keeps the name of its class, and a fingerprint
    stands for data in memory: both tell runs apart, but cannot be resolved again. identity: without the fields marked `Aside`. Those
    marked `Later` are there where they are not at their default.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item, catalog, identity) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, catalog, identity) for item in value]
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return _array(value)
    name = catalog.name_of(value)
    if name is None and hasattr(value, "fingerprint"):
        return {"name": str(getattr(value, "name", _class(value))), "fingerprint": str(value.fingerprint)}
    if name is None and any(hasattr(value, hook) for hook in _HOOKS):
        name = _class(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        aside, later = _marked(type(value), Aside) if identity else (), _marked(type(value), Later)
        usual = {f.name for f in dataclasses.fields(value) if f.name in later and getattr(value, f.name) == f.default}
        names = [f.name for f in dataclasses.fields(value) if f.init and f.name not in aside and f.name not in usual]
        fields = {field: plain(getattr(value, field), catalog, identity) for field in names}
        return ({"name": name} if name else {}) | fields
    return {"name": name or getattr(value, "__qualname__", None) or _class(value)}


@functools.cache
def _marked(cls: type, marker: type) -> frozenset[str]:
    hints = typing.get_type_hints(cls, include_extras=True)
    return frozenset(name for name, hint in hints.items() if any(isinstance(m, marker) for m in getattr(hint, "__metadata__", ())))


def _class(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _array(value: Any) -> Any:
    import numpy as np

    array = np.asarray(value)
    if array.shape == ():
        return array.item()
    digest = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return f"sha256:{digest.hexdigest()}"
