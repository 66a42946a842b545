"""Predictive coding in fabricpc: a graph of `Linear` nodes, `InferenceSGD`, and its jitted `make_train_step` for each batch.

The same arithmetic as `by_hand`. Differences: nodes compute their gradients by automatic differentiation, those of clamped nodes included;
the step also computes the energy that it reports; one call from Python for each batch (batches lie ready on the device).
"""

import itertools

import jax
import jax.numpy as jnp
import optax
from fabricpc import setup_jax
from fabricpc.core.activations import IdentityActivation, TanhActivation
from fabricpc.core.inference import InferenceSGD
from fabricpc.core.topology import Edge
from fabricpc.graph_assembly import TaskMap, graph
from fabricpc.graph_initialization import FeedforwardStateInit, initialize_params
from fabricpc.nodes import IdentityNode, Linear
from fabricpc.training import make_train_step


def make(task):
    """`train`, `weights`, as `served` asks for them."""
    setup_jax("cpu")
    nodes = [
        IdentityNode(shape=(784,), name="x"),
        Linear(shape=(300,), activation=TanhActivation(), name="h1"),
        Linear(shape=(300,), activation=TanhActivation(), name="h2"),
        Linear(shape=(10,), activation=IdentityActivation(), name="y"),
    ]
    structure = graph(
        nodes=nodes,
        edges=[Edge(source=a, target=b.slot("in")) for a, b in itertools.pairwise(nodes)],
        task_map=TaskMap(x=nodes[0], y=nodes[-1]),
        inference=InferenceSGD(eta_infer=0.1, infer_steps=20),
        graph_state_initializer=FeedforwardStateInit(),
    )
    params = initialize_params(structure, jax.random.PRNGKey(0))
    for node, (kernel, bias) in zip(nodes[1:], task.layers, strict=True):
        own = params.nodes[node.name]
        (edge,) = own.weights
        own.weights[edge] = jnp.asarray(kernel)
        own.biases["b"] = jnp.asarray(bias).reshape(own.biases["b"].shape)
    adam = optax.adam(1e-3)
    step, opt, key = make_train_step(structure, adam), adam.init(params), jax.random.PRNGKey(1)
    batches = [{"x": jnp.asarray(x), "y": jnp.asarray(y)} for x, y in task.batches()]

    def train():
        nonlocal params, opt
        for batch in batches:
            params, opt, _, _ = step(params, opt, batch, key)
        jax.block_until_ready(params)

    def weights():
        own = [params.nodes[node.name] for node in nodes[1:]]
        return [(next(iter(part.weights.values())), part.biases["b"].ravel()) for part in own]

    return train, weights
