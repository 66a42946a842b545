"""Nodes that are lost in the middle of a run, and nodes that join: the run goes on, on what there is, with the bits of one process."""

import os
import sys
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import ray
from ray.cluster_utils import Cluster as Machines

from locallearn.cluster import Cluster
from locallearn.config.run import resolve
from locallearn.data.dataset import Dataset
from locallearn.errors import DataError, ShardLost
from locallearn.experiment.prepare import Making, prepare
from locallearn.networks import parse_network
from locallearn.runtime import cluster as crews
from locallearn.runtime.cluster import Crew
from locallearn.runtime.framed import EagerSession
from locallearn.runtime.knock import knock
from locallearn.runtime.training import Finished, Progress, RolledBack, train

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")]


@pytest.fixture(scope="module")
def machines():
    """A Ray whose head is no place for a shard, which this process has joined; it notices within three seconds that a node is gone."""
    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_health_check_period_ms", "500")
    found = Machines(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    ray.init(address=found.address, log_to_driver=False, logging_level="ERROR")
    yield found
    ray.shutdown()
    found.shutdown()
    patch.undo()


@pytest.fixture
def nodes(machines):
    """`nodes(count, cpus)`: so many more; they go when the test is over."""
    added = []

    def add(count, cpus):
        added.extend(machines.add_node(num_cpus=cpus) for _ in range(count))
        return added

    yield add
    for node in added:
        if node in machines.worker_nodes:
            machines.remove_node(node, allow_graceful=False)


def test_a_ray_speaks_first(machines):
    """Also to whoever knocks; its client server does, too, but none runs here."""
    knock(machines.address)


@dataclass(frozen=True)
class Here:
    """A data set whose files are on the driver's machine alone."""

    name: ClassVar[str] = "here"
    classes: ClassVar[int] = 10
    example_shape: ClassVar[tuple[int, ...]] = (196,)
    train_size: ClassVar[int] = 300
    test_size: ClassVar[int] = 100
    process: int

    def load(self):
        if os.getpid() != self.process:
            raise DataError("there are no files on this machine")
        rng = np.random.default_rng(0)
        parts = [(rng.normal(size=(n, 196)).astype(np.float32), rng.integers(0, 10, n)) for n in (300, 100)]
        return Dataset.of("here", *parts, classes=10)


@pytest.fixture(scope="module")
def making(machines):
    """How to make a run of three shards that is long enough to be struck."""
    config = resolve(
        {
            "rule": {"name": "backprop"},
            "model": {"name": "mlp", "widths": [196, 12, 11, 10], "shards": 3},
            "data": {"name": Here(os.getpid()), "validation": 40},
            "train": {"steps": 400, "batch": 16, "evaluate_every": 200},
            "codecs": {"default": ["error_feedback", "int8"]},
        }
    )
    setup = prepare(config)
    return crews.lent(Making.of(config, setup), setup.split)


@pytest.fixture(scope="module")
def undisturbed(making):
    return list(train(EagerSession(making())))[-1]


def assert_undisturbed(events, ours):
    last = events[-1]
    assert isinstance(last, Finished)
    assert (last.step, last.test_accuracy, last.traffic) == (ours.step, ours.test_accuracy, ours.traffic)
    assert all(a.tobytes() == b.tobytes() for x, y in zip(last.shards, ours.shards, strict=True) for a, b in zip(x, y, strict=True))


def struck(run, at, strike):
    """The events of a run; `strike` is called once, as soon as it has come to step `at`."""
    events, due = [], True
    for event in run:
        events.append(event)
        if due and isinstance(event, Progress) and event.step >= at:
            strike()
            due = False
    assert not due, "the run was over before"
    return events


def seats_of(crew):
    return [seat.machine for seat in ray.get([actor.seat.remote() for actor in crew.actors])]


def test_a_run_outlives_a_node_on_those_that_are_left(machines, nodes, making, undisturbed):
    """Whose data comes from the driver, for no node has any."""
    added = nodes(3, cpus=2)
    with Crew(3, address=machines.address) as crew:
        assert not crew.private
        assert set(seats_of(crew)) == {node.node_id for node in added}
        lost = next(node for node in added if node.node_id == seats_of(crew)[1])
        events = struck(crew.train(making, keep_seconds=0.5), 30, lambda: machines.remove_node(lost, allow_graceful=False))
        assert set(seats_of(crew)) == {node.node_id for node in added if node is not lost}
    assert_undisturbed(events, undisturbed)
    (back,) = [event for event in events if isinstance(event, RolledBack)]
    assert back.shard == 1
    assert "shard 1 died at step" in back.reason
    assert back.reason.endswith("shard 1 shares a node with shard 0 now") or back.reason.endswith("shard 1 shares a node with shard 2 now")


@pytest.mark.slow
def test_a_node_that_joins_takes_the_place_of_one_that_is_lost(machines, nodes, making, undisturbed):
    added = nodes(3, cpus=1)
    with Crew(3, address=machines.address, cluster=Cluster("strict")) as crew:
        lost = next(node for node in added if node.node_id == seats_of(crew)[2])

        def strike():
            machines.remove_node(lost, allow_graceful=False)
            nodes(1, cpus=1)

        events = struck(crew.train(making, keep_seconds=0.5), 30, strike)
        assert seats_of(crew)[2] == added[-1].node_id
    assert_undisturbed(events, undisturbed)
    (back,) = [event for event in events if isinstance(event, RolledBack)]
    assert back.reason.endswith("shard 2 is on another node now")


@pytest.mark.slow
def test_shards_that_share_a_node_spread_out_when_one_joins(machines, nodes, making, undisturbed):
    added = nodes(2, cpus=2)
    with Crew(3, address=machines.address) as crew:
        assert set(seats_of(crew)) == {node.node_id for node in added}
        run = crew.train(making, keep_seconds=0.5, network=parse_network("1 Gbit/s, 25 ms"))
        events = struck(run, 30, lambda: nodes(1, cpus=1))
        assert set(seats_of(crew)) == {node.node_id for node in added}
        assert len(added) == 3
    assert_undisturbed(events, undisturbed)
    (back,) = [event for event in events if isinstance(event, RolledBack)]
    assert back.reason == f"shard {back.shard} leaves for a node that joined; shard {back.shard} is on another node now"


@pytest.mark.slow
def test_strict_ends_with_what_there_is_where_no_node_takes_the_place(machines, nodes, making, monkeypatch):
    monkeypatch.setattr(crews, "START_SECONDS", 6.0)
    added = nodes(3, cpus=2)
    with Crew(3, address=machines.address, cluster=Cluster("strict", timeout=5.0)) as crew:
        lost = next(node for node in added if node.node_id == seats_of(crew)[0])
        with pytest.raises(ShardLost) as failure:
            struck(crew.train(making, keep_seconds=0.5), 30, lambda: machines.remove_node(lost, allow_graceful=False))
    lines = str(failure.value).splitlines()
    assert lines[0].startswith("shard 0 died at step")
    assert lines[1] == "It was not replaced: 3 shards found no place within 6.0 s"
    assert "             3 different nodes (cluster.spread: strict)" in lines
    assert lines[-1] == "The same command resumes from the last snapshot."
