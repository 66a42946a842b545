"""What gradients are measured by in tests of several rules."""

import jax
import numpy as np
import optax

from locallearn.chain import Row


def flat(tree):
    """All numbers of a tree."""
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def distance(a, b):
    """Relative distance of two trees."""
    return np.linalg.norm(flat(a) - flat(b)) / np.linalg.norm(flat(b))


def backpropagation(net, state=None):
    """The cross-entropy of the whole network, as one function of the blocks' own parameters, and its gradient for each block."""

    def loss(params):
        h = net.batch.x
        for block, own in zip(net.blocks, params, strict=True):
            h = block.apply(own, h)
        return optax.softmax_cross_entropy_with_integer_labels(h, net.batch.y).mean()

    return jax.jit(jax.value_and_grad(loss))([getattr(one.params, "block", one.params) for one in state or net.state])


def true_gradients(net, state=None):
    """What backpropagation gives for the same parameters."""
    return backpropagation(net, state)[1]


def gentle(net, factor=0.35):
    """Weights small enough that the network comes to rest."""
    net.state = Row(state._replace(params=jax.tree.map(lambda p: factor * p, state.params)) for state in net.state)
    return net
