"""Every rule that sends nothing down: block after block, where a row crosses once for ever, and several steps for each row that crosses."""

import json
from importlib.resources import files

import jax
import numpy as np
import pytest

from locallearn.chain import Row
from locallearn.codec import build, exact, nbytes
from locallearn.rules import RULES
from locallearn.runtime.framed import EagerSession
from locallearn.runtime.fused import FusedSession
from locallearn.runtime.training import Evaluated, Finished, Snapshot, train
from locallearn.train import Optimizer
from tests.rules.test_conformance import FLOOR, TRAINS_WITH

LOCKING = {name: told["locking"] for name, told in json.loads(files("locallearn.report").joinpath("costs.json").read_text()).items()}
SAYS_NOTHING = {"solo"}
ONE_WAY = [n for n, rule in RULES.items() if "update" not in LOCKING[n] and rule.locking is None and n not in SAYS_NOTHING]
"""Rules that send nothing down: others that no block waits for say themselves what locks them."""
LABEL = build((("reuse", (60,)), ("packed", (3,))))
ANEW = {"boltzmann"}
"""Rules whose rows are drawn anew at each step."""
BOTH_LABELS = {"forward_forward", "symba", "selective_goodness"}
"""Rules that show each example with its label and a wrong one, another one each time: no row is about an example alone."""
SHARDS = 4
EVERYDAY = {"mono_forward", "cascaded_forward", "signal_propagation", "clapp", "noprop"}
"""A rule of each kind; the slow suite has all."""


def each(names):
    return [pytest.param(name, marks=() if name in EVERYDAY else pytest.mark.slow) for name in names]


def kept(name, *uses):
    """Codecs of a rule: second views are drawn anew at each step, too."""
    rows = exact() if name in ANEW and not uses else build((("reuse", (60, *uses)),))
    return {"activation": rows, "input": rows, "target": exact(), "view": rows if uses else exact(), "label": LABEL}


def run(session):
    """Training alone."""
    for stage in session.setup.stages:
        session.enter(stage)
        session.advance(stage.start, stage.stop)
    return session


def parameters(session):
    return [np.asarray(leaf) for state in session._state for leaf in jax.tree.leaves(state.params)]


@pytest.mark.parametrize("name", each(ONE_WAY))
def test_with_rows_that_cross_once_each_block_learns_what_it_does_with_rows_that_always_cross(name, make_setup, phase, monkeypatch):
    """Two epochs of block 1, then of block 2: what block 1 says while it learns must not be what is kept of it."""
    monkeypatch.setattr(FusedSession, "_scorer", lambda *_: None)
    phases = [phase(name, 10, (1,)), phase(name, 10, (2,))]
    ours, plain = (run(FusedSession(make_setup(phases, codecs, SHARDS))) for codecs in (kept(name), exact()))
    begun = [leaf for state in plain.setup.begin(plain.stage) for leaf in jax.tree.leaves(state.params)]
    changed = 0
    for mine, other, first in zip(parameters(ours), parameters(plain), begun, strict=True):
        np.testing.assert_array_equal(mine, other)
        changed += np.any(other != first)
    assert changed, "something was learnt"
    for session in (ours, plain):
        assert all(c.src > c.dst or c.dst <= 2 for c in session.traffic.messages if c.message != "loss"), "the top rests"
    for channel, spec in ours.setup.plan_step(ours.stage).channels.items():
        if channel.message in ("activation", "input") and name not in ANEW | BOTH_LABELS:
            whole = 60 * nbytes([spec]) // spec.shape[0]
            assert 0.9 * whole <= ours.traffic.payload[channel] <= whole


@pytest.mark.parametrize("name", each(["mono_forward", "channelwise"]))
def test_every_fabric_rests_alike_and_a_run_goes_on_with_the_same_bits(name, make_setup, phase, assert_same):
    phases = [phase(name, 10, (k,)) for k in range(3)]
    codecs = {"activation": build((("reuse", (60,)), ("int8", ()))), "label": LABEL}
    ends = []
    for kind in (FusedSession, EagerSession):
        events = list(train(kind(make_setup(phases, codecs, SHARDS, every=5)), keep_seconds=0.0))
        finished, snapshots = events[-1], [event for event in events if isinstance(event, Snapshot)]
        assert isinstance(finished, Finished)
        assert finished.reason == "steps"
        assert {event.train_loss for event in events if isinstance(event, Evaluated)} == {None}, "the top rests and knows no loss"
        middle = next(snapshot for snapshot in snapshots if snapshot.step > 10)
        again = list(train(kind(make_setup(phases, codecs, SHARDS, every=5)), middle, keep_seconds=1e9))[-1]
        assert_same(again.shards, finished.shards)
        assert again.traffic == finished.traffic
        ends.append(finished)
    fused, eager = ends
    assert fused.traffic == eager.traffic
    assert abs(fused.test_accuracy - eager.test_accuracy) <= 1 / 17 + 1e-9


@pytest.mark.parametrize("microbatches", [1, 2])
def test_blocks_that_rest_are_not_even_read(make_setup, phase, microbatches):
    session = FusedSession(make_setup([phase("mono_forward", 5, (1,))], exact(), SHARDS, microbatches=microbatches))
    session.enter(session.setup.stages[0])
    nothing = [s._replace(params=jax.tree.map(lambda leaf: leaf * np.nan, s.params)) for s in session._state]
    session._state = Row(session._state[i] if i <= 1 else nothing[i] for i in range(4))
    assert np.isnan(session.advance(0, 5))
    for i, state in enumerate(session._state):
        assert all(np.isfinite(leaf).all() == (i <= 1) for leaf in jax.tree.leaves(state.params))


@pytest.mark.parametrize(("name", "learn"), [("backprop", 1), ("direct_feedback", 0), ("predictive_coding", 1)])
def test_where_something_comes_down_nobody_rests(name, learn, make_setup, phase):
    stage = make_setup([phase(name, 5, (learn,))], exact(), SHARDS).stages[0]
    assert not any(block.rests for block in stage.blocks)
    rested = make_setup([phase("local_classifier", 5, (learn,))], exact(), SHARDS).stages[0]
    assert [block.rests for block in rested.blocks] == [i > learn for i in range(4)]
    assert not any(block.rests for block in rested.evaluating)


@pytest.mark.parametrize("name", each(name for name in ONE_WAY if name not in BOTH_LABELS))
def test_several_steps_for_each_row_that_crosses(name, begun):
    """Four of them: it learns as with one, for a quarter of what rows take."""
    steps = 300
    optimizer = TRAINS_WITH.get(name, Optimizer(rate=0.01))
    session = begun(FusedSession, name, kept(name, 4), 3, optimizer=optimizer, steps=steps, every=steps)
    session.advance(0, steps)
    for channel, spec in session.setup.plan_step(session.stage).channels.items():
        if channel.message in ("activation", "input") and spec.shape[:1] == (12,):
            assert session.traffic.payload[channel] <= steps / 4 * nbytes([spec])
    right = sum(session.correct(part, lossless=False) for part in session.setup.split)
    assert right >= FLOOR.get(name, FLOOR["default"]) * 88
