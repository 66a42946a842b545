"""Runs on Ray: start one actor for each shard, watch them, collect what they report. No activation passes through here."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import time
import uuid
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import ray
from ray import exceptions

from locallearn.errors import LocallearnError, NoRay, ShardLost
from locallearn.networks import Network
from locallearn.runtime.actors import ShardActor
from locallearn.runtime.setup import Setup
from locallearn.runtime.training import Compiled, Evaluated, Event, Finished, Progress, Snapshot
from locallearn.traffic import Traffic

POLL_SECONDS = 0.2
PLACE_SECONDS = 60.0

_ENVIRONMENT = {"RAY_worker_niceness": "0", "RAY_max_direct_call_object_size": "8000000", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
"""Workers at normal priority; frames up to 8 MB travel inside the call; accelerators stay visible to actors that reserve none."""


def train_on_ray(
    make_setup: Callable[[], Setup],
    *,
    resume: Snapshot | None = None,
    address: str | None = None,
    keep_seconds: float = 5.0,
    transport: str = "socket",
    network: Network | None = None,
    name: str = "run",
) -> Iterator[Event]:
    """The events of `training.train`, from actors. make_setup is called in every actor, so that data is read where it is used.

    address: of a running Ray; without it RAY_ADDRESS, and without that a private Ray on this machine, which goes when the run ends.
    transport: `socket`, or `ray` where actors cannot reach each other's ports: frames are then calls of Ray, several times as slow.
    network: to emulate between the actors.
    Raises ShardLost when an actor dies, LocallearnError when one fails or cannot be placed.
    """
    shards = make_setup().stages[0].wiring.shards
    with Crew(shards, address=address, transport=transport, name=name) as crew:
        yield from crew.train(make_setup, resume, keep_seconds, network)


def _connect(address: str | None, shards: int) -> bool:
    """Join or start Ray; whether it is ours alone."""
    if ray.is_initialized():
        return False
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    address = address or os.environ.get("RAY_ADDRESS")
    if address:
        try:
            _knock(address)
            ray.init(address=address, **quiet)
        except Exception as error:
            raise NoRay(f"no Ray answers at `{address}`: {str(error).strip().splitlines()[0]}") from error
        return False
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    with _no_fork_warning():
        ray.init(address="local", include_dashboard=False, num_cpus=max(shards, os.cpu_count() or 1), **quiet)
    return True


def _knock(address: str) -> None:
    """Raise OSError at once where nobody listens; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


