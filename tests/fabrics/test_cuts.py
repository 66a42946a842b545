"""Cuts without Ray: shards in threads, a snapshot announced while they train, each part taken when its shard comes by."""

import pytest

from locallearn.codec import build
from locallearn.runtime.cuts import Cuts, Cutter
from locallearn.runtime.framed import EagerSession
from locallearn.runtime.peers import PeersSession
from locallearn.runtime.training import Evaluated, Finished, Progress, Snapshot, train
from tests.fabrics.threads import Threads

SHARDS = 3
_FEEDBACK = build((("error_feedback", ()), ("int8", ())))
FEEDBACK = {"activation": _FEEDBACK, "error": _FEEDBACK, "label": build((("reuse", (60, 2)), ("packed", (3,))))}
"""What remembers at both ends, of labels too, which leave the top early."""


def test_a_cut_is_taken_up_only_beyond_what_was_claimed():
    cuts = Cuts()
    assert cuts.claim(0, 10) == 10
    assert not cuts.announce(9)
    assert cuts.at == 0
    assert cuts.announce(10)
    assert cuts.claim(5, 20) == 10, "nothing of a step after the cut is begun before it"
    assert cuts.claim(10, 20) == 20
    assert cuts.claim(20, 21) == 21


def test_the_next_cut_is_ahead_of_every_shard_and_further_when_one_was_missed():
    cutter = Cutter(5.0, now=0.0)
    assert cutter.due([3, 1], now=4.0) is None
    first = cutter.due([43, 30], now=5.0)
    assert first > 43 + 40, "a second's steps ahead"
    assert cutter.due([first, first], now=6.0) is None, "one at a time"
    second = cutter.due([first + 1, first + 1], now=7.0)
    assert second - (first + 1) > 1, "it was missed"
    assert cutter.due([second + 1, second + 1], now=100.0) - (second + 1) > first - 83, "further ahead"
    cutter.whole(1000, now=121.0)
    assert cutter.due([1001, 1001], now=125.9) is None
    assert cutter.due([1001, 1001], now=126.0) is not None


def test_a_cut_that_a_restarted_shard_never_heard_of_is_no_reason_to_look_further_ahead():
    cutter, ahead = Cutter(5.0, now=0.0), []
    for k in range(20):  # a loss a minute, each between an announcement and its snapshot
        at = cutter.due([1000, 1000], now=5.0 + k)
        ahead.append(at - 1000)
        cutter.unheard()
    assert set(ahead[1:]) == {ahead[1]}, "twice as far at each loss, no cut would ever be reached"


def test_before_the_first_step_no_cut_is_announced():
    assert Cutter(0.0, now=0.0).due([1, 0], now=9.0) is None


def assert_equal(one, other):
    assert isinstance(one, Finished)
    assert one.traffic == other.traffic
    assert one.test_accuracy == other.test_accuracy
    assert all(a.tobytes() == b.tobytes() for x, y in zip(one.shards, other.shards, strict=True) for a, b in zip(x, y, strict=True))


@pytest.mark.parametrize(("rule", "micro", "step"), [("backprop", 2, 13), ("mono_forward", 1, 13), ("mono_forward", 1, 20)])
def test_a_cut_goes_on_bit_equal_between_evaluations_and_at_one(make_setup, rule, micro, step):
    setup = make_setup(rule, FEEDBACK, SHARDS, steps=40, every=20, microbatches=micro)
    ours = list(train(EagerSession(setup)))
    threads = Threads(setup)
    assert threads.announce(step) == [True] * SHARDS
    assert_equal(threads.join(), ours[-1])
    (kept,) = threads.kept
    assert kept.step == step
    again = Threads(setup, kept)
    assert_equal(again.join(), ours[-1])
    losses = {e.step: e.train_loss for e in ours if isinstance(e, Evaluated)}
    resumed = {e.step: e.train_loss for e in again.events[-1] if isinstance(e, Evaluated)}
    assert resumed == pytest.approx({at: loss for at, loss in losses.items() if at > step})


def test_a_session_is_rewound_with_what_it_compiled(make_setup):
    setup = make_setup("backprop", FEEDBACK, 1, steps=30, every=10)
    session = PeersSession(setup, 0, None)
    first = list(train(session, None, 0.0))
    compiled = session.compiled
    session.rewind(None, Cuts())
    again = list(train(session, next(e for e in first if isinstance(e, Snapshot))))
    assert_equal(again[-1], first[-1])
    assert session.compiled == compiled
    assert next(e.step for e in again if isinstance(e, Progress)) > 10
