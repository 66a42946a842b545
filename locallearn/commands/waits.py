"""Who waits for whom in a run on actors, from what they say of themselves."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from locallearn.experiment.store import RUNNING, Store
from locallearn.words import WIDTH, called, duration, plural, those


def waits_text(said: Mapping[str, Any], running: bool, width: int = WIDTH) -> str:
    """Of each shard: its step, what it waits for now if it runs, and how long it has waited for each other one. Empty for none."""
    shards = said.get("shards", ())
    return "\n".join(line for own in shards for line in _lines(shards, own, running, width))


def waits_below(rows: Sequence[Mapping[str, Any]], root: Path) -> str:
    """The same of every run on actors that is running."""
    texts = ((row["run"], waits_of(row, root)) for row in rows)
    return "\n\n".join(f"{run}\n{text}" for run, text in texts if text)


def waits_of(row: Mapping[str, Any], root: Path, width: int = WIDTH) -> str:
    """The same of one run, by its row in `status`. Empty where it is not running, or not on actors."""
    if row["state"] != RUNNING:
        return ""
    folder = root / row["run"]
    return waits_text(Store(folder if folder.is_dir() else root).read("actors.json"), running=True, width=width)


def _lines(shards: Sequence[Mapping[str, Any]], own: Mapping[str, Any], running: bool, width: int) -> list[str]:
    now, head = own["waiting"], f"{called(own['shard'], own.get('replica'))}  "
    step = f"away since step {own['away']}" if "away" in own else f"step {own['step']}" if running else plural(own["step"], "step")
    waiting = f", waits for `{now['message']}` of step {now['step']} from {_other(shards[now['shard']], own)}" if now and running else ""
    longest = sorted(own["waited"].items(), key=lambda each: -each[1])
    so_far = ", ".join(f"{duration(seconds)} for {_other(shards[int(k)], own)}" for k, seconds in longest if seconds >= 0.05)
    text = f"{step}{waiting}; waited {so_far}" if so_far else f"{step}{waiting}"
    return textwrap.wrap(text, width, initial_indent=head, subsequent_indent=" " * len(head))


def _other(other: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """What one calls another: by what is different."""
    if "replica" not in own or other["replica"] == own["replica"]:
        return called(other["shard"])
    return those([other["replica"]]) if other["shard"] == own["shard"] else called(other["shard"], other["replica"])
