"""Stop anywhere, resume: bit-equal to a run that was never stopped. Chunks, snapshots, fresh sessions."""

import jax
import numpy as np
import pytest

from locallearn.runtime.framed import EagerSession
from locallearn.runtime.fused import FusedSession
from locallearn.runtime.training import Evaluated, Finished, Snapshot, train

FEEDBACK = (("error_feedback", ()), ("int8", ()))
STEPS = 11
"""More than two epochs, and no multiple of one."""


@pytest.fixture(scope="module", params=[1, 2], ids=["whole batches", "microbatches"])
def options(request):
    return {"codec": FEEDBACK, "shards": 3, "microbatches": request.param}


@pytest.fixture(scope="module", params=[FusedSession, EagerSession])
def session(request, begun, options):
    return begun(request.param, **options)


@pytest.fixture(scope="module")
def initial(session):
    return session.snapshot()


@pytest.fixture(scope="module")
def whole(session, initial):
    """Snapshots before every step of an uninterrupted run, and after the last."""
    kept = [initial]
    for step in range(STEPS):
        session.advance(step, step + 1)
        kept.append(session.snapshot())
    return kept


@pytest.mark.parametrize("stops", [[11], [1, 3, 11], [4, 8, 10, 11], [10, 11]])
def test_pieces_of_any_size_give_the_same_bits(session, initial, whole, assert_same, stops):
    session.restore(initial)
    start = 0
    for stop in stops:
        session.advance(start, stop)
        assert_same(session.snapshot(), whole[stop])
        start = stop


@pytest.mark.parametrize("stop", [1, 5, 7])
def test_a_run_resumed_at_any_step_gives_the_same_bits(session, whole, assert_same, stop):
    session.restore(whole[stop])
    assert_same(session.snapshot(), whole[stop])
    session.advance(stop, STEPS)
    assert_same(session.snapshot(), whole[STEPS])


def test_a_fresh_session_takes_up_a_snapshot(begun, session, options, whole, assert_same):
    fresh = begun(type(session), **options)
    assert_same(fresh.snapshot(), whole[0])
    fresh.restore(whole[6])
    fresh.advance(6, STEPS)
    assert_same(fresh.snapshot(), whole[STEPS])


def test_a_snapshot_is_a_copy(session, initial, whole):
    session.restore(whole[3])
    kept = session.snapshot()
    before = [[leaf.tobytes() for leaf in shard] for shard in kept]
    session.advance(3, 5)
    assert [[leaf.tobytes() for leaf in shard] for shard in kept] == before


def test_a_snapshot_holds_the_memory_of_the_channels(session, whole, assert_same):
    forgetful = [[np.zeros_like(leaf) if leaf.shape[0:1] in [(12,), (6,)] and leaf.ndim == 2 else leaf for leaf in s] for s in whole[6]]
    with pytest.raises(AssertionError):
        assert_same(forgetful, whole[6])
    session.restore(forgetful)
    session.advance(6, STEPS)
    with pytest.raises(AssertionError):
        assert_same(session.snapshot(), whole[STEPS])


def test_the_losses_of_pieces_average_to_the_loss_of_the_whole(session, initial):
    session.restore(initial)
    pieces = [session.advance(step, step + 1) for step in range(6)]
    session.restore(initial)
    assert session.advance(0, 6) == pytest.approx(np.mean(pieces), rel=1e-6)


def test_an_evaluation_leaves_training_alone(session, initial, whole, assert_same):
    session.restore(initial)
    for step in range(3):
        session.advance(step, step + 1)
        for lossless in (False, True):
            session.correct(session.setup.split.test, lossless)
        session.decide(0)
    assert_same(session.snapshot(), whole[3])


def test_the_other_kind_of_session_takes_up_the_snapshot_too(begun, session, options, whole):
    other = begun(EagerSession if isinstance(session, FusedSession) else FusedSession, **options)
    other.restore(whole[9])
    other.advance(9, STEPS)
    shapes = [[leaf.shape for leaf in shard] for shard in whole[STEPS]]
    assert [[leaf.shape for leaf in shard] for shard in other.snapshot()] == shapes
    session.restore(whole[9])
    session.advance(9, STEPS)
    for x, y in zip(jax.tree.leaves(session._state), jax.tree.leaves(other._state), strict=True):
        np.testing.assert_allclose(x, y, rtol=0.05, atol=0.01)  # two steps of Adam at 0.01, and a rounding may fall to either side


def test_a_snapshot_of_another_run_is_refused(begun, session, whole):
    with pytest.raises(ValueError, match="does not fit this run"):
        begun(type(session), shards=3, widths=(12, 8, 7, 5, 3)).restore(whole[0])


@pytest.mark.parametrize("kind", [FusedSession, EagerSession])
def test_a_course_resumed_from_its_snapshot_ends_with_the_same_bits(make_setup, phase, assert_same, kind):
    """Two stages, the second by another rule; snapshots within a stage and at its end."""
    setup = make_setup([phase("backprop", 5), phase("direct_feedback", 4)], codec=FEEDBACK, shards=2, every=3)
    events = list(train(kind(setup), keep_seconds=0))
    snapshots = [event for event in events if isinstance(event, Snapshot)]
    at = {snapshot.step: snapshot for snapshot in snapshots}
    assert list(at) == sorted(at)
    assert {3, 5, 6} <= at.keys() < set(range(10)), "at evaluations and between them, but not at the end"
    for snapshot in (at[3], snapshots[0]) if kind is EagerSession else (at[5],):  # within the first stage, and at its end
        rest = list(train(kind(setup), resume=snapshot))
        assert isinstance(rest[-1], Finished)
        assert_same(rest[-1].shards, events[-1].shards)
        assert rest[-1].traffic == events[-1].traffic
        assert rest[-1].test_accuracy == events[-1].test_accuracy
        later = [e.accuracy for e in events if isinstance(e, Evaluated) and e.step > snapshot.step]
        assert [e.accuracy for e in rest if isinstance(e, Evaluated)] == later
