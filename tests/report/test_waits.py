"""Who waits for whom, as a reader sees it."""

from types import SimpleNamespace

from locallearn.commands.waits import waits_text
from locallearn.experiment.record import actors_of
from locallearn.runtime.training import Watched

SAID = {
    "shards": [
        {"shard": 0, "step": 812, "waiting": {"step": 812, "message": "error", "shard": 1}, "waited": {"1": 65.0}, "heartbeat_bytes": 12},
        {"shard": 1, "step": 812, "waiting": None, "waited": {"0": 0.01, "2": 3.25}, "heartbeat_bytes": 24},
        {"shard": 2, "step": 813, "waiting": None, "waited": {}, "heartbeat_bytes": 12},
    ]
}


def test_a_run_in_progress_says_what_is_waited_for_now_and_was():
    assert waits_text(SAID, running=True).splitlines() == [
        "shard 0  step 812, waits for `error` of step 812 from shard 1; waited 1 min 5 s",
        "         for shard 1",
        "shard 1  step 812; waited 3.2 s for shard 2",
        "shard 2  step 813",
    ]


def test_one_that_is_over_waits_for_nothing():
    assert waits_text(SAID, running=False).splitlines()[0] == "shard 0  812 steps; waited 1 min 5 s for shard 1"
    assert not waits_text({}, running=False)


def test_of_several_replicas_each_shard_says_which():
    said = {
        "shards": [
            {"shard": 0, "replica": 0, "step": 8, "waiting": None, "waited": {}},
            {"shard": 1, "replica": 0, "step": 8, "waiting": {"step": 8, "message": "activation", "shard": 0}, "waited": {}},
            {"shard": 0, "replica": 1, "step": 7, "waiting": {"step": 7, "message": "average", "shard": 0}, "waited": {"0": 1.5, "1": 1}},
            {"shard": 1, "replica": 1, "step": 7, "waiting": None, "waited": {"2": 2.5}},
        ]
    }
    assert waits_text(said, running=True).splitlines() == [
        "shard 0 of replica 0  step 8",
        "shard 1 of replica 0  step 8, waits for `activation` of step 8 from shard 0",
        "shard 0 of replica 1  step 7, waits for `average` of step 7 from replica 0;",
        "                      waited 1.5 s for replica 0, 1.0 s for shard 1 of replica 0",
        "shard 1 of replica 1  step 7; waited 2.5 s for shard 0",
    ]


def test_a_replica_that_is_away_says_since_when():
    status = SimpleNamespace(machine=0, step=52, waiting=None, beats=0)
    event = Watched(52, (status, None, None), {(1, 0): 2.5}, ((0, (0, 1, 2)), (40, (0, 2)), (50, (0,))))
    assert waits_text(actors_of(event, shards=1), running=True).splitlines() == [
        "shard 0 of replica 0  step 52",
        "shard 0 of replica 1  away since step 40; waited 2.5 s for replica 0",
        "shard 0 of replica 2  away since step 50",
    ]
