"""Phases of a run: what does not learn stays, bit for bit, and what was learnt goes on."""

from dataclasses import replace
from typing import NamedTuple

import jax
import numpy as np
import pytest

from locallearn.rules import RULES
from locallearn.runtime.framed import EagerSession
from locallearn.runtime.fused import FusedSession
from locallearn.runtime.setup import inherit
from locallearn.runtime.training import Finished, train
from locallearn.train import Optimizer

BOTH = pytest.mark.parametrize("kind", [FusedSession, EagerSession])
BACKPROP = RULES["backprop"]()


def params(session):
    """The bytes of every block's parameters."""
    return [b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state.params)) for state in session._state]


def run(session, stage):
    session.enter(stage)
    before = params(session)
    session.advance(stage.start, stage.stop)
    return before, params(session)


@BOTH
def test_only_the_blocks_of_a_phase_learn(make_setup, phase, kind):
    setup = make_setup([phase(BACKPROP, 3, (0, 2)), phase(BACKPROP, 2, (1,))], shards=3)
    session = kind(setup)
    before, after = run(session, setup.stages[0])
    assert [a != b for a, b in zip(before, after, strict=True)] == [True, False, True, False]
    again, end = run(session, setup.stages[1])
    assert again == after
    assert [a != b for a, b in zip(again, end, strict=True)] == [False, True, False, False]


@BOTH
def test_a_frozen_block_keeps_its_optimizer_and_memory_too(make_setup, phase, assert_same, kind):
    setup = make_setup([phase("direct_feedback", 3, (3,))], shards=4)
    session = kind(setup)
    session.enter(setup.stages[0])
    before = session.snapshot()
    session.advance(0, 3)
    assert_same(session.snapshot()[:3], before[:3])
    with pytest.raises(AssertionError):
        assert_same(session.snapshot(), before)


@BOTH
def test_another_rule_goes_on_with_the_parameters_and_a_fresh_optimizer(make_setup, phase, kind):
    setup = make_setup([phase("backprop", 3), phase("direct_feedback", 2)], shards=2)
    session = kind(setup)
    _, after = run(session, setup.stages[0])
    before, end = run(session, setup.stages[1])
    assert before == after != end
    assert jax.tree.leaves(session._state[0].memory)
    counts = [leaf for leaf in jax.tree.leaves(session._state[0].opt) if np.issubdtype(leaf.dtype, np.integer)]
    assert {int(count) for count in counts} == {2}


def test_a_stage_begins_as_a_run_would_but_for_its_parameters(make_setup, phase):
    setup = make_setup([phase("backprop", 1), phase("direct_feedback", 1)], shards=2)
    first, second = setup.stages
    trained = setup.begin(first)
    trained = type(trained)(s._replace(params=jax.tree.map(lambda p: p + 1, s.params)) for s in trained)
    fresh, begun = setup.begin(second), setup.begin(second, trained)
    for i in range(4):
        assert jax.tree.all(jax.tree.map(np.array_equal, begun[i].params, trained[i].params))
        assert jax.tree.all(jax.tree.map(np.array_equal, begun[i].memory, fresh[i].memory))
        assert jax.tree.all(jax.tree.map(np.array_equal, begun[i].opt, fresh[i].opt))


class WithHead(NamedTuple):
    """Parameters of a rule that adds a head to each block."""

    block: object
    head: object


def test_arrays_are_inherited_by_name_and_shape():
    old = {"linear": {"kernel": np.ones((2, 3)), "bias": np.ones(3)}}
    fresh = {"linear": {"kernel": np.zeros((2, 3)), "bias": np.zeros(4)}}
    got = inherit(WithHead(fresh, np.zeros(5)), old)
    assert got.block["linear"]["kernel"].all()
    assert not got.block["linear"]["bias"].any()
    assert not got.head.any()
    back = inherit(fresh, WithHead(old, np.ones(5)))
    assert back["linear"]["kernel"].all()


@BOTH
def test_a_run_in_two_halves_by_one_rule_without_optimizer_memory_is_the_run_in_one(make_setup, phase, assert_same, kind):
    sgd = Optimizer(name="sgd", rate=0.1)
    one = make_setup([phase(BACKPROP, 6)], optimizer=sgd, every=3)
    two = make_setup([phase(BACKPROP, 3), phase(BACKPROP, 3)], optimizer=sgd, every=3)
    ends = [list(train(kind(replace(setup)))) for setup in (one, two)]
    assert all(isinstance(end[-1], Finished) for end in ends)
    weights = [[x for shard in end[-1].shards for x in shard if x.ndim == 2] for end in ends]
    assert [w.tobytes() for w in weights[0]] == [w.tobytes() for w in weights[1]]
    assert ends[0][-1].traffic == ends[1][-1].traffic


@BOTH
def test_a_rate_that_explodes_ends_the_run_as_diverged(make_setup, kind):
    setup = make_setup(optimizer=Optimizer(name="sgd", rate=1e18), steps=15, every=5)
    end = list(train(kind(setup)))[-1]
    assert end.reason == "diverged"
    assert end.step <= 10
