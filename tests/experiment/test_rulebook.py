"""What the command line tells of rules: costs and locking against what is known, pages, the list, and files that run."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import pytest
import yaml
from annotated_types import Ge, Lt

from locallearn.cli import code_of
from locallearn.commands.listing import rule_lines, rule_rows
from locallearn.commands.newfile import new_text
from locallearn.commands.rulepage import kind_of, parameters, rule_page, wrapped
from locallearn.config.reading import parse
from locallearn.config.run import resolve
from locallearn.models import MLP
from locallearn.report.costs import TABLE, Amount, _fitted, costs_of, measured, suited
from locallearn.rule import Info, Message, Rule
from locallearn.rules import OURS, RULES
from locallearn.rules.local_classifier import LocalClassifier
from locallearn.runtime.influence import study

# Costs.


@pytest.mark.parametrize(
    ("name", "options", "up", "down"),
    [
        ("backprop", {}, "4n", "4n"),
        ("direct_feedback", {}, "4n", "40"),  # ten errors in float32
        ("drtp", {}, "4n", "1"),
        ("pepita", {}, "8n", "0"),
        ("predictive_coding", {"steps": 5}, "24n", "20n"),  # a forward pass and five rounds
        ("predictive_coding", {"steps": 5, "fixed_prediction": True}, "4n", "20n"),
        ("spsa", {}, "8n", "4 a step"),  # two passes, one number
        ("boltzmann", {}, "0.125n", "0"),  # bits
    ],
)
def test_bytes_at_a_boundary(name, options, up, down):
    costs = costs_of(RULES[name](**options))
    assert (str(costs.up), str(costs.down)) == (up, down)


def test_amounts():
    assert Amount(4, 1).example(512) == 2049
    assert str(Amount(4, -44, 40, 3)) == "4n - 44 + 40n + 3 a step"
    assert _fitted([(10, 45, 0), (20, 85, 7), (30, 125, 14)]) == Amount(4, 5, 0.7, -7)
    with pytest.raises(ValueError, match="not linear"):
        _fitted([(10, 100, 0), (20, 400, 0), (30, 900, 0)])


def test_a_network_that_the_rule_takes():
    assert suited(RULES["backprop"](), 12, 3)["activation"] == "relu"
    assert suited(RULES["equilibrium_propagation"](), 12, 3)["activation"] == "hard_sigmoid"
    assert suited(RULES["noprop"](), 12, 3)["name"] == "denoiser"


def test_the_table_of_costs_is_what_is_measured():
    """If this fails after a change of a rule: `python -m locallearn.report.costs` writes the table anew."""
    assert json.loads(TABLE.read_text()) == measured()


# Locking.


@pytest.mark.parametrize(
    ("name", "locking"),
    [
        ("backprop", ("forward", "backward", "update")),
        ("feedback_alignment", ("forward", "backward", "update")),
        ("direct_feedback", ("forward", "update")),
        ("drtp", ("forward",)),
        ("local_classifier", ("forward",)),
        ("synthetic_gradients", ("forward",)),  # which it says itself
        ("noprop", ()),
    ],
)
def test_locking(name, locking):
    assert costs_of(RULES[name]()).locking == locking


def take(block, state, value):
    return state


@dataclass(frozen=True)
class Labelled(Rule):
    """Every block hears the label and nothing else."""

    messages: ClassVar = {"label": Message("label", "broadcast", "y")}
    family: ClassVar = "toys"

    def step(self, chain, state, batch):
        return chain.map(take, state, chain.broadcast("label", batch.y)), Info(batch.y)


def test_what_follows_from_the_batch_locks_nothing():
    assert study(Labelled(), MLP(widths=(12, 8, 7, 6, 3)).blocks((12,)), 5).locking == ()


def test_one_block_down_is_no_backward_pass():
    blocks = MLP(widths=(12, 8, 7, 6, 3)).blocks((12,))
    assert study(RULES["backlink"](), blocks, 5).locking == ("forward", "update")
    assert study(LocalClassifier(), blocks, 5).locking == ("forward",)


# The list and the pages.


@pytest.fixture(scope="module")
def rows():
    return list(rule_rows())


def test_the_list_is_by_family_and_fits(rows):
    assert {row["name"] for row in rows} == set(RULES)
    families = [row["family"] for row in rows]
    assert families == sorted(families, key=families.index)
    lines = list(rule_lines(rows))
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    assert "direct_feedback Direct feedback alignment: the output error goes straight" in text
    assert "bytes 4n up, 40 down; locked: forward, update sends activation (up), error (broadcast" in text


def test_a_rule_that_no_standard_network_suits_is_listed_without_costs(monkeypatch):
    @dataclass(frozen=True)
    class Choosy(Labelled):
        def problems(self, blocks):
            return ["needs blocks of another kind"]

    monkeypatch.setattr("locallearn.rules.RULES", {"choosy": Choosy, "backprop": RULES["backprop"]})
    text = "\n".join(rule_lines(rule_rows()))
    assert "bytes ? up, ? down; locked: ?" in text
    assert "4n up" in text


def test_every_rule_tells_what_the_list_needs(rows):
    for row in rows:
        assert row["summary"].endswith("."), row["name"]
        assert set(row["locking"]) <= {"forward", "backward", "update"}
        assert row["messages"]


@pytest.mark.parametrize("name", OURS)
def test_every_page(name):
    page = rule_page(name)
    rule = RULES[name]
    assert page.startswith(f"{name}  ({rule.family})")
    for parameter in parameters(rule):
        assert f"  {parameter.name} = " in page
    for message in rule.messages:
        assert f"  {message}, of kind " in page
    assert "at a boundary of n units, for each example:" in page
    assert "https://" in page or name == "backprop"
    assert not [line for line in page.splitlines() if len(line) > 80 and " " in line], "only an address may be longer"


def test_prose_citations_and_equations_in_a_terminal():
    aligned = "    a   = b" + " " * 60 + "where it is so"
    cited = f"One (2001), a title\nin two lines. https://example.org/{'x' * 70}\nTwo. https://example.org/y"
    text = f"{cited}\n\nWith:\n{aligned}\n    c   = d      if"
    assert wrapped(text).splitlines() == [
        "One (2001), a title in two lines.",
        f"https://example.org/{'x' * 70}",
        "Two. https://example.org/y",
        "",
        "With:",
        "    a   = b",
        "        where it is so",
        "    c   = d      if",
    ]


def test_the_commands(capsys):
    assert code_of(["rules", "backprop"]) == 0
    shown = capsys.readouterr().out
    assert "with 512 units: 2.00 KiB up, 2.00 KiB down" in shown
    assert "locked: forward, backward, update" in shown
    assert code_of(["rules", "clapp", "--format", "json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert told["parameters"]["views.shift"] == {"kind": "float >= 0", "default": 2.0, "doc": told["parameters"]["views.shift"]["doc"]}
    assert told["parameters"]["views"]["default"]["shift"] == 2.0
    assert told["messages"].keys() == RULES["clapp"].messages.keys()
    assert code_of(["rules", "backpropp"]) == 2
    assert "`backpropp` is no rule; did you mean `backprop`?" in capsys.readouterr().err


@dataclass(frozen=True)
class Documented:
    """A thing. rate, decay: how fast; per step. mode: how. steps: of these, so many."""

    rate: Annotated[float, Ge(0), Lt(1)] = 0.5
    decay: float | None = None
    mode: Literal["a", "b"] = "a"
    steps: int = 3
    widths: tuple[int, ...] = ()  # of the layers
    on: bool = field(default=False)


def test_parameters_in_words():
    assert [tuple(parameter) for parameter in parameters(Documented)] == [
        ("rate", "float >= 0 and < 1", 0.5, "how fast; per step"),
        ("decay", "float or none", None, "how fast; per step"),
        ("mode", "a | b", "a", "how"),
        ("steps", "int", 3, "of these, so many"),
        ("widths", "list of int", (), "of the layers"),
        ("on", "true | false", False, ""),
    ]
    assert kind_of(Annotated[int, Ge(1)]) == "int >= 1"


def test_a_section_of_hyperparameters_is_told_key_by_key():
    page = rule_page("clapp")
    for line in (
        "  views = {shift, zoom, flip, contrast, mask, noise}   section",
        "  views.flip = false   true | false",
        "  views.shift = 2.0   float >= 0",
    ):
        assert line in page.splitlines()


# New files.


@pytest.mark.parametrize("name", OURS)
def test_a_new_file_passes_check_for_every_rule(name):
    text = new_text(Path("a.yaml"), name, "fashion14")  # which checks it
    written = yaml.safe_load(text)
    assert written["rule"].keys() == {"name", *(parameter.name for parameter in parameters(RULES[name]))}
    config = resolve(parse(text, "a.yaml"))
    assert config.rule == RULES[name]()  # every default as it is
    assert text.startswith("# ")
    assert "# locallearn run a.yaml" in text
    assert max(map(len, text.splitlines())) <= 140


@pytest.mark.parametrize("name", ["direct_feedback", "equilibrium_propagation", "noprop"])
def test_a_new_file_runs(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert code_of(["new", "--rule", name]) == 0
    assert capsys.readouterr().out == f"{name}.yaml\n"
    small = ["--set", "train.epochs=null", "--set", "train.steps=2", "--set", "data.limit=200"]
    assert code_of(["run", f"{name}.yaml", "-q", *small]) == 0


def test_other_data_and_the_text_model(monkeypatch, tmp_path):
    monkeypatch.setenv("LOCALLEARN_DATA", str(tmp_path))
    assert yaml.safe_load(new_text(Path("a.yaml"), "backprop", "strokes1d"))["model"]["widths"] == [40, 120, 60, 60, 10]
    text = new_text(Path("a.yaml"), "backprop", "tiny_shakespeare")
    assert yaml.safe_load(text)["model"]["name"] == "transformer"
    assert "# Needs the files of tiny_shakespeare" in text


def test_nothing_is_overwritten(tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text("precious")
    assert code_of(["new", str(path), "--rule", "backprop"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert path.read_text() == "precious"


def test_mistakes(tmp_path, capsys):
    path = str(tmp_path / "a.yaml")
    for words, said in (
        (["--rule", "backprob"], "did you mean `backprop`"),
        (["--data", "mnits"], "did you mean `mnist`"),
        (["--rule", "equilibrium_propagation", "--data", "tiny_shakespeare"], "needs"),
    ):
        assert code_of(["new", path, *words]) == 2
        assert said in capsys.readouterr().err
    assert not Path(path).exists()
