"""Replicas on real Ray actors: bit for bit and byte for byte those of one process, also when one of them is killed."""

import functools
import os
import signal
import sys

import pytest
import ray

from locallearn.cluster import Cluster
from locallearn.config.run import resolve
from locallearn.experiment.how import How
from locallearn.experiment.prepare import prepare
from locallearn.experiment.run import execute
from locallearn.experiment.store import Store
from locallearn.networks import Network
from locallearn.runtime.cluster import Crew
from locallearn.runtime.replicated import EagerReplicas
from locallearn.runtime.training import Evaluated, Finished, Joined, Progress, RolledBack, Snapshot, Watched, train
from tests.fabrics.coming_and_going import scheduled

pytestmark = pytest.mark.ray
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

DILOCO = {"count": 2, "average_every": 8, "outer": {"name": "nesterov", "rate": 0.7, "momentum": 0.5}}
FEEDBACK = ["error_feedback", "int8"]
SLOW = Network("slow", 1e9, 1e9, 0.01)
"""Keeps those that are left busy until others have come, however fast they are."""
SHARE = 0.2
"""Of a core, for each actor: two runs find a place on a machine of two."""


def config(replicas=DILOCO, rule="backprop", codec=FEEDBACK, steps=24, every=12, **train):
    """Two shards of each of two replicas."""
    return resolve(
        {
            "rule": {"name": rule},
            "model": {"name": "mlp", "widths": [196, 12, 11, 10], "shards": 2},
            "data": {"name": "fashion14", "limit": 300, "validation": 40},
            "train": {"steps": steps, "batch": 8, "evaluate_every": every, **train},
            "codecs": {"average": list(codec)},
            "replicas": replicas,
            "cluster": {"cpus": SHARE},
        }
    )


def setup_of(*args, **options):
    return functools.partial(prepare, config(*args, **options))


@pytest.fixture(scope="module")
def crew():
    with Crew(2, 2, cluster=Cluster(cpus=SHARE)) as hired:
        yield hired


def assert_undisturbed(events, make):
    """The last event and every evaluation are those of one process."""
    last, ours = events[-1], list(train(EagerReplicas(make())))
    assert isinstance(last, Finished)
    assert last.traffic == ours[-1].traffic
    assert (last.step, last.test_accuracy) == (ours[-1].step, ours[-1].test_accuracy)
    assert len(last.shards) == 4
    assert all(a.tobytes() == b.tobytes() for x, y in zip(last.shards, ours[-1].shards, strict=True) for a, b in zip(x, y, strict=True))
    one, other = ([(e.step, e.accuracy, e.train_loss, e.traffic) for e in each if isinstance(e, Evaluated)] for each in (events, ours))
    assert [row[:2] + row[3:] for row in one] == [row[:2] + row[3:] for row in other]
    assert [row[2] for row in one] == pytest.approx([row[2] for row in other])


@pytest.mark.parametrize(
    ("transport", "make"),
    [
        ("socket", setup_of()),
        ("ray", setup_of({"count": 2, "average": "gradients"}, "mono_forward", ["deflate", "int8"])),
    ],
    ids=["diloco over sockets", "gradients by calls"],
)
def test_they_are_those_of_one_process(crew, transport, make):
    crew.transport = transport
    try:
        assert_undisturbed(list(crew.train(make)), make)
    finally:
        crew.transport = "socket"


def test_each_actor_is_called_by_its_replica_and_shard(crew):
    names = [name for entry in ray.util.list_named_actors(all_namespaces=True) if (name := entry["name"]).startswith("locallearn:")]
    assert {name.split(":", 2)[2] for name in names} == {f"replica-{r}:shard-{s}" for r in (0, 1) for s in (0, 1)}


def test_one_that_dies_sends_all_of_them_back_and_changes_no_bit(crew):
    make = setup_of(steps=400, every=100)
    before, events, killed = list(crew.processes), [], False
    for event in crew.train(make, keep_seconds=0.0):
        events.append(event)
        if isinstance(event, Progress) and event.step >= 150 and not killed:
            os.kill(crew.processes[2], signal.SIGKILL)
            killed = True
    assert_undisturbed(events, make)
    (back,) = [event for event in events if isinstance(event, RolledBack)]
    assert back.shard is None
    assert back.step > 0
    assert "shard 0 of replica 1 died at step" in back.reason
    assert [a == b for a, b in zip(before, crew.processes, strict=True)] == [True, True, False, True]


def test_a_replica_that_dies_is_dropped_and_joins_again(crew, assert_same):
    make = setup_of({**DILOCO, "on_loss": "drop"}, steps=100_000, every=100)
    events, before, killed = [], list(crew.processes), False
    for event in crew.train(make, keep_seconds=0.5, network=SLOW):
        events.append(event)
        joined = [event for event in events if isinstance(event, Joined)]
        if isinstance(event, Snapshot) and not killed:
            os.kill(crew.processes[2], signal.SIGKILL)
            killed = True
        elif isinstance(event, Snapshot) and joined and event.step > joined[0].step + 10:
            break
    (back,) = [event for event in events if isinstance(event, RolledBack)]
    assert (back.shard, back.dropped, joined[0].replicas) == (None, (1,), (1,))
    assert "shard 0 of replica 1 died at step" in back.reason
    assert 0 < back.step < joined[0].step
    assert [a == b for a, b in zip(before, crew.processes, strict=True)] == [True, True, False, False]
    kept = events[-1]
    assert kept.present == ((0, (0, 1)), (back.step, (0,)), (joined[0].step, (0, 1)))
    ours = scheduled(make(), kept.present, kept.step)
    assert_same(kept.shards, ours[-1].shards)
    assert kept.traffic == ours[-1].traffic
    assert kept.traffic.by_kind()["checkpoint"] > 0
    assert {len(event.shards) for event in events if isinstance(event, Snapshot)} == {4}
    told = {event.step: (event.accuracy, event.traffic) for event in events if isinstance(event, Evaluated)}
    assert told == {event.step: (event.accuracy, event.traffic) for event in ours if isinstance(event, Evaluated)}
    alone = [event for event in events if isinstance(event, Watched) and event.shards[2] is None]
    assert alone
    assert all([status is None for status in event.shards] == [False, False, True, True] for event in alone)


def test_a_run_on_ray_says_how_its_replicas_are(crew, tmp_path):
    there = execute(config(), How("ray"), tmp_path / "ray")
    here = execute(config(), How("eager"), tmp_path / "eager")
    assert there.traffic == here.traffic
    assert there.test_accuracy == here.test_accuracy
    assert all(array.tobytes() == here.arrays[name].tobytes() for name, array in there.arrays.items())
    shards = Store(tmp_path / "ray").read("actors.json")["shards"]
    assert [(one["shard"], one["replica"], one["step"]) for one in shards] == [(0, 0, 23), (1, 0, 23), (0, 1, 23), (1, 1, 23)]
