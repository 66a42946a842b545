"""CIFAR-10 and CIFAR-100 in miniature: the published binary layout, packed and unpacked, and the refusal of what is not published."""

import gzip
import hashlib
import io
import os
import tarfile

import numpy as np
import pytest

from locallearn.config.run import resolve
from locallearn.data.cifar import Cifar10, Cifar100
from locallearn.data.dataset import split
from locallearn.data.published import PUBLISHED, Archive, Published, PublishedFile
from locallearn.errors import ConfigError, DataError
from locallearn.experiment.api import run


class Miniature:
    """Files of a few records each. images: [N, 32, 32, 3] by file; labels: [N]."""

    def __init__(self, folder, names, label_bytes, classes):
        rng = np.random.default_rng(classes)
        self.folder, self.images, self.labels, self.files = folder, {}, {}, {}
        for k, name in enumerate(names):
            count = 3 + k
            images, labels = rng.integers(0, 256, (count, 32, 32, 3), np.uint8), rng.integers(0, classes, count).astype(np.uint8)
            labels[0] = classes - 1
            record = b""
            for image, label in zip(images, labels, strict=True):
                coarse = bytes([255]) if label_bytes == 2 else b""  # a number that is no class: nobody may read it
                record += coarse + bytes([label]) + b"".join(image[..., colour].tobytes() for colour in range(3))
            self.images[name], self.labels[name], self.files[name] = images, labels, record
        self.archive = self._packed()

    def _packed(self):
        raw = io.BytesIO()
        with tarfile.open(fileobj=raw, mode="w") as tar:
            for name, content in [("readme.html", b"<p>"), *self.files.items()]:
                about = tarfile.TarInfo(f"{self.folder}/{name}")
                about.size = len(content)
                tar.addfile(about, io.BytesIO(content))
        return gzip.compress(raw.getvalue(), mtime=0)

    def entry(self, archive_name):
        def of(name, content):
            sha = hashlib.sha256(content).hexdigest()
            return PublishedFile(name, len(content), sha, len(content), sha)

        files = tuple(of(name, content) for name, content in self.files.items())
        archive = Archive(archive_name, len(self.archive), hashlib.sha256(self.archive).hexdigest())
        return Published(self.folder, ("http://127.0.0.1:9/",), files, archive)

    def write(self, root):
        (root / self.folder).mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            (root / self.folder / name).write_bytes(content)


