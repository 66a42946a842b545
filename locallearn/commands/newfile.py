"""`locallearn new`: a commented file that runs."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from locallearn.commands.listing import title
from locallearn.commands.rulepage import parameters, rule_named
from locallearn.config.catalog import default_catalog
from locallearn.config.document import Document
from locallearn.config.mistakes import hint
from locallearn.config.plain import plain
from locallearn.config.reading import parse
from locallearn.config.run import resolve
from locallearn.errors import ConfigError, LocallearnError, Problem
from locallearn.report.costs import suited

WIDTH = 100


class FileExists(LocallearnError):
    """There is such a file already; nothing is ever overwritten."""

    exit_code = 2


def write_new(path: Path | None, rule: str, data: str) -> Path:
    """Write the file, by default `<rule>.yaml`; ConfigError if the rule and the data do not go together."""
    path = path or Path(f"{rule}.yaml")
    text = new_text(path, rule, data)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise FileExists(f"{path}: exists already; name another file, or move it away") from None
    except OSError as error:
        raise LocallearnError(f"{path}: cannot be written: {error.strerror}") from error
    return path


def new_text(path: Path, rule: str, data: str) -> str:
    """What the file holds. It has been checked as `locallearn check` would."""
    catalog = default_catalog()
    cls = rule_named(rule, "--rule")
    if data not in catalog.datasets:
        raise ConfigError([Problem("--data", f"`{data}` is no data set{hint(data, list(catalog.datasets), 'data sets')}")])
    source, made = catalog.datasets[data](), cls()
    model = _model(source, made)
    said = {parameter.name: f"{parameter.kind}; {parameter.doc}".rstrip("; ") for parameter in parameters(cls)}
    keys = {key: (value, said.get(key, "")) for key, value in plain(made, catalog).items()}
    needs = "" if source.available() else f"\n# Needs the files of {data}: --data DIR, or `download: true` under `data`."
    text = "\n".join(
        [
            f"# {title(cls)}",
            f"# locallearn run {path}{needs}",
            f"# locallearn rules {rule}   tells what the rule does, and what its keys mean.",
            *_section("rule", keys),
            *_section("model", {key: (value, words) for key, value, words in _model_keys(model)}),
            *_section("data", {"name": (data, ""), "validation": (0.1, "share of the training examples set aside, or a count")}),
            *_section("train", _train(source)),
            *_section("codecs", {"default": ("exact", "or int8, float16, topk(0.1), ...: `locallearn codecs` lists them")}),
            "# diagnostics: [angle, norms, probe, rule]   what evaluations find out besides, block by block",
            "# network: {bandwidth: 1 Mbit/s, latency: 20 ms}   emulated between actors (--on ray); or a name, 1mbit",
            "seed: 0",
            "",
        ]
    )
    resolve(_document(text, path))
    return text


def _document(text: str, path: Path) -> Document:
    return parse(text, str(path))


def _model(source: Any, rule: Any) -> dict[str, Any]:
    if getattr(getattr(source, "intake", None), "tokens", False):
        return {"name": "transformer", "width": 64, "layers": 2, "heads": 4}
    model = suited(rule, math.prod(source.example_shape), source.classes)
    return model or {"name": "mlp", "widths": (math.prod(source.example_shape), 120, 60, 60, source.classes)}


def _model_keys(model: dict[str, Any]) -> Iterator[tuple[str, Any, str]]:
    for key, value in model.items():
        yield key, value, "`locallearn models` lists them" if key == "name" else ""
    yield "shards", min(4, _count(model)), "processes that the blocks are dealt out to; or cuts: [1, 3]"


def _count(model: dict[str, Any]) -> int:
    """Blocks of a model of `_model`."""
    return model.get("depth") or (len(model["widths"]) - 1 if "widths" in model else model["layers"] + 2)


def _train(source: Any) -> dict[str, tuple[Any, str]]:
    """A length that is over in seconds."""
    small = source.train_size <= 10000
    return {
        **({"epochs": (3, "or steps: 600")} if small else {"steps": (300, "or epochs: 5")}),
        "batch": (50, ""),
        **({} if small else {"evaluate_every": (100, "in steps; without it, after every epoch")}),
        "optimizer": ({"name": "adam", "rate": 0.001}, "one for each block; also schedule, warmup, weight_decay, clip"),
    }


def _section(name: str, keys: dict[str, tuple[Any, str]]) -> list[str]:
    lines = [f"{name}:"]
    for key, (value, said) in keys.items():
        line = f"  {key}: {_spelt(value)}"
        comment = f"  # {said}" if said else ""
        lines += [line + comment] if len(line + comment) <= WIDTH else [f"  # {part}" for part in _parts(said)] + [line]
    return lines


def _parts(said: str) -> list[str]:
    return textwrap.wrap(said, WIDTH - 4, break_on_hyphens=False)


def _spelt(value: Any) -> str:
    value = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False).removesuffix("...\n").strip()
