"""What a run can tell of itself at an evaluation, by depth: one number for each block, from programs beside the one that trains.

angle      degrees between the rule's gradient of a block and backprop's (cross-entropy at the top), on the same batch and state
norms      lengths of a block's parameters and of the update that the next step would make; how many of its outputs are 0 on the whole batch
probe      accuracy on the validation set of ridge regression from a block's outputs, fitted on training examples
rule       whatever the rule tells (`Rule.diagnose`): energies and residuals, margins, win counts

Local heads are left out of angles and norms. The batch is the one that the next step would see, through no codec. Outputs are those of the
blocks one after the other, as backprop would see them; a rule that rescales between blocks sees others.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from locallearn.chain import Chain, Row
from locallearn.codec import Context
from locallearn.data.dataset import Split, stratified
from locallearn.rule import Batch, Rule, step_keys, whole_step
from locallearn.runtime.intake import seen, seen_in_training
from locallearn.runtime.local import Fused
from locallearn.runtime.session import padded
from locallearn.runtime.setup import Setup, Stage
from locallearn.runtime.wiring import lossless

EXAMPLES = 2000
"""Most examples that a probe is fitted on, and scored on."""

NUMBERS = 2**26
"""Most numbers that a probe is fitted on: of very wide blocks it takes fewer examples."""

RIDGE = 1e-2
"""What is added to the diagonal of a probe's kernel matrix, as a share of its mean."""

Diagnosis = Mapping[str, Sequence[float | None]]
"""By name, a number for each block from the bottom; None where there is none (an angle to a gradient of length 0)."""


