"""What is planned is what is sent: Plan against sizes worked out by hand, against real frames, and against a count inside the program."""

import numpy as np
import pytest

from locallearn.codec import build
from locallearn.runtime.framed import EagerSession
from locallearn.runtime.fused import FusedSession
from locallearn.traffic import Channel, Traffic

INT8, BFLOAT16 = ((name, ()) for name in ("int8", "bfloat16"))
FEEDBACK = ("error_feedback", ())
CODECS = {"exact": (("exact", ()),), "bfloat16": (BFLOAT16,), "int8": (INT8,), "feedback of int8": (FEEDBACK, INT8)}


def up(src, kind="activation"):
    return Channel("activation", kind, src, src + 1)


def down(src):
    return Channel("error", "error", src, src - 1)


def test_a_step_of_backpropagation_by_hand(make_setup):
    setup = make_setup(shards=3)  # blocks 12-8-7 | 7-6 | 6-3, batches of 12
    plan = setup.plan_step(setup.stages[0])
    sizes = {up(0): 12 * 7 * 4, up(1): 12 * 6 * 4, down(2): 12 * 6 * 4, down(1): 12 * 7 * 4}
    assert plan.traffic == Traffic(sizes, dict.fromkeys(sizes, 1))
    assert plan.hops == 4
    assert {channel: spec.shape for channel, spec in plan.channels.items()} == {
        up(0): (12, 7),
        up(1): (12, 6),
        down(2): (12, 6),
        down(1): (12, 7),
    }


def test_an_evaluation_and_a_decision_by_hand(make_setup):
    setup = make_setup(shards=3)
    evaluation = setup.plan_evaluation(setup.stages[0]).traffic
    assert evaluation.payload == {up(0, "evaluation"): 17 * 7 * 4, up(1, "evaluation"): 17 * 6 * 4}
    assert evaluation.bytes == 0
    decision = setup.plan_decision(setup.stages[0]).traffic
    assert decision.payload == {Channel("decision", "control", 2, shard): 1 for shard in (0, 1)}
    assert decision.bytes == 2 * 21


def test_codecs_by_kind_change_their_kind_alone(make_setup):
    setup = make_setup(codec={"activation": build((INT8,))}, shards=2)
    assert setup.plan_step(setup.stages[0]).traffic.payload == {up(0): 12 * 7 + 12 * 4, down(1): 12 * 7 * 4}


def test_one_shard_sends_nothing(begun):
    for session in (EagerSession, FusedSession):
        alone = begun(session, shards=1)
        alone.advance(0, 2)
        alone.correct(alone.setup.split.validation, lossless=False)
        alone.decide(0)
        assert alone.traffic == Traffic()


@pytest.mark.parametrize(("codec", "shards"), [*((codec, 3) for codec in CODECS.values()), (CODECS["exact"], 2)])
def test_real_frames_have_the_planned_bytes(begun, codec, shards):
    session = begun(EagerSession, codec=codec, shards=shards)
    setup, stage = session.setup, session.stage
    session.advance(0, 2)
    assert session.traffic == setup.plan_step(stage).traffic * 2
    session.correct(setup.split.test, lossless=False)
    assert session.traffic == setup.plan_step(stage).traffic * 2 + setup.plan_evaluation(stage).traffic
    assert session.decide(1) == 1
    assert session.traffic.bytes == setup.plan_step(stage).traffic.bytes * 2 + setup.plan_decision(stage).traffic.bytes


@pytest.mark.parametrize("microbatches", [2, 3])
def test_each_microbatch_sends_its_own_messages(begun, microbatches):
    session = begun(EagerSession, shards=2, microbatches=microbatches)
    session.advance(0, 1)
    assert session.traffic == session.setup.plan_step(session.stage).traffic
    assert session.traffic.messages == dict.fromkeys([up(0), down(1)], microbatches)
    assert session.traffic.payload_bytes == 2 * 12 * 7 * 4


@pytest.mark.parametrize("microbatches", [1, 2])
def test_the_fused_program_encodes_what_it_counts(begun, metered, microbatches):
    session = begun(FusedSession, codec=metered(build((FEEDBACK, INT8))), shards=3, microbatches=microbatches)
    session.advance(0, 2)
    session.correct(session.setup.split.validation, lossless=False)
    session.advance(2, 5)
    counted = Traffic()
    for slot in session._memory:
        for channel, ((numbers, _), _) in slot.items():
            counted.count(channel, *np.asarray(numbers).tolist())
    assert counted == session.setup.plan_step(session.stage).traffic * 5
    assert session.traffic == counted + session.setup.plan_evaluation(session.stage).traffic


def test_lossless_evaluations_are_counted_at_their_own_size(begun):
    for session in (begun(EagerSession, codec=(INT8,)), begun(FusedSession, codec=(INT8,))):
        session.correct(session.setup.split.validation, lossless=True)
        assert session.traffic.payload == {up(0, "evaluation"): 17 * 7 * 4}


def test_every_batch_of_an_evaluation_is_counted(begun, tiny_split, monkeypatch):
    monkeypatch.setattr("locallearn.runtime.setup.EVALUATION_BATCH", 7)
    for session in (begun(EagerSession), begun(FusedSession)):
        session.correct(tiny_split.test, lossless=False)
        assert session.traffic.messages == {up(0, "evaluation"): 3}
        assert session.traffic.payload == {up(0, "evaluation"): 3 * 7 * 7 * 4}
