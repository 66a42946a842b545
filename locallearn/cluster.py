"""What a run asks of a cluster: the section `cluster`. Nothing of it changes a result, but the last bits with the number of threads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from locallearn.fields import Count, NonNegative, Positive
from locallearn.markers import Seconds
from locallearn.words import plural

_BY_SHARD = ("cpus", "gpus", "resources", "threads")


@dataclass(frozen=True)
class Cluster:
    """What a run asks of a cluster; it is no part of the run's identity.

    transport: of frames between shards, `socket`, or `ray` for calls of Ray where shards cannot reach each other's ports.
    spread: `spread` puts shards on different nodes as far as possible, `strict` takes nothing else, `pack` wants few nodes. cpus: that each
    shard reserves, by default one. gpus, resources: that each reserves besides, the latter by the names that the nodes were started with.
    threads: that each computes on, by default as many as it reserves CPUs, and at least one. Each of these is one value for all shards or a
    list with one for each. timeout: how long to wait for a place. ports: the first and the last that shards may listen at, on their node's
    own address; by default any that is free.
    """

    spread: Literal["spread", "strict", "pack"] = "spread"
    cpus: NonNegative | tuple[NonNegative, ...] | None = None
    gpus: NonNegative | tuple[NonNegative, ...] = 0
    resources: dict[str, Positive] | tuple[dict[str, Positive], ...] = field(default_factory=dict)
    timeout: Seconds = 60.0
    transport: Literal["socket", "ray"] = "socket"
    ports: tuple[Count, Count] | None = None
    threads: Count | tuple[Count, ...] | None = None

    def problems(self) -> Iterable[tuple[str, str]]:
        """Resources that have a key of their own."""
        named = self.resources if isinstance(self.resources, tuple) else (self.resources,)
        if {"CPU", "GPU"} & {name for amounts in named for name in amounts}:
            yield "resources", "CPUs and GPUs have the keys `cpus` and `gpus`"
        if self.ports and not 1024 <= self.ports[0] <= self.ports[1] <= 65535:
            yield "ports", f"{list(self.ports)} is no range of ports: the first and the last, from 1024 to 65535"

    def misfits(self, shards: int) -> Iterable[tuple[str, str]]:
        """(key, what is wrong) for a run of so many shards."""
        lists = [name for name in _BY_SHARD if isinstance(getattr(self, name), tuple)]
        wrong = [name for name in lists if len(getattr(self, name)) != shards]
        for name in wrong:
            yield name, f"has {plural(len(getattr(self, name)), 'entry', 'entries')} for {plural(shards, 'shard')}"
        if not wrong:
            idle = [k for k in range(shards) if not any(self.bundle(k).values())]
            if idle:
                yield "cpus", f"shard {idle[0]} would reserve nothing at all, and so could be anywhere; give it a CPU, or part of one"

    def bundle(self, shard: int) -> dict[str, float]:
        """What one shard reserves."""
        cpus = 1 if self.cpus is None else _own(self.cpus, shard)
        amounts = {"CPU": cpus, "GPU": _own(self.gpus, shard), **_own(self.resources, shard)}
        return {name: amount for name, amount in amounts.items() if amount}

    def copied(self, replicas: int) -> Cluster:
        """What so many replicas of the shards ask for, each the same; those of the first come first."""
        lists = {name: getattr(self, name) * replicas for name in _BY_SHARD if isinstance(getattr(self, name), tuple)}
        return replace(self, **lists)

    @property
    def computing(self) -> int | tuple[int, ...]:
        """How many threads each shard computes on, wherever it is: one number for all, or one for each."""
        said = (1 if self.cpus is None else self.cpus) if self.threads is None else self.threads
        return tuple(max(1, int(one)) for one in said) if isinstance(said, tuple) else max(1, int(said))

    @property
    def computing_at_most(self) -> int:
        """The threads of the shard that has most."""
        return max(self.computing) if isinstance(self.computing, tuple) else self.computing

    def threads_of(self, shard: int) -> int:
        """How many threads one shard computes on."""
        return _own(self.computing, shard)

    def total(self, shards: int) -> dict[str, float]:
        """What all shards reserve together."""
        return dict(sum((Counter(self.bundle(k)) for k in range(shards)), Counter()))

    def of_task(self, shards: int) -> Cluster:
        """What a run reserves that is one task: as much as the shard that wants most, which computes on as many threads."""
        bundles = [self.bundle(k) for k in range(shards)]
        most = {name: max(bundle.get(name, 0) for bundle in bundles) for bundle in bundles for name in bundle}
        own = {name: amount for name, amount in most.items() if name not in ("CPU", "GPU")}
        return replace(self, cpus=most.get("CPU", 0), gpus=most.get("GPU", 0), resources=own, threads=self.computing_at_most)


def _own(value: Any, shard: int) -> Any:
    return value[shard] if isinstance(value, tuple) else value


PLAIN = Cluster()
"""One CPU for each shard, wherever there is one, on different nodes as far as possible."""
