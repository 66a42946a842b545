"""The table of data sets, the embedded images, and what an import costs."""

import dataclasses
import io
import lzma
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import locallearn.data
from locallearn.data import DATASETS, describe, fashion14
from locallearn.data.fashion14 import Fashion14
from locallearn.data.published import PUBLISHED
from locallearn.errors import DataError

PACKAGE = Path(locallearn.data.__file__).parent


@pytest.mark.parametrize(("name", "cls"), DATASETS.items())
def test_every_class_is_a_frozen_dataclass_under_its_own_name(name, cls):
    assert cls.name == name
    assert cls() == cls()
    with pytest.raises(dataclasses.FrozenInstanceError):
        cls().name = "other"


def test_describe_tells_all_and_loads_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCALLEARN_DATA", str(tmp_path))
    table = {row["name"]: row for row in describe()}
    assert table.keys() == DATASETS.keys()
    assert table["mnist"] == {
        "name": "mnist",
        "summary": "MNIST: handwritten digits, 28x28 (LeCun, Cortes and Burges).",
        "shape": (28, 28, 1),
        "classes": 10,
        "train": 60000,
        "test": 10000,
        "source": str(tmp_path / "mnist"),
        "available": False,
        "licence": "CC BY-SA 3.0",
    }
    assert all(table[name]["available"] for name in ("strokes1d", "fashion14"))


@pytest.mark.parametrize("name", ["strokes1d", "fashion14", "hierarchy"])
def test_description_agrees_with_what_is_loaded(name):
    data = DATASETS[name]()
    loaded = data.load()
    assert (loaded.name, loaded.example_shape, loaded.classes) == (name, data.example_shape, data.classes)
    assert (len(loaded.train.y), len(loaded.test.y)) == (data.train_size, data.test_size)


def embedded_pixels(part):
    """The images by plain Python: every byte is two pixels, the left one first."""
    raw = lzma.decompress((PACKAGE / "fashion14_4bit.npz.xz").read_bytes())
    with np.load(io.BytesIO(raw), allow_pickle=False) as file:
        digits = file[f"{part}_x"].tobytes().hex()
    return np.array([int(digit, 16) for digit in digits]).reshape(-1, 14, 14)


@pytest.mark.parametrize("part", ["train", "test"])
def test_embedded_images(part):
    arrays = getattr(Fashion14().load(), part)
    pixels = embedded_pixels(part)
    np.testing.assert_array_equal(np.round(arrays.x[..., 0] * 15), pixels)
    np.testing.assert_allclose(arrays.x.mean((0, 3)), pixels.mean(0) / 15, rtol=1e-4)
    assert arrays.x.dtype == np.float32
    assert (arrays.x.min(), arrays.x.max()) == (0, 1)
    assert set(np.bincount(arrays.y)) == {len(arrays.y) // 10}


def test_embedded_images_look_like_fashion_mnist():
    """The published mean of Fashion-MNIST is 0.2860; averaged pixels have it too, and a smaller deviation."""
    x = Fashion14().load().train.x
    assert abs(x.mean() - 0.2860) < 0.005
    assert 0.30 < x.std() < 0.3530


def test_embedded_limit():
    data = Fashion14(limit=100).load()
    assert (np.bincount(data.train.y) == 10).all()
    assert len(data.test.y) == 1000
    with pytest.raises(DataError, match="fashion14: limit 4001 must be 1 to 4000"):
        Fashion14(limit=4001).load()


def test_embedded_file_altered_or_missing(tmp_path, monkeypatch):
    raw = bytearray((PACKAGE / "fashion14_4bit.npz.xz").read_bytes())
    raw[1000] ^= 1
    monkeypatch.setattr(fashion14, "_FILE", tmp_path / "altered.xz")
    with pytest.raises(DataError, match=r"altered.xz: No such file"):
        Fashion14().load()
    assert not Fashion14().available()
    (tmp_path / "altered.xz").write_bytes(raw)
    with pytest.raises(DataError, match=r"altered.xz: SHA-256 is [0-9a-f]{64}, expected 83aeb4ab"):
        Fashion14().load()


def test_the_notice_travels_with_the_images():
    notice = (PACKAGE / "fashion14_LICENSE.txt").read_text(encoding="utf-8")
    assert "The MIT License (MIT) Copyright © 2017 Zalando SE" in notice


def test_checksums_in_the_table_are_whole_and_distinct():
    files = [file for published in PUBLISHED.values() for file in published.files]
    archives = [published.archive.sha256 for published in PUBLISHED.values() if published.archive]
    checksums = archives + [sum_ for file in files for sum_ in dict.fromkeys((file.sha256, file.unpacked_sha256)) if sum_]
    assert all(re.fullmatch("[0-9a-f]{64}", checksum) for checksum in checksums)
    assert len(set(checksums)) == len(checksums)


def test_nothing_is_ever_unpickled():
    for path in PACKAGE.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"import pickle|from pickle|allow_pickle=True", text)
        assert text.count("np.load(") == text.count("allow_pickle=False")


def test_import_is_cheap():
    code = "import sys, locallearn.data; print([m for m in ('jax', 'ray', 'pydantic', 'ssl') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
