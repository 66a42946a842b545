"""How the training of a run is begun: in this process, in actors, or as a task elsewhere."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass

from locallearn.config.combination import Tuned
from locallearn.config.run import Config
from locallearn.experiment.how import How, Shared
from locallearn.experiment.parallel import kept
from locallearn.experiment.prepare import Making, cached_loader, prepare
from locallearn.networks import parse_network
from locallearn.runtime.framed import EagerSession
from locallearn.runtime.fused import FusedSession
from locallearn.runtime.replicated import EagerReplicas
from locallearn.runtime.session import Session
from locallearn.runtime.setup import Setup
from locallearn.runtime.training import Event, Placed, Snapshot, train


def session_for(config: Config, how: How, setup: Setup) -> Session:
    """A session that needs no other process."""
    if how.on == "eager":
        return EagerSession(setup) if setup.replicas.count == 1 else EagerReplicas(setup)
    return FusedSession(setup, _shared(config, how).programs)


def prepared(config: Config, how: How) -> Setup:
    """What the run needs in this process."""
    return prepare(config, how.load, how.tested, _shared(config, how).known, how.on == "ray")


def _shared(config: Config, how: How) -> Shared:
    """What runs of the last structure left for the next one; trials have smaller evaluations than runs that are tested."""
    key = f"{config.structure()} {how.tested}"
    if key not in how.shared and not how.elsewhere:  # programs take memory, but are then elsewhere; and runs here may be of many structures
        how.shared.clear()
    return how.shared.setdefault(key, Shared({}, {}))


@dataclass(frozen=True)
class Alone:
    """How a task makes its session: with data that it reads, and with what it has compiled for an earlier run of the same structure."""

    config: Config
    on: str
    tuned: Tuned | None

    def __call__(self) -> Session:
        """In the task."""
        how = How(self.on, load=kept(cached_loader), shared=kept(dict), tuned=self.tuned)
        return session_for(self.config, how, prepared(self.config, how))


def training(config: Config, how: How, setup: Setup, resume: Snapshot | None, stored: bool) -> Generator[Event | Placed, None, None]:
    """The events of a run's training; closing the generator ends it. stored: whether there is a place for snapshots."""
    keep_seconds = how.keep_seconds if stored or how.elsewhere else math.inf
    if not how.elsewhere:
        yield from train(session_for(config, how, setup), resume, keep_seconds, how.interrupted)
        return
    name = f"{config.label()}-{config.identity()}-seed-{config.seed}"
    shards = setup.stages[0].wiring.shards
    if how.on != "ray":
        from locallearn.runtime.tasks import train_as_task

        assert how.address is not None
        make, cluster = Alone(config, how.on, how.tuned), config.cluster.of_task(shards)
        yield from train_as_task(make, address=how.address, resume=resume, keep_seconds=keep_seconds, name=name, cluster=cluster)
        return
    from locallearn.runtime.cluster import train_on_ray

    line = how.line(config)
    yield from train_on_ray(
        Making.of(config, setup, how.tested),
        resume=resume,
        address=how.address,
        keep_seconds=keep_seconds,
        transport=how.carrier(config),
        network=parse_network(line) if line else None,
        name=name,
        cluster=config.cluster,
        data=setup.split,
    )
