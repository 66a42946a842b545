"""A published data set in miniature: real IDX files, gzipped, with a table entry of their own."""

import gzip
import hashlib
import struct

import numpy as np
import pytest

from locallearn.data.published import PUBLISHED, Published, PublishedFile

NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


class Tiny:
    """Six training and two test images of 28x28, and the bytes of their files."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.arrays = [
            rng.integers(0, 256, (6, 28, 28), np.uint8),
            np.array([0, 1, 2, 0, 1, 9], np.uint8),
            rng.integers(0, 256, (2, 28, 28), np.uint8),
            np.array([3, 1], np.uint8),
        ]
        self.unpacked = {name: idx(array) for name, array in zip(NAMES, self.arrays, strict=True)}
        self.packed = {f"{name}.gz": gzip.compress(content, mtime=0) for name, content in self.unpacked.items()}
        self.files = tuple(map(self._entry, NAMES))

    def _entry(self, name):
        raw, content = self.packed[f"{name}.gz"], self.unpacked[name]
        checksums = [hashlib.sha256(data).hexdigest() for data in (raw, content)]
        return PublishedFile(f"{name}.gz", len(raw), checksums[0], len(content), checksums[1])

    def write(self, folder, packed=True):
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in (self.packed if packed else self.unpacked).items():
            (folder / name).write_bytes(content)


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """The miniature in place of MNIST, and no folder of the real user in reach."""
    tiny = Tiny()
    monkeypatch.setitem(PUBLISHED, "mnist", Published("mnist", ("http://127.0.0.1:9/",), tiny.files))
    monkeypatch.delenv("LOCALLEARN_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tiny
