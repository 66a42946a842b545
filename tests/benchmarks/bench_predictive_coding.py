"""Predictive coding in the Fused fabric against the same step written by hand in JAX.

    python tests/benchmarks/bench_predictive_coding.py [steps]

784-300-300-10, tanh, batch 64, 20 rounds, Adam; both run all their steps in one program. The two take turns, and the fastest of fifteen
rounds counts on each side. It first checks that they compute the same thing. The ratio should stay below 1.1.
"""

import sys
import time
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax

from locallearn.codec import exact
from locallearn.data.dataset import Arrays, batches
from locallearn.models import MLP
from locallearn.rule import init_state
from locallearn.rules.predictive_coding import PredictiveCoding
from locallearn.runtime.fused import FusedSession
from locallearn.runtime.setup import Setup, Split, Stage
from locallearn.runtime.wiring import Wiring, choose_codecs
from locallearn.train import Optimizer

WIDTHS, BATCH, EXAMPLES, ROUNDS = (784, 300, 300, 10), 64, 6000, 15
RULE = PredictiveCoding(steps=20, rate=0.1, momentum=0.0)


def data():
    rng = np.random.default_rng(0)
    return Arrays(rng.normal(size=(EXAMPLES, 784)).astype(np.float32), rng.integers(0, 10, EXAMPLES).astype(np.int32))


def library(arrays, steps):
    """A function that trains `steps` further steps and gives the mean loss."""
    optimizer = Optimizer(rate=1e-3)
    model = MLP(widths=WIDTHS, activation="tanh", init="lecun")
    blocks = tuple(replace(b, tx=optimizer.build(steps, b.index)) for b in model.blocks((784,)))
    wiring = Wiring((0,) * len(blocks), RULE.messages, choose_codecs(RULE.messages, {}, exact()))
    stage = Stage(RULE, blocks, wiring, 0, steps)
    few = Arrays(arrays.x[:BATCH], arrays.y[:BATCH])
    session = FusedSession(Setup((stage,), Split(arrays, few, few), BATCH, steps, 0))
    session.enter(stage)
    return (lambda: session.advance(0, steps)), [state.params["linear"] for state in init_state(RULE, blocks, 0)]


def by_hand(arrays, steps, layers):
    """The same, without the library."""
    adam = optax.adam(1e-3)
    params = [(layer["kernel"], layer["bias"]) for layer in layers]
    carry = params, adam.init(params)
    x_all, y_all = jnp.asarray(arrays.x), jnp.asarray(arrays.y)

    def step(params, opt, x, y):
        (w1, b1), (w2, b2), (w3, b3) = params
        target = jax.nn.one_hot(y, 10)
        m1 = jnp.tanh(x @ w1 + b1)
        m2 = jnp.tanh(m1 @ w2 + b2)
        loss = 0.5 * jnp.sum((m2 @ w3 + b3 - target) ** 2) / BATCH

        def relax(_, z):
            z1, z2 = z
            m2 = jnp.tanh(z1 @ w2 + b2)
            e2, e3 = z2 - m2, target - (z2 @ w3 + b3)
            return z1 - 0.1 * (z1 - m1 - (e2 * (1 - m2**2)) @ w2.T), z2 - 0.1 * (e2 - e3 @ w3.T)

        z1, z2 = jax.lax.fori_loop(0, 20, relax, (m1, m2))
        m2 = jnp.tanh(z1 @ w2 + b2)
        deltas = (m1 - z1) * (1 - m1**2) / BATCH, (m2 - z2) * (1 - m2**2) / BATCH, (z2 @ w3 + b3 - target) / BATCH
        grads = [(below.T @ d, d.sum(0)) for below, d in zip((x, z1, z2), deltas, strict=True)]
        updates, opt = adam.update(grads, opt, params)
        return optax.apply_updates(params, updates), opt, loss

    @jax.jit
    def run(carry, index):
        def one(k, both):
            (params, opt), losses = both
            params, opt, loss = step(params, opt, x_all[index[k]], y_all[index[k]])
            return (params, opt), losses.at[k].set(loss)

        return jax.lax.fori_loop(0, steps, one, (carry, jnp.zeros(steps)))

    def go():
        nonlocal carry
        carry, losses = run(carry, batches(0, EXAMPLES, BATCH, 0, steps))
        return float(losses.mean())

    return go


def seconds(go):
    begun = time.perf_counter()
    go()
    return time.perf_counter() - begun


def main(steps):
    arrays = data()
    ours, layers = library(arrays, steps)
    hand = by_hand(arrays, steps, layers)
    for _ in range(2):  # the first call of the one by hand compiles
        losses = ours(), hand()
        assert abs(losses[0] / losses[1] - 1) < 1e-3, losses
    times = np.array([(seconds(ours), seconds(hand)) for _ in range(ROUNDS)]).min(0) / steps * 1e3
    print(f"predictive coding, fused: {times[0]:.2f} ms a step; by hand: {times[1]:.2f} ms; ratio {times[0] / times[1]:.3f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 40)
