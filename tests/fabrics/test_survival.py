"""Real Ray actors that are killed: the run goes back to the last snapshot, and ends bit-equal to one that nobody disturbed."""

import functools
import os
import signal
import sys
import time

import pytest
import ray

from locallearn.config.run import resolve
from locallearn.errors import ShardLost
from locallearn.experiment.prepare import prepare
from locallearn.runtime import cluster
from locallearn.runtime.cluster import Crew
from locallearn.runtime.framed import EagerSession
from locallearn.runtime.supervisor import ROLLBACKS
from locallearn.runtime.training import Compiled, Evaluated, Finished, Progress, Recovered, RolledBack, Snapshot, train

pytestmark = pytest.mark.ray
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


def setup_of(rule="backprop", steps=400, every=100, codec=("error_feedback", "int8")):
    config = resolve(
        {
            "rule": {"name": rule},
            "model": {"name": "mlp", "widths": [196, 12, 11, 9, 10], "shards": 3},
            "data": {"name": "fashion14", "limit": 300, "validation": 40},
            "train": {"steps": steps, "batch": 16, "evaluate_every": every},
            "codecs": {"default": list(codec)},
        }
    )
    return functools.partial(prepare, config)


@pytest.fixture(scope="module")
def crew():
    with Crew(3) as hired:
        yield hired


def killed_when(crew, run, kills):
    """The events of a run. kills: (which event, shard) one after the other; a shard is killed when its event comes."""
    events, left = [], list(kills)
    for event in run:
        events.append(event)
        if left and left[0][0](events):
            os.kill(crew.processes[left.pop(0)[1]], signal.SIGKILL)
    assert not left, "the run was over before"
    return events


def at_step(step):
    return lambda events: isinstance(events[-1], Progress) and events[-1].step >= step


def is_a(kind):
    return lambda events: isinstance(events[-1], kind)


def assert_undisturbed(events, make):
    """The last event and every evaluation are those of `Eager`; each evaluation was told once."""
    ours = list(train(EagerSession(make())))
    last = events[-1]
    assert isinstance(last, Finished)
    assert last.traffic == ours[-1].traffic
    assert (last.step, last.test_accuracy) == (ours[-1].step, ours[-1].test_accuracy)
    assert all(a.tobytes() == b.tobytes() for x, y in zip(last.shards, ours[-1].shards, strict=True) for a, b in zip(x, y, strict=True))
    one, other = ([(e.step, e.accuracy, e.traffic) for e in each if isinstance(e, Evaluated)] for each in (events, ours))
    assert one == other


def of(events, kind):
    return [event for event in events if isinstance(event, kind)]


@pytest.mark.parametrize("alone", [True, False])
def test_an_actor_that_dies_in_training_is_replaced_and_the_others_are_kept(crew, alone):
    make = setup_of()
    before = list(crew.processes)
    events = killed_when(crew, crew.train(make, keep_seconds=0.0, alone=alone), [(at_step(150), 1)])
    assert_undisturbed(events, make)
    assert len(of(events, RolledBack)) == 1, of(events, RolledBack)
    (back,), (again,) = of(events, RolledBack), of(events, Recovered)
    assert back.shard == (1 if alone else None)
    assert "shard 1 died at step" in back.reason
    assert 0 < back.step <= back.lost <= again.step
    assert 0 < again.seconds < 30
    assert [a == b for a, b in zip(before, crew.processes, strict=True)] == [True, False, True]


def test_without_a_snapshot_a_shard_or_all_begin_again(crew):
    """While it compiles, and in training, the same one again, which makes all go back."""
    make = setup_of("mono_forward", steps=600, every=200)
    run = crew.train(make, keep_seconds=1e9)
    events = killed_when(crew, run, [(is_a(Compiled), 0), (at_step(1), 2), (at_step(210), 0)])
    assert_undisturbed(events, make)
    assert [(back.step, back.shard) for back in of(events, RolledBack)] == [(0, 0), (0, 2), (0, None)]
    assert not of(events, Snapshot)


@pytest.mark.parametrize("shard", [pytest.param(0, marks=pytest.mark.slow), 1, pytest.param(2, marks=pytest.mark.slow)])
def test_every_shard_of_a_rule_that_sends_nothing_down_restarts_alone(crew, shard):
    """At a snapshot between evaluations, with codecs that remember, and after an evaluation."""
    make = setup_of("mono_forward", steps=3000, every=1000)
    events = killed_when(crew, crew.train(make, keep_seconds=0.2), [(lambda events: len(of(events, Evaluated)) == 1, shard)])
    assert_undisturbed(events, make)
    assert [back.shard for back in of(events, RolledBack)] == [shard]


