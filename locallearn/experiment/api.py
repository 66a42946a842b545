"""`locallearn.run`: from a file, a dictionary or objects to a result, in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from locallearn.config.own import with_blocks
from locallearn.config.reading import read
from locallearn.config.run import Config, resolve
from locallearn.experiment.events import Listener
from locallearn.experiment.how import How, silent
from locallearn.experiment.result import Result
from locallearn.experiment.run import execute, run_name

Source = Config | Mapping[str, Any] | str | Path


def run(
    source: Source,
    *,
    sets: Sequence[str] = (),
    on: str = "local",
    runs: str | Path | None = None,
    fresh: bool = False,
    address: str | None = None,
    transport: str | None = None,
    network: str | None = None,
    progress: Listener | None = None,
) -> Result:
    """Train one configuration and return its result.

    source: the path of a YAML file, or a dictionary with the same keys; in it, `rule` may be a Rule, `model` a model or a list of
    blocks, and `data` a Dataset. sets: `key=value` settings on top. on: `local` (one compiled program), `eager` (message by message,
    for debugging) or `ray` (one actor for each shard; address: of a cluster, else Ray is started for this run alone; transport: of the
    frames, `socket`, or `ray` where actors cannot reach each other's ports; network: emulated between them, such as `1 Mbit/s, 20 ms`, in
    place of the configuration's own).

    runs: a folder for run directories; without one nothing is written. A run that is finished there is loaded, one that was
    interrupted goes on; fresh: begin anew. progress: called with every event, see `locallearn.experiment.events`.

    ConfigError lists every mistake in the configuration.
    """
    config = configuration(source, sets)
    path = Path(source) if isinstance(source, str | Path) else None
    how = How(on=on, address=address, transport=transport, network=network, tell=progress or silent, source=str(path) if path else None)
    directory = None if runs is None else Path(runs, path.stem if path else "", run_name(config, on))
    return execute(config, how, directory, fresh)


def configuration(source: Source, sets: Sequence[str] = ()) -> Config:
    """The resolved configuration of whatever `run` takes."""
    if isinstance(source, Config):
        return resolve(source.canonical() | source.aside(), sets) if sets else source
    if isinstance(source, str | Path):
        return resolve(read(source), sets)
    return resolve(with_blocks(source), sets)
