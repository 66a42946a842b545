"""Local difference reconstruction (L-DRL): feedback weights learn to be the transposed Jacobian, so that targets are backpropagation's.

Ernoult, Normandin, Moudgil, Spinney, Belilovsky, Rish, Richards & Bengio (2022), "Towards Scaling Difference Target Propagation by Learning
Backprop Targets", ICML. https://arxiv.org/abs/2201.13415

With h_l = f_l(h_{l-1}; θ_l), h_0 = x, and for each block above the bottom a feedback layer G_l(h) = W̃_l σ_l(h) from h_l to h_{l-1}: the
block's activation, then its linear part transposed (dense or convolutional) with weights of its own. ε and η are noise from N(0, noise²) in
the shapes of h_{l-1} and h_l, C_b is the loss of one example, β the nudge:

    K_l     = -2 ε · (G_l(f_l(h_{l-1} + ε)) - G_l(h_l)) + ‖G_l(h_l + η) - G_l(h_l)‖²        mean over the batch
    W̃_l    ← one step of Adam down ∂K_l/∂W̃_l                                   `iterations` times on one batch, f_l held fixed
    t_L     = h_L - β ∂C_b/∂h_L
    t_{l-1} = h_{l-1} + G_l(t_l) - G_l(h_l)                                     l = L … 2, one after the other
    ∇θ_l    = ∂/∂θ_l ½ ‖f_l(h_{l-1}) - t_l‖² / β                                mean over the batch

To second order in the noise K_l is smallest where the Jacobian of G_l is that of f_l, transposed; then the differences of targets are
errors, and ∇θ tends to backpropagation's as β → 0.

A boundary carries h_l up once and t_l down once, batch x width numbers both ways. The feedback weights learn within their block, from what
the one forward pass left there, so all blocks learn theirs at the same time; the price is computation, `iterations` regressions a batch.

What makes it work: several iterations, so that W̃_l keeps up with θ_l. The paper takes 20 to 55, with momentum and a rate of its own for
each layer (1e-4 to 0.18), β = 0.7 and noise from 0.08 to 0.4; here Adam finds the scale, and one rate does for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from locallearn.block import Block, State
from locallearn.chain import Chain, Row
from locallearn.fields import Count, Positive
from locallearn.rule import Batch, Info, Message, Rule, forward
from locallearn.rules._common import output_error
from locallearn.rules._targets import feedback_weights, no_mirror, transposed
from locallearn.search import Log

ACTIVATIONS = ("identity", "tanh", "relu", "leaky_relu", "elu", "silu", "gelu", "sigmoid")


class Feedback(NamedTuple):
    """W̃_l, shaped as the block's parameters, and what Adam remembers of them."""

    weights: Any
    opt: Any


class Aim(NamedTuple):
    """t_l, and the target of the block below."""

    target: jax.Array
    down: Any


def feed_back(block: Block, weights: Any, h: jax.Array) -> jax.Array:
    """G_l(h): [batch, *out_shape] -> [batch, *in_shape]."""
    return transposed(block, weights, getattr(jax.nn, block.activation)(h))


def noisy_loss(block: Block, weights: Any, params: Any, x: jax.Array, h: jax.Array, epsilon: jax.Array, eta: jax.Array) -> jax.Array:
    """K_l. x, epsilon: [batch, *in_shape]; h, eta: [batch, *out_shape]."""
    rest = feed_back(block, weights, h)
    of_input = feed_back(block, weights, block.apply(params, x + epsilon)) - rest
    of_output = feed_back(block, weights, h + eta) - rest
    return (jnp.sum(of_output**2) - 2 * jnp.sum(epsilon * of_input)) / x.shape[0]


def match(block: Block, state: State, x: jax.Array, h: jax.Array, key: jax.Array, *, iterations: int, rate: float, noise: float) -> Any:
    """W̃_l after this batch. x: [batch, *in_shape], h: [batch, *out_shape]."""
    import optax

    if block.bottom:
        return state.memory
    own = jax.random.fold_in(key, block.index)

    def turn(number: Any, feedback: Feedback) -> Feedback:
        keys = jax.random.split(jax.random.fold_in(own, number))
        epsilon, eta = (noise * jax.random.normal(k, a.shape, a.dtype) for k, a in zip(keys, (x, h), strict=True))
        grads = jax.grad(noisy_loss, 1)(block, feedback.weights, state.params, x, h, epsilon, eta)
        updates, opt = optax.adam(rate).update(grads, feedback.opt)
        return Feedback(optax.apply_updates(feedback.weights, updates), opt)

    return jax.lax.fori_loop(0, iterations, turn, state.memory)