def test_a_rule_that_runs_ahead_goes_back_to_a_snapshot_between_evaluations(crew):
    make = setup_of("mono_forward", steps=2000, every=1000)
    between = lambda events: isinstance(events[-1], Snapshot) and events[-1].step % 1000  # noqa: E731
    events = killed_when(crew, crew.train(make, keep_seconds=0.2, alone=False), [(between, 2)])
    assert_undisturbed(events, make)
    (back,) = of(events, RolledBack)
    assert back.step in [snapshot.step for snapshot in of(events, Snapshot) if snapshot.step % 1000]


@pytest.mark.slow
def test_frames_that_are_calls_survive_too(crew):
    crew.transport = "ray"
    try:
        make = setup_of(steps=200)
        assert_undisturbed(killed_when(crew, crew.train(make, keep_seconds=0.0), [(at_step(30), 0)]), make)
    finally:
        crew.transport = "socket"


def test_who_dies_again_and_again_ends_the_run(crew):
    run = crew.train(setup_of(steps=100000, every=1000), keep_seconds=1e9, alone=False)
    kills = [(at_step(1), 1), *[(lambda events: events[-1:] == [e for e in events[-1:] if isinstance(e, Compiled)], 1)] * ROLLBACKS]
    with pytest.raises(ShardLost, match=f"shard 1 died .*\nGiven up after {ROLLBACKS} returns to the same snapshot"):
        killed_when(crew, run, kills)


def test_where_the_only_node_is_lost_nobody_waits_for_a_place(crew, monkeypatch):
    monkeypatch.setattr(cluster, "nodes", list)
    monkeypatch.setattr(cluster, "NODE_SECONDS", 0.1)
    before, crew.actors[0] = crew.actors[0], cluster.ShardActor.options(resources={"nowhere": 1}).remote(0, None, 0)
    try:
        with pytest.raises(cluster.Unplaced, match="the Ray that this command started has lost its node"):
            crew._take_seats([0])
    finally:
        ray.kill(crew.actors[0])
        crew.actors[0] = before


def test_two_that_die_at_once_are_both_replaced(crew):
    make = setup_of(steps=200)
    run = crew.train(make, keep_seconds=0.0)
    events = []
    for event in run:
        events.append(event)
        if at_step(30)(events) and not of(events, RolledBack):
            for shard in (0, 2):
                os.kill(crew.processes[shard], signal.SIGKILL)
            time.sleep(0.1)
    assert_undisturbed(events, make)


@pytest.mark.slow
def test_who_stands_still_while_a_life_is_prepared_is_replaced(crew, monkeypatch):
    monkeypatch.setattr(cluster, "CALL_SECONDS", 10.0)
    monkeypatch.setattr(cluster, "ANSWER_SECONDS", 10.0)
    os.kill(crew.processes[1], signal.SIGSTOP)
    make = setup_of(steps=20, every=10)
    events = list(crew.train(make))
    assert_undisturbed(events, make)
    (back,) = of(events, RolledBack)
    assert back.reason == "shard 1 did not answer within 10 s before it began"


def test_where_the_others_do_not_keep_enough_all_go_back(crew):
    """Frames of 1 MiB, of which a link keeps 256: the bottom cannot tell again what it told at first."""
    config = resolve(
        {
            "rule": {"name": "mono_forward"},
            "model": {"name": "mlp", "widths": [196, 1024, 16, 10], "shards": 3},
            "data": {"name": "fashion14", "limit": 300, "validation": 40},
            "train": {"steps": 300, "batch": 256, "evaluate_every": 300},
        }
    )
    make = functools.partial(prepare, config)
    *_, ours = crew.train(make, keep_seconds=1e9)  # products of this size depend on how many threads compute them, in their last bits
    events = killed_when(crew, crew.train(make, keep_seconds=1e9), [(at_step(265), 1)])
    assert (events[-1].test_accuracy, events[-1].traffic) == (ours.test_accuracy, ours.traffic)
    for mine, theirs in zip(events[-1].shards, ours.shards, strict=True):
        assert all(a.tobytes() == b.tobytes() for a, b in zip(mine, theirs, strict=True))
    assert [(back.step, back.shard) for back in of(events, RolledBack)] == [(0, 1), (0, None)]
    assert "it asks for step 0, and what was sent then is not kept any more" in of(events, RolledBack)[1].reason
