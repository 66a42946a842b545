"""What rules share whose networks settle: an energy, its phases, and what comes to rest, under their names in the literature.

States s_1 … s_L, with s_0 = x and u_l(s) = pre_l(s; θ_l), the linear part of block l (dense or convolutional, with its bias), and σ_l the
elementwise part, its `post`. The primitive function, and the energy that settling lowers (G_l is the integral of σ_l's inverse):

    Φ(s; θ) = Σ_l ⟨s_l, u_l(s_{l-1})⟩                    E = Σ_l G_l(s_l) - Φ + β C,    C = ½ ‖s_L - onehot(y)‖²

    s_l ← σ_l(u_l(s_{l-1}) + γ (∂u_{l+1}/∂s_l)ᵀ s_{l+1})  below the top: with γ = 1, σ_l(∂Φ/∂s_l)
    s_L ← (u_L(s_{L-1}) + β onehot(y)) / (1 + β)          the top is linear: the exact minimum of E in s_L; clamped as β → ∞

A round updates the blocks one after the other from the bottom up (Scellier, Ernoult, Kendall & Kumar 2023, https://arxiv.org/abs/2312.15103).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from locallearn.block import Block, State
from locallearn.chain import Chain, Row

BOUNDED = ("hard_sigmoid", "sigmoid", "tanh")


class Rest(NamedTuple):
    """A network at rest. x: row of what each block sees, at the bottom u_1; s: row of states."""

    x: Row
    s: Row


def drive(block: Block, state: State, x: jax.Array) -> jax.Array:
    """u_1: the data are clamped, so that it is the same in all rounds."""
    return block.pre(state.params, x)


def linear(block: Block, params: Any, x: jax.Array) -> jax.Array:
    """u_l, `pre` of x; of complex x two real maps, for the weights are real."""
    if not jnp.iscomplexobj(x):
        return block.pre(params, x)
    return jax.lax.complex(*jax.jvp(lambda real: block.pre(params, real), (x.real,), (x.imag,)))


def settle(block: Block, state: State, above: Any, x: jax.Array, *, beta: complex, gain: float = 1.0) -> jax.Array:
    """The block's new state. above: feedback, None in the first round; at the top the target. x: s_{l-1}; at the bottom u_1."""
    if block.top and beta == math.inf:
        return above
    u = x if block.bottom else linear(block, state.params, x)
    if block.top:
        return (u + beta * above) / (1 + beta) if beta else u
    return block.post(state.params, u if above is None else u + gain * above)


def feedback(block: Block, state: State, s: jax.Array, x: jax.Array) -> Any:
    """(∂u_l/∂s_{l-1})ᵀ s_l: what the state below adds to its own input."""
    if block.bottom:
        return None
    _, pull = jax.vjp(lambda below: block.pre(state.params, below), x.real)
    return jax.lax.complex(pull(s.real)[0], pull(s.imag)[0]) if jnp.iscomplexobj(s) else pull(s)[0]


def onehot(block: Block, y: jax.Array, s: jax.Array) -> jax.Array:
    """The target of the top's states, in their type: [batch] int -> [batch, classes]."""
    return jax.nn.one_hot(y, s.shape[1], dtype=s.dtype)


def cost(block: Block, s: jax.Array, target: jax.Array) -> jax.Array:
    """C, mean over the batch."""
    return 0.5 * jnp.sum((s - target) ** 2) / s.shape[0]


def slope(block: Block, state: State, s: jax.Array, below: jax.Array) -> Any:
    """∂Φ/∂θ_l at the states s_l and s_{l-1}, summed over the batch. Of complex states the real part."""
    _, pull = jax.vjp(lambda params: block.pre(params, below), state.params)
    return pull(s)[0]


def free_phase(chain: Chain, state: Row, x: Any, times: int, gain: float = 1.0) -> Rest:
    """`times` rounds from zero without a nudge; the first of them is a forward pass."""
    u1, silence = chain.at_bottom(drive, state, x), Row([None] * chain.n)
    first = Rest(*chain.sweep_up("state", settle, state, silence, first=u1, beta=0.0))
    return phase(chain, state, first, times - 1, gain=gain)


def phase(
    chain: Chain,
    state: Row,
    start: Rest,
    times: int,
    beta: complex = 0.0,
    target: Any = None,
    *,
    gain: float = 1.0,
    names: tuple[str, str] = ("state", "feedback"),
) -> Rest:
    """`times` rounds with one nudge. target: the top's. names: of the messages up and down."""

    def turn(number: Any, now: Rest) -> Rest:
        above = chain.down(names[1], chain.map(feedback, state, now.s, now.x), last=target)
        return Rest(*chain.sweep_up(names[0], settle, state, above, first=now.x[0], beta=beta, gain=gain))

    return chain.repeat(times, turn, start)


def seen(rest: Rest, x: Any) -> Row:
    """s_{l-1} of every block: the data at the bottom."""
    return Row([x, *rest.x.values[1:]])


def energy(block: Block, s: jax.Array, x: jax.Array, state: State) -> jax.Array:
    """The block's part of E without the cost: G_l(s_l) - ⟨s_l, u_l⟩, mean over the batch."""
    u = x if block.bottom else block.pre(state.params, x)
    inner = {
        "tanh": lambda: s * jnp.arctanh(s) + 0.5 * jnp.log1p(-(s**2)),
        "sigmoid": lambda: jax.scipy.special.xlogy(s, s) + jax.scipy.special.xlogy(1 - s, 1 - s),
    }.get(block.activation, lambda: 0.5 * s**2)
    return (jnp.sum(inner()) - jnp.sum(s * u)) / s.shape[0]


def residual(block: Block, state: State, s: jax.Array, above: Any, x: jax.Array, *, gain: float) -> jax.Array:
    """max |s_l - its next value| of one example: 0 at rest."""
    return jnp.max(jnp.abs(s - settle(block, state, above, x, beta=0.0, gain=gain)))


def diagnosis(chain: Chain, state: Row, rest: Rest, gain: float = 1.0) -> dict[str, Row]:
    """How far the free phase came: the energy of each block, and by how much its state would still move."""
    above = chain.down("feedback", chain.map(feedback, state, rest.s, rest.x), last=None)
    still = chain.map(residual, state, rest.s, above, rest.x, gain=gain)
    return {"energy": chain.map(energy, rest.s, rest.x, state), "residual": still}


def restless(blocks: Sequence[Block], activations: Sequence[str] = BOUNDED) -> list[str]:
    """Why these blocks cannot settle, a sentence for each reason: it takes an energy, with these activations and a linear top."""
    found = []
    for block in blocks[:-1]:
        if block.activation not in activations:
            found.append(f"needs bounded activations ({', '.join(activations)}); block {block.index} has {block.activation}")
    if blocks[-1].activation != "identity":
        found.append(f"needs a linear top block; this one has {blocks[-1].activation}")
    if not all(block.elementwise for block in blocks):
        found.append("needs blocks without normalisation and pooling after the linear part: there is no energy for them")
    return found
