"""What the commands do that run something."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from locallearn.experiment.api import configuration
from locallearn.experiment.progress import shown_on
from locallearn.experiment.run import How, execute, run_name
from locallearn.experiment.signals import polite


def use_data(folder: str | None) -> None:
    """Where published data sets are looked for, in this process and in those that it starts."""
    if folder:
        os.environ["LOCALLEARN_DATA"] = folder


def run(path: Path, *, sets: Sequence[str], on: str, address: str | None, runs: Path, fresh: bool, quiet: bool) -> None:
    """`locallearn run`."""
    config = configuration(path, sets)
    with contextlib.ExitStack() as stack:
        interrupted = stack.enter_context(polite())
        tell = (lambda event: None) if quiet else stack.enter_context(shown_on(sys.stdout))
        how = How(on=on, address=address, tell=tell, interrupted=interrupted, source=str(path))
        execute(config, how, runs / path.stem / run_name(config, on), fresh)
