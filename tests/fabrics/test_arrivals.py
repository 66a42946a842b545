"""`train.arrivals`: examples arrive a few at a step, so that with `reuse` no step sends more of examples than of these."""

from dataclasses import replace

import numpy as np
import pytest

from locallearn.codec import build
from locallearn.runtime.framed import EagerSession
from locallearn.runtime.fused import FusedSession
from locallearn.runtime.training import train

NEW = 5
KEPT = {"activation": build((("reuse", (60,)), ("exact", ()))), "label": build((("reuse", (60,)), ("packed", (10,))))}


@pytest.fixture
def setup(make_setup, phase):
    """Two phases of greedy training on 60 examples: all have arrived after twelve of the sixteen steps of each."""
    phases = [phase("decoupled_greedy", 16, (k,)) for k in (1, 2)]
    made = make_setup(phases, KEPT, shards=4, every=8)
    return replace(made, arrivals=NEW)


def test_each_phase_begins_with_few_and_ends_with_whole_epochs(setup):
    whole = setup.indices(0, 32)
    for start in (0, 16):
        known = set()
        for rows in whole[start : start + 12]:
            assert len(known) + NEW == len(known | set(rows.tolist()))
            known |= set(rows.tolist())
        assert known == set(range(60))
    assert len(set(whole[12:15].ravel().tolist())) == 36  # three of the five batches of an epoch: nobody twice
    for start, stop in ((0, 5), (3, 14), (10, 20), (13, 32), (20, 20)):
        np.testing.assert_array_equal(setup.indices(start, stop), whole[start:stop])


def test_no_step_sends_more_than_what_arrived(setup):
    session, before, most = EagerSession(setup), None, {}
    for stage in setup.stages:
        session.enter(stage)
        for step in range(stage.start, stage.stop):
            before = session.traffic
            session.advance(step, step + 1)
            for channel in session.traffic.messages:
                most.setdefault(channel, []).append(session.traffic.payload[channel] - before.payload[channel])
    width = {0: 8, 1: 7}
    for channel, sizes in most.items():
        if channel.message == "activation":
            assert max(sizes) == NEW * width[channel.src] * 4
            assert 0.9 < sum(sizes) / (60 * width[channel.src] * 4) <= 1  # a frame ends where only zeros follow
        if channel.message == "label":
            assert max(sizes) <= 3
    assert {channel.message for channel in most} >= {"activation", "label"}


def test_one_program_sends_the_same(setup):
    one, other = (list(train(Session(setup)))[-1] for Session in (FusedSession, EagerSession))
    assert one.traffic == other.traffic
    assert one.test_accuracy == other.test_accuracy
