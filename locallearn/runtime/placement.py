"""Where shards live on a cluster: what each reserves, on which nodes, and on how many threads it computes.

Nothing here changes a result, but for `threads`: the last bits of wide products depend on how many compute them. So their number is that of
a shard, wherever it lives, and a run keeps it from its beginning to its end.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from locallearn.cluster import Cluster
from locallearn.errors import LocallearnError
from locallearn.words import duration, plural

STRATEGIES = {"spread": "SPREAD", "strict": "STRICT_SPREAD", "pack": "PACK"}
NODES_SHOWN = 10
THREADS = "NPROC"
"""The variable in which XLA reads how many threads it is to compute on; without it, as many as there are cores."""


class Unplaced(LocallearnError):
    """The shards found no place."""


class Place:
    """The places of all shards of a run, reserved together. options(k): for the actor of shard k, wherever its place is now.

    elsewhere: shards that are to live outside of what is reserved, each on a certain node.
    """

    def __init__(self, cluster: Cluster, shards: int, patience: float):
        import ray

        self._cluster, self._shards = cluster, shards
        self.elsewhere: dict[int, str] = {}
        bundles: Any = [cluster.bundle(k) for k in range(shards)]
        self._group = ray.util.placement_group(bundles, strategy=STRATEGIES[cluster.spread])
        if not self._group.wait(patience):
            self.release()
            raise Unplaced(unplaced(cluster, shards, patience))

    def options(self, shard: int) -> dict[str, Any]:
        """Options of Ray for an actor: it runs in its own part of what is reserved, on another node if that one is lost."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

        node = self.elsewhere.get(shard)
        amounts = dict(self._cluster.bundle(shard))
        gpus = {"num_gpus": amounts.pop("GPU")} if "GPU" in amounts else {}
        return {
            "num_cpus": amounts.pop("CPU", 0),
            **gpus,
            "resources": amounts,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)
            if node
            else PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=shard),
        }

    def release(self) -> None:
        """Give everything back."""
        import ray

        ray.util.remove_placement_group(self._group)


class Node(NamedTuple):
    """A node that is alive. amounts: of its resources, in all. key: Ray's name for it."""

    name: str
    amounts: Mapping[str, float]
    key: str = ""


def nodes() -> list[Node]:
    """Of the Ray that this process has joined."""
    import ray

    return [Node(node["NodeManagerAddress"], node["Resources"], node["NodeID"]) for node in ray.nodes() if node["Alive"]]


def roomier(cluster: Cluster, seats: Mapping[int, Seat], nodes: Sequence[Node]) -> tuple[int, str] | None:
    """A shard that shares its node, and the key of a node large enough for it that no shard is on; None without such a pair."""
    taken = Counter(seat.machine for seat in seats.values())
    crowded = [k for k, seat in sorted(seats.items()) if taken[seat.machine] > 1] if cluster.spread != "pack" else []
    empty = [node for node in nodes if node.key not in taken]
    fitting = lambda k, node: all(node.amounts.get(name, 0) >= amount for name, amount in cluster.bundle(k).items())  # noqa: E731
    return next(((k, node.key) for node in empty for k in crowded if fitting(k, node)), None)


class Wanted(NamedTuple):
    """What a run reserves: a bundle for each shard, or one for a task. spread: see `Cluster`."""

    bundles: tuple[Mapping[str, float], ...]
    spread: str


def fits(wanted: Iterable[Wanted], nodes: Sequence[Node]) -> bool:
    """Whether there is room for all of these at once, if nobody else is there. Each goes where most is left, to few nodes if it packs."""
    free = [dict(node.amounts) for node in nodes]
    for one in wanted:
        taken: set[int] = set()
        for bundle in sorted(one.bundles, key=lambda bundle: -bundle.get("CPU", 0)):
            able = [n for n in range(len(free)) if all(free[n].get(name, 0) >= amount for name, amount in bundle.items())]
            able = [n for n in able if n not in taken] if one.spread == "strict" else able
            if not able:
                return False
            sign = -1 if one.spread == "pack" else 1
            best = max(able, key=lambda n: (sign * (n not in taken), sign * free[n].get("CPU", 0)))
            taken.add(best)
            free[best].update({name: free[best][name] - amount for name, amount in bundle.items()})
    return True


