"""How a run is carried out: nothing of it changes a result, but for the last bits of wide products where more or fewer threads compute."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from locallearn.config.combination import Tuned
from locallearn.config.run import Config
from locallearn.errors import ConfigError, LocallearnError, Problem
from locallearn.experiment.events import Listener
from locallearn.experiment.prepare import load_data, stale
from locallearn.experiment.store import SUFFIX
from locallearn.networks import UnknownNetwork, parse_network


def silent(event: Any) -> None:
    """Tells nobody."""


TRANSPORTS = ("socket", "ray")
"""What may carry frames between actors."""


class Shared(NamedTuple):
    """Of runs with the same structure: what `Setup.once` found out, and compiled programs."""

    known: dict[Any, Any]
    programs: dict[Any, Any]


@dataclass(frozen=True)
class How:
    """How a run is carried out.

    on: `local` (one compiled program), `eager` (message by message) or `ray` (one actor for each shard). address: of a Ray that runs
    already, on which the run is then carried out: as actors, or else as one task. transport: of the frames between actors, one of
    `TRANSPORTS`, and network: emulated between them, both in place of the run's own. keep_seconds: least time between checkpoints.
    interrupted: asked after every event, true to stop.
    load: gets data into memory. retry: whether a run that failed is tried again. shared: what
    earlier runs left for others that differ in seeds and rates alone. source, varied, tuned: noted beside the run, where it comes from,
    what sets it apart in a sweep and what tuning has to do with it.
    """

    on: str = "local"
    address: str | None = None
    transport: str | None = None
    network: str | None = None
    keep_seconds: float = 5.0
    tell: Listener = silent
    interrupted: Callable[[], bool] = lambda: False
    load: Callable[[Any], Any] = load_data
    retry: bool = True
    source: str | None = None
    shared: dict[str, Shared] = field(default_factory=dict)
    varied: Mapping[str, Any] = field(default_factory=dict)
    tuned: Tuned | None = None

    @property
    def elsewhere(self) -> bool:
        """Whether other processes train."""
        return self.on == "ray" or self.address is not None

    def line(self, config: Config) -> str | None:
        """The network that is emulated between the shards of a run, if there is one."""
        return (self.network or config.network) if self.on == "ray" else None

    def carrier(self, config: Config) -> str:
        """What carries the frames between the shards of a run."""
        return self.transport or config.cluster.transport

    @property
    def tested(self) -> bool:
        """Whether the run ends with a look at the test set: trials do not."""
        return self.tuned is None or self.tuned.trial is None

    def __post_init__(self) -> None:
        if self.on not in SUFFIX:
            raise LocallearnError(f"`{self.on}` is no way to run; there are {', '.join(SUFFIX)}")
        if self.transport not in (None, *TRANSPORTS):
            raise LocallearnError(f"`{self.transport}` is no transport; there are {', '.join(TRANSPORTS)}")
        if self.transport is not None and self.on != "ray":
            raise ConfigError([Problem("--transport", "is for frames between actors: add `--on ray`")])
        if self.network is not None:
            parse_network(self.network)
            if self.on != "ray":
                raise UnknownNetwork("a network is emulated between actors: add `--on ray`, or ask `locallearn time` of a finished run")


def runnable(config: Config, on: str) -> None:
    """ConfigError for what only one process can do, or only actors."""
    if on == "ray" and config.diagnostics:
        what = "need the whole network in one process: leave them out, or take --on local or --on eager"
        raise ConfigError([Problem("diagnostics", what)])
    if on != "ray" and stale(config) and config.schedule and config.schedule.network is None:
        what = "is missing: in one process a virtual clock says how far shards run ahead; give `network` and `step`, or take --on ray"
        raise ConfigError([Problem("schedule.network", what)])
