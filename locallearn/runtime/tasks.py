"""A run as one task of Ray: it trains on whatever node has room, and tells its events, which are kept where it was begun."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ray
from ray import exceptions

from locallearn.cluster import PLAIN, Cluster
from locallearn.errors import ShardLost
from locallearn.runtime.placement import THREADS, Unplaced, unplaced
from locallearn.words import first_line

POLL_SECONDS = 0.2
RETURNS = 3
"""How often a run goes back to the same snapshot before it gives up: what dies again and again has a reason."""


@ray.remote(num_returns="streaming", max_retries=0)
def _training(work: list[Any], keep_seconds: float, environment: Mapping[str, str]) -> Iterator[Any]:
    """In the task. work: a reference to how the session is made, and to a snapshot."""
    os.environ.update(environment)
    make_session, resume = ray.get(work[0])
    import jax

    from locallearn.runtime.training import Placed, train

    yield Placed(socket.gethostname(), tuple(sorted({device.device_kind for device in jax.devices()})))
    yield from train(make_session(), resume, keep_seconds)


def train_as_task(
    make_session: Callable[[], Any],
    *,
    address: str,
    resume: Any = None,
    keep_seconds: float = 5.0,
    name: str = "run",
    cluster: Cluster = PLAIN,
) -> Iterator[Any]:
    """The events of `training.train`, from one task of the Ray at an address; where nothing is new, now and then the last Progress.

    make_session: called in the task, so that data is read where it is used. cluster: what the task reserves, as a run of one shard.
    A task whose process or node is lost begins again, from the last snapshot. Raises ShardLost where that does not help, Unplaced where
    no node has room, and what the training itself raised.
    """
    from locallearn.runtime.joining import joined

    with joined(address, {}):
        yield from _Errand(make_session, keep_seconds, name, cluster).events(resume)


class _Errand:
    """One run, whatever becomes of its tasks."""

    def __init__(self, make_session: Callable[[], Any], keep_seconds: float, name: str, cluster: Cluster):
        self._make_session, self._keep_seconds, self._name, self._cluster = make_session, keep_seconds, name, cluster

    def events(self, resume: Any) -> Iterator[Any]:
        """All events, each evaluation once."""
        from locallearn.runtime.training import Evaluated, Progress, Recovered, RolledBack, Snapshot

        kept, told, failures = resume, -1, 0
        reached, lost = (resume.step if resume else 0, time.monotonic()), None
        while True:
            try:
                for event in self._life(kept):
                    if isinstance(event, Evaluated):
                        if event.step <= told:
                            continue
                        told = event.step
                    elif isinstance(event, Snapshot):
                        kept, failures = event, 0
                    elif isinstance(event, Progress) and event.step > reached[0]:
                        reached = event.step, time.monotonic()
                    if lost and isinstance(event, Progress) and event.loss is not None and event.step >= lost[0]:  # after a step, that is
                        yield Recovered(event.step, time.monotonic() - lost[1])
                        lost = None
                    yield event
                return
            except exceptions.RayError as error:
                failures += 1
                lost = lost or reached
                reason = f"its task died at step {lost[0]}: {first_line(error)[:200]}"
                if failures > RETURNS:
                    raise ShardLost(
                        f"{reason}\nGiven up after {RETURNS} returns to the same snapshot; the same command tries again."
                    ) from error
            yield RolledBack(kept.step if kept else 0, lost[0], reason)

    def _life(self, resume: Any) -> Iterator[Any]:
        """The events of one task. RayError where it is lost."""
        from locallearn.runtime.cluster import passed_on
        from locallearn.runtime.training import Progress

        cluster, begun, placed = self._cluster, time.monotonic(), False
        last = Progress(resume.step if resume else 0, None)
        work = [ray.put((self._make_session, resume))]
        stream = _training.options(**self._options()).remote(work, self._keep_seconds, passed_on())
        try:
            while True:
                ready, _ = ray.wait([stream], timeout=POLL_SECONDS)
                if not ready:
                    if not placed and time.monotonic() - begun > cluster.timeout:
                        raise Unplaced(unplaced(cluster, 1, cluster.timeout, "the run"))
                    yield last
                    continue
                placed, event = True, _heard(stream)
                if event is None:
                    return
                last = event if isinstance(event, Progress) else last
                yield event
        finally:
            ray.cancel(stream, force=True)

    def _options(self) -> dict[str, Any]:
        amounts = dict(self._cluster.bundle(0))
        return {
            "name": f"locallearn:{self._name}",
            "num_cpus": amounts.pop("CPU", 0),
            "num_gpus": amounts.pop("GPU", 0),
            "resources": amounts,
            # Of the process, and so not set in it: one that another run left counted its threads then.
            "runtime_env": {"env_vars": {THREADS: str(self._cluster.computing)}},
            "scheduling_strategy": "DEFAULT" if self._cluster.spread == "pack" else "SPREAD",
        }


def _heard(stream: Any) -> Any:
    """The next event; None at the end. What the training raised is raised here, too."""
    try:
        return ray.get(next(stream))
    except StopIteration:
        return None
    except exceptions.RayTaskError as error:
        cause = error.cause if isinstance(error.cause, Exception) else error
        cause.add_note(str(error))
        raise cause from None
