"""Snapshots on disk: one npz file for each shard, and `DONE`, which is written last.

A file holds arrays only, under their names (`block0/params/linear/kernel`, `link/activation/0-1/...`), in the order of the snapshot.
A dtype that npz does not know stands behind its name (`...:bfloat16`). Nothing is ever unpickled.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from locallearn.chain import ABSENT, Row
from locallearn.experiment.files import StoreError, read_json, write_json, write_whole
from locallearn.runtime.parts import machine_part
from locallearn.runtime.regroup import shapes
from locallearn.runtime.setup import Setup, Stage
from locallearn.runtime.training import Snapshot
from locallearn.traffic import Channel, Traffic

KEPT = 2


def save(folder: Path, names: Sequence[Sequence[str]], snapshot: Snapshot, final: bool = False) -> Path:
    """Write a snapshot below `folder` and remove all but the last ones. final: a finished run's arrays, from which none goes on."""
    target = folder / f"{snapshot.step:08d}"
    _remove(target)
    target.mkdir(parents=True)
    for shard, (labels, arrays) in enumerate(zip(names, snapshot.shards, strict=True)):
        entries: dict[str, Any] = {_entry(name, array): array for name, array in zip(labels, arrays, strict=True)}
        write_whole(target / f"shard-{shard}.npz", partial(np.savez, **entries))
    state = {"step": snapshot.step, "seconds": snapshot.seconds, "final": final, "traffic": snapshot.traffic.rows()}
    state |= {"losses": list(snapshot.losses), "delays": [list(own) for own in snapshot.delays], "present": snapshot.present}
    write_json(target / "DONE", state)
    for old in sorted(folder.iterdir())[:-KEPT]:
        _remove(old)
    return target


def _remove(target: Path) -> None:
    (target / "DONE").unlink(missing_ok=True)  # first: what is half removed must not look complete
    shutil.rmtree(target, ignore_errors=True)


def sweep_up(folder: Path) -> None:
    """Remove what an earlier process left half written: it would count among the last ones that are kept."""
    for target in folder.iterdir() if folder.is_dir() else ():
        if not (target / "DONE").exists():
            _remove(target)


def latest(folder: Path, final: bool = False) -> Snapshot | None:
    """The last complete snapshot to go on from, or a finished run's arrays; None if there is none. StoreError if a file is damaged."""
    for target in sorted(folder.iterdir(), reverse=True) if folder.is_dir() else ():
        state = read_json(target / "DONE")
        if state is not None and state["final"] == final:
            count = len(list(target.glob("shard-*.npz")))
            shards = [list(_read(target / f"shard-{k}.npz").values()) for k in range(count)]
            total, count = state.get("losses", (0.0, 0))
            delays = tuple(map(tuple, state.get("delays", ())))
            traffic, present = Traffic.of_rows(state["traffic"]), tuple((step, tuple(who)) for step, who in state.get("present", ()))
            return Snapshot(state["step"], state["seconds"], traffic, shards, (total, count), delays=delays, present=present)
    return None


def arrays(folder: Path) -> dict[str, np.ndarray]:
    """All arrays of a finished run by name."""
    for target in sorted(folder.iterdir(), reverse=True) if folder.is_dir() else ():
        state = read_json(target / "DONE")
        if state is not None and state["final"]:
            return {name: array for file in sorted(target.glob("shard-*.npz")) for name, array in _read(file).items()}
    raise StoreError(f"{folder}: holds no weights of a finished run")


def names(setup: Setup, stage: Stage) -> list[list[str]]:
    """The name of every array of a snapshot, by shard, in its order; those of the second replica and so on begin with `replica1/`."""
    return setup.once("names", stage, lambda: _names(setup, stage))


def _names(setup: Setup, stage: Stage) -> list[list[str]]:
    held = shapes(setup, stage)
    found = []
    for shard in range(stage.wiring.shards):
        row, ends, past, *rest = machine_part(stage.wiring, held, shard)
        own = _of_blocks(row) + [f"link/{name}" for name in _paths(ends)] + [f"older/{name}" for name in _of_blocks(past)]
        if rest:
            own += [f"agreement/{name}" for name in _of_blocks(rest[0])] + [f"ring/block{name}" for name in _paths(rest[1])]
        found.append(own)
    copies = [found, *([[f"replica{r}/{name}" for name in own] for own in found] for r in range(1, setup.replicas.count))]
    return [own for replica in copies for own in replica]


def _of_blocks(row: Row) -> list[str]:
    return [f"block{i}/{name}" for i, value in enumerate(row) if value is not ABSENT for name in _paths(value)]


def _paths(tree: Any) -> list[str]:
    return ["/".join(map(_word, path)) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def _word(key: Any) -> str:
    inner = getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))
    return f"{inner.message}/{inner.src}-{inner.dst}" if isinstance(inner, Channel) else str(inner).replace("/", "_")


def _entry(name: str, array: np.ndarray) -> str:
    return f"{name}:{array.dtype.name}" if array.dtype.kind == "V" else name


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            entries = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError) as error:
        raise StoreError(f"{path}: is damaged ({error}); remove its folder to go on from the one before") from error
    return dict(_named(name, array) for name, array in entries.items())


def _named(entry: str, array: np.ndarray) -> tuple[str, np.ndarray]:
    name, colon, dtype = entry.partition(":")
    return (name, array.view(np.dtype(dtype))) if colon else (name, array)
