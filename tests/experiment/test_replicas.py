"""A run of replicas from its settings to its tables: what was planned, sent, kept and told."""

import itertools

import numpy as np
import pytest

from locallearn.commands.inspection import by_shards, show_text
from locallearn.config.run import resolve
from locallearn.experiment import checkpoint, run
from locallearn.experiment.course import Averages, course_of
from locallearn.experiment.how import How
from locallearn.experiment.predict import predict
from locallearn.experiment.result import load
from locallearn.experiment.run import Interrupted, execute
from locallearn.experiment.store import Store
from locallearn.networks import Network
from locallearn.replicas import away_since, came_or_went, replica_steps
from locallearn.report.drawings import BY_SECONDS, Drawings
from locallearn.report.material import Material
from locallearn.report.networktimes import races
from locallearn.report.table import rows_below, rows_of
from locallearn.runtime.replicated import EagerReplicas
from locallearn.runtime.training import Evaluated, Finished, Joined, RolledBack, Snapshot, train
from locallearn.traffic import Traffic
from tests.fabrics.coming_and_going import scheduled

SETTINGS = {
    "rule": {"name": "backprop"},
    "model": {"name": "mlp", "widths": [196, 12, 10], "shards": 2},
    "data": {"name": "fashion14", "limit": 100, "validation": 20},
    "train": {"epochs": 1, "batch": 4, "evaluate_every": 5, "optimizer": {"name": "sgd", "rate": 0.1}},
    "replicas": {"count": 2, "average_every": 4, "outer": {"name": "momentum", "rate": 0.9, "momentum": 0.5}},
    "codecs": {"average": ["error_feedback", "int8"]},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of a finished run: 10 steps of 2 x 4 examples, averages after steps 4, 8 and 10."""
    place = tmp_path_factory.mktemp("replicas") / "run" / "seed-0"
    execute(resolve(SETTINGS), How(), place)
    return place


def test_what_was_planned_was_sent(folder):
    plan, ending = Store(folder).read("plan.json"), Store(folder).read("result.json")
    assert plan["bytes"] == ending["bytes"]
    (stage,) = plan["stages"]
    averages = {row["dst_replica"] for row in stage["average_channels"]}
    assert averages == {0, 1}
    sent = sum(row["framed"] for row in ending["traffic"] if row["kind"] == "weight")
    assert sent == 3 * stage["bytes_per_average"] == 3 * sum(row["framed"] for row in stage["average_channels"])


def test_tables_name_links_and_replicas(folder):
    rows = rows_of(folder)
    assert [row["examples"] for row in rows] == [40, 80]
    assert {row["replicas"] for row in rows} == {2}
    told = {(row["message"], row["link"]) for row in by_shards(Store(folder).read("result.json")["traffic"])}
    assert {("average", "0 ring x2"), ("average", "1 ring x2"), ("error", "1 > 0 x2"), ("decision", "1 ring x1")} <= told
    assert "0 ring x2" in show_text(folder)


def test_a_run_that_was_interrupted_ends_as_if_it_had_not_been(folder, tmp_path):
    calls = itertools.count()
    with pytest.raises(Interrupted):
        execute(resolve(SETTINGS), How(interrupted=lambda: next(calls) > 4, keep_seconds=0), tmp_path / "run" / "seed-0")
    result = execute(resolve(SETTINGS), How(), tmp_path / "run" / "seed-0")
    ending = Store(folder).read("result.json")
    for name in ("bytes", "test_accuracy", "traffic", "step"):
        assert Store(tmp_path / "run" / "seed-0").read("result.json")[name] == ending[name]
    assert result.weights[0]["linear"]["kernel"].shape == (196, 12)


def test_one_replica_is_the_run_that_it_is_without(folder):
    plain = {key: value for key, value in SETTINGS.items() if key != "replicas"}
    one = {**SETTINGS, "replicas": {**SETTINGS["replicas"], "count": 1}}
    assert resolve(one).digest() == resolve(plain).digest() != resolve(SETTINGS).digest()
    assert resolve(one).canonical() == resolve(plain).canonical()


def test_dropping_what_is_lost_is_another_run_and_what_is_usual_keeps_its_name():
    """Results of before there was a choice are found again."""
    assert "on_loss" not in resolve(SETTINGS).canonical()["replicas"]
    assert resolve(SETTINGS, ["replicas.on_loss=replace"]).digest() == resolve(SETTINGS).digest()
    dropping = resolve(SETTINGS, ["replicas.on_loss=drop"])
    assert dropping.digest() != resolve(SETTINGS).digest()
    assert resolve(dropping.canonical()) == dropping


def test_all_examples_there_at_once_keep_their_runs_names():
    assert "arrivals" not in resolve(SETTINGS).canonical()["train"]
    alone = {key: value for key, value in SETTINGS.items() if key != "replicas"}
    trickling = resolve(alone, ["train.arrivals=2"])
    assert trickling.digest() != resolve(alone).digest()
    assert resolve(trickling.canonical()) == trickling


def test_who_was_there_is_told(tmp_path, monkeypatch):
    """An evaluation that all took part in comes out otherwise when the run goes back and on without one of them."""
    course, told = ((0, (0, 1)), (4, (1,)), (8, (0, 1))), []

    def disturbed(config, how, setup, resume, stored):
        yield next(event for event in train(EagerReplicas(setup)) if isinstance(event, Evaluated))
        yield RolledBack(4, 6, "shard 0 of replica 0 died at step 6: no answer", None, (0,))
        for event in scheduled(setup, course):
            if isinstance(event, Evaluated):
                told.append(event)
                yield from [Joined(8, (0,))] if event.step == 10 else []
                yield event._replace(present=course[:2] if event.step == 5 else course)
            elif isinstance(event, Finished):
                yield event._replace(present=course)

    monkeypatch.setattr(run, "training", disturbed)
    result = execute(resolve(SETTINGS, ["replicas.on_loss=drop"]), How("eager"), tmp_path)
    assert [(record["step"], record["bytes"]) for record in result.curve] == [(event.step, event.traffic.bytes) for event in told]
    assert Store(tmp_path).records() == result.curve
    assert [record["examples"] for record in result.curve] == [4 * 8 + 1 * 4, 4 * 8 + 4 * 4 + 2 * 8]
    assert (result.rollbacks, result.present) == (1, course)
    assert load(tmp_path).present == [[0, [0, 1]], [4, [1]], [8, [0, 1]]]
    log = Store(tmp_path).path("log.txt").read_text()
    assert "back     all to step 4 of 10, without replica 0\n" in log
    assert "joined   replica 0, from step 8 of 10 on\n" in log
    assert "there were all from step 0, replica 1 from step 4, all from step 8: 16 of 20\nsteps of replicas done" in show_text(tmp_path)


def test_a_run_that_goes_on_knows_who_was_there_before(tmp_path):
    course = ((0, (0, 1)), (4, (1,)), (8, (0, 1)))
    snapshot = Snapshot(8, 1.0, Traffic(), [[np.zeros(1)]], present=course)
    checkpoint.save(tmp_path, [["some"]], snapshot)
    assert checkpoint.latest(tmp_path).present == course
    everyone = (0, 1)
    assert came_or_went(course[:2], 6, everyone, everyone) == (*course[:2], (6, everyone))
    assert came_or_went(course, 4, everyone, everyone) == ()
    assert came_or_went((), 0, (1,), everyone) == ((0, (1,)),)
    assert came_or_went(course, 6, (0,), everyone) == (*course[:2], (6, (0,)))
    assert [replica_steps(course, step, 2) for step in (0, 4, 6, 8, 9)] == [0, 8, 10, 12, 14]
    assert replica_steps((), 9, 2) == 18
    assert [away_since(course[:2], replica) for replica in everyone] == [4, None]


def test_time_on_a_network_has_the_averages_in_it(folder):
    course = course_of(folder, step_seconds=0.5)
    averages = [each.averages for each in course.intervals]
    (stage,) = Store(folder).read("plan.json")["stages"]
    busiest = max(row["framed"] for row in stage["average_channels"])
    assert sum(each.times for each in averages) == 3
    assert {each[1:] for each in averages} == {(busiest, 2)}
    net = Network("slow", 1000, 1000, 0.25)
    alone = predict(course._replace(intervals=[each._replace(averages=Averages()) for each in course.intervals]), net)
    assert predict(course, net).seconds == pytest.approx(alone.seconds + 3 * (busiest / 1000 + 2 * 0.25))


def test_accuracy_by_the_time_that_a_network_takes(folder):
    """The best so far at each evaluation, when as many steps, averages and pauses are over as there were before it."""
    material, net = Material(folder.parent, rows_below(folder.parent)), Network("slow", 1000, 1000, 0.25)
    (((group, points),),) = races(material, net).values()
    records = Store(folder).records()
    assert [point.step for point in points] == [record["step"] for record in records]
    assert [point.value.mean for point in points] == list(itertools.accumulate((r["validation_accuracy"] for r in records), max))
    course = course_of(folder)
    assert points[-1].seconds == pytest.approx(predict(course, net).seconds)
    for count, point in enumerate(points[:-1], start=1):
        shorter = course._replace(intervals=course.intervals[:count])
        assert point.seconds == pytest.approx(predict(shorter, net).seconds)
    drawings = Drawings(material, {}, net)
    assert "predicted" in drawings.draw(BY_SECONDS, group.panel).axes[0].get_xlabel()
    assert [row["seconds"] for row in drawings.numbers(BY_SECONDS, [group.panel])] == [point.seconds for point in points]
