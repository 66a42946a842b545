"""Who is dropped, who comes back, and what is left to a run of which everybody is lost; the crew is told what to say."""

import pytest

from locallearn.replicas import Replicas
from locallearn.runtime.membership import RETURNS, Membership
from locallearn.runtime.replicated import EagerReplicas
from tests.fabrics.coming_and_going import handed_over, until


class Hands:
    """A crew of two shards of each replica. gone: machines that do not answer. there: those hired that have come. hired: in the end."""

    shards = 2

    def __init__(self, replicas):
        self.replicas, self.count = replicas, 2 * replicas
        self.gone, self.there, self.hired = set(), set(), {}

    def missing(self, among):
        return [machine for machine in among if machine in self.gone]

    def vacate(self, actors, hire):
        self.hired |= dict.fromkeys(actors, hire)
        self.gone -= set(actors)

    def came(self, actors):
        return self.there >= set(actors)


@pytest.fixture
def made(make_setup):
    def make(replicas, step=2, **options):
        setup = make_setup(batch=4, widths=(12, 8, 3), replicas=Replicas(replicas, on_loss="drop", **options))
        *_, kept = until(EagerReplicas(setup), None, step)
        crew = Hands(replicas)
        return crew, Membership(crew, lambda: setup, None), kept, setup

    return make


def test_one_machine_takes_its_replica_with_it_and_all_of_it_must_be_there_before_it_is_back(made, assert_same):
    crew, members, kept, setup = made(3)
    crew.gone = {1}
    dropped, left = members.drop(kept)
    assert (dropped, members.present, members.machines, members.top) == ((0,), (1, 2), [2, 3, 4, 5], 3)
    assert crew.hired == {0: True, 1: True}
    assert_same(left.shards, handed_over(setup, kept, (0, 1, 2), (1, 2)).shards)
    assert len(members.whole(left).shards) == 6
    crew.there = {0}
    assert members.join(left) == ((), left)
    crew.there = {0, 1}
    came, again = members.join(left)
    assert (came, members.present, members.course) == ((0,), (0, 1, 2), ())  # at the same step: nobody was away in any
    assert_same(again.shards, handed_over(setup, left, (1, 2), (0, 1, 2)).shards)
    assert again.traffic == handed_over(setup, left, (1, 2), (0, 1, 2)).traffic
    assert members.whole(again) is again


def test_before_a_snapshot_the_others_begin_anew(made):
    crew, members, *_ = made(2)
    crew.gone = {2}
    assert members.drop(None) == ((1,), None)
    assert members.course == ((0, (0,)),)


def test_nobody_is_dropped_whose_loss_would_leave_nobody_or_that_only_seemed_lost(made):
    crew, members, kept, _ = made(2)
    assert members.drop(kept) == ((), kept)
    crew.gone = {0, 3}
    assert members.drop(kept) == ((), kept)
    assert members.present == (0, 1)


def test_who_has_come_back_goes_on_when_the_last_one_is_lost(made):
    crew, members, kept, _ = made(2)
    crew.gone = {0}
    _, kept = members.drop(kept)
    crew.gone, crew.there = {2}, {0, 1}
    dropped, kept = members.drop(kept)
    assert (dropped, members.present) == ((1,), (0,))
    assert members.notes == ["replica 0 had come back and goes on"]


def test_who_is_lost_again_and_again_is_not_hired_for_ever(made):
    crew, members, kept, _ = made(2)
    for time in range(RETURNS + 1):
        crew.gone, crew.there = {3}, {2, 3}
        dropped, left = members.drop(kept)
        assert dropped == (1,)
        assert crew.hired == {2: time < RETURNS, 3: time < RETURNS}
        _, kept = members.join(left)
    assert members.notes == ["it was lost 4 times in a row, nobody is hired for replica 1 any more"]
    members.proven()
    crew.gone = {3}
    members.drop(kept)
    assert crew.hired == {2: True, 3: True}


def test_a_run_that_replaces_drops_nobody(make_setup):
    crew = Hands(2)
    setup = make_setup(replicas=Replicas(2))
    members = Membership(crew, lambda: setup, None)
    crew.gone = {0}
    assert members.drop(None) == ((), None)
