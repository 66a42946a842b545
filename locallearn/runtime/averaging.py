"""What replicas agree on, written in the verbs of a chain over their ring, whose values are those of all replicas.

Of parameters each replica sends how far they went since the last average, and all add the mean of that, or a step that an outer optimizer
makes of it, to what they had agreed on: so a lossy codec loses of changes, not of weights. Optimizers, rules' memories and the running
statistics of batch normalisation stay each replica's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from locallearn.block import Block, State
from locallearn.chain import ABSENT, Chain, Row
from locallearn.replicas import PLAIN, Outer, Replicas
from locallearn.runtime.ring import Deal, Memory, PlanRing, Ring, initial_memory
from locallearn.runtime.wiring import Wiring


class Agreement(NamedTuple):
    """Of one block: the parameters that all replicas had after the last average, and the outer optimizer's state."""

    agreed: Any = ()
    outer: Any = ()


class Agreed(NamedTuple):
    """A block after an average."""

    state: State
    agreement: Agreement


class Shared(NamedTuple):
    """What replicas have besides their chains: agreements by block, and what the ring's ends remember of each block that takes part."""

    agreement: Row
    ring: dict[int, Any]


def begin_agreement(block: Block, state: State, *, replicas: Replicas) -> Agreement:
    """All replicas begin with the same parameters; there is nothing to agree on where gradients are averaged, or nothing learns."""
    if not block.learns or replicas.average == "gradients":
        return Agreement()
    agreed = block.learnt(state.params)
    return Agreement(agreed, (replicas.outer or PLAIN).build().init(agreed))


def drift(block: Block, state: State, agreement: Agreement) -> Any:
    """How far the parameters went since the last average."""
    return jax.tree.map(jnp.subtract, block.learnt(state.params), agreement.agreed) if block.learns else ()


def settle(block: Block, state: State, agreement: Agreement, change: Any, *, outer: Outer) -> Agreed:
    """What all replicas go on with. change: the mean of their drifts."""
    if not block.learns:
        return Agreed(state, agreement)
    step, memory = outer.build().update(change, agreement.outer)
    agreed = jax.tree.map(jnp.add, agreement.agreed, step)
    return Agreed(evaluated(block, state, Agreement(agreed)), Agreement(agreed, memory))


def evaluated(block: Block, state: State, agreement: Agreement) -> State:
    """A replica with the parameters agreed on, as evaluations see it."""
    return state._replace(params=block.joined(agreement.agreed, state.params)) if agreement.agreed != () else state


def agreed_state(blocks: Sequence[Block], state: Row, agreement: Row) -> Row:
    """The same of all blocks that are here."""
    return Row(own if own is ABSENT else evaluated(b, own, agreed) for b, own, agreed in zip(blocks, state, agreement, strict=True))


def agree(blocks: Sequence[Block], ring: Ring, state: Row, agreement: Row, outer: Outer | None) -> tuple[Row, Row]:
    """An average of parameters: (states, agreements)."""
    chain = Chain(blocks, ring)
    change = ring.average(chain.map(drift, state, agreement))
    after = chain.map(settle, state, agreement, change, outer=outer or PLAIN)
    return after.state, after.agreement


def learnt(block: Block, grads: Any) -> Any:
    """A gradient without what no optimizer touches."""
    return block.learnt(grads) if block.learns else ()


def rejoined(block: Block, mean: Any, grads: Any) -> Any:
    """The inverse of `learnt`."""
    return block.joined(mean, grads) if block.learns else grads


def mean_gradients(blocks: Sequence[Block], ring: Ring, grads: Row) -> Row:
    """An average of gradients."""
    chain = Chain(blocks, ring)
    return chain.map(rejoined, ring.average(chain.map(learnt, grads)), grads)


def averaged(blocks: Sequence[Block], state: Row) -> dict[int, Any]:
    """What takes part in averages: the parameters that learn, of each block that has some. state: of one replica, or its shapes."""
    trees = {i: block.learnt(state[i].params) for i, block in enumerate(blocks) if block.learns}
    return {i: tree for i, tree in trees.items() if jax.tree.leaves(tree)}


def ring_memory(deal: Deal, blocks: Sequence[Block], state: Row, seed: int) -> dict[int, Memory]:
    """What the ring's ends remember of each block that takes part, stacked over the replicas."""
    root = jax.random.fold_in(jax.random.PRNGKey(seed), 0xA7E6)
    return {i: initial_memory(deal, tree, jax.random.fold_in(root, i)) for i, tree in averaged(blocks, state).items()}


def plan_average(deal: Deal, blocks: Sequence[Block], wiring: Wiring, replicas: Replicas, state: Row) -> PlanRing:
    """What one average sends. state: the shapes of one replica's."""

    ring = PlanRing(wiring, deal, {})

    def run(state: Row) -> Any:
        ring.memory, copies = ring_memory(deal, blocks, state, 0), stack(state, deal.replicas)
        if replicas.average == "gradients":
            return mean_gradients(blocks, ring, copies.params)
        agreement = Chain(blocks, ring).map(begin_agreement, copies, replicas=replicas)
        return agree(blocks, ring, copies, agreement, replicas.outer)

    jax.eval_shape(run, state)
    return ring


def stack(tree: Any, count: int) -> Any:
    """So many copies of a tree, along a first axis."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *jnp.shape(leaf))), tree)


def stacked(trees: Sequence[Any]) -> Any:
    """Several trees along a first axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def of(tree: Any, replica: int) -> Any:
    """One replica's part of a stacked tree."""
    return jax.tree.map(lambda leaf: leaf[replica], tree)
