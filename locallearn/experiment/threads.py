"""On how many threads a run computes, which decides the last bits of wide products: as many when it goes on as when it began."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from locallearn.config.run import Config
from locallearn.experiment.how import How
from locallearn.experiment.store import Store
from locallearn.runtime.placement import THREADS, threads_here


def threads(config: Config, how: How) -> int | tuple[int, ...]:
    """Of this process, of the task, or of each actor: one number for all shards, or one for each."""
    if not how.elsewhere:
        return threads_here()
    return config.cluster.computing if how.on == "ray" else config.cluster.computing_at_most


def as_it_began(config: Config, meta: Mapping[str, Any]) -> Config:
    """The same, with as many threads for its shards as noted in meta.json."""
    begun = _begun(meta)
    return config if begun is None else replace(config, cluster=replace(config.cluster, threads=begun))


def other_threads(config: Config, how: How, meta: Mapping[str, Any]) -> list[str]:
    """What there is to say of a run that goes on, if it began on another number of threads than it would have now."""
    begun, now = _begun(meta), threads(config, how)
    if begun in (None, now):
        return []
    if how.elsewhere:
        return [f"computes on as many threads as it began with ({_told(begun)}), not on those of `cluster:` now ({_told(now)})"]
    return [f"begun on {_told(begun)} threads, {_told(now)} now: the result may differ in its last bits; NPROC={_told(begun)} keeps them"]


def settle(config: Config, on: str, directory: Path | None = None) -> None:
    """Have this process compute on as many threads as a run did before, or message by message as a shard would; NPROC has the last word.

    To be called where the process is there for this run alone. Nothing happens if XLA has begun, which counts once.
    """
    begun = _begun(Store(directory).read("meta.json")) if directory else None
    wanted = config.cluster.computing if begun is None and on == "eager" else begun
    if isinstance(wanted, int) and not _computes():
        os.environ.setdefault(THREADS, str(wanted))


def _begun(meta: Mapping[str, Any]) -> int | tuple[int, ...] | None:
    noted = meta.get("threads")
    return tuple(noted) if isinstance(noted, list) else noted


def _told(threads: int | tuple[int, ...] | None) -> str:
    return ", ".join(map(str, threads)) if isinstance(threads, tuple) else str(threads)


def _computes() -> bool:
    """Whether XLA has begun in this process: from then on JAX refuses this setting, even where it changes nothing."""
    import jax

    try:
        jax.config.update("jax_num_cpu_devices", jax.config.jax_num_cpu_devices)  # type: ignore[attr-defined]
    except RuntimeError:
        return True
    return False
