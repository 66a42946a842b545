"""What a shard tells of itself, without Ray: counters that go up by what was done since they were last told, and a log."""

import logging
import sys

import pytest
from ray.util import metrics

from locallearn.runtime.telling import Diary, Numbers
from locallearn.runtime.training import Compiled, Evaluated, Finished, Progress, Snapshot
from locallearn.traffic import Channel, Traffic

UP = Channel("activation", "activation", 1, 2)


class Noted:
    """In the place of Ray's counters and gauges: what they were told, in order."""

    told = None

    def __init__(self, name, description, tag_keys):
        self.name, self.keys = name, set(tag_keys)

    def note(self, amount, tags):
        assert set(tags) == self.keys, "Ray refuses other tags"
        assert amount > 0 or self.name == "locallearn_step"
        Noted.told.append((self.name, amount, tags.get("link")))

    inc = set = note


@pytest.fixture
def told(monkeypatch):
    monkeypatch.setattr(metrics, "Counter", Noted)
    monkeypatch.setattr(metrics, "Gauge", Noted)
    Noted.told = []
    return Noted.told


def sent(payload, messages):
    traffic = Traffic()
    traffic.count(UP, payload, messages)
    return traffic


def test_each_time_what_has_come_since_the_last(told):
    numbers = Numbers("some", 1)
    numbers.tell(sent(100, 2), 2, 0.5)
    numbers.tell(sent(100, 2), 2, 0.5)
    numbers.tell(sent(150, 3), 4, 0.75)
    assert told == [
        ("locallearn_sent_bytes", 140, "1>2"),
        ("locallearn_messages", 2, "1>2"),
        ("locallearn_steps", 2, None),
        ("locallearn_waiting_seconds", 0.5, None),
        ("locallearn_step", 2, None),
        ("locallearn_step", 2, None),
        ("locallearn_sent_bytes", 70, "1>2"),
        ("locallearn_messages", 1, "1>2"),
        ("locallearn_steps", 2, None),
        ("locallearn_waiting_seconds", 0.25, None),
        ("locallearn_step", 4, None),
    ]


def test_what_a_snapshot_brings_is_not_counted_again(told):
    numbers = Numbers("some", 1)
    numbers.begin(sent(1000, 20), 20, 3.0)
    numbers.tell(sent(1050, 21), 21, 3.5)
    assert told[:4] == [
        ("locallearn_sent_bytes", 70, "1>2"),
        ("locallearn_messages", 1, "1>2"),
        ("locallearn_steps", 1, None),
        ("locallearn_waiting_seconds", 0.5, None),
    ]


def test_a_log_has_shard_and_step_in_every_line(capsys):
    diary = Diary(7)
    for handler in logging.getLogger("locallearn.shard-7").handlers:
        handler.setStream(sys.stderr)
    traffic = sent(100, 2)
    events = [Compiled(0, 1.5), Progress(3, 0.1), Evaluated(6, 1.0, 1.5, 0.25, 0.5, 0.5, traffic), Snapshot(6, 1.0, traffic, [])]
    for event in [*events, Evaluated(9, 1.0, 1.5, None, None, None, traffic), Finished(9, "steps", None, None, [], traffic)]:
        diary.event(event)
    diary.write(9, "LinkLost: the link with shard 2 ended")
    lines = [line.split("  ", 1)[1] for line in capsys.readouterr().err.splitlines()]
    assert lines == [
        "shard 7  step 0  compiled in 1.5 s",
        "shard 7  step 6  evaluated, loss 0.250, valid 0.500, sent 140 B",
        "shard 7  step 6  snapshot",
        "shard 7  step 9  evaluated, sent 140 B",
        "shard 7  step 9  finished: steps",
        "shard 7  step 9  LinkLost: the link with shard 2 ended",
    ]
