"""Who waits for whom in a run on actors, from what they say of themselves."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from locallearn.experiment.store import RUNNING, Store
from locallearn.words import WIDTH, called, duration, plural, those


def waits_text(said: Mapping[str, Any], running: bool) -> str:
    """Of each shard: its step, what it waits for now if it runs, and how long it has waited for each other one. Empty for none."""
    shards = said.get("shards", ())
    return "\n".join(line for own in shards for line in _lines(shards, own, running))


def waits_below(rows: Sequence[Mapping[str, Any]], root: Any) -> str:
    """The same of every run on actors that is running."""
    found = []
    for row in rows:
        if row["state"] == RUNNING:
            text = waits_text(Store(root / row["run"] if (root / row["run"]).is_dir() else root).read("actors.json"), running=True)
            found += [f"{row['run']}\n{text}"] if text else []
    return "\n\n".join(found)


def _lines(shards: Sequence[Mapping[str, Any]], own: Mapping[str, Any], running: bool) -> list[str]:
    now, head = own["waiting"], f"{called(own['shard'], own.get('replica'))}  "
    step = f"away since step {own['away']}" if "away" in own else f"step {own['step']}" if running else plural(own["step"], "step")
    waiting = f", waits for `{now['message']}` of step {now['step']} from {_other(shards[now['shard']], own)}" if now and running else ""
    longest = sorted(own["waited"].items(), key=lambda each: -each[1])
    so_far = ", ".join(f"{duration(seconds)} for {_other(shards[int(k)], own)}" for k, seconds in longest if seconds >= 0.05)
    text = f"{step}{waiting}; waited {so_far}" if so_far else f"{step}{waiting}"
    return textwrap.wrap(text, WIDTH, initial_indent=head, subsequent_indent=" " * len(head))


def _other(other: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """What one calls another: by what is different."""
    if "replica" not in own or other["replica"] == own["replica"]:
        return called(other["shard"])
    return those([other["replica"]]) if other["shard"] == own["shard"] else called(other["shard"], other["replica"])
