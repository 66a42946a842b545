"""Reading YAML: lines, bounds, and the traps of the format. Each refusal is one clear line."""

from __future__ import annotations

import os
import time

import pytest

from locallearn.config.reading import parse, read
from locallearn.errors import ConfigError


def refusal(call, *args) -> str:
    with pytest.raises(ConfigError) as caught:
        call(*args)
    (problem,) = caught.value.problems
    assert "\n" not in str(problem)
    return str(problem)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", ": is empty"),
        (b"# only a comment\n", ": is empty"),
        (b"\xff\xfe\x00binary", ": is not text in UTF-8"),
        (b"a: \x00\x01\n", ": is not text: it has control characters"),
        (b"#" * (2**20 + 1), ": is larger than 1 MiB, which no configuration is"),
        (b"- a\n- b\n", ":1: a configuration is keys with values, this is a list"),
        (b"just words\n", ":1: a configuration is keys with values, this is a single value"),
        (b"a: 1\n---\nb: 2\n", ":2: a second document begins here (`---`); a file holds one"),
        (b"a: 1\nb: !!python/object:os.system {}\n", ":2: the tag `tag:yaml.org,2002:python/object:os.system` is not allowed"),
        (b"a: !mine 3\n", ":1: the tag `!mine` is not allowed; write plain values"),
        (b"a: 1\nb: [1, 2\nc: 3\n", ":3: is not valid YAML: while parsing a flow sequence"),
        (b"a:\n\tb: 3\n", ":2: is not valid YAML: while scanning for the next token, found character '\\t'"),
        (b"a: 1\nb: 2\na: 3\n", ":3: the key `a` is already on line 1"),
        (b"a: 1\non: 2\n", ":2: a key must be text, and YAML does not read `on` as text; put it in quotes"),
        (b"a: 1\n? [b]\n: 2\n", ":2: a key must be text, and YAML does not read `a list or mapping` as text"),
        (b"a: *b\n", ":1: `*b` stands for nothing that was finished before it"),
        (b"a: &b [1, *b]\n", ":1: `*b` stands for nothing that was finished before it"),
        (b"a: " + b"9" * 5000, ":1: cannot read this number"),
        (b"a: " + b"[" * 60 + b"]" * 60, ":1: is nested more than 50 levels deep"),
        (b"<<: 3\n", ":1: `<<` takes a mapping or a list of mappings"),
    ],
)  # fmt: skip
def test_what_is_no_configuration_is_refused_in_one_line(tmp_path, content, expected):
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    assert refusal(read, path).startswith(f"{path}{expected}")


def test_paths_that_cannot_be_read(tmp_path):
    assert refusal(read, tmp_path / "no.yaml") == f"{tmp_path}/no.yaml: there is no such file"
    assert refusal(read, tmp_path) == f"{tmp_path}: is a folder; give a YAML file"
    os.mkfifo(tmp_path / "pipe")
    assert refusal(read, tmp_path / "pipe") == f"{tmp_path}/pipe: is not a regular file"
    assert "cannot be read" in refusal(read, "a\0b")


LAUGHS = "a: &a0 [lol, lol]\n" + "".join(f"b{k}: &a{k + 1} [{', '.join([f'*a{k}'] * 9)}]\n" for k in range(40))


@pytest.mark.parametrize(
    "text",
    [
        LAUGHS,
        "a: [" + "x, " * 300_000 + "]",
        "[" * 500_000,
        "{a: " * 100_000,
        "- " * 300_000,
        "a: " + "x " * 500_000,
        "? " * 300_000,
        "&a " * 100_000,
    ],
    ids=["billion laughs", "long list", "brackets", "braces", "dashes", "long text", "questions", "anchors"],
)
def test_hostile_text_takes_bounded_time(text):
    before = time.process_time()
    if text.startswith("a: x"):
        assert len(parse(text, "a.yaml").data["a"]) == 999_999
    else:
        refusal(parse, text, "a.yaml")
    assert time.process_time() - before < 10


def test_aliases_and_merge_keys_within_bounds_are_plain_yaml():
    document = parse("a: &a {x: 1, y: [2]}\nb: *a\nc:\n  <<: *a\n  x: 3\nd:\n  <<: [{z: 1}, *a]\n", "a.yaml")
    assert document.data["b"] == {"x": 1, "y": [2]}
    assert document.data["c"] == {"x": 3, "y": [2]}
    assert document.data["d"] == {"z": 1, "x": 1, "y": [2]}
    assert document.places["c", "x"].where == "a.yaml:5"
    assert document.places["c", "y"].where == "a.yaml:1"


def test_values_mean_what_they_look_like():
    data = parse("a: 010\nb: 1:30\nc: 2020-01-01\nd: 0x10\ne: 1e-3\nf: ~\ng: 1_000\nh: yes\n", "a.yaml").data
    assert data == {"a": "010", "b": "1:30", "c": "2020-01-01", "d": 16, "e": "1e-3", "f": None, "g": 1000, "h": True}


def test_every_key_has_its_line():
    document = parse("a:\n  b: [1,\n    2]\n  c:\n    - d: 3\n", "a.yaml")
    where = {path: place.where for path, place in document.places.items()}
    assert where["a", "b"] == "a.yaml:2"
    assert where["a", "b", 1] == "a.yaml:3"
    assert where["a", "c", 0, "d"] == "a.yaml:5"
    assert document.place(("a", "x", "y")).where == "a.yaml:1"


def test_all_duplicate_keys_are_reported():
    with pytest.raises(ConfigError) as caught:
        parse("a: 1\nb: {c: 1, c: 2}\na: 2\n", "a.yaml")
    assert [problem.where for problem in caught.value.problems] == ["a.yaml:2", "a.yaml:3"]
