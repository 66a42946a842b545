"""`locallearn check`: every mistake in every file, at its line."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from locallearn.config.reading import read
from locallearn.config.run import resolve
from locallearn.config.sweep import is_sweep, load
from locallearn.errors import ConfigError
from locallearn.words import plural


def check_files(paths: Sequence[Path]) -> int:
    """Print what each file holds, or what is wrong with it; the exit code."""
    wrong = 0
    for path in paths:
        try:
            print(f"{path}: {_described(path)}")
        except ConfigError as error:
            wrong += 1
            print(error, file=sys.stderr)
    return 2 if wrong else 0


def _described(path: Path) -> str:
    document = read(path)
    if is_sweep(document.data):
        sweep = load(document)
        if sweep.tune:
            trials = sum(len(study.trials) for study in sweep.studies)
            follow = sum(len(study.follow[0]) for study in sweep.studies)
            return f"ok, a sweep of {plural(trials, 'trial')} and {plural(follow, 'run')} on what they choose"
        skipped = f", {len(sweep.skipped)} combinations skipped" if sweep.skipped else ""
        return f"ok, a sweep of {plural(len(sweep.runs), 'run')}{skipped}"
    config = resolve(document)
    return f"ok, {config.label()}-{config.identity()}"
