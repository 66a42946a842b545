"""What an actor does, called directly, without Ray: its reports, and what it leaves behind."""

import threading
from types import SimpleNamespace

import pytest

from locallearn.runtime import actors, cluster
from locallearn.runtime.actors import ShardActor
from locallearn.runtime.training import Compiled, Finished


@pytest.fixture
def actor(monkeypatch):
    monkeypatch.setattr(actors, "ray", SimpleNamespace(get_runtime_context=lambda: SimpleNamespace(get_actor_name=lambda: None)))
    made = ShardActor.__ray_metadata__.modified_class(0, None, 0)
    yield made
    made._leave()


def begin(actor, life, make_setup, work=1):
    place = actor.listen(life, "127.0.0.1", b"s" * 32, None)
    actor.start([place], work, make_setup, None, 1e9)


def test_events_are_told_once_and_only_to_who_waits_for_them_in_this_life(actor, make_setup):
    begin(actor, 4, lambda: make_setup("backprop", shards=1))
    actor._worker.join()
    assert actor.status().events == [], "who may give up waiting for the answer would lose them"
    assert actor.status(3).events == [], "a question of an earlier life that comes late"
    told = actor.status(4)
    assert (type(told.events[0]), type(told.events[-1]), told.failure) == (Compiled, Finished, None)
    assert actor.status(4).events == []


def test_a_training_that_was_left_behind_does_not_take_the_place_of_the_next(actor, make_setup, monkeypatch):
    """It was reading its data for longer than anybody waits."""
    monkeypatch.setattr(actors, "LEAVE_SECONDS", 0.01)
    read, begun = threading.Event(), threading.Event()

    def slow():
        begun.set()
        read.wait(20)
        return make_setup("backprop", shards=1)

    begin(actor, 1, slow)
    assert begun.wait(20)
    behind = actor._worker
    begin(actor, 2, lambda: make_setup("backprop", shards=1, steps=20))
    actor._worker.join()
    assert actor.status().step == 19
    read.set()
    behind.join(20)
    assert not behind.is_alive()
    assert actor.status().step == 19


def test_on_a_ray_that_others_may_join_data_is_lent_wherever_the_actors_begin(monkeypatch):
    """One of them may come to live on a node that has no files, when that joins or this one is lost."""
    given = []

    class Crew:
        def __init__(self, *_, address, **__):
            self.private = address is None

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def train(self, make_setup, *_):
            given.append(make_setup)
            return iter(())

    monkeypatch.setattr(cluster, "Crew", Crew)
    monkeypatch.setattr(cluster, "lent", lambda make, data: (make, data))
    making = SimpleNamespace(shards=2, replicas=1)
    for address in ("10.0.0.1:6379", None):
        list(cluster.train_on_ray(making, address=address, data="data"))
    assert given == [(making, "data"), making]
