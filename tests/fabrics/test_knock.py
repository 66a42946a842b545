"""Who listens where a Ray is asked for: nobody, somebody mute, somebody else. A real Ray: `tests/cluster/test_nodes.py`."""

import socket
import threading

import pytest

from locallearn.errors import NoRay
from locallearn.runtime import knock
from locallearn.runtime.joining import joined

SETTINGS = bytes.fromhex("000000040000000000")
"""Of HTTP/2, without any: RFC 9113, 4.1 and 6.5."""


@pytest.fixture
def listening(monkeypatch):
    """`listening(said)`: the address of somebody who says this to whoever comes, and hangs up; nothing, and waits, if it is None."""
    monkeypatch.setattr(knock, "SECONDS", 0.3)
    monkeypatch.delenv("RAY_USE_TLS", raising=False)
    ends, threads = [socket.create_server(("127.0.0.1", 0))], []

    def answer(said):
        line, _ = ends[0].accept()
        line.sendall(said)
        line.close()

    def at(said):
        if said is not None:
            threads.append(threading.Thread(target=answer, args=(said,)))
            threads[-1].start()
        return f"127.0.0.1:{ends[0].getsockname()[1]}"

    yield at
    for thread in threads:
        thread.join()
    ends[0].close()


@pytest.mark.parametrize(
    ("said", "told"),
    [(None, "says nothing"), (b"", "hangs up"), (b"SSH-2.0-OpenSSH_9.6\r\n", "speaks otherwise"), (SETTINGS, None)],
)
@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_somebody_listens(listening, said, told, scheme):
    address = scheme + listening(said)
    if told is None:
        knock.knock(address)
        return
    with (
        pytest.raises(NoRay, match=f"no Ray answers at `{address}`: who listens there {told}, so it is no Ray, or one that hangs"),
        joined(address, {}),
    ):
        pass


def test_with_tls_the_client_speaks_first(listening, monkeypatch):
    monkeypatch.setenv("RAY_USE_TLS", "1")
    knock.knock(listening(None))


@pytest.mark.parametrize(
    ("address", "told"),
    [("127.0.0.1:1", "refused"), ("[::1]:1", r"\[Errno"), ("http://localhost:8265", "HOST:PORT"), ("10.0.0.1", "HOST:PORT")],
)
def test_nobody_listens(address, told):
    with pytest.raises(NoRay, match=told), joined(address, {}):
        pass


@pytest.mark.parametrize("address", ["auto", "local"])
def test_what_ray_looks_up_itself(address):
    knock.knock(address)
