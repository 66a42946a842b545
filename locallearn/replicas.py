"""How many copies of the chain train side by side, and on what they agree: the section `replicas`.

Each replica is a chain of its own, with its own part of every batch order, optimizer, rule's memory and running statistics. What they share
goes round a ring among the copies of each shard (`locallearn.runtime.ring`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from locallearn.fields import Count, Decay, Positive

if TYPE_CHECKING:
    import optax


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
    gradients: those of every step (data-parallel training).
    """

    count: Count = 1
    average: Literal["parameters", "gradients"] = "parameters"
    average_every: Count = 1
    outer: Outer | None = None

    def problems(self) -> list[tuple[str, str]]:
        """What gradients have no use for."""
        if self.average == "parameters":
            return []
        found = [("average_every", "gradients are averaged at every step: leave it out, or take `average: parameters`")]
        found = found if self.average_every > 1 else []
        return found + ([("outer", "is a step on parameters: leave it out, or take `average: parameters`")] if self.outer else [])

    def due(self, done: int, length: int) -> bool:
        """Whether an average follows the step after which so many of a phase's steps are done."""
        return done % self.average_every == 0 or done == length

    def averages(self, done: int, length: int) -> int:
        """How many there were by then."""
        return done // self.average_every + (done == length and done % self.average_every > 0)


ALONE = Replicas()
