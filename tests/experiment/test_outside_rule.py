"""A rule of another package: one file of its own and one line of metadata, and everything here takes it up as one of ours."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import locallearn

RULE = '''
"""Mono-Forward with a temperature: how sure a block is of its goodness.

Gong et al. (2025), "Mono-Forward". https://arxiv.org/abs/2501.09238

    loss_l = cross-entropy(softmax(a_l M_lᵀ / τ), y)
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import optax

from locallearn import Info, Message, Rule
from locallearn.block import WithHead
from locallearn.fields import Positive


class Local(NamedTuple):
    """A block's loss and its gradient."""

    loss: Any
    grads: Any


def rise(block, state, x):
    """a_l."""
    return block.apply(state.params.block, x)


def small(block, y):
    """Labels in one byte."""
    return y.astype("uint8")


def learn(block, state, x, y, *, temperature):
    """The gradient of loss_l."""

    def loss(params):
        a = block.apply(params.block, x)
        goodness = a if block.top else a.reshape(len(a), -1) @ params.head.T
        return optax.softmax_cross_entropy_with_integer_labels(goodness / temperature, y).mean()

    return Local(*jax.value_and_grad(loss)(state.params))


@dataclass(frozen=True)
class WarmForward(Rule):
    """Mono-Forward with a temperature. temperature: τ."""

    temperature: Positive = 2.0

    messages = {
        "activation": Message("activation", "up", "a_l"),
        "label": Message("label", "broadcast", "y, one byte each"),
    }
    family = "local losses"
    assumes = "labels in every block"

    def init(self, block, key):
        """M_l begins at the scale of one activity."""
        shape = (block.classes, *block.out_shape)
        head = () if block.top else jax.random.normal(key, shape) / shape[-1] ** 0.5
        return block.state(WithHead(block.init(key), head))

    def gradients(self, chain, state, batch):
        """The whole algorithm."""
        x, _ = chain.sweep_up("activation", rise, state, first=batch.x)
        y = chain.broadcast("label", chain.at_top(small, batch.y))
        local = chain.map(learn, state, x, y, temperature=self.temperature)
        return local.grads, state.memory, Info(local.loss[-1], x)

    def predict(self, chain, state, x):
        """The top's goodness."""
        return chain.sweep_up("activation", rise, state, first=x)[1][-1]
'''
WIDTHS = (196, 24, 16, 10)
RUN = {
    "rule": {"name": "warm_forward", "temperature": 1.5},
    "model": {"name": "mlp", "widths": list(WIDTHS), "shards": 3},
    "data": {"name": "fashion14", "limit": 2000, "validation": 200},
    "train": {"epochs": 4, "batch": 50, "evaluate_every": 144, "optimizer": {"rate": 3.0e-3}},
}


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """The folder of an installed package: what a build of its `pyproject.toml` would leave there."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "warmth").mkdir()
    (folder / "warmth" / "__init__.py").write_text("")
    (folder / "warmth" / "forward.py").write_text(RULE)
    about = folder / "warmth-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: warmth\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[locallearn.rules]\nwarm_forward = warmth.forward:WarmForward\n")
    return folder


def ran(elsewhere, *command, cwd=None, fails=False):
    """What a process says, or else complains of, in which both packages are installed."""
    path = os.pathsep.join([str(elsewhere), str(Path(locallearn.__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"},
    )
    assert bool(done.returncode) == fails, done.stdout + done.stderr
    return done.stdout or done.stderr


def test_without_the_package_there_is_no_such_rule(tmp_path):
    said = ran(tmp_path, "-m", "locallearn", "rules", "warm_forward", fails=True)
    assert "`warm_forward` is no rule" in said


def test_it_is_listed_described_checked_planned_and_run(elsewhere, tmp_path):
    commands = [
        *("rules", "rules warm_forward", "new --rule warm_forward", "check warm_forward.yaml", "check wrong.yaml"),
        *("plan warm.yaml", "run warm.yaml", "run warm.yaml --on eager --runs eager"),
    ]
    (tmp_path / "warm.yaml").write_text(yaml.safe_dump(RUN))
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump({**RUN, "rule": {"name": "warm_forward", "temperature": -1}}))
    script = f"""
from locallearn.cli import code_of
for words in {commands}:
    print("\x1e", flush=True)
    print("exit", code_of(words.split()), flush=True)
"""
    said = ran(elsewhere, "-c", script, cwd=tmp_path).split("\x1e")[1:]
    assert [text.split("exit ")[-1].strip() for text in said] == ["0", "0", "0", "0", "2", "0", "0", "0"]
    assert all(name in said[0] for name in ("warm_forward", "mono_forward"))
    page = (
        "https://arxiv.org/abs/2501.09238",
        "temperature = 2",
        "float > 0",
        "label, of kind label",
        "4n bytes up, 1 down",
        "locked: forward",
    )
    assert [part for part in page if part not in said[1]] == []
    fused, eager = (json.loads(next((tmp_path / runs).rglob("result.json")).read_text()) for runs in ("runs", "eager"))
    assert fused["test_accuracy"] > 0.5
    assert fused["test_accuracy"] == pytest.approx(eager["test_accuracy"], abs=0.01)
    assert fused["payload_bytes"] == eager["payload_bytes"]
    assert fused["messages"] == eager["messages"] > 4 * 144


def test_it_passes_the_conformance_suite(elsewhere):
    """The suite asks the table of rules, in which those of other packages stand."""
    suite = Path(__file__).parents[1] / "rules" / "test_conformance.py"
    said = ran(
        elsewhere, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(suite), "-k", "warm_forward and not codec", cwd=suite.parents[2]
    )
    assert re.search(r"^8 passed", said, re.MULTILINE), said
