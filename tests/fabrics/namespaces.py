"""Two machines on one: network namespaces joined by a pair of interfaces whose rate is limited, with a node of Ray in each.

    python -m tests.fabrics.namespaces            as root: what crosses for messages of each size, as a table

Interfaces and addresses are this module's own and go with it. Offloading is limited to real packets, so that what an interface counts is
what a wire would carry: without its preamble, checksum and gap, with Ethernet's header of 14 bytes.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

HERE, THERE = ("llhere", "10.77.91.1"), ("llthere", "10.77.91.2")
"""Namespace, which is also its interface, and address."""
PORT = 6391
ADDRESS = f"{HERE[1]}:{PORT}"
ROOT = Path(__file__).parents[2]
BINARIES = Path(sys.executable).parent
RAY = str(BINARIES / "ray") if (BINARIES / "ray").exists() else shutil.which("ray")
ENVIRONMENT = {
    "PATH": f"{BINARIES}{os.pathsep}{os.environ.get('PATH', '')}",
    "PYTHONPATH": str(ROOT),
    "JAX_PLATFORMS": "cpu",
    "RAY_AUTH_MODE": "disabled",
    "RAY_worker_niceness": "0",
    "RAY_max_direct_call_object_size": "8000000",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "REPORTER_UPDATE_INTERVAL_MS": "600000",
    "RAY_DISABLE_IMPORT_WARNING": "1",
}
SIZES = (32, 256, 1024, 4096, 32768)
"""Bytes of payload of a message."""


def can() -> bool:
    """Whether this process may make namespaces, and the programs that it takes are there."""
    if os.geteuid() or not all(map(shutil.which, ("ip", "tc"))) or RAY is None:
        return False
    made = subprocess.run(["ip", "netns", "add", "lltrial"], capture_output=True, check=False)
    subprocess.run(["ip", "netns", "del", "lltrial"], capture_output=True, check=False)
    return made.returncode == 0


def within(name: str, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command in a namespace; what it prints. CalledProcessError if it fails."""
    command = ["ip", "netns", "exec", name, *words]
    return subprocess.run(command, env={**os.environ, **ENVIRONMENT}, text=True, capture_output=True, check=True, cwd=ROOT, **options)


