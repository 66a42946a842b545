"""Who waits for whom in a run on actors, from what they say of themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from locallearn.experiment.store import RUNNING, Store
from locallearn.words import called, duration, plural


def waits_text(said: Mapping[str, Any], running: bool) -> str:
    """A line for each shard: its step, what it waits for now if it runs, and how long it has waited for each other one. Empty for none."""
    shards = said.get("shards", ())
    names = [called(shard["shard"], shard.get("replica")) for shard in shards]
    return "\n".join(_line(names, name, shard, running) for name, shard in zip(names, shards, strict=True))


def waits_below(rows: Sequence[Mapping[str, Any]], root: Any) -> str:
    """The same of every run on actors that is running."""
    found = []
    for row in rows:
        if row["state"] == RUNNING:
            text = waits_text(Store(root / row["run"] if (root / row["run"]).is_dir() else root).read("actors.json"), running=True)
            found += [f"{row['run']}\n{text}"] if text else []
    return "\n\n".join(found)


def _line(names: Sequence[str], name: str, said: Mapping[str, Any], running: bool) -> str:
    now = said["waiting"]
    waiting = f", waits for `{now['message']}` of step {now['step']} from {names[now['shard']]}" if now and running else ""
    longest = sorted(said["waited"].items(), key=lambda each: -each[1])
    so_far = ", ".join(f"{duration(seconds)} for {names[int(shard)]}" for shard, seconds in longest if seconds >= 0.05)
    step = f"{plural(said['step'], 'step')}" if not running else f"step {said['step']}"
    return f"{name}  {step}{waiting}; waited {so_far}" if so_far else f"{name}  {step}{waiting}"
