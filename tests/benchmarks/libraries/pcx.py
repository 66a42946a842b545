"""Predictive coding in pcx, as its examples train: one jitted `train_on_batch` for each batch.

The same arithmetic as `by_hand`: activities begin at the forward pass and follow the sum of the energies over the batch; the step of Adam
takes the mean gradient. Differences: rounds are unrolled by Python, as in its examples; every gradient is that of the whole energy; one
call from Python for each batch (batches lie ready on the device); pcx asks for jax below 0.5.
"""

import itertools

import jax
import jax.numpy as jnp
import optax
import pcx
import pcx.functional as pxf
import pcx.nn as pxnn
import pcx.predictive_coding as pxc
import pcx.utils as pxu

WIDTHS, ROUNDS, RATE = (784, 300, 300, 10), 20, 0.1
PER_EXAMPLE = pxu.M(pxc.VodeParam | pxc.VodeParam.Cache).to((None, 0))


class Network(pxc.EnergyModule):
    """Three dense layers, each with a vode behind it."""

    def __init__(self, layers):
        super().__init__()
        self.layers = [pxnn.Linear(a, b) for a, b in itertools.pairwise(WIDTHS)]
        for layer, (kernel, bias) in zip(self.layers, layers, strict=True):
            layer.nn.weight.set(jnp.asarray(kernel.T))
            layer.nn.bias.set(jnp.asarray(bias))
        self.vodes = [pxc.Vode() for _ in self.layers]
        self.vodes[-1].h.frozen = True
        self.f = pcx.static(jnp.tanh)

    def __call__(self, x, y):
        for layer, vode in zip(self.layers[:-1], self.vodes[:-1], strict=True):
            x = vode(self.f(layer(x)))
        x = self.vodes[-1](self.layers[-1](x))
        if y is not None:
            self.vodes[-1].set("h", y)
        return x


@pxf.vmap(PER_EXAMPLE, in_axes=(0, 0), out_axes=0)
def forward(x, y, *, model):
    """Everything begins at the forward pass; the top is clamped."""
    return model(x, y)


@pxf.vmap(PER_EXAMPLE, in_axes=(0,), out_axes=None, axis_name="batch")
def energy(x, *, model):
    """The sum over the batch."""
    model(x, None)
    return jax.lax.psum(model.energy(), "batch")


@pxf.jit()
def train_on_batch(x, y, *, model, of_weights, of_activities):
    """One step."""
    with pxu.step(model, pxc.STATUS.INIT, clear_params=pxc.VodeParam.Cache):
        forward(x, y, model=model)
    for _ in range(ROUNDS):
        with pxu.step(model, clear_params=pxc.VodeParam.Cache):
            _, g = pxf.value_and_grad(pxu.M_hasnot(pxc.VodeParam, frozen=True).to([False, True]))(energy)(x, model=model)
        of_activities.step(model, g["model"])
    with pxu.step(model, clear_params=pxc.VodeParam.Cache):
        _, g = pxf.value_and_grad(pxu.M(pxnn.LayerParam).to([False, True]))(energy)(x, model=model)
    of_weights.step(model, g["model"], scale_by=1 / len(x))


def make(task):
    """`train`, `weights`, as `served` asks for them."""
    model = Network(task.layers)
    batches = [(jnp.asarray(x), jnp.asarray(y)) for x, y in task.batches()]
    with pxu.step(model, pxc.STATUS.INIT, clear_params=pxc.VodeParam.Cache):
        forward(*batches[0], model=model)
        of_activities = pxu.Optim(lambda: optax.sgd(RATE), pxu.M_hasnot(pxc.VodeParam, frozen=True)(model))
        of_weights = pxu.Optim(lambda: optax.adam(1e-3), pxu.M(pxnn.LayerParam)(model))

    def train():
        for x, y in batches:
            train_on_batch(x, y, model=model, of_weights=of_weights, of_activities=of_activities)
        jax.block_until_ready(model.layers[0].nn.weight.get())

    return train, lambda: [(layer.nn.weight.get().T, layer.nn.bias.get()) for layer in model.layers]
