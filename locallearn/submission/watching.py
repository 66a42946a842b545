"""`locallearn status --address`: the state of runs that are on a cluster, told by a short job there."""

from __future__ import annotations

import re
import secrets
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from locallearn.submission.server import Server
from locallearn.submission.submit import CODES, interruptible

RUNS = "~/locallearn-runs"
"""Where `submit` lets results go to, and `status` looks for them."""
_OF_RAY = re.compile(r"\S+ \S+\tINFO job_manager\.py|Running entrypoint for job ")


class Own:
    """Passes on what a command prints, line by line, without the lines that Ray puts before it."""

    def __init__(self, show: Callable[[str], object]):
        self._show, self._begun = show, ""

    def __call__(self, text: str) -> None:
        """What has come."""
        *lines, self._begun = (self._begun + text).split("\n")
        self._show("".join(f"{line}\n" for line in lines if not _OF_RAY.match(line)))


def folder_there(asked: Path | None) -> str:
    """On the cluster: relative paths begin where `submit` lets results go."""
    return str(asked if str(asked).startswith("~") else Path(RUNS, asked or ""))


def status_there(address: str, words: Sequence[str]) -> int:
    """Print what `locallearn status` with these words prints on the cluster, as it comes; its exit code. Ctrl-C ends it there, too."""
    server = Server(address)
    name = f"locallearn-status-{secrets.token_hex(4)}"
    with interruptible():
        try:
            server.begin(name, ["python", "-m", "locallearn", "status", *words])
            state = server.follow(name, Own(_print))
        except KeyboardInterrupt:
            return CODES["STOPPED"]
        finally:
            server.remove(name)
    return CODES[state.word] if state.code is None else state.code


def _print(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
