"""Predicted seconds of runs whose messages vary in size, or stay away: held against the bytes that the runs sent."""

import json
import shutil
from collections import Counter

import pytest

import locallearn
from locallearn.experiment.course import course_of
from locallearn.experiment.predict import predict, timeline
from locallearn.experiment.store import Store
from locallearn.networks import Network

DATA = {"name": "strokes1d", "samples": 200, "test_samples": 50}
LINE = Network("line", 100.0, 100.0, 0.0)
FAR = Network("far", 100.0, 100.0, 1.0)


@pytest.fixture(scope="module")
def greedy(tmp_path_factory):
    """Like the floppy: three phases of four epochs of nine steps, in the first of which everything crosses that ever does."""
    config = {
        "rule": {"name": "decoupled_greedy", "width": 8},
        "model": {"name": "mlp", "widths": [40, 12, 12, 10], "shards": 3},
        "data": DATA,
        "train": {"epochs": 4, "batch": 20, "evaluate_every": 9, "greedy": True},
        "codecs": {"activation": ["reuse(400)", "int4"], "label": ["reuse(400)", "packed"], "loss": "every(400)"},
    }
    return locallearn.run(config, runs=tmp_path_factory.mktemp("runs"))


def busiest(result):
    """Of each interval, the bytes of the shard that sent most; a shard's line is shared by its links."""
    found, before = [], Counter()
    for record in result.curve:
        now = Counter()
        for row in record["traffic"]:
            if row["message"] != "decision":
                now[row["src"]] += row["framed"]
        found.append(max((now - before).values(), default=0))
        before = now
    return found


def test_bytes_take_their_time_and_no_more(greedy):
    """Where only links take time each interval lasts as long as its busiest line, and the top waits for a loss of few bytes at the end of
    the last step; epochs that send nothing last no time."""
    course = course_of(greedy.directory, step_seconds=1e-9)
    sent = busiest(greedy)
    assert [amount > 0 for amount in sent] == [k % 4 == 0 for k in range(12)]
    seconds = timeline(course, LINE, course.stops)
    for (before, after), amount in zip(zip([0.0, *seconds], seconds, strict=False), sent, strict=True):
        assert after - before == pytest.approx(amount / LINE.up, rel=2e-3, abs=1e-6)
    found = predict(course, LINE)
    assert found.seconds == pytest.approx(seconds[-1])
    assert found.steps * found.step == pytest.approx(found.seconds)
    bound = predict(course._replace(intervals=[each._replace(sent={}) for each in course.intervals]), LINE)
    assert bound.seconds > 3.9 * found.seconds, "four epochs at the plan's bound"


def test_seldom_evaluated_it_takes_as_long(greedy, tmp_path):
    """With an evaluation at the end of each phase only its mean is known; the bytes take the same time."""
    course = course_of(_copy(greedy, tmp_path, lambda record: record["step"] % 36 == 0), step_seconds=1e-9)
    assert course.stops == [36, 72, 108]
    assert predict(course, LINE).seconds == pytest.approx(sum(busiest(greedy)) / LINE.up, rel=2e-3)


def test_a_run_that_did_not_note_its_channels(greedy, tmp_path):
    """What each channel sent in all is known from result.json: no line is faster than its bytes."""
    folder = _copy(greedy, tmp_path, lambda record: record.pop("traffic"))
    found = predict(course_of(folder, step_seconds=1e-9), LINE).seconds
    assert greedy.traffic.worst_link / LINE.up <= found <= greedy.traffic.bytes / LINE.up


def _copy(result, tmp_path, keep):
    """The run, with those evaluations alone that are kept."""
    folder = tmp_path / "run"
    shutil.copytree(result.directory, folder)
    records = [record for record in Store(folder).records() if keep(record)]
    Store(folder).path("metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def test_more_shards_send_as_large_a_share(greedy):
    """Ten shards, each as silent as those of the run: the phases' first epochs alone take time, and other intervals none."""
    course = course_of(greedy.directory, step_seconds=1e-9)
    first = course._replace(intervals=course.intervals[::4])
    assert predict(course, LINE, 10).seconds == pytest.approx(predict(first, LINE, 10).seconds, rel=1e-6)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Two replicas of two shards: activations every fourth step, errors and averages of variable size."""
    config = {
        "rule": {"name": "backprop"},
        "model": {"name": "mlp", "widths": [40, 12, 10], "shards": 2},
        "data": DATA,
        "train": {"steps": 24, "batch": 20, "evaluate_every": 8},
        "replicas": {"count": 2, "average_every": 6},
        "codecs": {"activation": "every(4)", "error": ["deflate", "ternary"], "average": ["deflate", "ternary"]},
    }
    return locallearn.run(config, runs=tmp_path_factory.mktemp("runs"))


def test_one_message_after_the_other(mixed):
    """Backpropagation over one link waits for every byte, and for the latency there and back where an activation crosses; in the steps
    between its receiver has the last one, and need not wait. Averages wait for their busiest link."""
    course = course_of(mixed.directory, step_seconds=1e-9)
    bytes_, frames = Counter(), Counter()
    for row in mixed.traffic.rows():
        if row["kind"] not in ("evaluation", "control"):
            bytes_[row["message"], row["src"]] += row["framed"] / 2
            frames[row["message"], row["src"]] += row["messages"] / 2
    assert frames["activation", 0] == frames["error", 1] / 4 == 6
    chain = (bytes_["activation", 0] + bytes_["error", 1]) / FAR.up + 2 * frames["activation", 0] * FAR.latency
    averages = max(bytes_["average", 0], bytes_["average", 1]) / FAR.up + 4 * 2 * FAR.latency
    assert predict(course, FAR).seconds == pytest.approx(chain + averages + 3 * FAR.latency, rel=0.02)


def test_runs_that_send_what_was_planned_note_no_channels(tmp_path):
    config = {"rule": {"name": "backprop"}, "model": {"name": "mlp", "widths": [40, 12, 10], "shards": 2}, "data": DATA}
    result = locallearn.run({**config, "train": {"steps": 4, "batch": 20}, "codecs": {"default": "int8"}}, runs=tmp_path)
    assert not any("traffic" in record for record in result.curve)
    assert all(not each.sent for each in course_of(result.directory).intervals)