def unplaced(cluster: Cluster, shards: int, waited: float, who: str | None = None) -> str:
    """What was asked for, and what each node of the Ray that this process has joined has. who: found no place, if not the shards."""
    import ray

    return told(cluster, shards, waited, nodes(), ray.available_resources(), who)


def told(cluster: Cluster, shards: int, waited: float, nodes: Sequence[Node], free: Mapping[str, float], who: str | None = None) -> str:
    """The same, of nodes that are known."""
    groups: dict[str, list[int]] = defaultdict(list)
    for k in range(shards):
        groups[_words(cluster.bundle(k))].append(k)
    asked = {name for k in range(shards) for name in cluster.bundle(k)}
    lines = [f"{who or plural(shards, 'shard')} found no place within {duration(waited)}"]
    for words, members in groups.items():
        each = "each" if len(members) == shards else f"{'shard' if len(members) == 1 else 'shards'} {', '.join(map(str, members))}"
        lines.append(f"  asked for  {words if who else f'{each}: {words}'}")
    lines += [f"             {shards} different nodes (cluster.spread: strict)"] if cluster.spread == "strict" else []
    for k, node in enumerate(nodes[:NODES_SHOWN]):
        lines.append(
            f"  {'there is' if k == 0 else '':<9}  node {node.name}: {_words({name: node.amounts.get(name, 0) for name in sorted(asked)})}"
        )
    lines += [f"             and {len(nodes) - NODES_SHOWN} more nodes"] if len(nodes) > NODES_SHOWN else []
    lines.append(f"  free now   {_words({name: free.get(name, 0) for name in sorted(asked)})} on all nodes together")
    return "\n".join([*lines, "Start more nodes, or ask for less under `cluster:`, such as --set cluster.spread=spread."])


def _words(amounts: Mapping[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in amounts.items()) or "nothing"


class Seat(NamedTuple):
    """Where an actor sits. machine: its node. cores: that its process may use."""

    process: int
    machine: str
    cores: tuple[int, ...]


class Share(NamedTuple):
    """What an actor computes on. threads: of XLA. cores: to stay on, none for any."""

    threads: int
    cores: tuple[int, ...]


def seat() -> Seat:
    """Of this process."""
    import ray

    return Seat(os.getpid(), ray.get_runtime_context().get_node_id(), _cores())


def shares(seats: Sequence[Seat], cluster: Cluster) -> list[Share]:
    """For each shard: the threads that it has wherever it sits, and the cores that they stay on.

    Where the shards of a machine have threads for all of its cores, each stays on its own, which makes small networks a third faster; else
    the system moves them about, for others may be there.
    """
    found: dict[int, Share] = {}
    together: dict[str, list[int]] = defaultdict(list)
    for k, one in enumerate(seats):
        together[one.machine].append(k)
    for members in together.values():
        cores = seats[members[0]].cores
        counts = [cluster.threads_of(k) for k in members]
        first = 0
        for k, count in zip(members, counts, strict=True):
            own = tuple(cores[(first + i) % len(cores)] for i in range(count))
            found[k] = Share(count, own if count < len(cores) <= sum(counts) else ())
            first += count
    return [found[k] for k in range(len(seats))]


def sit(share: Share) -> None:
    """Keep this process to its share. To be called before JAX is imported."""
    if share.cores:
        for thread in os.listdir("/proc/self/task"):  # of this process are already some; later ones do as the thread that starts them
            os.sched_setaffinity(int(thread), share.cores)
    os.environ[THREADS] = str(share.threads)


def threads_here() -> int:
    """How many XLA computes on in this process, which counts them once, as it begins."""
    said = os.environ.get(THREADS, "")
    return int(said) if said.isdigit() else len(_cores())


def _cores() -> tuple[int, ...]:
    return tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else tuple(range(os.cpu_count() or 1))
