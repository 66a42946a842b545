"""Decoupled greedy learning: every block is trained through an auxiliary network of its own, all at once or one after the other.

Belilovsky, Eickenberg & Oyallon (2020), "Decoupled Greedy Learning of CNNs", ICML. https://arxiv.org/abs/1901.08164
One after the other: Belilovsky, Eickenberg & Oyallon (2019), "Greedy Layerwise Learning Can Scale to ImageNet", ICML.
https://arxiv.org/abs/1812.11446

With h_l = f_l(sg[h_{l-1}]; θ_l), where sg stops the gradient, and an auxiliary network a_l with parameters γ_l:

    loss_l = cross-entropy(softmax(a_l(h_l; γ_l)), y)        Δ(θ_l, γ_l) ∝ -∂loss_l

a_l has `depth` hidden layers with relu and a linear read-out. `head: mlp` averages features with spatial axes (the last axis are channels)
down to two cells along each axis and goes on with dense layers as wide as that; `head: conv` begins with convolutions over 3 positions
along each axis, as many channels as h_l, and averages after them. On dense features both are dense layers as wide as h_l. The top block has
no auxiliary network: it is trained by the cross-entropy of its class scores.

Sequential greedy training is this loss in phases: with `train: {greedy: true}` each block in turn learns for `epochs`, from the bottom up,
on those below it as they are. While block k is the highest that learns, its auxiliary network makes the predictions; blocks above it
compute nothing. What those below send does not change any more: through `reuse` each example crosses once.

A boundary carries h_l up once, batch x width numbers (above the highest block that learns nothing, but one number goes from there to the
top, its loss), and the labels down to each shard once, one byte for each example. Nothing else comes down: a shard may work on the next
batch while those above are at this one.

What makes it work: one hidden layer or two; a deeper auxiliary network sees further than the next layer, and leaves more for the blocks
above to use. Read-outs begin at zero. `depth: 0` is the linear classifier of local error signals (`pred`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from locallearn.block import Block, State, WithHead
from locallearn.chain import Chain, Row
from locallearn.fields import NonNegativeInt
from locallearn.rule import Batch, Info, Message, Rule
from locallearn.rules._common import Local, cross_entropy, forward_body, head_key, label, unknown_classes
from locallearn.rules._heads import Auxiliary, Layer, auxiliary, blank, hidden_shapes


def class_scores(block: Block, params: WithHead, x: jax.Array) -> jax.Array:
    """What this block says of its input: [batch, classes]."""
    h = block.apply(params.block, x)
    return h if block.top else auxiliary(params.head, h)


def local_loss(block: Block, params: WithHead, x: jax.Array, y: jax.Array) -> jax.Array:
    """loss_l. x: [batch, *in_shape], y: [batch] int."""
    return cross_entropy(class_scores(block, params, x), y)


def learn(block: Block, state: State, x: jax.Array, y: jax.Array) -> Local:
    """loss_l and its gradient by θ_l and γ_l; nothing where the block does not learn in this phase."""
    if not block.learns:
        return Local(jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.params))
    return Local(*jax.value_and_grad(lambda params: local_loss(block, params, x, y))(state.params))


def rise(block: Block, state: State, x: jax.Array, *, highest: int) -> jax.Array:
    """h_l below the highest block that learns; there, its class scores."""
    return block.apply(state.params.block, x) if block.index < highest else class_scores(block, state.params, x)


def accuracy(block: Block, state: State, x: jax.Array, y: jax.Array, *, highest: int) -> jax.Array:
    """Share of the batch that this block tells right; nan above the highest that learns."""
    if block.index > highest:
        return jnp.full((), jnp.nan)
    return jnp.mean(jnp.argmax(class_scores(block, state.params, x), -1) == y)


def highest_learner(chain: Chain) -> int:
    """Number of the highest block that learns in this phase: the top one, unless the phase says otherwise."""
    return max((block.index for block in chain.blocks if block.learns), default=chain.n - 1)


@dataclass(frozen=True)
class DecoupledGreedy(Rule):
    """Decoupled greedy learning.

    depth: hidden layers of the auxiliary networks. width: of dense ones, 0 for that of the features. head: what they are on features with
    spatial axes.
    """

    depth: NonNegativeInt = 1
    width: NonNegativeInt = 0
    head: Literal["mlp", "conv"] = "mlp"

    messages: ClassVar = {
        "activation": Message("activation", "up", "h_l, once, to the highest block that learns"),
        "label": Message("label", "broadcast", "y, from the top to every block"),
        "loss": Message("scalar", "to top", "the loss of the highest block that learns, in phases in which the top does not"),
        "score": Message("evaluation", "to top", "its class scores, in the same phases"),
    }
    family: ClassVar = "local losses"
    assumes: ClassVar = "labels in every block; only forward locked"

    def problems(self, blocks: Sequence[Block]) -> list[str]:
        """An auxiliary network tells classes apart."""
        return super().problems(blocks) + unknown_classes(blocks)

    def init(self, block: Block, key: jax.Array) -> State:
        """Hidden layers from N(0, 2/fan-in), read-outs at zero."""
        return block.state(WithHead(block.init(key), () if block.top else self._auxiliary(block, head_key(key))))

    def _auxiliary(self, block: Block, key: jax.Array) -> Auxiliary:
        shapes, n = hidden_shapes(block.out_shape, self.depth, self.width, self.head)
        keys = [jax.random.fold_in(key, k) for k in range(self.depth)]
        kernels = [math.sqrt(2 / math.prod(s[:-1])) * jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True)]
        return Auxiliary(tuple(Layer(kernel, jnp.zeros(kernel.shape[-1])) for kernel in kernels), blank(n, block.classes))

    def gradients(self, chain: Chain, state: Row, batch: Batch) -> tuple[Row, Row, Info]:
        """The whole algorithm. Blocks above the highest that learns rest."""
        x, y = self.seen(chain, state, batch)
        learnt = chain.map(learn, state, x, y)
        highest = highest_learner(chain)
        return learnt.grads, state.memory, Info(chain.to_top("loss", learnt.loss[highest], source=highest), x)

    def seen(self, chain: Chain, state: Row, batch: Batch) -> tuple[Row, Row]:
        """What each block sees, and the labels."""
        y = chain.broadcast("label", chain.at_top(label, batch.y))
        x, _ = chain.sweep_up("activation", forward_body, state, first=batch.x)
        return x, y

    def diagnose(self, chain: Chain, state: Row, batch: Batch) -> dict[str, Row]:
        """Accuracy of each block's own classifier on the batch."""
        return {"accuracy": chain.map(accuracy, state, *self.seen(chain, state, batch), highest=highest_learner(chain))}

    def predict(self, chain: Chain, state: Row, x: Any) -> Any:
        """Class scores of the highest block that learns: of the top, but in the phases before its own."""
        highest = highest_learner(chain)
        _, h = chain.up_to(highest).sweep_up("activation", rise, state, first=x, highest=highest)
        return chain.to_top("score", h[highest], source=highest)
