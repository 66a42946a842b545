"""Errors that a user can act on: each says what was found, where, and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class LocallearnError(Exception):
    """Base of every error that locallearn raises on purpose; the command line prints it without a traceback.

    exit_code: of the command: 1 a run failed, 2 what was given cannot be used and nothing was run, 130 interrupted.
    """

    exit_code = 1


class Problem(NamedTuple):
    """One mistake: where it is (`file.yaml:3` or `--set rule.rate=x`) and what is wrong, with what to do."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" if self.where else self.what


class ConfigError(LocallearnError):
    """A configuration with one or more mistakes; nothing was run."""

    exit_code = 2

    def __init__(self, problems: Iterable[Problem]):
        self.problems = tuple(problems)
        count = len(self.problems)
        tail = f"\n{count} problems; nothing was run." if count > 1 else "\nNothing was run."
        super().__init__("\n".join(map(str, self.problems)) + tail)


class DataError(LocallearnError):
    """A data file is missing, truncated or altered."""

    exit_code = 2


class NoRay(LocallearnError):
    """No Ray answers at the address that was given."""

    exit_code = 2


class RuleError(LocallearnError):
    """A rule does not fit the model or broke the contract of the chain."""


class ShardLost(LocallearnError):
    """A shard died or fell silent while others waited for it."""
