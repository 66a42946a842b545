"""Steps with older weights: against a loop of delayed gradients by hand, against the synchronous run, after interruptions."""

import jax
import numpy as np
import optax
import pytest

from locallearn.data.dataset import batches
from locallearn.runtime.framed import EagerSession
from locallearn.runtime.fused import FusedSession
from locallearn.runtime.stale import Timetable
from locallearn.runtime.training import Evaluated, Finished, Snapshot, train

STEPS = 10
SESSIONS = pytest.mark.parametrize("kind", [FusedSession, EagerSession])


def late(*most):
    """A clock under which each shard's steps begin with weights so many updates old, as soon as there are any."""

    def clock(stage, steps):
        return Timetable(float(steps), np.minimum(np.arange(steps)[:, None], np.array(most, np.int32)).astype(np.int32))

    return clock


def delayed_by_hand(setup, most):
    """w(t+1) = w(t) - update(gradient of the whole network at w(t - d)), each block with its own d and optimizer."""
    (stage,) = setup.stages
    blocks = stage.blocks
    state = setup.begin(stage)
    weights, opt = [[value.params for value in state]], [value.opt for value in state]

    @jax.jit
    def gradient(params, x, y):
        def loss(params):
            for block, own in zip(blocks, params, strict=True):
                x_ = x if block.bottom else h  # noqa: F821
                h = block.apply(own, x_)
            return optax.softmax_cross_entropy_with_integer_labels(h, y).mean()

        return jax.grad(loss)(params)

    every, train_ = setup.evaluate_every, setup.split.train
    for step in range(setup.steps):
        (index,) = batches(setup.seed, len(train_.y), setup.batch, step, step + 1)
        since = step % every
        begun = [weights[step - min(since, most[stage.wiring.placement[i]])][i] for i in range(len(blocks))]
        grads = gradient(begun, train_.x[index], train_.y[index])
        now = []
        for i, block in enumerate(blocks):
            update, opt[i] = block.tx.update(grads[i], opt[i], weights[step][i])
            now.append(optax.apply_updates(weights[step][i], update))
        weights.append(now)
    return weights[-1]


@SESSIONS
@pytest.mark.parametrize("most", [(2, 2), (3, 1)], ids=["one delay", "a delay for each shard"])
@pytest.mark.parametrize("microbatches", [1, 2])
def test_delayed_gradients_are_those_by_hand(kind, most, microbatches, begun):
    session = begun(kind, shards=2, microbatches=microbatches, clock=late(*most), steps=STEPS)
    session.advance(0, STEPS)
    for found, wanted in zip(session._state, delayed_by_hand(session.setup, most), strict=True):
        for a, b in zip(jax.tree.leaves(found.params), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6)


@SESSIONS
def test_weights_that_are_late_make_a_difference(kind, begun):
    prompt, tardy = begun(kind), begun(kind, clock=late(2, 2))
    for session in (prompt, tardy):
        session.advance(0, STEPS)
    assert any(
        np.abs(a - b).max() > 1e-3 for a, b in zip(jax.tree.leaves(prompt._state.params), jax.tree.leaves(tardy._state.params), strict=True)
    )


@SESSIONS
@pytest.mark.parametrize("rule", ["backprop", "predictive_coding"])
def test_a_clock_without_delays_changes_no_bit(kind, rule, begun, assert_same):
    plain, clocked = begun(kind, rule, steps=4), begun(kind, rule, steps=4, clock=late(0, 0))
    for session in (plain, clocked):
        session.advance(0, 4)
    assert_same(plain.snapshot(), clocked.snapshot())


def test_the_ring_gives_back_the_newest_weights(begun, assert_same):
    """A ring that is there for one late step at the end: until then nothing is late, and no bit differs."""

    def clock(stage, steps):
        delays = np.zeros((steps, 2), np.int32)
        delays[-1] = 1
        return Timetable(1.0, delays)

    plain, ringed = begun(EagerSession), begun(EagerSession, clock=clock)
    for session in (plain, ringed):
        session.advance(0, 4)
    assert jax.tree.leaves(ringed._ring)
    for a, b in zip(jax.tree.leaves(plain._state), jax.tree.leaves(ringed._state), strict=True):
        np.testing.assert_array_equal(a, b)


@SESSIONS
@pytest.mark.parametrize("stop", [2, 7])
def test_a_run_resumed_at_any_step_gives_the_same_bits(kind, stop, begun, assert_same):
    options = {"codec": (("error_feedback", ()), ("int8", ())), "clock": late(2, 1)}
    whole, fresh = begun(kind, **options), begun(kind, **options)
    whole.advance(0, stop)
    kept = whole.snapshot()
    whole.advance(stop, STEPS)
    fresh.restore(kept)
    fresh.advance(stop, STEPS)
    assert_same(fresh.snapshot(), whole.snapshot())


def test_a_course_of_two_stages_is_resumed(make_setup, phase, assert_same):
    """The second stage begins in an empty pipeline, with a ring of its own."""
    setup = make_setup([phase("backprop", 7), phase("feedback_alignment", 6)], clock=late(2, 1))
    kept, last = [], None
    for event in train(FusedSession(setup), keep_seconds=0):
        kept += [event] if isinstance(event, Snapshot) else []
        last = event
    assert isinstance(last, Finished)
    assert {event.step < 7 for event in kept} == {True, False}
    for snapshot in kept:
        *_, again = train(FusedSession(setup), resume=snapshot)
        assert_same(again.shards, last.shards)


def test_simulated_seconds_add_up(make_setup):
    """Evaluations at 5, 10 and 12: a second for each step by this clock."""
    setup = make_setup(steps=12, clock=late(1, 1))
    steps = [event.step for event in train(FusedSession(setup)) if isinstance(event, Evaluated)]
    assert [setup.simulated_seconds(step) for step in steps] == [5.0, 10.0, 12.0]
    assert setup.staleness(setup.stages[0]) == 1
    assert make_setup().simulated_seconds(5) is None
