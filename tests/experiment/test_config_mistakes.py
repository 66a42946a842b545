"""Every mistake of a configuration at its line: golden text."""
# ruff: noqa: E501

from __future__ import annotations

import pytest

from locallearn.config.run import resolve
from locallearn.errors import ConfigError


def mistakes(load, text: str, *sets: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(text, *sets)
    return [str(problem) for problem in caught.value.problems]


def test_all_mistakes_are_reported_at_once_in_the_order_of_their_lines(load_text):
    text = """\
rule:
  name: predictive_coding
  step: 20
  rate: -0.1
model:
  name: mlp
  shard: 4
train:
  steps: many
  optimiser: {name: adam}
sead: 3
"""
    with pytest.raises(ConfigError) as caught:
        load_text(text)
    assert str(caught.value) == (
        "run.yaml:1: `data` is missing\n"
        "run.yaml:3: unknown key `rule.step`; did you mean `steps`?\n"
        "run.yaml:4: `rule.rate: -0.1`: input should be greater than 0\n"
        "run.yaml:5: `model.widths` is missing\n"
        "run.yaml:7: unknown key `model.shard`; did you mean `shards`?\n"
        "run.yaml:9: `train.steps: many`: input should be a valid integer, unable to parse string as an integer\n"
        "run.yaml:10: unknown key `train.optimiser`; did you mean `optimizer`?\n"
        "run.yaml:11: unknown key `sead`; did you mean `seed`?\n"
        "8 problems; nothing was run."
    )


def test_a_missing_key_without_a_misspelt_one_is_reported_at_its_section(load_text, good):
    assert mistakes(load_text, good.replace(", shards: 2", "")) == ["run.yaml:2: `model.shards` is missing"]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "predictive_coding, steps: 5",
            "predictve_coding",
            "run.yaml:1: `rule.name: predictve_coding` is no rule; did you mean `predictive_coding`?",
        ),
        ("name: predictive_coding", "name: off", "run.yaml:1: `rule.name: off`: is a truth value, as YAML reads on, off"),
        ("name: predictive_coding", "name: [a]", 'run.yaml:1: `rule.name: ["a"]` is no rule (rules: '),
        ("name: predictive_coding, ", "", "run.yaml:1: `rule.name` is missing (rules: backprop, predictive_coding)"),
        ("name: predictive_coding", "nam: backprop", "run.yaml:1: unknown key `rule.nam`; did you mean `name`?"),
        ("{name: predictive_coding, steps: 5}", "backprop", "run.yaml:1: `rule: backprop`: must be a mapping, such as {name: backprop}"),
        ("steps: 5", "steps: yes", "run.yaml:1: `rule.steps: yes`: is a truth value"),
        ("steps: 5", "steps: 2.5", "run.yaml:1: `rule.steps: 2.5`: input should be a valid integer, got a number with a fractional part"),
        ("steps: 5", "rate: .nan", "run.yaml:1: `rule.rate: .nan`: input should be a finite number"),
        ("steps: 5", "rate: .inf", "run.yaml:1: `rule.rate: .inf`: input should be a finite number"),
        ("steps: 5", "rate: 1e999", "run.yaml:1: `rule.rate: 1e999`: input should be a finite number"),
        ("steps: 5", "start: forwards", "run.yaml:1: `rule.start: forwards`: input should be 'forward' or 'zeros'; did you mean `forward`?"),
        ("steps: 5", "inner: {rate: 0}", "run.yaml:1: `rule.inner.rate: 0`: input should be greater than 0"),
        ("30, 20", "30, x", "run.yaml:2: `model.widths[2]: x`: input should be a valid integer"),
        ("[40, 30, 20, 10]", "40", "run.yaml:2: `model.widths: 40`: input should be a list"),
        ("shards: 2", "shards: 4", "run.yaml:2: `model.shards: 4`: 4 shards for 3 blocks"),
        ("shards: 2", "cuts: [2, 1]", "run.yaml:2: `model.cuts: [2, 1]`: cuts [2, 1] must rise strictly"),
        ("shards: 2", "cuts: [3]", "run.yaml:2: `model.cuts: [3]`: cuts [3] must rise strictly"),
        ("shards: 2", "shards: 2, cuts: [1]", "run.yaml:2: `model.cuts: [1]`: give `shards` or `cuts`, not both"),
        ("[40, 30", "[41, 30", "run.yaml:2: `model.widths: [41, 30, 20, 10]`: begins with 41, not 40"),
        ("[40, 30, 20, 10], shards: 2", "[40, 10], shards: 1", "run.yaml:1: `rule`: needs two blocks"),
        ("name: strokes", "name: strokes, samples: 3", "run.yaml:3: `data.samples: 3`: must be even"),
        ("name: strokes", "name: strokes, validation: 1.5", "run.yaml:3: `data.validation: 1.5`: a share must be below 1"),
        ("name: strokes", "name: strokes, validation: 1000", "run.yaml:3: `data.validation: 1000`: of 1000 training examples leaves nothing"),
        ("name: strokes", "name: strokes, validation: 1e-9", "run.yaml:3: `data.validation: 1e-9`: of 1000 training examples rounds to no"),
        ("batch: 50", "batch: 901", "run.yaml:4: `train.batch: 901`: is more than the 900 training examples (1000 less 100 for validation)"),
        ("batch: 50", "batch: 5, microbatches: 1, evaluate_every: 0", "run.yaml:4: `train.evaluate_every: 0`: input should be greater"),
        ("batch: 50", "microbatches: 2", "run.yaml:4: `train.microbatches: 2`: this rule's gradient of a batch is not"),
        ("epochs: 2, ", "", "run.yaml:4: `train.epochs` is missing (or give `steps`)"),
        ("epochs: 2", "epoch: 2", "run.yaml:4: unknown key `train.epoch`; did you mean `epochs`?"),
        ("epochs: 2", "epochs: 2, steps: 3", "run.yaml:4: `train.steps: 3`: give `epochs` or `steps`, and null for the other"),
        ("batch: 50", "batch: 50, arrivals: 51", "run.yaml:4: `train.arrivals: 51`: must be at most the batch of 50"),
        ("batch: 50", "rate: 50", "run.yaml:4: unknown key `train.rate`; did you mean `optimizer.rate`?"),
        ("batch: 50", "optimizer: adam", "run.yaml:4: `train.optimizer: adam`: must be a mapping, such as {name: ..., rate: ...}"),
        ("batch: 50", "optimizer: {block_rates: [1, 2]}", "run.yaml:4: `train.optimizer.block_rates: [1, 2]`: has 2 entries for 3 blocks"),
        ("epochs: 2", "phases: [{learn: [3], steps: 5}]", "run.yaml:4: `train.phases[0].learn: [3]`: the model has blocks 0 to 2"),
        ("epochs: 2", "epochs: 2, phases: [{steps: 5}]", "run.yaml:4: `train.epochs: 2`: leave it out: each of the phases"),
        ("epochs: 2", "greedy: true, phases: [{steps: 5}]", "run.yaml:4: `train.greedy: true`: leave it out: the phases say which blocks"),
        ("epochs: 2", "phases: [{steps: 5, rule: {name: bp}}]", "run.yaml:4: `train.phases[0].rule.name: bp` is no rule"),
    ],
)  # fmt: skip
def test_one_mistake(load_text, good, old, new, expected):
    assert old in good
    found = mistakes(load_text, good.replace(old, new))
    assert [text[: len(expected)] for text in found] == [expected]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("seed: -1", "`seed: -1`: input should be greater than or equal to 0"),
        ("seed: 4294967296", "`seed: 4294967296`: input should be less than or equal to 4294967295"),
        ("stop: {bytes: 4 Gb}", "`stop.bytes: 4 Gb`: is no size; sizes are written as 4 GiB, 32 MiB, 10 kB or a number of bytes"),
        ("stop: {bytes: 0}", "`stop.bytes: 0`: input should be greater than 0"),
        ("stop: {accuracy: 98}", "`stop.accuracy: 98`: input should be less than or equal to 1"),
        ("steps: 5", "unknown key `steps`; did you mean `train.steps`?"),
        ("flavour: red", "unknown key `flavour` (keys: rule, model, data, train, codecs, replicas, stop, "),
        ("codecs: int8", "`codecs: int8`: must be a mapping, such as {default: exact, error: int8}"),
        ("codecs: {default: flot16}", "`codecs.default: flot16` is no codec (codecs: exact, int8, topk, error_feedback, delayed)"),
        ("codecs: {default: int9}", "`codecs.default: int9` is no codec; did you mean `int8`?"),
        ("codecs: {predicton_error: int8}", "`codecs.predicton_error: int8`: is neither a kind nor a message that predictive_coding "
         "sends; did you mean `prediction_error`?"),
        ("codecs: {default: [int8, exact]}", "`codecs.default[0]: int8`: wraps no other codec, so it must stand last"),
        ("codecs: {default: []}", "`codecs.default: []`: names no codec"),
        ("codecs: {default: topk(2)}", "`codecs.default: topk(2)`: fraction: input should be less than or equal to 1"),
        ("codecs: {default: topk(a)}", "`codecs.default: topk(a)`: fraction: input should be a valid number"),
        ("codecs: {default: int8(3)}", "`codecs.default: int8(3)`: too many positional arguments; int8 takes no arguments"),
        ("codecs: {default: [delayed, int8]}", "`codecs.default[0]: delayed`: missing a required argument: 'rounds'; delayed takes rounds"),
        ("codecs: {default: [topk(0.1, true)]}", "`codecs.default[0]: topk(0.1` is no codec; write a name or name(argument), in quotes if"),
    ],
)  # fmt: skip
def test_one_mistake_on_the_last_line(load_text, good, line, expected):
    found = mistakes(load_text, good + line)
    assert found[0][: len(expected) + 12] == "run.yaml:5: " + expected


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("replicas: {count: 1000}", "`replicas.count: 1000`: 1000 batches of "),
        ("replicas: {count: 2, average: gradients, average_every: 3}", "`replicas.average_every: 3`: gradients are averaged at every step"),
        ("replicas: {count: 2, average: gradients, outer: {rate: 1}}", "`replicas.outer`: is a step on parameters"),
        ("replicas: {count: 2, outer: {name: sgd, momentum: 0.5}}", "`replicas.outer.momentum: 0.5`: has no effect with `name: sgd`"),
        ("replicas: {count: 1, on_loss: drop}", "`replicas.on_loss: drop`: has no effect with one replica"),
        ("replicas: {count: 2, on_loss: wait}", "`replicas.on_loss: wait`: "),
        ("replicas: {count: 0}", "`replicas.count: 0`: input should be greater than or equal to 1"),
        ("replicas: {count: 2}\ncodecs: {weight: [delayed(1), int8]}", '`codecs.weight: ["delayed(1)", "int8"]`: what replicas average'),
        ("replicas: {count: 2}\nschedule: {network: 1mbit, step: 1.0}", "`replicas.count: 2`: averages are taken after the same step"),
    ],
)
def test_replicas(load_text, good, lines, expected):
    (found,) = mistakes(load_text, good + lines)
    assert found.partition(": ")[2].startswith(expected)


