"""SoftHebb: units compete softly for each input, the winner learns towards it and the others away from it; no labels below the top.

Moraitis, Toichkin, Journé, Chua & Guo (2022), "SoftHebb: Bayesian inference in unsupervised Hebbian soft winner-take-all networks".
https://arxiv.org/abs/2107.05747
Journé, Garcia Rodriguez, Guo & Moraitis (2023), "Hebbian Deep Learning Without Feedback", ICLR. https://arxiv.org/abs/2209.11883

With x the input of a block, u = pre(x; W) its linear part (dense or convolutional; at each position the channels compete), w_k what unit k
sees its input through, and k* = argmax u:

    y_k   = softmax(u / τ)_k · (+1 if k = k*, else -1)        all + without `anti`
    ΔW    = mean over examples and positions of y_k (x - u_k w_k)
    w_k <- w_k + η |‖w_k‖ - 1|^p ΔW_k / max |ΔW|
    h     = post(u - mean of u over channels)^q               what goes up: with relu, or an activation `triangle`, the paper's

A unit that wins is drawn to the mean of what it wins, at length one: Oja's rule for each winner. The length tells how far a unit has
learnt, and its rate falls with that. The top block is a softmax classifier of what goes up, trained by the run's optimizer; biases and
whatever else the blocks below have stay as they are.

A boundary carries h up once, batch x width numbers; nothing comes down, labels neither.

What makes it work: units that begin long, at `radius`, so that at first each wins somewhere; rates and steps enough to bring their lengths
down to about one (`norm` tells); and a read-out trained long enough. The paper's rates are for batches of 10, its temperature for a dense
block on plain pixels is 1/12, without `anti`. A phase for the blocks below comes first, then one for the top alone. Normalisation over
the batch belongs before the linear part, as in the model `softhebb3`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from locallearn.block import Block, State
from locallearn.chain import Chain, Row
from locallearn.fields import NonNegative, Positive
from locallearn.rule import Batch, Info, Message, Rule, descend
from locallearn.rules._common import Local, cross_entropy
from locallearn.search import Linear, Log


def response(u: jax.Array, temperature: float, *, anti: bool) -> jax.Array:
    """y: [batch, ..., channels], as u."""
    y = jax.nn.softmax(u / temperature)
    return jnp.where(u == u.max(-1, keepdims=True), y, -y) if anti else y


def is_weight(leaf: jax.Array) -> bool:
    """Whether these are the w_k, last axis k: no bias and no normalisation."""
    return leaf.ndim > 1


def lengths(w: jax.Array) -> jax.Array:
    """‖w_k‖: [channels]."""
    return jnp.sqrt(jnp.sum(w**2, tuple(range(w.ndim - 1))))


def oja(block: Block, params: Any, x: jax.Array, y: jax.Array) -> Any:
    """Mean of y_k (x - u_k w_k), for any responses y, as the parameters; zero where these are no weights."""
    u, pull = jax.vjp(lambda params: block.pre(params, x), params)
    places = u.size // u.shape[-1]
    decay = jnp.sum(y * u, tuple(range(u.ndim - 1)))
    return jax.tree.map(lambda w, yx: (yx - decay * w) / places if is_weight(w) else jnp.zeros_like(w), params, pull(y)[0])


def own(values: tuple[float, ...], block: Block) -> float:
    """The block's value, of one for each block or one for all."""
    return values[block.index if len(values) > 1 else 0]


def hebb(
    block: Block, state: State, x: jax.Array, *, rates: tuple[float, ...], power: float, temperatures: tuple[float, ...], anti: bool
) -> State:
    """The update of a block below the top."""
    if not block.learns:
        return state

    def update(w: jax.Array, change: jax.Array) -> jax.Array:
        if not is_weight(w):
            return w
        eta = own(rates, block) * jnp.abs(lengths(w) - 1) ** power
        return w + eta * change / (jnp.abs(change).max() + 1e-30)

    y = response(block.pre(state.params, x), own(temperatures, block), anti=anti)
    return state._replace(params=jax.tree.map(update, state.params, oja(block, state.params, x, y)))


def rise(block: Block, state: State, x: jax.Array, *, exponent: float) -> jax.Array:
    """h; at the top the class scores."""
    u = block.pre(state.params, x)
    if block.top:
        return block.post(state.params, u)
    h = block.post(state.params, u - u.mean(-1, keepdims=True))
    return h if exponent == 1 else jnp.maximum(h, 0) ** exponent


