"""One tidy table: a row for each evaluation of each run, from the files of run directories alone."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from locallearn.experiment.files import write_whole
from locallearn.experiment.store import FABRICS, SUFFIX, Store, run_directories

Row = dict[str, Any]

FACTS = (
    *("sweep", "run", "rule", "codecs", "shards", "replicas", "data", "seed", "study", "trial", "tuned", "fabric", "device", "state"),
    "reason",
)
MEASURED = (
    *("step", "examples", "seconds", "compile_seconds", "simulated_seconds"),
    *("bytes", "payload_bytes", "bytes_worst_link", "messages", "hops", "train_loss"),
    *("validation_accuracy", "validation_accuracy_lossless", "test_accuracy", "test_accuracy_lossless"),
)
COLUMNS = FACTS + MEASURED
"""The first columns; after them come what varies in a sweep and the bytes of each kind. Bytes are what the run counts, from its start.

study: of a tuned sweep; trial: of the study, and none of a run on what it chose. tuned: the columns that were found so.
"""

DIAGNOSTIC = "diagnostic_"
"""What the columns of diagnostics begin with: `diagnostic_angle_0` is the angle of block 0."""


def rows_below(root: Path) -> list[Row]:
    """The rows of every run at or below a directory."""
    return [row for directory in run_directories(root) for row in rows_of(directory, root)]


def rows_of(directory: Path, root: Path | None = None) -> list[Row]:
    """The rows of one run: one for each evaluation, one without numbers if there was none. The last row has the test accuracy."""
    store = Store(directory)
    facts, ending = facts_of(store, root or directory.parent.parent), store.read("result.json")
    rows = [{**facts, **_flat(record)} for record in store.records()] or [dict(facts)]
    for name in ("reason", "test_accuracy", "test_accuracy_lossless"):
        rows[-1][name] = ending.get(name)
    if ending:  # with the evaluation on the test set
        rows[-1].update({f"bytes_{kind}": amount for kind, amount in store.traffic().by_kind().items()})
    return rows


def _flat(record: Mapping[str, Any]) -> Row:
    """One evaluation, its diagnostics a column for each block; traffic by kind, but not by channel."""
    told = record.get("diagnostics", {})
    numbers = {f"{DIAGNOSTIC}{name}_{block}": value for name, row in told.items() for block, value in enumerate(row)}
    return {key: value for key, value in record.items() if key not in ("diagnostics", "traffic")} | numbers


def facts_of(store: Store, root: Path) -> Row:
    """What is the same in every row of a run."""
    config, meta = store.read_config() or {}, store.read("meta.json")
    model, source = config.get("model", {}), meta.get("source")
    varied = {_column(key): value for key, value in meta.get("varied", {}).items() if key != "rule.name"}
    tuned = meta.get("tuned", {})
    return {
        "sweep": Path(source).stem if source else None,
        "run": store.directory.relative_to(root).as_posix() if store.directory.is_relative_to(root) else store.directory.name,
        "rule": config.get("rule", {}).get("name"),
        "codecs": codecs_cell(config.get("codecs", {})),
        "shards": model.get("shards") or len(model.get("cuts") or ()) + 1,
        "replicas": config.get("replicas", {}).get("count", 1),
        "data": _data(config.get("data", {})),
        "seed": config.get("seed"),
        "study": tuned.get("study"),
        "trial": tuned.get("trial"),
        "tuned": " ".join(tuned.get("values", ())) or None,
        "fabric": FABRICS.get(str(meta.get("on"))),
        "device": " ".join(meta.get("devices", ())),
        "state": store.state,
        **varied,
        **tuned.get("values", {}),
    }


def _column(varied: str) -> str:
    """Of what varies: labels may have the name of something that is measured."""
    return f"vary.{varied}" if varied in MEASURED else varied


def _data(section: Mapping[str, Any]) -> str | None:
    """The data set's name; files that are not the published ones are never passed over."""
    name = section.get("name")
    return f"{name} (unverified files)" if section.get("unverified") else name


def codecs_cell(codecs: Mapping[str, Any]) -> str:
    """`exact`, `int8`, or `error=int8` where only some messages have another codec than the default."""
    words = {key: "+".join(value) if isinstance(value, list) else str(value) for key, value in codecs.items()}
    default = words.pop("default", "exact")
    named = [f"{key}={word}" for key, word in words.items() if word != default]
    return " ".join(named if named and default == "exact" else [default, *named])


def columns_of(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """All columns in order: the usual ones, what varies, the bytes of each kind, and diagnostics block by block."""
    found = dict.fromkeys(key for row in rows for key in row)
    kinds = sorted(key for key in found if key.startswith("bytes_") and key not in COLUMNS)
    told = [key for key in found if key.startswith(DIAGNOSTIC)]
    varied = [key for key in found if key not in COLUMNS and key not in kinds and key not in told]
    return [*COLUMNS, *varied, *kinds, *told]


def to_csv(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> str:
    """The table as CSV; a cell without a value is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns or columns_of(rows), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> bytes:
    """What is written, whole or not at all."""
    content = to_csv(rows, columns).encode()
    write_whole(path, lambda file: file.write(content))
    return content


def task_of(row: Mapping[str, Any]) -> str:
    """The label of a sweep's task, or the data set."""
    return str(row.get("task") or row["data"])


def diagnostics_of(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[int, list[Any]]]:
    """What the columns of diagnostics hold in these rows: by name, then by block."""
    found: dict[str, dict[int, list[Any]]] = {}
    for row in rows:
        for key in (key for key in row if key.startswith(DIAGNOSTIC)):
            name, _, block = key.removeprefix(DIAGNOSTIC).rpartition("_")
            found.setdefault(name, {}).setdefault(int(block), []).append(row[key])
    return found


def is_trial(row: Mapping[str, Any]) -> bool:
    """Whether a row is of a run by which something was chosen: no result."""
    return row.get("trial") is not None


def last_rows(rows: Iterable[Row]) -> list[Row]:
    """The last row of each run."""
    return list({row["run"]: row for row in rows}.values())


def combination_of(row: Mapping[str, Any]) -> str:
    """What all seeds, and all studies, of a combination share, on one fabric."""
    name = str(row["run"])
    folder, _, seed = name.rpartition("/")
    folder = folder if row.get("study") is None else folder.rpartition("/")[0]
    suffix = next((s for s in SUFFIX.values() if s and seed.endswith(s)), "")
    return f"{folder}{suffix}"