def ip(*words: str) -> None:
    """Of this machine."""
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Both namespaces and the cable between them."""
    try:
        for name, _ in (HERE, THERE):
            ip("netns", "add", name)
        ip("link", "add", HERE[0], "netns", HERE[0], "type", "veth", "peer", "name", THERE[0], "netns", THERE[0])
        for name, address in (HERE, THERE):
            within(name, "ip", "link", "set", "lo", "up")
            within(name, "ip", "link", "set", name, "gso_max_size", "1500", "gso_max_segs", "1")
            within(name, "ip", "address", "add", f"{address}/30", "dev", name)
            within(name, "ip", "link", "set", name, "up")
        yield
    finally:
        for name, _ in (HERE, THERE):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def limit(rate: str | None) -> None:
    """The same rate both ways, in words of tc (`1mbit`), or none."""
    for name, _ in (HERE, THERE):
        if rate is None:
            subprocess.run(["ip", "netns", "exec", name, "tc", "qdisc", "del", "dev", name, "root"], check=False, capture_output=True)
        else:
            within(name, *f"tc qdisc replace dev {name} root tbf rate {rate} burst 4kb latency 2s".split())


@contextlib.contextmanager
def nodes() -> Iterator[None]:
    """A node of Ray with one processor in each namespace."""
    running = []
    with tempfile.TemporaryDirectory(prefix="ll", dir="/tmp") as folder:
        common = ["--num-cpus=1", "--block", "--disable-usage-stats", "--object-store-memory=100000000"]
        head = ["--head", f"--port={PORT}", "--include-dashboard=false", f"--temp-dir={folder}/ray"]
        try:
            for (name, address), words in ((HERE, head), (THERE, [f"--address={ADDRESS}"])):
                command = ["ip", "netns", "exec", name, str(RAY), "start", f"--node-ip-address={address}", *common, *words]
                with Path(folder, name).open("w") as log:
                    running.append(subprocess.Popen(command, env={**os.environ, **ENVIRONMENT}, stdout=log, stderr=log, cwd=folder))
                _wait_for(name, len(running), folder)
            yield
        finally:
            for process in reversed(running):
                process.terminate()
            for process in running:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(30)


def _wait_for(name: str, count: int, folder: str) -> None:
    """Until so many nodes are there."""
    ask = f"import ray; ray.init({ADDRESS!r}, logging_level=40); print(sum(n['Alive'] for n in ray.nodes()))"
    for _ in range(30):
        with contextlib.suppress(subprocess.CalledProcessError):
            if int(within(HERE[0], sys.executable, "-c", ask, timeout=60).stdout.split()[-1]) == count:
                return
        time.sleep(1)
    raise RuntimeError(f"{name} did not come up: {Path(folder, name).read_text()[-2000:]}")


def crossed() -> tuple[int, int]:
    """Bytes that the interface here has sent and received so far. In its own namespace."""
    folder = Path("/sys/class/net", HERE[0], "statistics")
    if folder.exists():
        return int((folder / "tx_bytes").read_text()), int((folder / "rx_bytes").read_text())
    (found,) = json.loads(within(HERE[0], "ip", "-s", "-j", "link", "show", HERE[0]).stdout)
    return found["stats64"]["tx"]["bytes"], found["stats64"]["rx"]["bytes"]


def frames(batch: int, steps: int, codec: str = "exact") -> Any:
    """Backpropagation through eight units in each of two shards: a message of 32 bytes for each example each way in every step."""
    from locallearn.codec import build
    from locallearn.config.catalog import default_catalog
    from locallearn.config.codecs import parse_codec
    from locallearn.config.schema import Reader
    from locallearn.runtime.wiring import choose_codecs
    from tests.benchmarks.bench_network import quiet
    from tests.benchmarks.common import random_setup

    made = quiet(random_setup("backprop", (8, 8, 3), examples=max(1000, batch), batch=batch, steps=steps, shards=2), steps)
    (stage,) = made.stages
    chosen = build(parse_codec(Reader(default_catalog()), codec, ()))
    wiring = stage.wiring._replace(codecs=choose_codecs(stage.rule.messages, {}, chosen))
    return replace(made, stages=(replace(stage, wiring=wiring),))


def table() -> list[dict[str, float]]:
    """What a message of each size costs, here to there and back. In the namespace here.

    Runs of many and of few steps differ in nothing but their frames and their time; what Ray says meanwhile is measured in a run of as
    long a time that sends no frames.
    """
    from locallearn.runtime.cluster import Crew

    def cost(crew: Any, batch: int, steps: int, codec: str = "exact") -> tuple[float, tuple[int, int]]:
        before, begun = crossed(), time.monotonic()
        for _ in crew.train(lambda: frames(batch, steps, codec), keep_seconds=math.inf):
            pass
        after = crossed()
        return time.monotonic() - begun, (after[0] - before[0], after[1] - before[1])

    rows = []
    with Crew(2, address=ADDRESS) as crew:
        cost(crew, 8, 10)
        (short, few), (long, many) = cost(crew, 8, 10, "every(1000000)"), cost(crew, 8, 8000, "every(1000000)")
        chatter = [(b - a) / (long - short) for a, b in zip(few, many, strict=True)]
        for size in SIZES:
            batch, steps = size // 32, max(400, min(3000, 8_000_000 // size))
            (short, few), (long, many) = cost(crew, batch, 10), cost(crew, batch, steps + 10)
            sent = [(b - a - rate * (long - short)) / steps for a, b, rate in zip(few, many, chatter, strict=True)]
            rows.append(
                {
                    "payload": size,
                    "up": sent[0],
                    "down": sent[1],
                    "seconds": long - short,
                    "chatter_up": chatter[0],
                    "chatter_down": chatter[1],
                }
            )
    return rows


def main() -> None:
    """The table, from inside the namespace or around it."""
    if "--inside" in sys.argv:
        print("\n" + json.dumps(table()))
        return
    with joined(), nodes():
        print(within(HERE[0], sys.executable, "-m", "tests.fabrics.namespaces", "--inside", timeout=600).stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
