"""What is told about a run besides the events of its training: `Started` before them, `Ended` after them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from locallearn.config.run import Config
from locallearn.experiment.result import Result
from locallearn.runtime.setup import Setup


class Started(NamedTuple):
    """A run is about to train.

    device: such as `cpu`. resumed: the step that it goes on from, None for a run that begins. notes: what a user should know.
    """

    config: Config
    setup: Setup
    on: str
    device: str
    directory: Path | None
    resumed: int | None
    notes: tuple[str, ...] = ()


class Ended(NamedTuple):
    """A run is over and stored. skipped: it had been finished before, nothing was done."""

    result: Result
    skipped: bool = False


Listener = Callable[[Any], None]
"""Called with every event: `Started`, those of `locallearn.runtime.training`, `Ended`."""
