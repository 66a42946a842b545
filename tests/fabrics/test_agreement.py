"""Fused against Eager, and each of them against itself with the blocks placed otherwise."""

import functools
from dataclasses import replace

import jax
import numpy as np
import pytest

from locallearn.chain import Row
from locallearn.runtime.framed import EagerSession
from locallearn.runtime.fused import FusedSession, Orders, _steps
from locallearn.runtime.wiring import cut
from locallearn.train import Optimizer

SGD = Optimizer(name="momentum", rate=0.05)
STEPS = 7
RULES = ["backprop", "direct_feedback", "predictive_coding"]
"""One that goes up and down, one that broadcasts, one in rounds; the conformance suite has the rest."""


def trained(session):
    """All arrays of the blocks after some steps, whatever their shard."""
    session.advance(0, STEPS)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(session._state)]


@pytest.fixture(scope="module", params=RULES)
def rule(request):
    return request.param


@pytest.fixture(scope="module")
def fused(begun, rule):
    return trained(begun(FusedSession, rule, shards=1, optimizer=SGD))


@pytest.fixture(scope="module")
def eager(begun, rule):
    return trained(begun(EagerSession, rule, shards=1, optimizer=SGD))


def same_bits(a, b):
    return [x.tobytes() for x in a] == [y.tobytes() for y in b]


def test_fused_is_eager_to_float_tolerance(fused, eager):
    for x, y in zip(fused, eager, strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("shards", [2, 4])
def test_the_result_of_frames_does_not_depend_on_the_placement_bit_for_bit(begun, rule, eager, shards):
    assert same_bits(eager, trained(begun(EagerSession, rule, shards=shards, optimizer=SGD)))


@pytest.mark.parametrize("shards", [2, 3, 4])
def test_the_fused_program_does_not_depend_on_the_placement(make_setup, rule, shards):
    assert program(make_setup(rule, shards=1)) == program(make_setup(rule, shards=shards))


def program(setup):
    """The text of a stage's program before it is compiled."""
    stage, data = setup.stages[0], setup.split.train
    index, keys = np.zeros((4, setup.batch), np.int32), np.zeros((4, 2), np.uint32)
    run = jax.jit(functools.partial(_steps, stage))
    carry = setup.begin(stage), setup.memory(stage), Row(() for _ in stage.blocks)
    orders = Orders(index, keys, np.zeros((4, len(stage.blocks)), np.int32), np.zeros(4, bool), np.int32(0), np.int32(0))
    return run.lower(carry, data.x, data.y, orders).as_text()


def test_the_fused_result_does_not_depend_on_the_placement_bit_for_bit(begun, rule, fused):
    assert same_bits(fused, trained(begun(FusedSession, rule, shards=4, optimizer=SGD)))


def test_the_text_of_a_program_does_show_a_codec(make_setup):
    assert program(make_setup(shards=1, codec=(("int8", ()),))) != program(make_setup(shards=2, codec=(("int8", ()),)))


def test_uneven_cuts_give_the_same_bits(make_setup, rule, eager):
    setup = make_setup(rule, shards=1, optimizer=SGD)
    stage = setup.stages[0]
    setup = replace(setup, stages=(replace(stage, wiring=stage.wiring._replace(placement=cut(4, [3]))),))
    session = EagerSession(setup)
    session.enter(setup.stages[0])
    assert same_bits(eager, trained(session))


@pytest.mark.parametrize("widths", [(12, 3), (12, 9, 3)])
def test_chains_of_one_and_two_blocks_agree(begun, widths):
    options = {"widths": widths, "shards": len(widths) - 1, "optimizer": SGD}
    for x, y in zip(trained(begun(FusedSession, **options)), trained(begun(EagerSession, **options)), strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-5)


def test_with_a_lossy_codec_both_round_the_same(begun):
    options = {"codec": (("error_feedback", ()), ("bfloat16", ())), "shards": 3, "optimizer": SGD}
    for x, y in zip(trained(begun(FusedSession, **options)), trained(begun(EagerSession, **options)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-2, atol=1e-2)  # a rounding may fall to either side
