"""`locallearn models`: what each model is, its options, and what its blocks are for one data set."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from locallearn.block import Block
from locallearn.commands.rulepage import filled, folded, parameter_lines, parameters, wrapped
from locallearn.config.mistakes import hint
from locallearn.config.run import resolve
from locallearn.data import DATASETS
from locallearn.errors import ConfigError, Problem
from locallearn.models import MODELS
from locallearn.report.tabular import aligned, setting


def model_rows(data: str) -> Iterator[dict[str, Any]]:
    """Every model: what it is, its options with their defaults, and blocks and parameters for this data set, or why it does not fit."""
    found = _dataset(data)
    for name, model in MODELS.items():
        options = {option.name: "required" if option.default is dataclasses.MISSING else option.default for option in parameters(model)}
        settings = _settings(model, found)
        blocks, problem = _blocks(name, settings, data)
        yield {
            "name": name,
            "summary": (inspect.getdoc(model) or "").partition("\n")[0],
            "options": options,
            "data": data,
            "settings": settings,
            "blocks": len(blocks) or None,
            "parameters": sum(map(parameter_count, blocks)) if blocks else None,
            "problem": problem or None,
        }


def models_text(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Each model in a few lines of 80 columns, as soon as its row is there."""
    for number, row in enumerate(rows):
        if number == 0:
            told = f"Sizes for {_described(row['data'])}; `--data NAME` for others. `locallearn models NAME` prints the page of one."
            yield from (*folded(told, ""), "")
        options = [key if value == "required" else f"{key}={setting(value)}" for key, value in row["options"].items()]
        yield from folded(f"{row['name']}({', '.join(options)})", "", "    ")
        yield from folded(row["summary"], "    ")
        yield from folded(row["problem"] or f"{_sizes(row['blocks'], row['parameters'])}{_given(row['settings'])}", "    ")


def model_page(name: str, data: str) -> str:
    """What a model is, its options, and its blocks one by one: how large each is, and how much it sends up."""
    model = _model(name)
    settings = _settings(model, _dataset(data))
    blocks, problem = _blocks(name, settings, data)
    sizes = _sizes(len(blocks), sum(map(parameter_count, blocks))) + _given(settings)
    parts = [name, *_prose(model), "\n".join(["options", *parameter_lines(model)])]
    parts += [filled(f"On {_described(data)}: {problem or sizes}", "")]
    parts += [_table(blocks)] if blocks else []
    parts += [filled(_COMPOSITE, "")] if any(block.composite for block in blocks) else []
    return "\n\n".join(parts)


def block_rows(name: str, data: str) -> list[dict[str, Any]]:
    """The blocks of one model, from the bottom: its parameters, and what a cut above it costs for each example, uncompressed."""
    blocks, problem = _blocks(name, _settings(_model(name), _dataset(data)), data)
    if problem:
        raise ConfigError([Problem("models", f"{name} on {data}: {problem}")])
    return [_block_row(block) for block in blocks]


_COMPOSITE = "composite: more than one linear map and what follows it; rules that need blocks of that form do not take it"


def parameter_count(block: Block) -> int:
    """Numbers that an optimizer changes; running statistics are none."""
    import jax
    from flax import nnx

    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(block.module, nnx.Param)))


def _prose(model: type) -> Iterator[str]:
    """What the model is, then what its file says of its paper; what its docstring says of options is told beside them."""
    options = tuple(f"{option.name}: " for option in parameters(model))
    for paragraph in (inspect.getdoc(model) or "").split("\n\n"):
        if not paragraph.startswith(options):
            yield wrapped(paragraph)
    _, _, more = (inspect.getdoc(inspect.getmodule(model)) or "").partition("\n\n")
    if more:
        yield wrapped(more)


def _model(name: str) -> type:
    if name not in MODELS:
        raise ConfigError([Problem("models", f"`{name}` is no model{hint(name, list(MODELS), 'models')}")])
    return MODELS[name]


def _dataset(name: str) -> Any:
    if name not in DATASETS:
        raise ConfigError([Problem("--data", f"`{name}` is no data set{hint(name, list(DATASETS), 'data sets')}")])
    return DATASETS[name]()


def _settings(model: type, data: Any) -> dict[str, Any]:
    """What the options that have no default are in these listings."""
    usual = {"widths": [math.prod(data.example_shape), 512, 512, data.classes], "channels": [32, 64, 128]}
    return {option.name: usual[option.name] for option in parameters(model) if option.default is dataclasses.MISSING}


def _blocks(name: str, settings: Mapping[str, Any], data: str) -> tuple[list[Block], str]:
    """The blocks, or none and why the model does not fit the data."""
    rest = {"rule": {"name": "backprop"}, "train": {"steps": 1, "batch": 2}}
    try:
        config = resolve({"model": {"name": name, "shards": 1, **settings}, "data": {"name": data}, **rest})
    except ConfigError as error:
        return [], f"does not fit: {'; '.join(problem.what for problem in error.problems)}"
    return config.model.blocks(tuple(config.data.example_shape), config.data.classes), ""


def _table(blocks: list[Block]) -> str:
    rows = [["block", "parameters", "passes on", "bytes for each example", ""]]
    for row in map(_block_row, blocks):
        shape, sent = "x".join(map(str, row["passes_on"])), "-" if row["bytes"] is None else f"{row['bytes']:,}"
        rows.append([str(row["block"]), f"{row['parameters']:,}", shape, sent, "composite" if row["composite"] else ""])
    return aligned(rows, (0, 1, 2, 3))


def _block_row(block: Block) -> dict[str, Any]:
    return {
        "block": block.index,
        "parameters": parameter_count(block),
        "passes_on": block.out_shape,
        "bytes": None if block.top else 4 * math.prod(block.out_shape),
        "composite": block.composite,
    }


def _described(name: str) -> str:
    data = _dataset(name)
    return f"{name} (examples of {'x'.join(map(str, data.example_shape))}, {data.classes} classes)"


def _given(settings: Mapping[str, Any]) -> str:
    return "".join(f", with {key} {setting(value)}" for key, value in settings.items())


def _sizes(blocks: int, total: int) -> str:
    return f"{blocks} blocks, {total:,} parameters"
