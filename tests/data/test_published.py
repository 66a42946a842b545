"""Published files: where they are found, and that nothing damaged is ever used."""

import gzip
import os

import numpy as np
import pytest

from locallearn.data.images import FashionMnist, Mnist
from locallearn.errors import DataError

IMAGES = "train-images-idx3-ubyte.gz"


def test_values_labels_and_shapes(tiny, tmp_path):
    tiny.write(tmp_path / "mnist")
    data = Mnist(folder=str(tmp_path)).load()
    np.testing.assert_array_equal(data.train.x[..., 0], tiny.arrays[0].astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(data.test.x[..., 0], tiny.arrays[2].astype(np.float32) / np.float32(255))
    assert data.train.y.tolist() == [0, 1, 2, 0, 1, 9]
    assert data.test.y.tolist() == [3, 1]
    assert (data.train.x.shape, data.train.x.dtype, data.classes) == ((6, 28, 28, 1), np.float32, 10)


@pytest.mark.parametrize("place", ["folder", "folder/mnist", "variable", "variable/mnist", "cache/locallearn/mnist"])
@pytest.mark.parametrize("packed", [True, False])
def test_places_and_unpacked_files(tiny, tmp_path, monkeypatch, place, packed):
    folder = str(tmp_path / "folder") if place.startswith("folder") else None
    if place.startswith("variable"):
        monkeypatch.setenv("LOCALLEARN_DATA", str(tmp_path / "variable"))
    assert not Mnist(folder=folder).available()
    tiny.write(tmp_path / place, packed)
    assert Mnist(folder=folder).available()
    assert Mnist(folder=folder).source() == str(tmp_path / place)
    assert Mnist(folder=folder).load().train.x.shape == (6, 28, 28, 1)


def test_folder_goes_before_variable_and_variable_before_cache(tiny, tmp_path, monkeypatch):
    for place in ("folder/mnist", "variable/mnist", "cache/locallearn/mnist"):
        tiny.write(tmp_path / place)
    assert Mnist().source() == str(tmp_path / "cache/locallearn/mnist")
    monkeypatch.setenv("LOCALLEARN_DATA", str(tmp_path / "variable"))
    assert Mnist().source() == str(tmp_path / "variable/mnist")
    assert Mnist(folder=str(tmp_path / "folder")).source() == str(tmp_path / "folder/mnist")


def test_home_and_default_cache(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert Mnist().source() == str(tmp_path / ".cache/locallearn/mnist")
    assert FashionMnist(folder="~/x").source() == str(tmp_path / "x/fashion-mnist")


def test_files_packed_again_are_accepted(tiny, tmp_path):
    tiny.write(tmp_path)
    (tmp_path / IMAGES).write_bytes(gzip.compress(tiny.unpacked[IMAGES[:-3]], compresslevel=1, mtime=99))
    assert Mnist(folder=str(tmp_path)).load().train.y.tolist() == [0, 1, 2, 0, 1, 9]


def test_missing_file_is_named_with_its_checksum_and_advice(tiny, tmp_path):
    tiny.write(tmp_path)
    (tmp_path / IMAGES).unlink()
    with pytest.raises(DataError) as caught:
        Mnist(folder=str(tmp_path)).load()
    for part in (str(tmp_path / IMAGES), "missing", tiny.files[0].sha256, "folder:", "LOCALLEARN_DATA", "download: true"):
        assert part in str(caught.value)


def truncate(raw):
    return raw[:-1], "truncated"


def alter(raw):
    middle = len(raw) // 2
    return raw[:middle] + bytes([raw[middle] ^ 1]) + raw[middle + 1 :], "altered"


def extend(raw):
    return raw + b"\0more", "altered"


def empty(_):
    return b"", "truncated"


@pytest.mark.parametrize("index", range(4))
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("damage", [truncate, alter, extend, empty])
def test_damaged_file_is_named_with_both_checksums(tiny, tmp_path, damage, packed, index):
    tiny.write(tmp_path, packed)
    entry = tiny.files[index]
    path = tmp_path / (entry.name if packed else entry.unpacked_name)
    content, word = damage(path.read_bytes())
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        Mnist(folder=str(tmp_path)).load()
    expected = entry.sha256 if packed else entry.unpacked_sha256
    for part in (str(path), word, expected, f"{len(content)} ", "delete it"):
        assert part in str(caught.value)


def test_a_decompression_bomb_is_not_unpacked(tiny, tmp_path):
    tiny.write(tmp_path)
    (tmp_path / IMAGES).write_bytes(gzip.compress(bytes(50_000_000)))
    with pytest.raises(DataError, match="altered"):
        Mnist(folder=str(tmp_path)).load()


def test_limit_is_stratified_and_leaves_the_test_set(tiny, tmp_path):
    tiny.write(tmp_path)
    data = Mnist(folder=str(tmp_path), limit=4).load()
    assert sorted(data.train.y) in ([0, 1, 2, 9], [0, 0, 1, 2], [0, 0, 1, 9], [0, 1, 1, 2], [0, 1, 1, 9], [0, 0, 1, 1])
    assert len(data.test.y) == 2
    with pytest.raises(DataError, match="mnist: limit 7 must be 1 to 6"):
        Mnist(folder=str(tmp_path), limit=7).load()


real = pytest.mark.skipif("LOCALLEARN_DATA" not in os.environ, reason="LOCALLEARN_DATA does not name a data folder")


@real
@pytest.mark.parametrize(("data", "mean", "deviation"), [(Mnist(), 0.1307, 0.3081), (FashionMnist(), 0.2860, 0.3530)])
def test_published_statistics(data, mean, deviation):
    """Per-pixel mean and deviation as everybody publishes them; class sizes of MNIST's own page."""
    if not data.available():
        pytest.skip(f"{data.name} is not there")
    loaded = data.load()
    assert loaded.train.x.shape == (60000, 28, 28, 1)
    assert loaded.test.x.shape == (10000, 28, 28, 1)
    assert abs(loaded.train.x.mean(dtype=np.float64) - mean) < 5e-5
    assert abs(loaded.train.x.std(dtype=np.float64) - deviation) < 5e-5
    ones = {"mnist": (6742, 1135), "fashion_mnist": (6000, 1000)}[data.name]
    assert ((loaded.train.y == 1).sum(), (loaded.test.y == 1).sum()) == ones


@real
@pytest.mark.parametrize(("data", "accuracy"), [(Mnist(limit=5000), 0.88), (FashionMnist(limit=5000), 0.75)])
def test_nearest_neighbour_finds_images_and_labels_in_step(data, accuracy):
    if not data.available():
        pytest.skip(f"{data.name} is not there")
    loaded = data.load()
    train, test = loaded.train.x.reshape(5000, -1), loaded.test.x[:500].reshape(500, -1)
    nearest = np.argmin((train**2).sum(1) - 2 * test @ train.T, axis=1)
    assert (loaded.train.y[nearest] == loaded.test.y[:500]).mean() > accuracy