@contextlib.contextmanager
def _no_fork_warning() -> Iterator[None]:
    """JAX warns of any fork, with reason; Ray's are followed by an exec at once, which is safe."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
        yield


class Crew:
    """One actor for each shard, for one run or for several, one after the other. A context manager: leaving it ends the actors.

    processes: their process ids. peak_memory: bytes, for each actor.
    """

    def __init__(self, shards: int, *, address: str | None = None, transport: str = "socket", name: str = "run"):
        self.shards, self.address, self.transport, self.name = shards, address, transport, name
        self.actors: list[Any] = []
        self._last: list[Any] = [None] * shards
        self.processes: list[int] = []
        self.peak_memory = [0] * shards
        self._private = False
        self._runs = 0

    def __enter__(self) -> Crew:
        self._private = _connect(self.address, self.shards)
        try:
            self._hire()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for actor in self.actors:
            with contextlib.suppress(Exception):
                ray.kill(actor)
        self.actors = []
        if self._private:
            with _no_fork_warning():
                ray.shutdown()

    def train(
        self, make_setup: Callable[[], Setup], resume: Snapshot | None = None, keep_seconds: float = 5.0, network: Network | None = None
    ) -> Iterator[Event]:
        """The events of one run."""
        self._queues: list[deque[Event]] = [deque() for _ in self.actors]
        self._last: list[Any] = [None] * self.shards
        self._runs += 1
        places = self._prepare_links()
        work = ray.put(make_setup)
        self._all([a.start.remote(places, work, _own(resume, k), keep_seconds, network) for k, a in enumerate(self.actors)])
        yield from self._events()

    def _prepare_links(self) -> list[Any]:
        """Every actor is ready to receive; where each listens, with a secret that is this run's alone."""
        if self.transport == "ray":
            self._all([actor.receive.remote(self._runs, self.actors) for actor in self.actors])
            return []
        secret, host = secrets.token_bytes(32), "127.0.0.1" if self._private else None
        return self._all([actor.listen.remote(self._runs, host, secret) for actor in self.actors])

    def _all(self, references: list[Any]) -> list[Any]:
        """What every actor answers, in order of the shards."""
        answers = []
        for shard, reference in enumerate(references):
            try:
                answers.append(ray.get(reference))
            except exceptions.RayActorError as error:
                raise self._lost(shard, error) from error
        return answers

    def _hire(self) -> None:
        """One actor for each shard, each on a core of its own where they would else fight for the cores of this machine."""
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        pinned = bool(self._private and cores and self.shards >= len(cores))
        for k in range(self.shards):
            options = {"num_cpus": 1, "max_concurrency": 32, "name": f"locallearn:{self.name}:shard-{k}:{uuid.uuid4().hex[:8]}"}
            self.actors.append(ShardActor.options(**options).remote(k, cores[k % len(cores)] if pinned else None))  # type: ignore[attr-defined]
        waiting = [actor.hired.remote() for actor in self.actors]
        placed, unplaced = ray.wait(waiting, num_returns=len(waiting), timeout=PLACE_SECONDS)
        if unplaced:
            free = ray.available_resources().get("CPU", 0)
            raise LocallearnError(
                f"only {len(placed)} of {self.shards} shards found a place within {PLACE_SECONDS:.0f} s: each needs 1 CPU and "
                f"{free:g} are free; take fewer shards or a larger Ray"
            )
        self.processes = self._all(waiting)

    def _events(self) -> Iterator[Event]:
        """Everything the shards report together, until all have finished."""
        asked: dict[Any, int] = {actor.status.remote(): k for k, actor in enumerate(self.actors)}
        while asked:
            ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=POLL_SECONDS)
            for reference in ready:
                shard = asked.pop(reference)
                yield from self._heard(shard, reference)
            for event in self._merged():
                yield event
                if isinstance(event, Finished):
                    return
            time.sleep(POLL_SECONDS if ready else 0)
            asked.update({self.actors[k].status.remote(): k for k in range(len(self.actors)) if k not in asked.values()})

    def _heard(self, shard: int, reference: Any) -> Iterator[Event]:
        try:
            status: Any = ray.get(reference)
        except exceptions.RayError as error:
            raise self._lost(shard, error) from error
        self._last[shard], self.peak_memory[shard] = status, status.peak_memory
        if status.failure:
            self._check_others(shard, status.lost)
            line, trace = status.failure
            failure = LocallearnError(f"shard {shard} failed at step {status.step}: {line}")
            failure.add_note(trace)
            raise failure
        for event in status.events:
            if not isinstance(event, Progress):
                self._queues[shard].append(event)
            elif event.loss is not None:
                yield event

    def _check_others(self, shard: int, lost: int | None) -> None:
        """A shard that fails because its neighbour died is not the cause; Ray may learn of a death later than the neighbour."""
        for k, actor in enumerate(self.actors):
            if k != shard:
                try:
                    ray.get(actor.status.remote(), timeout=10.0 if k == lost else 1.0)
                except exceptions.GetTimeoutError:
                    continue
                except exceptions.RayError as error:
                    raise self._lost(k, error) from error

    def _lost(self, shard: int, error: Exception) -> ShardLost:
        """Which shard, at which step, and who waited for what from it."""
        time.sleep(POLL_SECONDS)
        for k, actor in enumerate(self.actors):
            with contextlib.suppress(Exception):
                self._last[k] = ray.get(actor.status.remote(), timeout=1.0) if k != shard else self._last[k]
        known = [status for status in self._last if status is not None]
        waits = [(s.shard, *s.waiting) for s in known if s.waiting]
        on_it = [w for w in waits if w[3] == shard] or waits
        step = max([w[1] for w in on_it if w[3] == shard] + [s.step for s in known if s.shard == shard], default=0)
        waited = "; ".join(f"shard {k} was waiting for `{message}` of step {at} from shard {src}" for k, at, message, src in on_it)
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return ShardLost(
            f"shard {shard} died at step {step}" + (f" ({waited})" if waited else "") + f": {reason[:200]}\n"
            "The same command resumes from the last snapshot."
        )

    def _merged(self) -> Iterator[Event]:
        """Events that every shard has reported, each as one."""
        while all(self._queues):
            yield _merge([queue.popleft() for queue in self._queues])


def _own(resume: Snapshot | None, shard: int) -> Snapshot | None:
    """One shard's part of a snapshot; the lowest keeps the count of what was sent before."""
    if resume is None:
        return None
    traffic = resume.traffic if shard == 0 else Traffic()
    return resume._replace(shards=[resume.shards[shard]], traffic=traffic)


def _merge(events: list[Any]) -> Event:
    """The same event of every shard: the top's findings, everyone's traffic and arrays."""
    top = events[-1]
    if isinstance(top, Compiled):
        return top._replace(seconds=max(event.seconds for event in events))
    traffic = sum((event.traffic for event in events), start=Traffic())
    if isinstance(top, Evaluated):
        return top._replace(traffic=traffic)
    assert isinstance(top, Snapshot | Finished)
    return top._replace(traffic=traffic, shards=[shard for event in events for shard in event.shards])
