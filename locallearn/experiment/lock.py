"""One run directory, one process: a lock that says who holds it and shows that it still does."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from locallearn.experiment.files import StoreError, unwritable

BEAT_SECONDS = 5.0
SILENT_SECONDS = 60.0
"""A holder on another host whose file has not been touched for so long is gone."""
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""What file systems say that know no hard links."""


class Held(StoreError):
    """Another process runs it."""


class Lock:
    """The lock of a run directory, held by this process from `with` to its end; Held if another process has it."""

    def __init__(self, directory: Path):
        self.directory, self.path = directory, directory / "lock"
        self._released, self._lost = threading.Event(), threading.Event()

    def __enter__(self) -> Self:
        with _guarded(self.directory):
            found = self._text()  # before it is known whether its holder lives: what comes later is another's
            holder = holder_of(self.directory)
            if holder is not None:
                where = f"process {holder['pid']} on {holder['host']}"
                raise Held(f"{self.directory}: {where} is running it; wait for it or stop it first")
            process = {"pid": os.getpid(), "begun": _begun(os.getpid())}
            self._mine = json.dumps({"host": socket.gethostname(), "space": _space(), **process, "turn": os.urandom(8).hex()})
            self._take(found)
        self._beat = threading.Thread(target=self._beats, daemon=True)
        self._beat.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._released.set()
        self._beat.join()
        with _guarded(self.directory):
            if self._is_mine():
                self.path.unlink(missing_ok=True)

    def _take(self, dead: str | None) -> None:
        """Where several hosts look at once whoever links first has it. Held for the others."""
        beside = self.path.with_name(f".lock.{os.getpid()}-{os.urandom(8).hex()}")
        taken = Held(f"{self.directory}: another process has just begun to run it")
        try:
            beside.write_text(self._mine)  # nothing of it need outlast a loss of power: no holder does
            if dead is not None:
                self._remove(beside, dead)
            self._link(beside)
        except (FileExistsError, FileNotFoundError):  # the holder also sweeps up what others have put beside its lock
            raise taken from None
        except OSError as error:
            raise unwritable(self.path, error) from error
        finally:
            beside.unlink(missing_ok=True)

    def _link(self, beside: Path) -> None:
        """FileExistsError where there is a lock."""
        try:
            os.link(beside, self.path)
        except OSError as error:
            if error.errno in NO_LINKS:
                os.replace(beside, self.path)
            elif not isinstance(error, FileExistsError) or self._text() != self._mine:  # a file server may do it, and say so only later
                raise

    def _remove(self, beside: Path, dead: str) -> None:
        """The lock of a holder that is gone, by one host at a time: none may take a living one's, which was linked meanwhile.

        How long the holder has been silent is asked of the file system once more, whose clock writes both times: this host's may be ahead.
        """
        removing = self.path.with_name(".lock.old")
        with contextlib.suppress(FileNotFoundError):
            if time.time() - removing.stat().st_mtime > SILENT_SECONDS:
                removing.unlink()  # of a host that was cut off just here
        try:
            os.link(beside, removing)
        except OSError as error:
            if error.errno in NO_LINKS:
                return
            raise
        try:
            if self._text() == dead:  # none but this host removes it now
                holder = _read(dead)
                if holder and _elsewhere(holder) and removing.stat().st_mtime - self.path.stat().st_mtime < SILENT_SECONDS:
                    raise FileExistsError  # it lives
                self.path.unlink(missing_ok=True)
        finally:
            removing.unlink(missing_ok=True)

    def _text(self) -> str | None:
        """What the file holds; None if there is none."""
        try:
            return self.path.read_text()
        except FileNotFoundError:
            return None

    def check(self) -> None:
        """Held if another process has taken the lock in the meantime."""
        if self._lost.is_set():
            raise Held(f"{self.directory}: another process took it over, since this one gave no sign of life for {SILENT_SECONDS:.0f} s")

    def _beats(self) -> None:
        while not self._released.wait(BEAT_SECONDS):
            if not self._is_mine():
                self._lost.set()
                return
            with contextlib.suppress(OSError):
                os.utime(self.path)

    def _is_mine(self) -> bool:
        """Whether the file still says so; what cannot be read now may be read later."""
        try:
            return self.path.read_text() == self._mine
        except FileNotFoundError:
            return False
        except OSError:
            return True


def holder_of(directory: Path) -> dict[str, Any] | None:
    """Host and pid of the process that holds the directory's lock, None if there is none or it is gone."""
    path = directory / "lock"
    try:
        holder = _read(path.read_text())
        silent = time.time() - path.stat().st_mtime
    except OSError:
        return None
    if holder and _elsewhere(holder):
        return holder if silent < SILENT_SECONDS else None
    return holder if holder and _alive(holder["pid"], holder["begun"]) else None


def _read(text: str) -> dict[str, Any] | None:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _space() -> str:
    """What tells apart machines, or containers, of one name, whose processes have numbers of their own; empty where the system does not."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _elsewhere(holder: dict[str, Any]) -> bool:
    """Whether its process cannot be looked up here."""
    return (holder["host"], holder.get("space")) != (socket.gethostname(), _space())


def _alive(pid: int, begun: str) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return _begun(pid) == begun


def _begun(pid: int) -> str:
    """When the process began, as the system counts; empty where it does not say. Tells a process from a later one of the same number."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]


@contextlib.contextmanager
def _guarded(directory: Path) -> Iterator[None]:
    """No two processes of this host look at a lock and take it at the same moment; of different hosts see `Lock._take`."""
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        yield
        return
    try:
        handle = os.open(directory, os.O_RDONLY)
    except OSError as error:
        raise unwritable(directory, error) from error
    try:
        with contextlib.suppress(OSError):  # a file system of several hosts may know none for folders; there links decide
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
