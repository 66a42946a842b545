"""Steps that overlap as they come: never with older weights than was allowed, every byte as planned, and with none the very same run."""

import dataclasses
import os
import signal
import threading
import time

import numpy as np
import pytest

from locallearn.codec import build
from locallearn.config.run import resolve
from locallearn.experiment.planning import planned_traffic
from locallearn.experiment.prepare import Making, prepare
from locallearn.runtime.cluster import Crew
from locallearn.runtime.framed import EagerSession
from locallearn.runtime.overlap import Flight, Turns
from locallearn.runtime.training import Evaluated, Finished, Progress, RolledBack, train
from tests.fabrics.threads import Threads

FEEDBACK = (("error_feedback", ()), ("int8", ()))
STEPS = 40


@pytest.fixture
def setup_of(make_setup):
    """`setup_of(ahead, ...)`: a run of three shards that run so many steps ahead."""

    def make(ahead, *args, **options):
        setup = make_setup(*args, **{"shards": 3, "steps": STEPS, "every": 20, **options})
        return dataclasses.replace(setup, stages=tuple(dataclasses.replace(stage, ahead=ahead) for stage in setup.stages))

    return make


def planned(setup):
    """Bytes and messages of training and decisions."""
    stage = setup.stages[0]
    return setup.plan_step(stage).traffic * STEPS + setup.plan_decision(stage).traffic * 2


def trained(traffic):
    return {channel: (traffic.payload[channel], traffic.messages[channel]) for channel in traffic.training}


def age(own):
    """The mean, of one shard's weights."""
    return sum(k * count for k, count in enumerate(own)) / sum(own)


@pytest.mark.parametrize(
    ("ahead", "options"),
    [
        (1, {}),
        (3, {"codec": build(FEEDBACK)}),
        (2, {"microbatches": 2, "codec": build((("int8", ("stochastic",)),))}),
        (2, {"rule": "predictive_coding"}),
    ],
    ids=["1", "3, with codecs that remember", "2, with microbatches", "2, of a rule of many rounds"],
)
def test_weights_are_as_old_as_they_may_be_and_never_older(setup_of, ahead, options):
    setup = setup_of(ahead, **options)
    last = Threads(setup).join()
    assert isinstance(last, Finished)
    assert trained(last.traffic) == trained(planned(setup))
    assert [sum(own) for own in last.delays] == [STEPS] * 3
    assert all(len(own) - 1 <= ahead for own in last.delays)
    assert sum(last.delays[0][1:]) > 0, "the bottom shard waits longest for what comes down"
    if not options:
        assert age(last.delays[2]) < age(last.delays[0]), "the top one has what it waits for when it begins"


def test_steps_that_run_ahead_learn(setup_of):
    setup = setup_of(2, steps=200, every=100)
    threads = Threads(setup)
    assert threads.join().test_accuracy > 0.8
    losses = [event.train_loss for event in threads.events[2] if isinstance(event, Evaluated)]
    assert losses[1] < 0.7 * losses[0]


def test_with_none_ahead_it_is_the_synchronous_run_bit_for_bit(setup_of):
    setup = setup_of(0, codec=build(FEEDBACK))
    theirs, ours = Threads(setup).join(), list(train(EagerSession(setup)))[-1]
    assert theirs.traffic == ours.traffic
    assert theirs.delays == ()
    assert all(a.tobytes() == b.tobytes() for x, y in zip(theirs.shards, ours.shards, strict=True) for a, b in zip(x, y, strict=True))


def test_a_cut_finds_no_step_in_flight_and_keeps_the_count(setup_of):
    setup = setup_of(2, codec=build(FEEDBACK))
    threads = Threads(setup)
    assert all(threads.announce(13))
    threads.join()
    (kept,) = threads.kept
    assert [sum(own) for own in kept.delays] == [13] * 3
    again = Threads(setup, kept).join()
    assert [sum(own) for own in again.delays] == [STEPS] * 3
    assert trained(again.traffic) == trained(planned(setup))


# What it is made of.


def test_the_oldest_step_that_is_ready_computes_next():
    turns, order, ready = Turns(), [], threading.Barrier(4)
    turns.enter((0, 0))

    def step(k):
        ready.wait()
        turns.enter((k, 0))
        order.append(k)
        turns.leave()

    threads = [threading.Thread(target=step, args=(k,)) for k in (3, 1, 2)]
    for thread in threads:
        thread.start()
    ready.wait()
    time.sleep(0.3)
    turns.leave()
    for thread in threads:
        thread.join(10)
    assert order == [1, 2, 3]


def test_a_step_that_fails_ends_those_that_wait_for_it():
    def step(number):
        if number == 0:
            flight.turns.until(flight.order(0), lambda: False)
        raise FloatingPointError("of step 1")

    flight = Flight(0, 1, 1, step)
    with pytest.raises(FloatingPointError, match="of step 1"):
        flight.result(0, 2)
    flight.close()


def test_no_more_steps_are_in_flight_than_are_allowed_and_they_end_in_order():
    flying, most, lock, ended = [0], [0], threading.Lock(), []
    rng = np.random.default_rng(0)
    naps = rng.uniform(0, 0.01, 30)

    def step(number):
        with lock:
            flying[0] += 1
            most[0] = max(most[0], flying[0])
        with flight.turns.away(flight.order(number)):
            time.sleep(naps[number])
        flight.in_order(number)
        ended.append(number)
        flight.ended = number + 1
        with lock:
            flying[0] -= 1
        return number

    flight = Flight(0, 3, 1, step)
    assert [flight.result(k, min(30, k + 4)) for k in range(30)] == list(range(30))
    assert ended == list(range(30))
    assert most[0] <= 4
    flight.close()


# On Ray.


@pytest.mark.ray
def test_an_actor_that_dies_sends_all_back_and_the_run_goes_on():
    config = resolve(
        {
            "rule": {"name": "backprop"},
            "model": {"name": "mlp", "widths": [196, 12, 11, 10], "shards": 3},
            "data": {"name": "fashion14", "limit": 300, "validation": 40},
            "train": {"steps": 300, "batch": 16, "evaluate_every": 100},
            "schedule": {"staleness": 2},
        }
    )
    setup, events, killed = prepare(config, apart=True), [], False
    with Crew(3) as crew:
        for event in crew.train(Making.of(config, setup), keep_seconds=0.0):
            events.append(event)
            if isinstance(event, Progress) and event.step >= 120 and not killed:
                os.kill(crew.processes[1], signal.SIGKILL)
                killed = True
    (back,) = [event for event in events if isinstance(event, RolledBack)]
    assert back.shard is None
    last = events[-1]
    assert [sum(own) for own in last.delays] == [300] * 3
    assert all(len(own) <= 3 for own in last.delays)
    assert trained(last.traffic) == trained(planned_traffic(setup))
