"""Runs of one structure share what was compiled and found out for the first of them, and are what they would be alone, bit for bit."""

import pytest

from locallearn.experiment.api import configuration
from locallearn.experiment.checkpoint import names
from locallearn.experiment.how import How
from locallearn.experiment.prepare import prepare
from locallearn.experiment.run import execute

CONFIG = {
    "rule": {"name": "backprop"},
    "model": {"name": "mlp", "widths": [40, 8, 10], "shards": 2},
    "data": {"name": "strokes1d", "samples": 200, "test_samples": 50},
    "train": {"steps": 9, "batch": 16, "evaluate_every": 3, "optimizer": {"schedule": "cosine"}},
    "codecs": {"error": ["error_feedback", "int8"]},
}


def config(*sets):
    return configuration(CONFIG, sets)


def content(result):
    return result.traffic, result.test_accuracy, {name: array.tobytes() for name, array in result.arrays.items()}


def test_seeds_and_rates_share_programs_and_change_no_bit(compilations):
    how, others = How(), [config("seed=1", "train.optimizer.rate=0.01"), config("seed=2", "train.optimizer.block_rates=[1, 0.1]")]
    execute(config(), how)
    execute(others[0], how)  # finds the small kernels of a start
    before = compilations()
    shared = [content(execute(other, how)) for other in others]
    assert compilations() == before
    assert len(how.shared) == 1
    assert shared == [content(execute(other, How())) for other in others]


@pytest.mark.parametrize("other", ["train.steps=6", "model.widths=[40, 9, 10]", "train.optimizer.schedule=linear", "codecs.error=int8"])
def test_what_changes_the_program_has_a_structure_of_its_own(other):
    assert config().structure() == config("seed=4", "train.optimizer.rate=0.5").structure()
    assert config().structure() != config(other).structure()


def test_what_is_known_of_one_run_is_true_of_the_next():
    known = {}
    prepare(config(), known=known).plan_step(prepare(config(), known=known).stages[0])
    later = prepare(config("seed=3", "train.optimizer.rate=0.1"), known=known)
    alone = prepare(config("seed=3", "train.optimizer.rate=0.1"))
    assert len(known) == 1
    assert later.plan_step(later.stages[0]) == alone.plan_step(alone.stages[0])
    assert len(known) == 1
    assert names(later, later.stages[0]) == names(alone, alone.stages[0])