class Diagnostics:
    """The diagnostics of one stage. Nothing of it depends on the seed, so runs of other seeds may share its programs."""

    def __init__(self, setup: Setup, stage: Stage):
        self.names = setup.diagnostics
        self._measure = jax.jit(functools.partial(measured, stage, setup.diagnostics, setup.intake))
        self._forward = jax.jit(functools.partial(_outputs_seen, stage, setup.intake))

    def __call__(self, setup: Setup, state: Row, step: int) -> Diagnosis:
        """What the state after `step` steps tells."""
        found: dict[str, Sequence[Any]] = {}
        if set(self.names) - {"probe"}:
            train = setup.split.train
            index = setup.indices(step, step + 1)[0, : setup.batch]
            (key,) = step_keys(setup.seed, step, step + 1)
            found |= self._measure(state, train.x[index], train.y[index], index, key)
        if "probe" in self.names:
            found["probe"] = self._probed(setup, state)
        return {name: [number(value) for value in row] for name, row in found.items()}

    def _probed(self, setup: Setup, state: Row) -> list[float]:
        parts = sample(setup.split)
        train, validation = ([np.concatenate(rows) for rows in self._features(setup, state, part)] for part in parts)
        scores = []
        for x, other in zip(train, validation, strict=True):
            count = min(len(x), max(100, NUMBERS // x.shape[1]))
            scores.append(ridge_accuracy(x[:count], parts[0].y[:count], other, parts[1].y))
        return scores

    def _features(self, setup: Setup, state: Row, part: Any) -> list[list[np.ndarray]]:
        """Each block's outputs, [batch, n] by batch."""
        rows: list[list[np.ndarray]] = []
        for x, y, _ in padded(part, setup.evaluation_batch):
            real = int((y >= 0).sum())
            outputs = [np.asarray(h[:real]) for h in self._forward(state, x)]
            rows = [*map(list, zip(outputs, strict=True))] if not rows else [[*row, h] for row, h in zip(rows, outputs, strict=True)]
        return rows


def measured(stage: Stage, names: Sequence[str], intake: Any, state: Row, x: Any, y: Any, index: Any, key: Any) -> dict[str, list[Any]]:
    """All but the probe, on one batch of stored examples."""
    rule = stage.rule
    batch = Batch(seen_in_training(intake, x, key, index), y, index, key)
    blocks = [replace(block, rests=False) for block in stage.blocks]
    chain = Chain(blocks, Fused(lossless(rule.messages, (0,) * len(blocks)), {}, Context(index)))
    params = [own(one.params) for one in state]
    found: dict[str, list[Any]] = {}
    if "angle" in names and type(rule).gradients is not Rule.gradients:
        rules = [own(grads) for grads in rule.gradients(chain, state, batch)[0]]
        found["angle"] = [*map(angle, rules, jax.grad(functools.partial(_loss, stage, batch))(params))]
    if "norms" in names:
        after = [own(one.params) for one in whole_step(rule, chain, state, batch)[0]]
        found["parameter_norm"] = [length(p) for p in params]
        found["update_norm"] = [length(jax.tree.map(jnp.subtract, a, b)) for a, b in zip(after, params, strict=True)]
        found["silent_units"] = [jnp.sum(jnp.all(h == 0, axis=0)) for h in _outputs(stage.blocks, params, batch.x)]
    if "rule" in names:
        found |= {name: list(row) for name, row in rule.diagnose(chain, state, batch).items()}
    return found


def own(params: Any) -> Any:
    """A block's own parameters, without those of a local head."""
    return getattr(params, "block", params)


def length(tree: Any) -> Any:
    """Euclidean length of all its numbers together."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree)))


def angle(a: Any, b: Any) -> Any:
    """Degrees between two trees of numbers, precise near 0 and 180 too (Kahan); not a number where one of them is 0."""
    a, b = _unit(a), _unit(b)
    return 2 * jnp.degrees(jnp.arctan2(length(jax.tree.map(jnp.subtract, a, b)), length(jax.tree.map(jnp.add, a, b))))


def _unit(tree: Any) -> Any:
    size = length(tree)
    return jax.tree.map(lambda leaf: leaf / size, tree)


def ridge_accuracy(x: np.ndarray, y: np.ndarray, other_x: np.ndarray, other_y: np.ndarray) -> float:
    """Accuracy on other examples of ridge regression from x: [N, n] to the classes y: [N], solved through the kernel of the examples."""
    x, other_x = np.asarray(x, np.float64), np.asarray(other_x, np.float64)
    if not (np.isfinite(x).all() and np.isfinite(other_x).all()):
        return math.nan
    centre, targets = x.mean(0), np.eye(int(max(y.max(), other_y.max())) + 1)[y]
    x, other_x = x - centre, other_x - centre
    kernel = x @ x.T
    kernel[np.diag_indices_from(kernel)] += RIDGE * kernel.trace() / len(x) + np.finfo(np.float64).tiny
    if not kernel.any():
        return float((np.argmax(targets.mean(0)) == other_y).mean())
    scores = targets.mean(0) + other_x @ (x.T @ np.linalg.solve(kernel, targets - targets.mean(0)))
    return float((scores.argmax(1) == other_y).mean())


def sample(split: Split) -> tuple[Any, Any]:
    """The examples of a probe: training and validation, each class in proportion, at most EXAMPLES."""

    def some(part: Any) -> Any:
        chosen = stratified(part.y, min(EXAMPLES, len(part.y)))
        mixed = np.random.default_rng(0).permutation(chosen)  # wide blocks take the first of them
        return type(part)(part.x[mixed], part.y[mixed])

    return some(split.train), some(split.validation)


def number(value: Any) -> float | None:
    """A float to be stored, with as many digits as are worth reading; None if it is not finite."""
    value = float(value)
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _loss(stage: Stage, batch: Batch, params: Sequence[Any]) -> Any:
    import optax

    scores = _outputs(stage.blocks, params, batch.x)[-1]
    return optax.softmax_cross_entropy_with_integer_labels(scores, batch.y).mean()


def _outputs(blocks: Sequence[Any], params: Sequence[Any], x: Any) -> list[Any]:
    outputs = []
    for block, own_params in zip(blocks, params, strict=True):
        x = block.apply(own_params, x)
        outputs.append(x)
    return outputs


def _outputs_seen(stage: Stage, intake: Any, state: Row, x: Any) -> list[Any]:
    """Each block's outputs in an evaluation, [batch, n]."""
    outputs = _outputs(stage.evaluating, [own(one.params) for one in state], seen(intake, x))
    return [h.reshape(h.shape[0], -1) for h in outputs]