def aim(block: Block, feedback: Any, x: jax.Array, h: jax.Array, target: jax.Array, *, beta: float) -> Aim:
    """t_{l-1} from t_l; at the top from ∂loss/∂h_L, which has been divided by the batch."""
    if block.top:
        target = h - beta * h.shape[0] * target
    if block.bottom:
        return Aim(target, None)
    return Aim(target, x + feed_back(block, feedback.weights, target) - feed_back(block, feedback.weights, h))


def learn(block: Block, state: State, x: jax.Array, target: jax.Array, *, beta: float) -> Any:
    """∇θ_l, mean over the batch."""
    h, pull = jax.vjp(lambda params: block.apply(params, x), state.params)
    return pull((h - target) / (beta * x.shape[0]))[0]


def alignment(block: Block, state: State, x: jax.Array, key: jax.Array) -> jax.Array:
    """Cosine of what G_l and f_l transposed make of the same random direction at h_l; 1 at the bottom, which has no G_l."""
    if block.bottom:
        return jnp.ones(())
    h, pull = jax.vjp(lambda below: block.apply(state.params, below), x)
    direction = jax.random.normal(jax.random.fold_in(key, block.index), h.shape, h.dtype)
    _, mine = jax.jvp(lambda above: feed_back(block, state.memory.weights, above), (h,), (direction,))
    (true,) = pull(direction)
    return jnp.sum(mine * true) / (jnp.linalg.norm(mine) * jnp.linalg.norm(true))


@dataclass(frozen=True)
class LocalDifferenceReconstruction(Rule):
    """L-DRL with softmax cross-entropy. beta: nudge at the top. iterations, rate, noise: how feedback weights learn from each batch."""

    beta: Positive = 0.5
    iterations: Count = 10
    rate: Positive = 1e-3
    noise: Positive = 0.1

    space: ClassVar = {"beta": Log(0.05, 1.0), "rate": Log(1e-4, 1e-2)}
    messages: ClassVar = {
        "activation": Message("activation", "up", "h_l, once"),
        "target": Message("target", "down", "t_l, once"),
    }
    family: ClassVar = "targets"
    assumes: ClassVar = "learned feedback weights; forward, backward and update locked"
    needs: ClassVar = "pre and post"

    @property
    def additive_over_batch(self) -> bool:
        """The targets of a batch are those of feedback weights that have just learnt from all of it."""
        return False

    def problems(self, blocks: Sequence[Block]) -> list[str]:
        """Every block above the bottom is mirrored."""
        found = super().problems(blocks)
        if found:
            return found
        unknown = [block.activation for block in blocks[1:] if block.activation not in ACTIVATIONS]
        found += [f"takes the activations {', '.join(ACTIVATIONS)}, not {name}" for name in unknown[:1]]
        return found + no_mirror(blocks[1:])

    def init(self, block: Block, key: jax.Array) -> State:
        """memory: W̃_l; the bottom block needs none."""
        import optax

        if block.bottom:
            return super().init(block, key)
        weights = feedback_weights(block, key)
        return block.state(block.init(key), Feedback(weights, optax.adam(self.rate).init(weights)))

    def gradients(self, chain: Chain, state: Row, batch: Batch) -> tuple[Row, Row, Info]:
        """Forward pass, feedback weights, targets from the top down, then every block by itself."""
        x, h = chain.sweep_up("activation", forward, state, first=batch.x)
        top = chain.at_top(output_error, h, batch.y)
        options = {"iterations": self.iterations, "rate": self.rate, "noise": self.noise}
        feedback = chain.map(match, state, x, h, batch.key, **options)
        aims = chain.sweep_down("target", aim, feedback, x, h, last=top.error, beta=self.beta)
        return chain.map(learn, state, x, aims.target, beta=self.beta), feedback, Info(top.loss, x)

    def diagnose(self, chain: Chain, state: Row, batch: Batch) -> dict[str, Row]:
        """alignment: of the Jacobian of G_l with that of f_l, transposed."""
        x, _ = chain.sweep_up("activation", forward, state, first=batch.x)
        return {"alignment": chain.map(alignment, state, x, batch.key)}
