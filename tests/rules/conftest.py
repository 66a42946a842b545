"""What tests of rules share: a network so small that its equations can be written by hand, in float64."""

import functools
import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from locallearn.block import Block
from locallearn.chain import Chain, Row
from locallearn.codec import Context, exact
from locallearn.models import MLP
from locallearn.rule import Batch, gradients, init_state
from locallearn.runtime.local import Fused
from locallearn.runtime.wiring import Wiring, choose_codecs


class Small:
    """A rule on a dense network, with four examples. No parameter is zero, nor any memory: none of them is tested in vain."""

    def __init__(self, rule, widths=(6, 8, 7, 5, 3), activation="tanh", *, norm="none", count=4, seed=0, blocks=None):
        rng = np.random.default_rng(seed)
        self.rule, self.classes = rule, widths[-1]
        blocks = blocks or MLP(widths=widths, activation=activation, norm=norm).blocks((widths[0],))
        self.blocks = [replace(block, batch=count) for block in blocks]
        x, y = rng.normal(size=(count, *self.blocks[0].in_shape)), np.arange(count) % self.classes
        self.batch = Batch(jnp.asarray(x), jnp.asarray(y, jnp.int32), jnp.arange(count, dtype=jnp.int32), jax.random.PRNGKey(seed))
        wiring = Wiring((0,) * len(self.blocks), rule.messages, choose_codecs(rule.messages, {}, exact()))
        self.chain = Chain(self.blocks, Fused(wiring, {}, Context(self.batch.index)))

        shapes = jax.eval_shape(lambda: list(init_state(rule, self.blocks, seed)))
        self.state = Row(jax.tree.map(lambda leaf: jnp.asarray(0.5 * rng.normal(size=leaf.shape)), shapes))
        self._step = jax.jit(lambda state, batch: gradients(rule, self.chain, state, batch))

    def gradients(self, state=None, batch=None):
        """What the rule computes: a list of gradients by block, one of memories, and the loss."""
        grads, memory, info = self._step(state or self.state, batch or self.batch)
        return list(grads), list(memory), info.loss

    def shaken_at(self, i):
        """The state with other parameters in block i."""
        other = self.state[i]._replace(params=jax.tree.map(lambda p: 1.5 * p, self.state[i].params))
        return Row(other if j == i else state for j, state in enumerate(self.state))

    def influences(self):
        """For each block those whose parameters make a difference to its gradient, found out by changing them."""
        before, *after = (self.gradients(state)[0] for state in (self.state, *map(self.shaken_at, range(len(self.blocks)))))
        return [{j for j, grads in enumerate(after) if _differ(before[i], grads[i])} for i in range(len(self.blocks))]


def _differ(a, b):
    return not all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.fixture
def small():
    """`small(rule, widths, activation)`: a `Small`, with 64 bits for the whole test."""
    with jax.enable_x64(True):
        yield Small


class Convolution(nnx.Module):
    """A block for images: a 3x3 convolution, then tanh; or the linear top."""

    def __init__(self, shape, channels, stride, rngs):
        self.activation = "tanh" if stride else "identity"
        inner = nnx.Conv(shape[-1], channels, (3, 3), stride, rngs=rngs) if stride else nnx.Linear(math.prod(shape), channels, rngs=rngs)
        self.inner = inner

    def pre(self, x):
        return self.inner(x if isinstance(self.inner, nnx.Conv) else x.reshape(len(x), -1))

    def post(self, u):
        return jnp.tanh(u) if self.activation == "tanh" else u


@pytest.fixture
def convolutional(small):
    """`convolutional(rule)`: a `Small` with two convolutions, of strides 1 and 2, and a dense top."""

    def make(rule):
        parts = [((4, 4, 2), 3, 1), ((4, 4, 3), 2, 2), ((2, 2, 2), 3, None)]
        builds = [functools.partial(Convolution, *part) for part in parts]
        blocks = [Block(lambda rngs, b=b: b(rngs), parts[i][0], i, 3, classes=3) for i, b in enumerate(builds)]
        return small(rule, blocks=blocks)

    return make


@pytest.fixture(scope="session")
def dense():
    """`dense(params, x, f)`: one dense layer by hand."""

    def layer(params, x, f=jnp.tanh):
        return f(x @ params["linear"]["kernel"] + params["linear"]["bias"])

    return layer


@pytest.fixture(scope="session")
def assert_close():
    """`assert_close(a, b)`: two trees agree to rounding in float64, and are not all zero."""

    def check(a, b, tolerance=1e-12):
        assert jax.tree.structure(a) == jax.tree.structure(b)
        assert jax.tree.leaves(a)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            assert x.shape == y.shape
            assert x.dtype == jnp.float64
            assert jnp.any(y != 0)
            np.testing.assert_allclose(x, y, rtol=0, atol=tolerance)

    return check