def test_examples_arrive_at_one_chain(load_text, good):
    (found,) = mistakes(load_text, good.replace("batch: 50", "batch: 50, arrivals: 4") + "replicas: {count: 2}")
    assert found.startswith("run.yaml:4: `train.arrivals: 4`: is of one chain")


def test_mistakes_of_settings_name_the_setting_and_follow_those_of_the_file(load_text, good):
    text = good.replace("steps: 5", "steps: 0")
    assert mistakes(load_text, text, "train.rat=1", "seed=x", "oops", "rule.name.x=1", "rule.steps.y=2", "train={", "seed=1") == [
        "run.yaml:1: `rule.steps: 0`: input should be greater than or equal to 1",
        "--set train.rat=1: unknown key `train.rat`; did you mean `optimizer.rate`?",
        "--set oops: write key=value, such as --set train.batch=64",
        "--set rule.name.x=1: `rule.name` has no keys of its own that could be set; set it whole",
        "--set rule.steps.y=2: `rule.steps` has no keys of its own that could be set; set it whole",
        "--set train={: is not valid YAML: while parsing a flow node, expected the node content, but found '<stream end>'",
    ]  # fmt: skip


def test_a_setting_replaces_the_value_and_its_line(load_text, good):
    assert load_text(good, "train.batch=20", "codecs.default=int8", "train.epochs=", "train.steps=7").train.steps == 7
    (found,) = mistakes(load_text, good, "model={name: mlp, widths: [40, 20, 10], shards: 9}")
    assert found.startswith("--set model={name: mlp, widths: [40, 20, 10], shards: 9}: `model.shards: 9`")