@pytest.fixture
def cifar10(monkeypatch):
    names = [*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"]
    tiny = Miniature("cifar-10-batches-bin", names, 1, 10)
    monkeypatch.setitem(PUBLISHED, "cifar10", tiny.entry("cifar-10-binary.tar.gz"))
    monkeypatch.delenv("LOCALLEARN_DATA", raising=False)
    return tiny


@pytest.fixture
def cifar100(monkeypatch):
    tiny = Miniature("cifar-100-binary", ["train.bin", "test.bin"], 2, 100)
    monkeypatch.setitem(PUBLISHED, "cifar100", tiny.entry("cifar-100-binary.tar.gz"))
    return tiny


def test_the_table_has_the_published_layout():
    for name, records, width in (("cifar10", [10000] * 6, 3073), ("cifar100", [50000, 10000], 3074)):
        assert [file.size for file in PUBLISHED[name].files] == [n * width for n in records]
        assert [file.unpacked_name for file in PUBLISHED[name].files] == [file.name for file in PUBLISHED[name].files]
        assert PUBLISHED[name].urls[0] + PUBLISHED[name].archive.name == f"https://www.cs.toronto.edu/~kriz/cifar-{name[5:]}-binary.tar.gz"


@pytest.mark.parametrize("place", ["", "cifar-10-batches-bin"])
def test_images_and_labels_of_the_extracted_folder(cifar10, tmp_path, place):
    cifar10.write(tmp_path)
    data = Cifar10(folder=str(tmp_path / place)).load()
    train = [name for name in cifar10.files if name.startswith("data")]
    np.testing.assert_array_equal(data.train.x, np.concatenate([cifar10.images[name] for name in train]))
    assert data.train.y.tolist() == [int(label) for name in train for label in cifar10.labels[name]]
    np.testing.assert_array_equal(data.test.x, cifar10.images["test_batch.bin"])
    assert (data.train.x.dtype, data.train.y.dtype, data.classes, data.example_shape) == (np.uint8, np.int32, 10, (32, 32, 3))


@pytest.mark.parametrize("place", [".", "cifar-10-batches-bin"])
def test_the_archive_is_read_as_it_is(cifar10, tmp_path, place):
    (tmp_path / place).mkdir(exist_ok=True)
    assert not Cifar10(folder=str(tmp_path)).available()
    (tmp_path / place / "cifar-10-binary.tar.gz").write_bytes(cifar10.archive)
    data = Cifar10(folder=str(tmp_path))
    assert data.available()
    np.testing.assert_array_equal(data.load().test.x, cifar10.images["test_batch.bin"])
    assert not (tmp_path / "data_batch_1.bin").exists()  # nothing is written


def test_fine_labels_of_cifar100(cifar100, tmp_path):
    cifar100.write(tmp_path)
    data = Cifar100(folder=str(tmp_path)).load()
    assert data.train.y.tolist() == cifar100.labels["train.bin"].tolist()
    np.testing.assert_array_equal(data.train.x, cifar100.images["train.bin"])
    assert (len(data.test.y), data.classes) == (4, 100)


def test_what_is_not_published_is_refused_unless_asked_for(cifar10, tmp_path):
    cifar10.write(tmp_path)
    path = tmp_path / cifar10.folder / "data_batch_2.bin"
    content = path.read_bytes()
    path.write_bytes(content[:50] + bytes([content[50] ^ 1]) + content[51:])
    with pytest.raises(DataError, match=r"data_batch_2.bin: altered .*expected [0-9a-f]{64}.*`unverified: true`"):
        Cifar10(folder=str(tmp_path)).load()
    assert len(Cifar10(folder=str(tmp_path), unverified=True).load().train.y) == 25
    path.write_bytes(content[:-1])
    with pytest.raises(DataError, match="truncated"):  # of another size it is no such file at all
        Cifar10(folder=str(tmp_path), unverified=True).load()


def test_unverified_files_make_another_run_and_its_settings_say_so(tmp_path):
    def config(**data):
        model = {"name": "mlp", "widths": [3072, 10], "shards": 1}
        return resolve({"rule": {"name": "backprop"}, "model": model, "data": {"name": "cifar10", **data}, "train": {"epochs": 1}})

    assert config(unverified=True).digest() != config().digest() == config(folder="elsewhere").digest()
    assert config(unverified=True).canonical()["data"]["unverified"] is True


def test_damaged_archives(cifar10, tmp_path):
    path = tmp_path / "cifar-10-binary.tar.gz"
    path.write_bytes(cifar10.archive[:-2000])
    with pytest.raises(DataError, match=r"cifar-10-binary.tar.gz: damaged"):
        Cifar10(folder=str(tmp_path)).load()
    path.write_bytes(b"<html>")
    with pytest.raises(DataError, match=r"cifar-10-binary.tar.gz: damaged"):
        Cifar10(folder=str(tmp_path)).load()
    cifar10.files["data_batch_3.bin"] = b"short"
    path.write_bytes(cifar10._packed())
    with pytest.raises(DataError, match=r"data_batch_3.bin: truncated \(5 of"):
        Cifar10(folder=str(tmp_path)).load()
    del cifar10.files["data_batch_3.bin"]
    path.write_bytes(cifar10._packed())
    with pytest.raises(DataError, match=r"holds no cifar-10-batches-bin/data_batch_3.bin"):
        Cifar10(folder=str(tmp_path)).load()


def test_an_archive_makes_up_for_damaged_files(cifar10, tmp_path):
    cifar10.write(tmp_path)
    (tmp_path / cifar10.folder / "data_batch_1.bin").write_bytes(b"")
    (tmp_path / cifar10.folder / "cifar-10-binary.tar.gz").write_bytes(cifar10.archive)
    assert len(Cifar10(folder=str(tmp_path)).load().train.y) == 25


def test_what_was_learnt_takes_bytes_and_what_they_stand_for(cifar10, tmp_path):
    cifar10.write(tmp_path)
    source = {"name": "cifar10", "folder": str(tmp_path), "standardised": True, "limit": 25, "validation": 0, "augment": {"flip": True}}
    model = {"name": "mlp", "widths": [3072, 10], "shards": 1}
    result = run({"rule": {"name": "backprop"}, "model": model, "data": source, "train": {"steps": 2, "batch": 5}})
    data = Cifar10(folder=str(tmp_path), standardised=True)
    stored = data.load().test.x
    standard = (stored / 255 - np.array(data.means)) / np.array(data.deviations)
    np.testing.assert_allclose(result.scores(stored), result.scores(standard), rtol=1e-3, atol=1e-3)
    assert result.test_accuracy == (result.predict(stored) == data.load().test.y).mean()


def test_one_scaling_at_a_time():
    data = {"name": "cifar10", "centred": True, "standardised": True}
    model = {"name": "mlp", "widths": [3072, 10], "shards": 1}
    with pytest.raises(ConfigError, match="give `centred` or `standardised`, not both"):
        resolve({"rule": {"name": "backprop"}, "model": model, "data": data, "train": {"epochs": 1}})


def test_bytes_are_split_as_other_images_are(cifar10, tmp_path):
    cifar10.write(tmp_path)
    parts = split(Cifar10(folder=str(tmp_path), limit=20).load(), 5)
    assert [len(part.y) for part in parts] == [15, 5, 8]
    assert parts.validation.x.dtype == np.uint8


real = pytest.mark.skipif("LOCALLEARN_CIFAR" not in os.environ, reason="LOCALLEARN_CIFAR names no folder with CIFAR-10")


@real
def test_published_statistics():
    """Per-pixel mean and deviation as everybody publishes them; any mirror of the images has them."""
    data = Cifar10(folder=os.environ["LOCALLEARN_CIFAR"], unverified=True)
    loaded = data.load()
    assert loaded.train.x.shape == (50000, 32, 32, 3)
    assert set(np.bincount(loaded.train.y)) == {5000}
    assert set(np.bincount(loaded.test.y)) == {1000}
    x = loaded.train.x.astype(np.float32) / 255
    np.testing.assert_allclose(x.mean((0, 1, 2), dtype=np.float64), data.means, atol=1e-4)
    np.testing.assert_allclose(x.std((0, 1, 2), dtype=np.float64), data.deviations, atol=1e-4)
