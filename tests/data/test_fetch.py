"""Downloads from a server on this machine: only on request, complete and verified, or an error that says why."""

import io
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from locallearn.data import download, fetch
from locallearn.data.files import read_published, sha256
from locallearn.data.images import Mnist
from locallearn.data.published import PUBLISHED, Archive, Published, PublishedFile
from locallearn.errors import DataError

IMAGES, LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        content = self.server.content.get(self.path.lstrip("/"))
        if content is None:
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Length", str(len(content) + self.server.withheld))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tiny, monkeypatch):
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.content, server.asked, server.withheld = dict(tiny.packed), [], 0
        url = f"http://127.0.0.1:{server.server_port}/"
        monkeypatch.setitem(PUBLISHED, "mnist", PUBLISHED["mnist"]._replace(urls=(url,)))
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_download_fetches_all_files_once(tiny, server, tmp_path):
    assert download("mnist", str(tmp_path)) == tmp_path / "mnist"
    assert contents(tmp_path / "mnist") == tiny.packed
    download("mnist", str(tmp_path))
    assert server.asked == [f"/{name}" for name in tiny.packed]


def test_download_goes_where_load_looks(tiny, server, tmp_path, monkeypatch):
    assert download("mnist") == tmp_path / "cache/locallearn/mnist"
    monkeypatch.setenv("LOCALLEARN_DATA", str(tmp_path / "variable"))
    assert download("mnist") == tmp_path / "variable/mnist"
    assert download("mnist", str(tmp_path / "own/mnist")) == tmp_path / "own/mnist"
    assert Mnist().load().fingerprint == Mnist(folder=str(tmp_path / "own")).load().fingerprint


def test_nothing_is_downloaded_unasked(tiny, server, tmp_path):
    with pytest.raises(DataError, match="missing"):
        Mnist(folder=str(tmp_path)).load()
    assert server.asked == []


def test_download_on_request_and_then_never_again(tiny, server, tmp_path):
    data = Mnist(folder=str(tmp_path), download=True)
    assert data.load().train.y.tolist() == [0, 1, 2, 0, 1, 9]
    data.load()
    assert len(server.asked) == 4


def test_damaged_file_is_replaced_and_intact_ones_kept(tiny, server, tmp_path):
    tiny.write(tmp_path / "mnist")
    (tmp_path / "mnist" / LABELS).write_bytes(b"damaged")
    download("mnist", str(tmp_path))
    assert contents(tmp_path / "mnist") == tiny.packed
    assert server.asked == [f"/{LABELS}"]


@pytest.mark.parametrize("change", [lambda raw: raw[:-1] + b"?", lambda raw: raw[:-9], lambda raw: raw * 3])
def test_altered_download_leaves_no_file(tiny, server, tmp_path, change):
    server.content[IMAGES] = change(tiny.packed[IMAGES])
    with pytest.raises(DataError) as caught:
        download("mnist", str(tmp_path))
    for part in (str(tmp_path / "mnist" / IMAGES), f"{server.server_port}/{IMAGES}", tiny.files[0].sha256):
        assert part in str(caught.value)
    assert contents(tmp_path / "mnist") == {}


def test_broken_connection_leaves_no_file(tiny, server, tmp_path):
    server.content[IMAGES], server.withheld = tiny.packed[IMAGES][:-10], 10
    with pytest.raises(DataError, match="could not be downloaded"):
        download("mnist", str(tmp_path))
    assert contents(tmp_path / "mnist") == {}


def test_missing_on_the_server(tiny, server, tmp_path):
    del server.content[LABELS]
    with pytest.raises(DataError, match=f"{LABELS}: HTTP Error 404"):
        download("mnist", str(tmp_path))
    assert set(contents(tmp_path / "mnist")) == {IMAGES}


def test_second_address_is_used_when_the_first_fails(tiny, server, tmp_path, monkeypatch):
    urls = ("http://127.0.0.1:9/", *PUBLISHED["mnist"].urls)
    monkeypatch.setitem(PUBLISHED, "mnist", PUBLISHED["mnist"]._replace(urls=urls))
    download("mnist", str(tmp_path))
    assert contents(tmp_path / "mnist") == tiny.packed


def test_offline_says_where_to_put_the_file(tiny, tmp_path):
    with pytest.raises(DataError) as caught:
        download("mnist", str(tmp_path))
    for part in ("offline?", "http://127.0.0.1:9/", tiny.files[0].sha256, f"put it into {tmp_path / 'mnist'}"):
        assert part in str(caught.value)


@pytest.fixture
def archived(server, monkeypatch):
    """Two files that are published in one archive, by the same server: their contents."""
    contents = {"a.bin": b"one" * 50, "b.bin": b"two" * 70}
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as tar:
        for name, content in contents.items():
            about = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            about.size = len(content)
            tar.addfile(about, io.BytesIO(content))
    files = tuple(PublishedFile(n, len(c), sha256(c), len(c), sha256(c)) for n, c in contents.items())
    archive = Archive("both.tar.gz", len(raw.getvalue()), sha256(raw.getvalue()))
    monkeypatch.setitem(PUBLISHED, "cifar10", Published("cifar-10-batches-bin", PUBLISHED["mnist"].urls, files, archive))
    server.content["both.tar.gz"] = raw.getvalue()
    return list(contents.values())


def test_an_archive_is_fetched_whole_and_once(archived, server, tmp_path):
    place = download("cifar10", str(tmp_path))
    assert set(contents(place)) == {"both.tar.gz"}
    assert read_published("cifar10", str(tmp_path)) == archived
    download("cifar10", str(tmp_path))
    assert server.asked == ["/both.tar.gz"]
    (place / "both.tar.gz").write_bytes(b"damaged")
    download("cifar10", str(tmp_path))
    assert read_published("cifar10", str(tmp_path)) == archived


def test_no_archive_is_fetched_where_the_files_are(archived, server, tmp_path):
    for name, content in zip(("a.bin", "b.bin"), archived, strict=True):
        (tmp_path / "cifar-10-batches-bin").mkdir(exist_ok=True)
        (tmp_path / "cifar-10-batches-bin" / name).write_bytes(content)
    download("cifar10", str(tmp_path))
    assert server.asked == []


def test_silent_server_times_out(tiny, server, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "TIMEOUT", 0.2)
    wake = threading.Event()
    monkeypatch.setattr(Handler, "do_GET", lambda self: wake.wait(10))
    try:
        with pytest.raises(DataError, match="timed out"):
            download("mnist", str(tmp_path))
    finally:
        wake.set()


def test_folder_that_cannot_be_made(tiny, server, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="cannot write there"):
        download("mnist", str(tmp_path / "file"))


def test_unknown_name():
    with pytest.raises(DataError, match=r"fashion14: nothing to download; .*: .*fashion_mnist, .*mnist"):
        download("fashion14")
