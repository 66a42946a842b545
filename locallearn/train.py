"""How a run trains: the sections `train`, its optimizer and phases, and `stop`.

A section is a frozen dataclass. Its optional method `problems()` gives (field, message) for each combination of values that makes no
sense; a message that begins with "is missing" is about a key that should be there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from locallearn.fields import Count, Decay, Fraction, NonNegative, Positive
from locallearn.markers import Later, Named, Size

if TYPE_CHECKING:
    import optax

Problems = list[tuple[str, str]]


@dataclass(frozen=True)
class Optimizer:
    """What turns a block's gradient into its update; each block has an optimizer of its own, so everything in it is local.

    warmup: share of all steps. final: rate at the end, as a share of the highest. `warmup_cosine` rises from `rate` to `peak * rate`;
    the other schedules warm up from 0 to `rate`. hold: share of all steps, after warming up, at the highest rate. milestones: shares of
    the run at which `step` multiplies the rate by `decay`.
    weight_decay: decoupled for adamw, otherwise added to the gradient; never on biases and normalisation (arrays with fewer than two
    axes). clip: largest global norm of one block's gradient. block_rates: a multiplier of the rate for each block.
    """

    name: Literal["sgd", "momentum", "adam", "adamw"] = "adam"
    rate: Positive = 1e-3
    schedule: Literal["constant", "cosine", "linear", "step", "warmup_cosine"] = "constant"
    warmup: Fraction = 0.0
    hold: Fraction = 0.0
    final: Fraction = 0.0
    peak: Positive = 1.0
    milestones: tuple[Fraction, ...] = ()
    decay: Positive = 0.1
    momentum: Decay = 0.9
    nesterov: bool = False
    beta1: Decay = 0.9
    beta2: Decay = 0.999
    epsilon: Positive = 1e-8
    weight_decay: NonNegative = 0.0
    clip: Positive | None = None
    block_rates: tuple[Positive, ...] | None = None

    def problems(self) -> Problems:
        """Values that have no effect, or no sense, next to the others."""
        found: Problems = []
        defaults = {field.name: field.default for field in fields(self)}
        for names, key, values in _ONLY_WITH:
            if getattr(self, key) not in values:
                wanted = " or ".join(f"`{key}: {value}`" for value in values)
                changed = [name for name in names if getattr(self, name) != defaults[name]]
                found += [(name, f"has no effect without {wanted}") for name in changed]
        if self.schedule == "step" and not self.milestones:
            found.append(("milestones", "is missing, which `schedule: step` needs"))
        if any(b <= a for a, b in zip(self.milestones, self.milestones[1:], strict=False)):
            found.append(("milestones", "must rise"))
        if self.warmup + self.hold > 1:
            found.append(("hold", f"and `warmup`, {self.hold:g} and {self.warmup:g}, are more than the whole run"))
        if self.schedule == "warmup_cosine" and not self.warmup:
            found.append(("warmup", "is missing, which `schedule: warmup_cosine` needs"))
        return found

    def learning_rate(self, steps: int) -> Callable[[Any], Any]:
        """The rate at each step of a run of `steps` steps, of a block without a multiplier of its own."""
        import optax

        rate = self.rate
        warm = round(self.warmup * steps)
        held = round(self.hold * steps)
        left = max(1, steps - warm - held)
        if self.schedule == "warmup_cosine":
            start, rate = rate, rate * self.peak
        else:
            start = 0.0
        if self.schedule == "step":
            places = [round(share * steps) - warm for share in self.milestones]
            after = optax.piecewise_constant_schedule(rate, {k: self.decay ** places.count(k) for k in places})
        elif self.schedule == "linear":
            after = optax.linear_schedule(rate, rate * self.final, left)
        elif self.schedule == "constant":
            after = optax.constant_schedule(rate)
        else:
            after = optax.cosine_decay_schedule(rate, left, self.final)
        after = optax.join_schedules([optax.constant_schedule(rate), after], [held]) if held else after
        return optax.join_schedules([optax.linear_schedule(start, rate, warm), after], [warm]) if warm else after

    def build(self, steps: int, block: int = 0) -> optax.GradientTransformation:
        """The optax transformation for one block in a run (or phase) of `steps` steps."""
        import optax

        parts = [optax.clip_by_global_norm(self.clip)] if self.clip else []
        decay = [optax.add_decayed_weights(self.weight_decay, mask=_matrices)] if self.weight_decay else []
        parts += [] if self.name == "adamw" else decay
        if self.name == "momentum":
            parts.append(optax.trace(self.momentum, self.nesterov))
        elif self.name in ("adam", "adamw"):
            parts.append(optax.scale_by_adam(self.beta1, self.beta2, self.epsilon))
        parts += decay if self.name == "adamw" else []
        if self.schedule != "constant" or self.warmup:
            parts.append(optax.scale_by_schedule(replace(self, rate=1.0).learning_rate(steps)))
        return optax.chain(*parts, _at_rate(self.rate * (self.block_rates[block] if self.block_rates else 1.0)))


ADAM = Optimizer()

_ONLY_WITH = (
    (("milestones", "decay"), "schedule", ("step",)),
    (("peak",), "schedule", ("warmup_cosine",)),
    (("final", "hold"), "schedule", ("cosine", "linear", "warmup_cosine")),
    (("momentum", "nesterov"), "name", ("momentum",)),
    (("beta1", "beta2", "epsilon"), "name", ("adam", "adamw")),
)


class Rate(NamedTuple):
    """The rate as a number of the state, not of the program: runs that differ in it alone share what is compiled."""

    rate: Any


def _at_rate(rate: float) -> optax.GradientTransformation:
    """Down the gradient."""
    import jax
    import jax.numpy as jnp
    import optax

    def init(params: Any) -> Rate:
        return Rate(jnp.float32(rate))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return jax.tree.map(lambda u: -state.rate.astype(u.dtype) * u, updates), state

    return optax.GradientTransformation(init, update)


def _matrices(params: Any) -> Any:
    import jax

    return jax.tree.map(lambda p: p.ndim >= 2, params)


@dataclass(frozen=True)
class Phase:
    """A part of a run: which blocks learn, for how long, and by which rule if not by the run's."""

    learn: tuple[int, ...] | Literal["all"] = "all"
    epochs: Count | None = None
    steps: Count | None = None
    rule: Annotated[Any, Named("rules")] | None = None

    def problems(self) -> Problems:
        """Blocks that cannot be, and a length that is missing or said twice."""
        found = _length_problems(self)
        if self.learn != "all":
            if not self.learn:
                found.append(("learn", "names no block; give block numbers or `all`"))
            if min(self.learn, default=0) < 0 or len(set(self.learn)) < len(self.learn):
                found.append(("learn", "must be different block numbers from 0 on"))
        return found


