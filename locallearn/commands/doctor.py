"""Is this machine ready? What there is, what is missing, and what may get in the way."""

from __future__ import annotations

import importlib.metadata
import ipaddress
import os
import platform
import re
import shutil
import tempfile
import textwrap
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from locallearn.runtime.knock import knock
from locallearn.words import WIDTH, size

Finding = tuple[bool, str]


def examine(runs: Path) -> list[Finding]:
    """(whether it is well, a sentence) for each thing that is looked at."""
    looks: list[Callable[[], Finding]] = [
        _python,
        _packages,
        _devices,
        _memory,
        lambda: _writable(runs),
        _temporary,
        _ray_address,
        _other_ray,
        _dashboards,
    ]
    return [look() for look in looks]


def doctor_text(runs: Path) -> tuple[str, bool]:
    """The findings as text, and whether all is well."""
    findings = examine(runs)
    lines = [_wrapped("ok" if well else "PROBLEM", text) for well, text in findings]
    return "\n".join(lines), all(well for well, _ in findings)


def _wrapped(word: str, text: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent=f"{word:<9}", subsequent_indent=" " * 9, break_on_hyphens=False)


def _python() -> Finding:
    return True, f"Python {platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} cores"


def _packages() -> Finding:
    found, missing = [], []
    for name in ("locallearn", *_needed()):
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    return (False, f"not installed: {', '.join(missing)}; run pip install locallearn") if missing else (True, ", ".join(found))


def _needed() -> list[str]:
    """The packages that this one depends on; none are known where it was not installed."""
    try:
        wanted = importlib.metadata.requires("locallearn") or ()
    except importlib.metadata.PackageNotFoundError:
        return []
    return [re.split(r"[^\w.-]", line)[0] for line in wanted if "extra ==" not in line]


def _devices() -> Finding:
    try:
        import jax

        devices = jax.devices()
    except Exception as error:
        return False, f"JAX finds no device: {str(error).splitlines()[0]}"
    return True, f"JAX runs on {len(devices)} x {devices[0].device_kind}"


def _memory() -> Finding:
    try:
        free = next(
            int(line.split()[1]) * 1024 for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable")
        )
    except (OSError, StopIteration):
        return True, "free memory: unknown on this system"
    return free > 2**29, f"{size(free)} of memory free"


def _writable(runs: Path) -> Finding:
    place = next(folder for folder in (runs, *runs.absolute().parents) if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        return False, f"results cannot be written to {runs}: {error.strerror}; choose another folder with --runs"
    free = shutil.disk_usage(place).free
    return free > 2**28, f"results go to {runs}, {size(free)} free"


def _temporary() -> Finding:
    try:
        with tempfile.TemporaryFile():
            pass
    except OSError as error:
        return False, f"no temporary files: {error.strerror}"
    return True, f"temporary files go to {tempfile.gettempdir()}"


def _ray_address() -> Finding:
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        return True, "RAY_ADDRESS is not set: --on ray starts a Ray of its own"
    try:
        knock(address)
    except (OSError, ValueError) as error:
        return False, f"RAY_ADDRESS is {address}, where no Ray answers: {error}"
    return True, f"RAY_ADDRESS is {address}"


def _processes() -> Iterator[tuple[str, list[str]]]:
    """(number, command line) of each process of this machine."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            yield folder.name, (folder / "cmdline").read_text(errors="replace").split("\0")
        except OSError:
            continue


def _other_ray() -> Finding:
    servers = [number for number, words in _processes() if "gcs_server" in words[0]]
    if servers:
        return True, f"another Ray runs on this machine (process {', '.join(servers)}); it is left alone unless --address names it"
    return True, "no other Ray runs on this machine"


def _dashboards(processes: Iterable[tuple[str, list[str]]] | None = None) -> Finding:
    """Whoever reaches a dashboard of Ray can run any program as its user, unless it asks for a token."""
    seen = []
    for number, words in _processes() if processes is None else processes:
        if not any(word.endswith("dashboard/dashboard.py") for word in words):
            continue
        options = dict(word.removeprefix("--").split("=", 1) for word in words if word.startswith("--") and "=" in word)
        host, port = options.get("host", "127.0.0.1"), options.get("port", "8265")
        if not _loopback(host) and _lets_in(host, port):
            return False, (
                f"the dashboard of a Ray (process {number}) listens on {host}:{port}, beyond this machine, and asks for no token: whoever "
                "reaches it can run programs here. Start Ray with RAY_AUTH_MODE=token, or with --dashboard-host=127.0.0.1"
            )
        seen.append(f"{host}:{port}")
    places = ", ".join(dict.fromkeys(seen))
    return True, f"dashboards of Ray: {places}, closed to strangers" if seen else "no dashboard of Ray is open to strangers"


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _lets_in(host: str, port: str) -> bool:
    """Whether it shows its jobs to somebody without a token."""
    reached = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"http://{reached}:{port}/api/jobs/", timeout=3) as answer:
            return answer.status == 200
    except OSError:  # refused (401, 403), or nobody answers
        return False
