"""How many copies of the chain train side by side, on what they agree, and what becomes of one that is lost: the section `replicas`.

Each replica is a chain of its own, with its own part of every batch order, optimizer, rule's memory and running statistics. What they share
goes round a ring among the copies of each shard (`locallearn.runtime.ring`).

With `on_loss: drop` (on actors; one process has nothing to lose) a replica of which an actor dies leaves the run, whole. The others go back
to the last snapshot, too, since what it had told them meanwhile is in their parameters, but wait for nobody: the ring is closed among
them, the mean is over them, the first of them evaluates and decides, and the examples that would have been its are not seen while it is
away. One that is left alone agrees with itself: it sends nothing, and the outer optimizer goes on with its changes alone. Actors in the
place of those that are gone are hired meanwhile; once they are there, the replica is in the run again from the next snapshot on, to which
the others go back, and wait while it compiles (`locallearn.runtime.regroup` has what it begins with). If the last one is lost there is
nobody to go on, and it is replaced. The result says who came and went when; a run in one process with the same replicas at the same steps
has the same bits and bytes.

Neither way changes a plan: with replicas away less is sent than was planned. A run that is resumed begins with all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from locallearn.fields import Count, Decay, Positive
from locallearn.markers import Later

if TYPE_CHECKING:
    import optax

AVERAGE = "average"
"""The message between replicas, as `codecs` names it; its kind is `weight`."""


@dataclass(frozen=True)
class Outer:
    """What turns the mean change of the replicas' parameters into a step of those that they agree on.

    With `sgd` at rate 1 they agree on the mean (local SGD); `nesterov` at 0.7 with momentum 0.9 is DiLoCo's (Douillard et al. 2023, arXiv
    2311.08105).
    """

    name: Literal["sgd", "momentum", "nesterov"] = "nesterov"
    rate: Positive = 0.7
    momentum: Decay = 0.9

    def problems(self) -> list[tuple[str, str]]:
        """A momentum that nothing has."""
        given = self.name == "sgd" and self.momentum != Outer.momentum
        return [("momentum", "has no effect with `name: sgd`")] if given else []

    def build(self) -> optax.GradientTransformation:
        """The optax transformation from a mean change to what is added to the parameters agreed on."""
        import optax

        memory = [] if self.name == "sgd" else [optax.trace(self.momentum, self.name == "nesterov")]
        return optax.chain(*memory, optax.scale(self.rate))


PLAIN = Outer("sgd", 1.0)


@dataclass(frozen=True)
class Replicas:
    """count: copies of the whole chain. average: what they average, every `average_every` steps and at the end of each phase.

    parameters: their changes since the last time (local SGD, or with `outer` an outer step of an optimizer of its own: DiLoCo).
    gradients: those of every step (data-parallel training). on_loss: when an actor is lost, `replace` it, while the others wait (the same
    bits as without a loss), or `drop` its replica, while the others go on.
    """

    count: Count = 1
    average: Literal["parameters", "gradients"] = "parameters"
    average_every: Count = 1
    outer: Outer | None = None
    on_loss: Annotated[Literal["replace", "drop"], Later()] = "replace"

    def problems(self) -> list[tuple[str, str]]:
        """What gradients, or a single replica, have no use for."""
        found = []
        if self.average == "gradients" and self.average_every > 1:
            found.append(("average_every", "gradients are averaged at every step: leave it out, or take `average: parameters`"))
        if self.average == "gradients" and self.outer:
            found.append(("outer", "is a step on parameters: leave it out, or take `average: parameters`"))
        if self.on_loss == "drop" and self.count == 1:
            found.append(("on_loss", "has no effect with one replica, which is always replaced: leave it out, or give a `count`"))
        return found

    def due(self, done: int, length: int) -> bool:
        """Whether an average follows the step after which so many of a phase's steps are done."""
        return done % self.average_every == 0 or done == length

    def averages(self, done: int, length: int) -> int:
        """How many there were by then."""
        return done // self.average_every + (done == length and done % self.average_every > 0)


ALONE = Replicas()

Presence = tuple[tuple[int, tuple[int, ...]], ...]
"""From which step on which replicas were there, in order; nothing where all were all the time."""


def came_or_went(present: Presence, step: int, now: tuple[int, ...], everyone: tuple[int, ...]) -> Presence:
    """The same, with these from a step on; what came after that is undone."""
    before = [part for part in present or ((0, everyone),) if part[0] < step]
    found = before if before and before[-1][1] == now else [*before, (step, now)]
    return () if found == [(0, everyone)] else tuple(found)


def away_since(present: Presence, replica: int) -> int | None:
    """From which step on a replica has not been there; None if it is."""
    since = None
    for start, who in present:
        since = None if replica in who else start if since is None else since
    return since


def replica_steps(present: Presence, step: int, count: int) -> int:
    """How many steps all replicas together have done in the first `step` steps of a run of so many."""
    course = present or ((0, tuple(range(count))),)
    stops = [start for start, _ in course[1:]] + [step]
    return sum(max(0, min(stop, step) - start) * len(who) for (start, who), stop in zip(course, stops, strict=True))
