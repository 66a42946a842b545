"""Predictive coding written by hand in JAX, all steps in one program: how fast XLA is at this arithmetic, with any version of JAX.

784-300-300-10, tanh, squared error, batch 64; activities begin at the forward pass, 20 rounds with rate 0.1; then one step of Adam by the
mean gradient. The bottom's prediction does not change in the rounds and is computed once, and in the first round only the top has an error.
"""

import jax
import jax.numpy as jnp
import optax


def make(task):
    """`train`, `weights`, as `served` asks for them. `train` gives the mean loss of the forward passes."""
    batch = task.index.shape[1]
    adam = optax.adam(1e-3)
    params = [(jnp.asarray(kernel), jnp.asarray(bias)) for kernel, bias in task.layers]
    carry = params, adam.init(params)
    x_all, y_all, index = jnp.asarray(task.x), jnp.asarray(task.y), jnp.asarray(task.index)

    def step(params, opt, x, y):
        (w1, b1), (w2, b2), (w3, b3) = params
        target = jax.nn.one_hot(y, 10)
        m1 = jnp.tanh(x @ w1 + b1)
        m2 = jnp.tanh(m1 @ w2 + b2)
        e3 = target - (m2 @ w3 + b3)
        loss = 0.5 * jnp.sum(e3**2) / batch

        def relax(_, z):
            z1, z2 = z
            m2 = jnp.tanh(z1 @ w2 + b2)
            e2, e3 = z2 - m2, target - (z2 @ w3 + b3)
            return z1 - 0.1 * (z1 - m1 - (e2 * (1 - m2**2)) @ w2.T), z2 - 0.1 * (e2 - e3 @ w3.T)

        z1, z2 = jax.lax.fori_loop(1, 20, relax, (m1, m2 + 0.1 * e3 @ w3.T))
        m2 = jnp.tanh(z1 @ w2 + b2)
        deltas = (m1 - z1) * (1 - m1**2) / batch, (m2 - z2) * (1 - m2**2) / batch, (z2 @ w3 + b3 - target) / batch
        grads = [(below.T @ d, d.sum(0)) for below, d in zip((x, z1, z2), deltas, strict=True)]
        updates, opt = adam.update(grads, opt, params)
        return optax.apply_updates(params, updates), opt, loss

    @jax.jit
    def run(carry, index):
        def one(k, both):
            (params, opt), losses = both
            params, opt, loss = step(params, opt, x_all[index[k]], y_all[index[k]])
            return (params, opt), losses.at[k].set(loss)

        return jax.lax.fori_loop(0, len(index), one, (carry, jnp.zeros(len(index))))

    def train():
        nonlocal carry
        carry, losses = run(carry, index)
        return float(losses.mean())

    return train, lambda: carry[0]
