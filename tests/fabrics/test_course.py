"""The course of a run, driven with a session that follows a script: when it evaluates, decides, keeps and ends."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from locallearn.rules import RULES
from locallearn.runtime.training import Compiled, Evaluated, Finished, Progress, Snapshot, train
from locallearn.traffic import Traffic

BACKPROP = RULES["backprop"]()


class Script:
    """A session whose loss and number of right answers are functions of the step; `log` has what it was asked to do."""

    compile_seconds = 0.0
    whole = False
    asides = 0
    delays = ()

    def __init__(self, setup, loss=lambda step: 1.0, right=lambda step: 0, told=None):
        self.setup, self.loss, self.right, self.told = setup, loss, right, told
        self.traffic, self.step, self.log = Traffic(), 0, []
        self.arrays = [[np.zeros(1)]]

    def enter(self, stage):
        self.stage = stage
        self.log.append(("enter", self.setup.stages.index(stage)))

    def advance(self, start, stop):
        assert start == self.step
        assert self.stage.start <= start < stop <= self.stage.stop
        self.step = stop
        self.traffic += self.setup.plan_step(self.stage).traffic * (stop - start)
        losses = [self.loss(step) for step in range(start, stop)]
        return None if self.told is not None else sum(losses) / len(losses)

    def correct(self, part, lossless):
        return None if self.told is not None else self.right(self.step)

    def decide(self, choice):
        self.traffic += self.setup.plan_decision(self.stage).traffic
        self.log.append(("decide", self.step))
        return choice if self.told is None else self.told(self.step)

    def conclude(self):
        self.concluded = self.step

    def snapshot(self):
        return [[np.array([self.step])]]

    def restore(self, shards):
        self.log.append(("restore", int(shards[0][0][0])))
        self.step = int(shards[0][0][0])


def events(session, kind, **options):
    return [event for event in train(session, **options) if isinstance(event, kind)]


def evaluated(session, **options):
    return [event.step for event in events(session, Evaluated, **options)]


def test_a_run_evaluates_every_so_many_steps_and_at_its_end(make_setup):
    session = Script(make_setup(steps=23, every=5))
    got = list(train(session))
    assert [e.step for e in got if isinstance(e, Evaluated)] == [5, 10, 15, 20, 23]
    assert isinstance(got[0], Compiled)
    assert got[-1].step == session.concluded == 23
    assert got[-1].reason == "steps"
    assert [e.step for e in got if isinstance(e, Progress)][-1] == 23


def test_every_stage_ends_with_an_evaluation(make_setup, phase):
    session = Script(make_setup([phase(BACKPROP, 7), phase(BACKPROP, 5)], every=5))
    assert evaluated(session) == [5, 7, 10, 12]
    assert [entry for entry in session.log if entry[0] == "enter"] == [("enter", 0), ("enter", 1)]


def test_the_reported_loss_is_the_mean_over_all_steps_since_the_last_evaluation(make_setup):
    got = events(Script(make_setup(steps=20, every=10), loss=float), Evaluated)
    assert [event.train_loss for event in got] == pytest.approx([4.5, 14.5])


def test_accuracies_are_shares_of_the_part(make_setup):
    got = list(train(Script(make_setup(steps=5, every=5), right=lambda step: 5)))
    assert [e.accuracy for e in got if isinstance(e, Evaluated)] == [5 / 11]
    assert (got[-1].test_accuracy, got[-1].test_accuracy_lossless) == (5 / 17, 5 / 17)


def test_without_validation_examples_there_is_no_accuracy(make_setup, tiny_split):
    nothing = tiny_split.validation.take(np.arange(0))
    setup = make_setup(steps=5, every=5, split=tiny_split._replace(validation=nothing), stop_accuracy=0.1)
    got = list(train(Script(setup, right=lambda step: 17)))
    assert [(e.accuracy, e.accuracy_lossless) for e in got if isinstance(e, Evaluated)] == [(None, None)]
    assert got[-1].test_accuracy == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_run(make_setup, bad):
    session = Script(make_setup(steps=30, every=5), loss=lambda step: bad if step == 7 else 1.0, right=lambda step: 11)
    assert list(train(session))[-1][:2] == (10, "diverged")


def test_an_accuracy_ends_the_run_at_the_first_evaluation_that_reaches_it(make_setup):
    session = Script(make_setup(steps=30, every=5, stop_accuracy=9 / 11), right=lambda step: step - 1)
    assert list(train(session))[-1][:2] == (10, "accuracy")


def test_a_run_that_reaches_its_accuracy_at_its_last_step_says_so(make_setup):
    session = Script(make_setup(steps=10, every=5, stop_accuracy=9 / 11), right=lambda step: step - 1)
    assert list(train(session))[-1].reason == "accuracy"


@pytest.mark.parametrize("reason", ["accuracy", "diverged"])
def test_what_ends_a_run_ends_all_its_stages(make_setup, phase, reason):
    setup = make_setup([phase(BACKPROP, 7), phase(BACKPROP, 5), phase(BACKPROP, 5)], every=5, stop_accuracy=0.5)
    session = Script(setup, loss=lambda step: math.nan if reason == "diverged" else 1.0, right=lambda step: 11)
    got = list(train(session))
    assert [entry for entry in session.log if entry[0] == "enter"] == [("enter", 0)]
    assert got[-1][:2] == (5, reason)
    assert len([e for e in got if isinstance(e, Compiled)]) == 1


@pytest.mark.parametrize(("lengths", "every"), [((40,), 5), ((7, 5, 28), 5), ((12, 28), 6)])
def test_bytes_end_the_run_before_they_are_passed_and_no_earlier(make_setup, phase, lengths, every):
    stages = [phase(BACKPROP, length) for length in lengths]
    setup = make_setup(stages, every=every)

    def last(limit):
        limited = replace(setup, stop_bytes=limit)
        limited.known.update(setup.known)  # planned once
        return list(train(Script(limited)))[-1]

    spent = {e.step: e.traffic.bytes for e in events(Script(setup), Evaluated)}
    for (step, budget), (_, more) in itertools.pairwise(spent.items()):
        for limit in (budget, more - 1):
            end = last(limit)
            assert (end.step, end.reason, end.traffic.bytes) == (step, "bytes", budget)
    assert last(spent[40])[:2] == (40, "steps")


class Whole(Script):
    """A script that holds all shards."""

    whole = True


def test_a_session_that_holds_all_shards_keeps_snapshots_after_any_step(make_setup):
    setup = make_setup(steps=20, every=5)
    kept = events(Whole(setup, loss=float), Snapshot, keep_seconds=0)
    assert {5, 10, 15} < {snapshot.step for snapshot in kept} < set(range(1, 20))
    for snapshot in kept:
        since = range(snapshot.step - snapshot.step % 5, snapshot.step)
        assert snapshot.losses == (pytest.approx(sum(since)), len(since))
        rest = events(Whole(setup, loss=float), Evaluated, resume=snapshot)
        assert [(e.step, e.train_loss) for e in rest] == [(k, pytest.approx(k - 3)) for k in (5, 10, 15, 20) if k > snapshot.step]


def test_who_leaves_gets_a_snapshot_at_once(make_setup):
    session = Whole(make_setup(steps=20, every=20))
    course = train(session, keep_seconds=1e9, leaving=lambda: session.step >= 3)
    seen = [next(event for event in course if isinstance(event, Snapshot)), session.step]
    assert seen[0].step == seen[1] < 20


def test_snapshots_are_kept_between_evaluations_but_not_at_the_end(make_setup):
    session = Script(make_setup(steps=20, every=5))
    assert [event.step for event in events(session, Snapshot, keep_seconds=0)] == [5, 10, 15]
    assert not events(Script(make_setup(steps=20, every=5)), Snapshot, keep_seconds=1e9)


@pytest.mark.parametrize("lengths", [(20,), (7, 5, 8), (10, 10)])
def test_a_run_goes_on_from_any_snapshot_as_if_it_had_never_stopped(make_setup, phase, lengths):
    setup = make_setup([phase(BACKPROP, length) for length in lengths], every=5)
    whole = Script(setup)
    got = list(train(whole, keep_seconds=0))
    for snapshot in (event for event in got if isinstance(event, Snapshot)):
        again = Script(setup)
        rest = list(train(again, resume=snapshot))
        after = [event for event in got if isinstance(event, Evaluated) and event.step > snapshot.step]
        assert [(e.step, e.traffic) for e in rest if isinstance(e, Evaluated)] == [(e.step, e.traffic) for e in after]
        assert rest[-1].traffic == got[-1].traffic
        taken_in = next(k for k, stage in enumerate(setup.stages) if stage.start < snapshot.step <= stage.stop)
        assert again.log[:2] == [("enter", taken_in), ("restore", snapshot.step)]
        assert [entry for entry in again.log[2:] if entry[0] == "enter"] == [("enter", k) for k in range(taken_in + 1, len(setup.stages))]


def test_the_clock_goes_on_from_a_snapshot(make_setup):
    snapshot = Snapshot(5, 1000.0, Traffic(), [[np.array([5])]])
    got = events(Script(make_setup(steps=10, every=5)), Evaluated, resume=snapshot)
    assert 1000 < got[0].seconds < 1010


def test_a_shard_that_is_not_the_top_does_as_it_is_told(make_setup):
    session = Script(make_setup(steps=30, every=5, stop_accuracy=0.1), told=lambda step: [0, 1, 2][step // 5 - 1])
    got = list(train(session))
    assert [(e.train_loss, e.accuracy) for e in got if isinstance(e, Evaluated)] == [(None, None)] * 3
    assert [e.step for e in got if isinstance(e, Snapshot)] == [10]
    assert isinstance(got[-1], Finished)
    assert got[-1][:3] == (15, "stopped", None)


def test_who_is_told_what_was_decided_goes_by_that(make_setup):
    """Of several replicas' tops the first decides; what another one has found ends nothing."""
    session = Script(make_setup(steps=23, every=5), loss=lambda step: math.nan)
    session.decide = lambda choice: 0
    got = list(train(session))
    assert (got[-1].step, got[-1].reason) == (23, "steps")
