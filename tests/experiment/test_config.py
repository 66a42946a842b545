"""What a configuration resolves to, and its canonical form and identity."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Annotated, Any

import hypothesis.strategies as st
import numpy as np
import pytest
import yaml
from hypothesis import given, settings

from locallearn.config.reading import parse
from locallearn.config.run import Placement, resolve, write_yaml
from locallearn.errors import ConfigError
from locallearn.markers import Aside, parse_size
from locallearn.train import Optimizer, Phase, Stop, Train


def test_defaults_and_numbers_as_text(load_text, good):
    config = load_text(good.replace("steps: 5", "steps: 1e1, rate: 1e-3"))
    assert (config.rule.steps, config.rule.rate) == (10, 1e-3)
    assert config.placement == Placement(shards=2)
    assert config.placement.of(3) == (0, 0, 1)
    assert (config.validation, config.seed, config.stop) == (0.1, 0, Stop())
    assert config.codecs == {"default": (("exact", ()),)}
    assert config.train == Train(epochs=2, batch=50)


def test_codecs_are_parsed_for_the_builder_and_spelled_shortly(load_text, good):
    text = """
codecs:
  default: topk(0.1, signed=false)
  error: [delayed(1), error_feedback, "topk(0.5, signed=true)"]
  activation: topk(signed=true)
  label: int8
