"""Runs on Ray: hire, connect and replace the actors, one for each shard of each replica. No activation passes through here. Actors go by
the number of their machine (`frame.machine`)."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
import re
import secrets
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import ray
from ray import exceptions

from locallearn.cluster import PLAIN, Cluster
from locallearn.data import files
from locallearn.errors import LocallearnError, ShardLost
from locallearn.networks import Network
from locallearn.runtime.actors import ShardActor
from locallearn.runtime.joining import joined
from locallearn.runtime.placement import Place, Seat, Unplaced, nodes, roomier, shares, unplaced
from locallearn.runtime.setup import Setup
from locallearn.runtime.supervisor import Supervisor
from locallearn.runtime.training import Event, Snapshot
from locallearn.words import called

START_SECONDS = 120.0
"""For a process to start where there is a place, or for a lost place to be found again on another node."""
NODE_SECONDS = 5.0
"""Between looks whether there is a node at all, while actors wait for a place."""
STARTS = 3
"""How often all actors are hired before one that dies at once ends the run."""
ANSWER_SECONDS = 20.0
"""Who does not answer so long after a shard was lost counts as lost with it."""
CALL_SECONDS = 120.0
"""For an actor that was hired to do as it is told: who has not by then, though its process lives, is lost."""
PRIVATE_SECONDS = 5.0
"""To find places on a Ray of our own: no node will join it later."""


def train_on_ray(
    make_setup: Callable[[], Setup],
    *,
    resume: Snapshot | None = None,
    address: str | None = None,
    keep_seconds: float = 5.0,
    transport: str = "socket",
    network: Network | None = None,
    name: str = "run",
    cluster: Cluster = PLAIN,
    data: Any = None,
) -> Iterator[Event]:
    """The events of `training.train`, from actors. make_setup is called in every actor, so that data is read where it is used.

    data: for shards on other nodes that do not have the files (`lent`).
    address: of a running Ray; without it RAY_ADDRESS, and without that a private Ray on this machine, which goes when the run ends.
    transport: `socket`, or `ray` where actors cannot reach each other's ports: frames are then calls of Ray, several times as slow.
    network: to emulate between the actors. name: of the run, in Ray's dashboard. cluster: where the shards are to live.
    An actor that dies is replaced, and all go on from the last snapshot. Raises ShardLost where that does not help, LocallearnError when a
    shard fails by itself or cannot be placed.
    """
    shards, replicas = _size(make_setup)
    with Crew(shards, replicas, address=address, transport=transport, name=name, cluster=cluster) as crew:
        make_setup = make_setup if data is None or crew.private else lent(make_setup, data)
        yield from crew.train(make_setup, resume, keep_seconds, network)


def lent(make_setup: Any, data: Any) -> Any:
    """The same, for actors that get the data from this process where they cannot read it themselves; only those fetch it."""
    return dataclasses.replace(make_setup, given=functools.partial(ray.get, ray.put(data)))


def _size(make_setup: Any) -> tuple[int, int]:
    """(shards, replicas) of a run."""
    if hasattr(make_setup, "shards"):
        return make_setup.shards, make_setup.replicas
    setup = make_setup()
    return setup.stages[0].wiring.shards, setup.replicas.count


class Crew:
    """One actor for each shard of each replica, for one run or for several, one after the other. A context manager: leaving it ends them.

    count: of actors. private: whether the Ray is this process's own, so that no actor will ever be on another node than it. processes:
    their process ids. peak_memory: bytes, for each. moves: of those replaced last, who is on another node than before.
    """

    def __init__(
        self,
        shards: int,
        replicas: int = 1,
        *,
        address: str | None = None,
        transport: str = "socket",
        name: str = "run",
        cluster: Cluster = PLAIN,
    ):
        self.shards, self.replicas, self.count = shards, replicas, shards * replicas
        self.address, self.transport, self.name, self.cluster = address, transport, name, cluster.copied(replicas)
        self._place: Place | None = None
        self._seats: dict[int, Seat] = {}
        self.actors: list[Any] = []
        self.processes: list[int] = []
        self.peak_memory = [0] * self.count
        self.moves: list[str] = []
        self._hired_already: dict[int, Any] = {}
        self._awaited: dict[int, Any] = {}
        self._full: set[str] = set()
        self._ray, self.private = contextlib.ExitStack(), False
        self._numbers = 0

    def __enter__(self) -> Crew:
        self.private = self._ray.enter_context(joined(self.address, self.cluster.total(self.count)))
        try:
            self._hire()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._dismiss()
        if self._place is not None:
            with contextlib.suppress(Exception):
                self._place.release()
            self._place = None
        self._ray.close()

    def train(
        self,
        make_setup: Callable[[], Setup],
        resume: Snapshot | None = None,
        keep_seconds: float = 5.0,
        network: Network | None = None,
        alone: bool = True,
    ) -> Iterator[Event]:
        """The events of one run, which survives the loss of actors. alone: whether a lost shard is restarted alone where it can be.

        Not where there are replicas: what the others of its ring had from it since its last snapshot is in their parameters. Nor where
        steps overlap as they come: it would not say again what it said.
        """
        self._take_seats(list(self._awaited))  # hired in the midst of a run before this one
        alone = alone and self.replicas == 1 and not getattr(make_setup, "overlaps", False)
        return Supervisor(self, make_setup, resume, keep_seconds, network, alone).events()

    def next_number(self) -> int:
        """For a run, or for a life of one: none comes twice."""
        self._numbers += 1
        return self._numbers

    def start(
        self,
        work: int,
        setup: Any,
        parts: Mapping[int, Snapshot | None],
        keep_seconds: float,
        network: Network | None,
        present: Sequence[int] = (),
    ) -> int:
        """Have actors give up what they do and train, each from its part of a snapshot, connected afresh; the number of this life.

        parts: of each that takes part. present: the replicas of these, if not all are.
        """
        life = self.next_number()
        self._places = self._prepare_links(life, parts)
        again = [self.actors[k].start.remote(self._places, work, setup, part, keep_seconds, network, present) for k, part in parts.items()]
        self._all(again, parts)
        return life

    def restart(
        self, shard: int, life: int, work: int, setup: Any, part: Snapshot | None, keep_seconds: float, network: Network | None
    ) -> None:
        """Replace one actor in the midst of a life; the others tell it again what it was told since its part of a snapshot."""
        self._replace([shard])
        actor, others = self.actors[shard], [k for k in range(self.count) if k != shard]
        (self._places[shard],) = self._all([actor.listen.remote(life, self._host, self._secret, self.cluster.ports)], [shard])
        self._all([self.actors[k].moved.remote(life, shard, self._places[shard]) for k in others], others)
        self._all([actor.start.remote(self._places, work, setup, part, keep_seconds, network)], [shard])

    def missing(self, among: Sequence[int]) -> list[int]:
        """Which of these actors are gone or do not answer."""
        pings = {self.actors[k].hired.remote(): k for k in among}
        answered, _ = ray.wait(list(pings), num_returns=len(pings), timeout=ANSWER_SECONDS)
        present = {pings[reference] for reference in answered if _is_good(reference)}
        return [k for k in among if k not in present]

    def mend(self, among: Sequence[int]) -> None:
        """Replace those of these actors that are missing, on whatever nodes there are now; the others stay."""
        self._replace(self.missing(among))

    def vacate(self, actors: Sequence[int], hire: bool = True) -> None:
        """End these actors. hire: others for their places, as soon as there is room; nobody waits until they `came`."""
        for k in actors:
            with contextlib.suppress(Exception):
                ray.kill(self.actors[k])
            self._awaited.pop(k, None)
            if hire:
                self.actors[k] = self._hired_already.pop(k, None) or self._hire_in_place(k)
                self._awaited[k] = self.actors[k].hired.remote()

    def came(self, actors: Sequence[int]) -> bool:
        """Whether all of these that were hired are there, ready to begin; who died as it started is hired once more."""
        waiting = [self._awaited[k] for k in actors if k in self._awaited]
        there, _ = ray.wait(waiting, num_returns=len(waiting), timeout=0) if len(waiting) == len(actors) else ([], [])
        if len(there) < len(actors):
            return False
        try:
            self._take_seats(actors)
        except LocallearnError:
            self.vacate(self.missing(actors))
            return False
        return True

    def spread_out(self) -> int | None:
        """An actor that shares its node, for which another one is hired on a node where there is none; `restart` has that take its place.

        None if there is no such node, or it has no room.
        """
        found = None if self.private else roomier(self.cluster, self._seats, [node for node in nodes() if node.key not in self._full])
        if found is None or self._place is None:
            return None
        actor, node = found
        self._place.elsewhere[actor] = node
        hired = self._hire_one(actor)
        if ray.wait([hired.hired.remote()], timeout=ANSWER_SECONDS)[0]:
            self._hired_already[actor] = hired
            return actor
        ray.kill(hired)
        del self._place.elsewhere[actor]
        self._full.add(node)
        return None

    def called(self, actor: int) -> str:
        """What people call an actor."""
        replica, shard = divmod(actor, self.shards)
        return called(shard, replica if self.replicas > 1 else None)

    def lives(self, shard: int) -> bool | None:
        """Whether an actor answers; None if it has not yet, after a second."""
        reference = self.actors[shard].hired.remote()
        answered, _ = ray.wait([reference], timeout=1.0)
        return _is_good(reference) if answered else None

    def _replace(self, absent: list[int]) -> None:
        before = dict(self._seats)
        self.vacate(absent)
        self._take_seats(absent)
        self.moves = [self._whereabouts(k) for k in absent if self._seats[k].machine != before[k].machine]

    def _hire_in_place(self, actor: int) -> Any:
        """Where a place is reserved for it."""
        assert self._place is not None
        self._place.elsewhere.pop(actor, None)
        return self._hire_one(actor)

    def _whereabouts(self, actor: int) -> str:
        together = [self.called(k) for k, seat in self._seats.items() if k != actor and seat.machine == self._seats[actor].machine]
        return f"{self.called(actor)} {'shares a node with ' + ', '.join(together) if together else 'is on another node'} now"

    def _dismiss(self) -> None:
        for actor in self.actors:
            with contextlib.suppress(Exception):
                ray.kill(actor)
        self.actors = []

    def _prepare_links(self, life: int, members: Iterable[int]) -> list[Any]:
        """Every one of these actors is ready to receive; where each listens, with a secret that is this life's alone."""
        if self.transport == "ray":
            self._all([self.actors[k].receive.remote(life, self.actors) for k in members], members)
            return []
        self._secret, self._host = secrets.token_bytes(32), "127.0.0.1" if self.private else None
        ready = self._all([self.actors[k].listen.remote(life, self._host, self._secret, self.cluster.ports) for k in members], members)
        places = dict(zip(members, ready, strict=True))
        return [places.get(k) for k in range(self.count)]

    def _all(self, references: list[Any], shards: Iterable[int] | None = None) -> list[Any]:
        """What every actor answers, in order of the shards. ShardLost where one does not; a LocallearnError as it was raised there."""
        answers = []
        for shard, reference in zip(range(self.count) if shards is None else shards, references, strict=True):
            try:
                answers.append(ray.get(reference, timeout=CALL_SECONDS))
            except exceptions.GetTimeoutError as error:
                raise ShardLost(f"{self.called(shard)} did not answer within {CALL_SECONDS:.0f} s before it began") from error
            except exceptions.RayActorError as error:
                raise ShardLost(f"{self.called(shard)} died before it began: {_reason(error)}") from error
            except exceptions.RayTaskError as error:
                if isinstance(error.cause, LocallearnError):  # which says all that there is to say
                    raise error.cause from None
                raise
        return answers

    def _hire(self) -> None:
        """Every actor, where there is a place for it."""
        patience = min(self.cluster.timeout, PRIVATE_SECONDS if self.private else math.inf)
        self._place = Place(self.cluster, self.count, patience)
        for left in reversed(range(STARTS)):
            self.actors, self.processes = [self._hire_one(k) for k in range(self.count)], [0] * self.count
            try:
                self._take_seats(range(self.count))
                return
            except ShardLost:
                if not left:
                    raise
                self._dismiss()

    def _hire_one(self, actor: int) -> Any:
        """A name in the dashboard is clean, and free, because each actor has a namespace of its own."""
        assert self._place is not None
        replica, shard = divmod(actor, self.shards)
        own = f"replica-{replica}:shard-{shard}" if self.replicas > 1 else f"shard-{shard}"
        name, namespace = f"locallearn:{self.name}:{own}", f"locallearn-{uuid.uuid4().hex}"
        options = {**self._place.options(actor), "max_concurrency": 32, "name": name, "namespace": namespace}
        return ShardActor.options(**options).remote(shard, replica if self.replicas > 1 else None, actor)  # type: ignore[attr-defined]

    def _take_seats(self, hired: Sequence[int]) -> None:
        """Wait for actors that were just hired; each is kept to the cores that it may compute on. Unplaced if they find no place."""
        if not hired:
            return
        waiting = [self.actors[k].seat.remote() for k in hired]
        patience = max(self.cluster.timeout, START_SECONDS)
        deadline = time.monotonic() + patience
        while len(ray.wait(waiting, num_returns=len(waiting), timeout=NODE_SECONDS)[0]) < len(waiting):
            if self.private and not nodes():
                raise Unplaced("the Ray that this command started has lost its node, and there will be no other")
            if time.monotonic() > deadline:
                raise Unplaced(unplaced(self.cluster, self.count, patience))
        self._seats.update(zip(hired, self._all(waiting, hired), strict=True))
        dealt = shares([self._seats[k] for k in range(self.count)], self.cluster)
        self._all([self.actors[k].sit.remote(dealt[k], passed_on()) for k in hired], hired)
        for k in hired:
            self.processes[k] = self._seats[k].process
            self._awaited.pop(k, None)


def passed_on() -> dict[str, str]:
    """What of this process's environment holds for actors on other nodes, too: where the data lies."""
    return {files.VARIABLE: os.path.abspath(os.path.expanduser(os.environ[files.VARIABLE]))} if os.environ.get(files.VARIABLE) else {}


def _reason(error: Exception) -> str:
    """The innermost error, of which Ray tells last, in a line."""
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip() for line in str(error).splitlines() if line.strip()]
    inner = [line for line in lines if re.match(r"[\w.]+(Error|Exception|Exit|Interrupt)\b", line)]
    return [*lines[:1], *inner][-1][:200] if lines else type(error).__name__


def _is_good(reference: Any) -> bool:
    try:
        ray.get(reference)
    except exceptions.RayError:
        return False
    return True