def read_out(block: Block, state: State, h: jax.Array, y: jax.Array) -> Local:
    """The top's loss and gradient."""
    return Local(*jax.value_and_grad(lambda params: cross_entropy(block.apply(params, h), y))(state.params))


def norm(block: Block, state: State) -> jax.Array:
    """Mean length of the units' weights."""
    return jnp.mean(jnp.stack([lengths(w).mean() for w in jax.tree.leaves(state.params) if is_weight(w)]))


def wins(block: Block, state: State, x: jax.Array) -> jax.Array:
    """Share of the units that win somewhere in the batch."""
    u = block.pre(state.params, x)
    return jnp.any(u == u.max(-1, keepdims=True), tuple(range(u.ndim - 1))).mean()


def layered(block: Block) -> bool:
    """Whether some weights of the block are of other units than those that compete: it has a further layer, such as a bridge."""
    params = jax.eval_shape(lambda: block.init(jax.random.key(0)))
    return any(w.shape[-1] != block.pre_shape[-1] for w in jax.tree.leaves(params) if is_weight(w))


@dataclass(frozen=True)
class SoftHebb(Rule):
    """Soft winner-take-all plasticity and a linear read-out.

    rates: η, one for all blocks or one for each below the top. power: p, how the rate falls with a unit's distance from length one.
    temperatures: τ, as the rates. anti: whether losers turn away. radius: a unit's length to begin with. exponent: q, of what goes up.
    """

    rates: tuple[Positive, ...] = (0.1,)
    power: NonNegative = 0.5
    temperatures: tuple[Positive, ...] = (1.0,)
    anti: bool = True
    radius: Positive = 25.0
    exponent: Positive = 1.0

    space: ClassVar = {"power": Linear(0.0, 1.0), "radius": Log(5.0, 100.0)}
    messages: ClassVar = {"activation": Message("activation", "up", "h, once")}
    family: ClassVar = "local losses"
    assumes: ClassVar = "labels at the top only; units that compete within a batch's largest change"
    needs: ClassVar = "pre and post"

    @property
    def additive_over_batch(self) -> bool:
        """The largest change of a batch sets the scale of all."""
        return False

    def problems(self, blocks: Sequence[Block]) -> list[str]:
        """As many rates and temperatures as there are blocks that take them, and one layer in each."""
        found, hidden = super().problems(blocks), len(blocks) - 1
        if not found:
            found += [f"needs blocks of one layer each; block {block.index} has more" for block in blocks[:-1] if layered(block)][:1]
        if not hidden:
            found.append("needs a block below the top, which only reads out")
        for name, values in (("rates", self.rates), ("temperatures", self.temperatures)):
            if len(values) not in (1, hidden):
                found.append(
                    f"takes one value of `{name}` for all blocks, or one for each of the {hidden} below the top; it has {len(values)}"
                )
        return found

    def init(self, block: Block, key: jax.Array) -> State:
        """Units below the top point where the model's initialisation says, at length `radius`."""
        params = block.init(key)
        if not block.top:
            params = jax.tree.map(lambda w: self.radius * w / lengths(w) if is_weight(w) else w, params)
        return block.state(params)

    def step(self, chain: Chain, state: Row, batch: Batch) -> tuple[Row, Info]:
        """The whole algorithm."""
        x, _ = chain.sweep_up("activation", rise, state, first=batch.x, exponent=self.exponent)
        options = {"rates": self.rates, "temperatures": self.temperatures, "power": self.power, "anti": self.anti}
        learnt = chain.below_top.map(hebb, state, x, **options)
        top = chain.at_top(read_out, state, x, batch.y)
        new = chain.at_top(descend, state, top.grads, ())
        return Row([*learnt, new]), Info(top.loss, x)

    def diagnose(self, chain: Chain, state: Row, batch: Batch) -> dict[str, Row]:
        """norm: mean length of the units; wins: share of them that win somewhere in the batch."""
        x, _ = chain.sweep_up("activation", rise, state, first=batch.x, exponent=self.exponent)
        return {"norm": chain.map(norm, state), "wins": chain.map(wins, state, x)}

    def predict(self, chain: Chain, state: Row, x: Any) -> Any:
        """The read-out's class scores."""
        return chain.sweep_up("activation", rise, state, first=x, exponent=self.exponent)[1][-1]