@dataclass(frozen=True)
class Train:
    """How long, in which batches and with which optimizer. evaluate_every: in steps; without it, after every epoch.

    greedy: the blocks learn one after the other, from the bottom up, each for these epochs or steps; where nothing comes down, those
    above rest meanwhile and are sent nothing. arrivals: new examples in each batch, until a phase has seen them all; the others of the
    batch are drawn from those that have arrived. With `reuse` no step sends more of examples than of these.
    """

    epochs: Count | None = None
    steps: Count | None = None
    batch: Count = 128
    microbatches: Count = 1
    optimizer: Optimizer = ADAM
    evaluate_every: Count | None = None
    phases: tuple[Phase, ...] = ()
    greedy: bool = False
    arrivals: Annotated[Count | None, Later()] = None

    def problems(self) -> Problems:
        """A length that is missing or said twice, a batch that cannot be cut, and more arrivals than it holds."""
        if self.phases:
            given = [name for name in ("epochs", "steps") if getattr(self, name) is not None]
            found = [(name, "leave it out: each of the phases says how long it is") for name in given]
            found += [("greedy", "leave it out: the phases say which blocks learn")] if self.greedy else []
        else:
            found = _length_problems(self)
        if self.batch % self.microbatches:
            found.append(("microbatches", f"does not divide the batch of {self.batch}"))
        if self.arrivals and self.arrivals > self.batch:
            found.append(("arrivals", f"must be at most the batch of {self.batch}"))
        return found

    def parts(self, blocks: int) -> tuple[Phase, ...]:
        """The phases of a run on so many blocks: those that are given, one for each block, or one in which all learn."""
        if self.greedy:
            return tuple(Phase((k,), self.epochs, self.steps) for k in range(blocks))
        return self.phases or (Phase("all", self.epochs, self.steps),)

    def lengths(self, examples: int, blocks: int = 1, replicas: int = 1) -> tuple[int, ...]:
        """Steps of each phase, for so many training examples, blocks and replicas, which share the examples of an epoch."""
        epoch = examples // (self.batch * replicas)
        return tuple(part.steps or (part.epochs or 0) * epoch for part in self.parts(blocks))


def _length_problems(part: Train | Phase) -> Problems:
    if part.epochs is None and part.steps is None:
        return [("epochs", "is missing (or give `steps`)")]
    if part.epochs is not None and part.steps is not None:
        return [("steps", "give `epochs` or `steps`, and null for the other")]
    return []


@dataclass(frozen=True)
class Stop:
    """What ends a run before its time, whichever comes first: an accuracy on the validation set, or bytes sent (`4 GiB`)."""

    accuracy: Fraction | None = None
    bytes: Size | None = None
