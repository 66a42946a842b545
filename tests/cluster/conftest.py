"""A Ray cluster of processes on this machine, with ports, a folder and a token of its own; it ends with the processes that it started."""

import os

os.environ["RAY_raylet_start_wait_time_s"] = "120"  # noqa: SIM112 (a busy machine starts a node slowly)

import contextlib
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

PATIENCE = 180
RAY = [sys.executable, "-m", "ray.scripts.scripts"]


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class Processes:
    """A head and its workers. url: of its dashboard. environment: of whoever wants to come in. nodes: the processes, head first."""

    def __init__(self, folder):
        self.folder = folder
        token = folder / "token"
        token.write_text(secrets.token_hex(32))
        token.chmod(0o600)
        kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_") or k == "RAY_raylet_start_wait_time_s"}
        self.environment = {**kept, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "HOME": str(folder / "home")}
        self.environment |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "RAY_worker_niceness": "0"}
        (folder / "home").mkdir()
        self.nodes, self.temporary = [], []
        self.gcs, dashboard, self.metrics = free_port(), free_port(), free_port()
        self.url, self.address = f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{self.gcs}"
        self._head = [f"--port={self.gcs}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1", "--include-dashboard=true"]
        self._head += [f"--dashboard-agent-listen-port={free_port()}", f"--metrics-export-port={self.metrics}"]

    def start(self, workers):
        self._node("--head", *self._head)
        self._wait(self._answers)
        for _ in range(workers):
            self.add()
        self._wait(lambda: self._count() == workers + 1)

    def add(self, *options):
        """One more worker node."""
        self._node(f"--address={self.address}", f"--dashboard-agent-listen-port={free_port()}", *options)

    def _node(self, *options):
        # Nodes that share a folder take each other's sockets, and remove each other's files. The path is short, for sockets lie below it.
        self.temporary.append(tempfile.mkdtemp(prefix="ll"))
        own = ["--num-cpus=1", "--disable-usage-stats", "--object-store-memory=80000000", f"--temp-dir={self.temporary[-1]}"]
        words = [*RAY, "start", "--block", *own, *options]
        with (self.folder / f"node-{len(self.nodes)}.log").open("wb") as log:
            self.nodes.append(subprocess.Popen(words, env=self.environment, stdout=log, stderr=log, start_new_session=True))

    def _count(self):
        words = [sys.executable, "-c", "import ray; ray.init(address='auto', log_to_driver=False); print(len(ray.nodes()))"]
        own = {**self.environment, "RAY_ADDRESS": self.address}
        done = subprocess.run(words, env=own, capture_output=True, text=True, timeout=60, check=False)
        return int(done.stdout) if done.returncode == 0 else 0

    def _answers(self):
        try:
            urllib.request.urlopen(f"{self.url}/api/version", timeout=5).close()
        except urllib.error.HTTPError:
            return True  # it asks for a token
        except OSError:
            return False
        return True

    def _wait(self, ready):
        deadline = time.monotonic() + PATIENCE
        while not ready():
            if any(node.poll() is not None for node in self.nodes) or time.monotonic() > deadline:
                logs = "\n".join(path.read_text()[-2000:] for path in sorted(self.folder.glob("node-*.log")))
                raise RuntimeError(f"the cluster did not start:\n{logs}")
            time.sleep(0.3)

    def stop(self):
        """Every process of each node, by the sessions that `_node` began; none of anybody else."""
        for node in reversed(self.nodes):
            if node.poll() is None:
                node.terminate()
        for node in reversed(self.nodes):
            try:
                node.wait(20)
            except subprocess.TimeoutExpired:
                node.kill()
                node.wait()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(node.pid, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while self.left() and time.monotonic() < deadline:
            for process in self.left():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.2)
        for folder in self.temporary:
            shutil.rmtree(folder, ignore_errors=True)

    def left(self):
        """Processes whose command line or environment names this cluster's own folders."""
        marks = [folder.encode() for folder in (*self.temporary, str(self.folder / "token"))]
        found = []
        for place in Path("/proc").glob("[0-9]*"):
            if int(place.name) == os.getpid():
                continue
            with contextlib.suppress(OSError):
                told = (place / "cmdline").read_bytes() + (place / "environ").read_bytes()
                if any(mark in told for mark in marks):
                    found.append(int(place.name))
        return found


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """A head and two workers, each a node of one CPU."""
    cluster = Processes(tmp_path_factory.mktemp("cluster"))
    try:
        cluster.start(workers=2)
        yield cluster
    finally:
        cluster.stop()
    assert not cluster.left()
