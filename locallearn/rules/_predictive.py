"""What rules of predictive coding share: activities, prediction errors, the energy and its slopes, under their names in the literature.

Whittington & Bogacz (2017), https://doi.org/10.1162/NECO_a_00949. Block l predicts μ_l = f_l(z_{l-1}; θ_l); the energy of one example is

    F = Σ_{l<L} ½ ‖ε_l‖² + λ loss(μ_L, y)                ε_l = z_l - μ_l for l < L;  ε_L = -λ ∂loss/∂μ_L

"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from locallearn.block import Block, State
from locallearn.chain import Chain, Row
from locallearn.rules._common import cross_entropy


class Unit(NamedTuple):
    """An activity z_l and its velocity v_l, None without momentum. The top block has the target in place of an activity."""

    z: jax.Array
    v: Any


class Errors(NamedTuple):
    """ε_l, and what it asks of the activity below: (∂f_l/∂z_{l-1})ᵀ ε_l."""

    eps: jax.Array
    down: Any


def squared_error(h: jax.Array, y: jax.Array) -> jax.Array:
    """½ ‖h - target‖², mean over the batch. h: [batch, classes], y: [batch] labels or [batch, classes] targets."""
    target = y if y.ndim == h.ndim else jax.nn.one_hot(y, h.shape[1], dtype=h.dtype)
    return 0.5 * jnp.sum((h - target) ** 2) / h.shape[0]


LOSSES = {"squared": squared_error, "cross_entropy": cross_entropy}


def output_loss(block: Block, h: jax.Array, y: jax.Array, *, loss: str) -> jax.Array:
    """The loss of the forward pass, mean over the batch."""
    return LOSSES[loss](h, y)


def begin(block: Block, h: jax.Array, *, momentum: float) -> Unit:
    """z_l = μ_l, at rest."""
    return Unit(h, jnp.zeros_like(h) if momentum else None)


def clamp(block: Block, y: jax.Array) -> Unit:
    """What stands for the top's activity."""
    return Unit(y, None)


def error(block: Block, unit: Unit, mu: jax.Array, *, loss: str, precision: float) -> jax.Array:
    """ε_l, for each example: [batch, *out_shape]."""
    return -precision * mu.shape[0] * jax.grad(LOSSES[loss])(mu, unit.z) if block.top else unit.z - mu


def compare(block: Block, state: State, unit: Unit, x: jax.Array, h: jax.Array, **options: Any) -> Errors:
    """ε_l and its pull. x: the activity below; h: the prediction of the forward pass, which the bottom need not repeat."""
    if block.bottom:
        return Errors(error(block, unit, h, **options), None)
    mu, pull = jax.vjp(lambda below: block.apply(state.params, below), x)
    eps = error(block, unit, mu, **options)
    return Errors(eps, *pull(eps))


def at_rest(block: Block, state: State, unit: Unit, x: jax.Array, h: jax.Array, **options: Any) -> Errors:
    """`compare` right after the forward pass, when only the top has an error."""
    if block.top:
        return compare(block, state, unit, x, h, **options)
    return Errors(jnp.zeros_like(h), None if block.bottom else jnp.zeros_like(x))


def relax(block: Block, unit: Unit, eps: jax.Array, above: Any, *, rate: float, momentum: float) -> Unit:
    """One step of z_l down the energy. above: (∂f_{l+1}/∂z_l)ᵀ ε_{l+1}."""
    if block.top:
        return unit
    slope = eps - above
    v = momentum * unit.v + slope if momentum else slope
    return Unit(unit.z - rate * v, v if momentum else None)


def relaxation(
    chain: Chain, state: Row, unit: Row, x: Row, h: Row, *, steps: int, rate: float, momentum: float, fixed: bool = False, **options: Any
) -> tuple[Row, Row]:
    """(units, what each block sees) after all rounds. x, h: of the forward pass. fixed: predictions stay those."""

    def turn(errors_of: Any, unit: Row, x: Row) -> tuple[Row, Row]:
        errors = chain.map(errors_of, state, unit, x, h, **options)
        above = chain.down("error", errors.down, last=None)
        unit = chain.map(relax, unit, errors.eps, above, rate=rate, momentum=momentum)
        return unit, x if fixed else chain.up("activation", unit.z, first=x[0])

    return chain.repeat(steps - 1, lambda number, carry: turn(compare, *carry), turn(at_rest, unit, x))


def learn(block: Block, state: State, unit: Unit, x: jax.Array, *, precision: float, **options: Any) -> Any:
    """∇θ_l = -(∂f_l/∂θ_l)ᵀ ε_l / λ, mean over the batch."""
    mu, pull = jax.vjp(lambda params: block.apply(params, x), state.params)
    eps = error(block, unit, mu, precision=precision, **options)
    return pull(eps / (-precision * mu.shape[0]))[0]


def energy(block: Block, state: State, unit: Unit, x: jax.Array, *, loss: str, precision: float) -> jax.Array:
    """The block's part of F, mean over the batch."""
    mu = block.apply(state.params, x)
    return precision * LOSSES[loss](mu, unit.z) if block.top else 0.5 * jnp.sum((unit.z - mu) ** 2) / mu.shape[0]


def residual(block: Block, eps: jax.Array, above: Any) -> jax.Array:
    """max |∂F/∂z_l| of one example: 0 at equilibrium. The top has no activity of its own."""
    return jnp.zeros((), eps.dtype) if block.top else jnp.max(jnp.abs(eps - above))


def diagnosis(chain: Chain, state: Row, unit: Row, x: Row, h: Row, **options: Any) -> dict[str, Row]:
    """How far the relaxation came: the energy of each block, and what still pulls at its activities. h: μ_l where x is fixed."""
    errors = chain.map(compare, state, unit, x, h, **options)
    above = chain.down("error", errors.down, last=None)
    return {"energy": chain.map(energy, state, unit, x, **options), "residual": chain.map(residual, errors.eps, above)}
