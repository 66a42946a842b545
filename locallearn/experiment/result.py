"""What a run leaves: its curve, its traffic, its weights, and predictions from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from locallearn.block import State
from locallearn.chain import Chain, Row
from locallearn.codec import Context
from locallearn.config.run import Config, resolve
from locallearn.data.intake import PLAIN
from locallearn.errors import ConfigError
from locallearn.experiment import checkpoint
from locallearn.experiment.files import StoreError
from locallearn.experiment.prepare import stage_of
from locallearn.experiment.store import FINISHED, Store
from locallearn.runtime.intake import seen
from locallearn.runtime.local import Fused
from locallearn.runtime.parts import fill
from locallearn.runtime.setup import Stage
from locallearn.runtime.wiring import lossless
from locallearn.traffic import Traffic
from locallearn.words import size

PREDICTED = 500
"""Examples that go through the network at once."""


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """A finished run.

    settings: the resolved configuration as plain data. curve: one flat mapping for each evaluation. traffic: all that was sent.
    accuracy: on the validation set, at the end, through the deployed codecs; `accuracy_lossless` with every codec `exact`; both None
    without a validation set. phase: that it ended in, from 0. reason: why it ended: `steps`, `accuracy`, `bytes` or `diverged`.
    seconds: of training and evaluation, without compiling. directory: where it is stored, if it is. rollbacks: how often it went back to
    a snapshot because an actor was lost, and seconds_lost: what that cost, from the last progress before to the same step again. delays:
    by shard, how many steps began with weights that were 0, 1, 2 and so on updates old; nothing where steps do not overlap. present: from
    which step on which replicas were there; nothing where all were all the time.
    """

    settings: Mapping[str, Any]
    curve: list[dict[str, Any]]
    traffic: Traffic
    step: int
    phase: int
    reason: str
    test_accuracy: float | None
    test_accuracy_lossless: float | None
    seconds: float
    compile_seconds: float
    directory: Path | None
    _arrays: Callable[[], Mapping[str, np.ndarray]]
    _config: Callable[[], Config]
    delays: Sequence[Sequence[int]] = ()
    rollbacks: int = 0
    seconds_lost: float = 0.0
    present: Sequence[Any] = ()

    @property
    def accuracy(self) -> float | None:
        """The last validation accuracy."""
        return self.curve[-1]["validation_accuracy"] if self.curve else None

    @property
    def accuracy_lossless(self) -> float | None:
        """The same with every codec `exact`."""
        return self.curve[-1]["validation_accuracy_lossless"] if self.curve else None

    @cached_property
    def config(self) -> Config:
        """The run's configuration. StoreError if it was stored from objects of Python, which a file cannot hold."""
        return self._config()

    @cached_property
    def arrays(self) -> Mapping[str, np.ndarray]:
        """Every array of the run by name: `block0/params/...`, optimizers and rules' memories, the codecs' memories under `link/`."""
        return self._arrays()

    @cached_property
    def weights(self) -> list[dict[str, Any]]:
        """Each block's parameters, from the bottom: nested dictionaries of numpy arrays."""
        blocks: dict[int, dict[str, Any]] = {}
        for name, array in self.arrays.items():
            block, part, *path = name.split("/")
            if part == "params" and block.startswith("block"):
                inner = blocks.setdefault(int(block.removeprefix("block")), {})
                for word in path[:-1]:
                    inner = inner.setdefault(word, {})
                inner[path[-1]] = array
        return [blocks[i] for i in sorted(blocks)]

    @cached_property
    def states(self) -> tuple[State, ...]:
        """Each block's state, from the bottom: parameters, optimizer and memory as the rule knows them, in numpy arrays."""
        stage = self._stage
        key = jax.random.PRNGKey(0)
        return tuple(
            fill(
                jax.eval_shape(partial(stage.rule.init, block), key),
                [array for name, array in self.arrays.items() if name.startswith(f"block{block.index}/")],
            )
            for block in stage.blocks
        )

    def scores(self, x: Any) -> np.ndarray:
        """Class scores [N, classes] of x: [N, *example_shape], with every codec `exact`; images may be bytes, as they are stored."""
        intake = getattr(self.config.data, "intake", PLAIN)
        x = seen(intake, np.asarray(x)) if intake.scale else x
        x = np.asarray(x, self._stage.blocks[0].in_dtype)
        shape = tuple(self._stage.blocks[0].in_shape)
        if x.shape[1:] != shape:
            raise ValueError(f"x has shape {list(x.shape)}, but the network takes [N, {', '.join(map(str, shape))}]")
        parts = []
        for start in range(0, len(x), PREDICTED):
            part = x[start : start + PREDICTED]
            padding = [(0, min(PREDICTED, len(x)) - len(part)), *[(0, 0)] * (x.ndim - 1)]
            parts.append(np.asarray(self._predict(Row(self.states), np.pad(part, padding)))[: len(part)])
        return np.concatenate(parts) if parts else np.zeros((0, self._stage.blocks[-1].classes), np.float32)

    def predict(self, x: Any) -> np.ndarray:
        """Labels [N] of examples x: [N, *example_shape], with every codec `exact`."""
        return np.argmax(self.scores(x), axis=-1)

    @cached_property
    def _stage(self) -> Stage:
        return stage_of(self.config, self.phase)

    @cached_property
    def _predict(self) -> Callable[[Row, Any], Any]:
        stage = self._stage
        rule, wiring = stage.rule, lossless(stage.rule.messages, (0,) * len(stage.blocks))

        def predict(state: Row, x: Any) -> Any:
            fabric = Fused(wiring, {}, Context(np.arange(len(x)), training=False))
            return rule.predict(Chain(stage.evaluating, fabric), state, x)

        return jax.jit(predict)

    def __repr__(self) -> str:
        rule = self.settings["rule"]["name"]
        ended = "" if self.reason == "steps" else f" ({self.reason})"
        tested = "no test" if self.test_accuracy is None else f"test {self.test_accuracy:.4f}"
        where = f", {self.directory}" if self.directory else ""
        return f"<Result {rule}: {tested} after {self.step} steps{ended}, {size(self.traffic.bytes)} sent, {self.seconds:.1f} s{where}>"


def load(directory: str | Path) -> Result:
    """The result in the directory of a finished run. StoreError if the run is not finished."""
    store = Store(directory)
    store.begun()
    if store.state != FINISHED:
        raise StoreError(f"{directory}: no finished run ({store.state})")
    settings = store.read_config()
    if settings is None:
        raise StoreError(f"{directory}: config.yaml is missing")
    ending = store.read("result.json")
    traffic = Traffic.of_rows(ending["traffic"]).at(settings.get("count", "framed"))
    names = {field.name for field in dataclasses.fields(Result)}
    return Result(
        settings=settings,
        curve=store.records(),
        traffic=traffic,
        directory=store.directory,
        _arrays=lambda: checkpoint.arrays(store.checkpoints),
        _config=lambda: _resolved(store, settings),
        **{name: ending[name] for name in ending if name in names - {"traffic"}},
    )


def _resolved(store: Store, settings: Mapping[str, Any]) -> Config:
    try:
        config = resolve(settings)
    except ConfigError as error:
        raise StoreError(
            f"{store.directory}: was made from objects of Python, so only `weights` and the records can be read back: {error.problems[0]}"
        ) from error
    return config