def test_microbatches_must_divide_the_batch(load_text, good):
    text = good.replace("predictive_coding, steps: 5", "backprop").replace("50", "50, microbatches: 4")
    assert mistakes(load_text, text) == ["run.yaml:4: `train.microbatches: 4`: does not divide the batch of 50"]


def test_from_python_the_key_path_is_the_place(catalog):
    with pytest.raises(ConfigError) as caught:
        resolve({"rule": {"name": "predictive_coding", "step": 1, "rate": -1}, "data": "strokes", "train": {"epochs": 1}}, (), catalog)
    assert [str(problem) for problem in caught.value.problems] == [
        "rule.step: unknown key; did you mean `steps`?",
        "rule.rate: `-1`: input should be greater than 0",
        "model: is missing",
        "data: `strokes`: must be a mapping, such as {name: strokes}",
    ]
    assert caught.value.problems[0].where == "rule.step"


def test_a_sweep_given_as_a_run_is_explained(load_text):
    text = "base: other.yaml\nvary: {seed: [1]}\n"
    assert mistakes(load_text, text) == ["run.yaml:1: this is a sweep, not a run: start it with `locallearn sweep`"]


def test_control_characters_of_a_file_do_not_reach_the_terminal(load_text, good):
    (found,) = mistakes(load_text, good + '"\\e[31mkey\\nb": "\\e[0m"')
    assert found.startswith("run.yaml:5: unknown key `\\x1b[31mkey\\nb`")
