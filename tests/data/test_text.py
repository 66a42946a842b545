"""Text: every example is a stretch and the character after it, and no part has seen anything of another."""

import hashlib
import os

import numpy as np
import pytest

from locallearn.config.run import resolve
from locallearn.data import text as module
from locallearn.data.dataset import Dataset, split
from locallearn.data.intake import Intake
from locallearn.data.published import PUBLISHED, PublishedFile
from locallearn.data.text import TinyShakespeare, numbered, windows
from locallearn.errors import ConfigError, DataError

TEXT = b"the quick brown fox jumps over the lazy dog and then the lazy dog jumps over the quick brown fox"


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Some words in place of the text, in the folder that is returned."""
    monkeypatch.delenv("LOCALLEARN_DATA", raising=False)
    sha = hashlib.sha256(TEXT).hexdigest()
    file = PublishedFile("input.txt", len(TEXT), sha, len(TEXT), sha)
    monkeypatch.setitem(PUBLISHED, "tiny_shakespeare", PUBLISHED["tiny_shakespeare"]._replace(files=(file,)))
    monkeypatch.setattr(module, "_LENGTH", len(TEXT))
    monkeypatch.setattr(module, "_TRAIN", len(TEXT) * 9 // 10)
    (tmp_path / "tiny-shakespeare").mkdir()
    (tmp_path / "tiny-shakespeare" / "input.txt").write_bytes(TEXT)
    return str(tmp_path)


def spelt(data, part):
    """Each example with its target, as text."""
    letters = sorted(set(TEXT[: len(TEXT) * 9 // 10].decode()))
    return ["".join(letters[k] for k in [*x, y]) for x, y in zip(part.x, part.y, strict=True)]


@pytest.mark.parametrize(("context", "stride"), [(5, 1), (5, 2), (4, 7), (1, 1)])
def test_examples_are_stretches_of_the_text(small, context, stride):
    source = TinyShakespeare(folder=small, context=context, stride=stride)
    data, cut = source.load(), len(TEXT) * 9 // 10
    for part, whole, size in ((data.train, TEXT[:cut], source.train_size), (data.test, TEXT[cut:], source.test_size)):
        found = spelt(data, part)
        expected = [whole[k : k + context + 1].decode() for k in range(0, len(whole), stride) if k + context < len(whole)]
        assert found == expected
        assert len(found) == size
    assert data.example_shape == source.example_shape == (context,)
    assert (data.classes, data.intake) == (65, Intake(tokens=True))


@pytest.mark.parametrize(("context", "stride"), [(5, 1), (5, 2), (5, 5), (5, 6), (4, 7), (1, 1)])
@pytest.mark.parametrize("validation", [1, 3, 0.2])
def test_validation_shares_no_character_with_training(small, context, stride, validation):
    data = TinyShakespeare(folder=small, context=context, stride=stride).load()
    parts = split(data, validation)
    total, held = len(data.train.y), len(parts.validation.y)
    assert held == (validation if isinstance(validation, int) else round(validation * total))
    assert spelt(data, parts.validation) == spelt(data, data.train)[-held:]
    kept = len(parts.train.y)
    assert spelt(data, parts.train) == spelt(data, data.train)[:kept]
    last, first = (kept - 1) * stride + context, (total - held) * stride  # of the text: what training sees last, validation first
    assert last < first
    assert kept * stride + context >= first  # and no more is lost than must be


def test_without_validation_nothing_is_lost(small):
    data = TinyShakespeare(folder=small, context=5, stride=1).load()
    assert len(split(data, 0).train.y) == len(data.train.y)


def test_too_much_validation_leaves_nothing(small):
    data = TinyShakespeare(folder=small, context=8, stride=1).load()
    with pytest.raises(DataError, match="leaves nothing to train on that shares nothing with it"):
        split(data, len(data.train.y) - 5)


def test_examples_are_views_of_the_text():
    """A text of a million characters is not held once for each character of the context."""
    numbers = np.arange(100, dtype=np.uint8)
    assert np.shares_memory(windows(numbers, 30, 1).x, numbers)
    data = Dataset.of("t", windows(numbers, 30, 1), windows(numbers, 30, 1), classes=100, intake=Intake(tokens=True))
    assert np.shares_memory(data.train.x, numbers)
    assert data.train.x.dtype == np.uint8


def test_a_character_of_the_test_part_alone_is_refused():
    with pytest.raises(DataError, match=r"where: the character b'z' is only in the test part"):
        numbered("where", np.frombuffer(b"aabbaaz", np.uint8), 5)


def test_limit_takes_the_beginning(small):
    whole, part = (TinyShakespeare(folder=small, context=5, limit=limit).load() for limit in (None, 7))
    assert spelt(part, part.train) == spelt(whole, whole.train)[:7]


@pytest.mark.parametrize(
    ("options", "said"), [({"context": 200000}, "longer than the test part"), ({"limit": 10**6}, "must be 1 to 250948")]
)
def test_what_does_not_fit_is_a_mistake(options, said):
    source = {"name": "tiny_shakespeare", **options}
    model = {"name": "mlp", "widths": [64, 65], "shards": 1}
    with pytest.raises(ConfigError, match=said):
        resolve({"rule": {"name": "backprop"}, "model": model, "data": source, "train": {"epochs": 1}})


def test_sizes_of_the_published_text():
    source = TinyShakespeare(stride=1)
    if "LOCALLEARN_DATA" not in os.environ or not source.available():
        pytest.skip("tiny Shakespeare is not there")
    data = source.load()
    assert (len(data.train.y), len(data.test.y)) == (source.train_size, source.test_size)
    assert set(np.unique(data.train.y)) == set(range(65))
    letters = sorted(set("".join(map(chr, range(97, 123))) + "".join(map(chr, range(65, 91))) + " \n!$&',-.3:;?"))
    assert "".join(letters[k] for k in data.train.x[0][:14]) == "First Citizen:"