"""
    config = load_text(good + text)
    assert config.codecs == {
        "default": (("topk", ()),),
        "error": (("delayed", (1,)), ("error_feedback", ()), ("topk", (0.5, True))),
        "activation": (("topk", (0.1, True)),),
        "label": (("int8", ()),),
    }
    assert config.canonical()["codecs"]["error"] == ["delayed(1)", "error_feedback", "topk(0.5, true)"]
    assert resolve(config.canonical(), (), config.catalog) == config


def test_cuts_phases_and_a_count_for_validation(load_text, good):
    text = good.replace("shards: 2", "cuts: [1, 2]").replace("strokes", "strokes, validation: 100")
    text = text.replace("epochs: 2", "phases: [{learn: [0], steps: 5}, {epochs: 1, rule: {name: backprop}}]")
    config = load_text(text)
    assert config.placement.of(3) == (0, 1, 2)
    assert config.validation == 100
    assert [phase.learn for phase in config.train.phases] == [(0,), "all"]
    assert type(config.train.phases[1].rule).__name__ == "Backprop"
    assert config.train.lengths(900) == (5, 18)
    assert config.canonical()["train"]["phases"][1]["rule"] == {"name": "backprop"}


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4 GiB", 4 * 2**30), ("32MiB", 2**25), ("10 kB", 10_000), ("1.5 KiB", 1536), ("7", 7), ("1e9", 10**9), ("3 B", 3), (5, 5),
        ("2 TB", 2 * 10**12),
    ],
)  # fmt: skip
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["4 Gb", "-1", "GiB", "", "1e999", "nan", True, "4 GiB/s", "1" * 40])
def test_what_is_no_size(text):
    with pytest.raises(ValueError, match=r"size|large"):
        parse_size(text)


def test_a_dictionary_from_python_may_hold_objects(catalog, load_text, good):
    rule, model, data = (cls for table in (catalog.rules, catalog.models, catalog.datasets) for cls in list(table.values())[-1:])
    source = {"rule": rule(steps=5), "model": model((40, 30, 20, 10)), "data": data(), "train": Train(epochs=2, batch=50)}
    config = resolve(source, (), catalog)
    assert config == dataclasses.replace(load_text(good), placement=Placement(shards=1))
    named = source | {"model": {"name": source["model"], "shards": 2}, "data": {"name": data(), "validation": 0.1}}
    assert resolve(named, (), catalog) == load_text(good)
    assert resolve(named, (), catalog).identity() == load_text(good).identity()
    with pytest.raises(ConfigError, match=r"rule\.steps"):
        resolve(source | {"rule": rule(steps=-5)}, (), catalog)


@dataclass(frozen=True)
class Homemade:
    messages = {"hello": None}  # noqa: RUF012
    table: Any = None


class Mine:
    def load(self) -> None: ...


def test_objects_that_are_in_no_table_pass_through(catalog, load_text, good):
    rule, data = Homemade(np.arange(3)), Mine()
    source = {"rule": rule, "model": {"name": "mlp", "widths": [3, 2], "shards": 1}, "data": data, "train": {"steps": 1, "batch": 9999}}
    config = resolve(source | {"codecs": {"hello": "int8"}}, (), catalog)
    assert config.rule is rule
    assert config.data is data
    assert config.rule_name.endswith("Homemade")
    json.dumps(config.canonical())
    other = dataclasses.replace(config, rule=Homemade(np.arange(1, 4)))
    assert other.identity() != config.identity()


def test_identity_does_not_depend_on_seed_spelling_or_order(load_text, good):
    config = load_text(good)
    assert len(config.digest()) == 64
    assert config.digest().startswith(config.identity())
    assert load_text(good + "seed: 7").digest() == config.digest()
    assert load_text("".join(reversed(good.splitlines(True)))).digest() == config.digest()
    assert load_text(good.replace("steps: 5", "noise: 0.0, rate: 1.0e-1, steps: 5.0")).digest() == config.digest()
    assert load_text(good.replace("steps: 5", "steps: 6")).digest() != config.digest()


@dataclass(frozen=True)
class Located:
    folder: Annotated[str | None, Aside()] = None
    limit: int = 3


def test_where_data_lies_is_no_part_of_the_identity(catalog, good):
    catalog = dataclasses.replace(catalog, datasets={"strokes": Located})
    here, there, other = (
        resolve(parse(good.replace("strokes", f"strokes, {more}"), "run.yaml"), (), catalog)
        for more in ("folder: here", "folder: there", "limit: 4")
    )
    assert here.canonical()["data"]["folder"] == "here"
    assert here.identity() == there.identity() != other.identity()


@pytest.mark.parametrize(
    ("codecs", "label"),
    [
        ("{}", "predictive_coding"),
        ("{default: int8}", "predictive_coding-int8"),
        ("{error: [error_feedback, topk(0.2)]}", "predictive_coding-error_error_feedback+topk0.2"),
    ],
)
def test_label(load_text, good, codecs, label):
    assert load_text(good + f"codecs: {codecs}").label() == label


positive = st.floats(min_value=1e-30, max_value=1e30)
share = st.floats(0, 1)
optimizers = st.one_of(
    st.builds(Optimizer, name=st.sampled_from(["sgd", "adam", "adamw"]), rate=positive, warmup=share, weight_decay=positive),
    st.builds(Optimizer, schedule=st.just("cosine"), final=share, clip=st.none() | positive),
    st.builds(Optimizer, block_rates=st.tuples(positive, positive, positive), beta1=st.floats(0, 0.99)),
    st.builds(Optimizer, schedule=st.just("step"), milestones=st.sets(share, min_size=1).map(lambda s: tuple(sorted(s)))),
)
phases = st.lists(st.builds(Phase, learn=st.sampled_from(["all", (0,), (1, 2)]), steps=st.integers(1, 9)), min_size=1).map(tuple)
trains = st.one_of(
    st.builds(Train, epochs=st.integers(1, 10**6), batch=st.integers(1, 800), optimizer=optimizers),
    st.builds(Train, steps=st.integers(1, 10**9), optimizer=optimizers, evaluate_every=st.none() | st.integers(1, 99)),
    st.builds(Train, phases=phases),
)
codecs = st.dictionaries(
    st.sampled_from(["default", "error", "activation", "prediction_error", "checkpoint"]),
    st.sampled_from(["exact", "int8", "topk(0.25)", "topk(1e-05)"]) | st.just(["delayed(2)", "error_feedback", "int8"]),
)
stops = st.builds(Stop, accuracy=st.none() | share, bytes=st.none() | st.integers(1, 2**62))


@settings(deadline=None, max_examples=60)
@given(trains, codecs, stops, st.integers(0, 2**32 - 1), st.sampled_from([0, 100, 0.0, 0.5]), positive, st.data())
def test_the_canonical_form_resolves_to_the_same_configuration(catalog, train, codecs, stop, seed, validation, rate, data):
    source = {
        "rule": {"name": "predictive_coding", "steps": data.draw(st.integers(1, 50)), "rate": rate},
        "model": {"name": "mlp", "widths": [40, 5, 6, 10]} | data.draw(st.sampled_from([{"shards": 3}, {"cuts": [2]}])),
        "data": {"name": "strokes", "validation": validation, "samples": 2000, "shift": data.draw(st.none() | share)},
        "train": train,
        "codecs": codecs,
        "stop": stop,
        "seed": seed,
    }
    config = resolve(source, (), catalog)
    for again in (
        resolve(config.canonical(), (), catalog),
        resolve(json.loads(json.dumps(config.canonical())), (), catalog),
        resolve(parse(write_yaml(config, "run me\nlike this"), "run.yaml"), (), catalog),
    ):
        assert again == config
        assert again.digest() == config.digest()


def test_yaml_with_a_comment(load_text, good):
    text = write_yaml(load_text(good), "from a.yaml\nrm: -rf")
    assert text.startswith("# from a.yaml\n# rm: -rf\nrule:")
    assert yaml.safe_load(text) == load_text(good).canonical()


def test_importing_the_configuration_imports_no_jax():
    code = "import sys, locallearn.config.sweep; sys.exit('jax' in sys.modules or 'ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_catalog_that_comes_with_locallearn_resolves():
    source = {
        "rule": {"name": "backprop"},
        "model": {"name": "mlp", "widths": [40, 30, 10], "shards": 2},
        "data": {"name": "strokes1d"},
        "train": {"steps": 10, "batch": 20},
        "codecs": {"default": ["error_feedback", "int8"]},
    }
    config = resolve(source)
    assert resolve(config.canonical()) == config
    assert config.label() == "backprop-error_feedback+int8"
