"""`reuse` of what goes on changing is a mistake at its line; of what stays as it is, or may cross again, it is none."""

import pytest

from locallearn.config.reading import parse
from locallearn.config.run import resolve
from locallearn.errors import ConfigError

TEXT = """\
rule: {name: mono_forward}
model: {name: mlp, widths: [40, 8, 8, 10], shards: 3}
data: {name: strokes1d, samples: 500, validation: 0}
train: {epochs: 2, batch: 50}
codecs:
  label: [reuse(500), packed]
  activation: [reuse(500), int8]
"""
GREEDY = ("epochs: 2", "epochs: 2, greedy: true")
PHASES = "phases: [{learn: [0], epochs: 2}, {learn: [2], epochs: 2}]"
PLACE = 'run.yaml:7: `codecs.activation: ["reuse(500)", "int8"]`'
WHOSE = f"{PLACE}: keeps each row of `activation` for ever, but block 0, whose work is in it, goes on learning"


def read(*changes):
    text = TEXT
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return resolve(parse(text, "run.yaml"))


@pytest.mark.parametrize(
    "changes",
    [
        [GREEDY],
        [GREEDY, ("mono_forward", "clapp")],
        [("reuse(500), int8", "'reuse(500, 2)', int8")],
        [("epochs: 2", PHASES)],
        [("mono_forward", "backprop"), ("epochs: 2", "phases: [{learn: [2], epochs: 2}]")],  # those below were trained elsewhere
        [("shards: 3", "shards: 1")],
        [("mono_forward", "symba")],  # with its label and with a wrong one: no row is about an example
    ],
)
def test_rows_that_stay_as_they_are(changes):
    read(*changes)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([], f"{WHOSE}, which nobody would see; train one block after the other (`train: {{greedy: true}}`), or let rows cross again"),
        ([("epochs: 2", PHASES.replace("[0]", "[0, 1]"))], f"{WHOSE} in phase 0, which"),
        ([("epochs: 2", PHASES.replace("[2]", "all"))], f"{WHOSE} in phase 1, which"),
        ([GREEDY, ("mono_forward", "predictive_coding")], f"{WHOSE} in phase 0, which nobody would see; let rows cross again after some"),
        ([("  activation", "  default")], 'run.yaml:7: `codecs.default: ["reuse(500)", "int8"]`: keeps each row of `activation`'),
    ],
)
def test_rows_that_change(changes, expected):
    with pytest.raises(ConfigError) as caught:
        read(*changes)
    (problem,) = caught.value.problems
    assert str(problem).startswith(expected)
