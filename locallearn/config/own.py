"""Models from Python: a list of blocks in place of a name from the table."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from locallearn.block import Block, stacked

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


class Blocks:
    """A model that is a list of blocks. Their numbers are set here: `Block(build, in_shape)` is enough.

    fingerprint: SHA-256 (hex) of what the blocks compute, so that runs of different lists are told apart.
    """

    name: ClassVar[str] = "blocks"

    def __init__(self, blocks: Sequence[Block]):
        self._blocks = tuple(blocks)

    def problems(self, example_shape: tuple[int, ...], classes: int) -> list[str]:
        """What does not fit the data, or the block below."""
        if not self._blocks:
            return ["is an empty list of blocks"]
        found, below = [], tuple(example_shape)
        for i, block in enumerate(self._blocks):
            if tuple(block.in_shape) != below:
                source = "an example has" if i == 0 else f"block {i - 1} gives"
                found.append(f"block {i} takes shape {list(block.in_shape)}, but {source} {list(below)}")
            below = tuple(block.out_shape)
        if below != (classes,):
            found.append(f"the top block gives shape {list(below)}, but the data has {classes} classes")
        return found

    def blocks(self, example_shape: tuple[int, ...], classes: int) -> list[Block]:
        """The blocks, numbered from the bottom."""
        count = len(self._blocks)
        return stacked([dataclasses.replace(block, index=i, count=count, classes=classes) for i, block in enumerate(self._blocks)])

    @cached_property
    def fingerprint(self) -> str:
        """From the blocks' programs, not from their names."""
        digest = hashlib.sha256()
        for block in self._blocks:
            key = jax.ShapeDtypeStruct((2,), jnp.uint32)
            params = jax.eval_shape(block.init, key)
            programs = jax.make_jaxpr(block.init)(key), jax.make_jaxpr(block.apply)(params, block.examples(1))
            digest.update(_ADDRESS.sub("", f"{jax.tree.structure(params)}{programs}").encode())
        return digest.hexdigest()


def with_blocks(source: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with a list of blocks, under `model` or its `name`, as a model."""
    model = source.get("model")
    if isinstance(model, Mapping):
        return {**source, "model": {**model, "name": _model(model.get("name"))}} if "name" in model else dict(source)
    return {**source, "model": _model(model)} if "model" in source else dict(source)


def _model(value: Any) -> Any:
    return Blocks(value) if isinstance(value, list | tuple) and value and all(isinstance(item, Block) for item in value) else value
