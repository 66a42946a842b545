"""AugLocal: the auxiliary network of each block is what the network goes on with, thinned out.

Ma, Wu, Si & Tan (2024), "Scaling Supervised Local Learning with Augmented Auxiliary Networks", ICLR. https://arxiv.org/abs/2402.17318

With h_l = f_l(sg[h_{l-1}]; θ_l), where sg stops the gradient, l = 0 … n-1 the hidden blocks, and g_k a copy of block k's architecture with
parameters of its own:

    d_l    = max(1, round((1 - τ l/(n-2)) d + τ l/(n-2)))                          depth d at the bottom; τ: how fast it falls
    k_j    = round(l + j (n-1-l)/d_l),   j = 1 … d_l                               all blocks above l if they are no more than d_l
    a_l    = g_top ∘ g_{k_d} ∘ … ∘ g_{k_1}
    loss_l = cross-entropy(softmax(a_l(h_l; γ_l)), y)                              Δ(θ_l, γ_l) ∝ -∂loss_l

Where a copy does not take the shape that it is given, since blocks between were left out, features are averaged over the surplus positions
and mapped linearly to its channels. The top block is trained by the cross-entropy of its class scores.

A boundary carries h_l up once, batch x width numbers, and the labels down to each shard once, one byte for each example. Nothing else comes
down: what the copies need of later blocks is their architecture, which every shard knows.

What makes it work: a block that is trained below something like the rest of the network keeps what the rest will need. It costs
computation: a block is trained through d_l others. For ResNet-110 in 55 local blocks on CIFAR-10 the paper reports 93.96 % with d = 6
(backpropagation 94.61), and 86.95 for InfoPro (Wang et al., 2021, https://arxiv.org/abs/2101.10832), which besides needs the input at every
shard, to reconstruct it: more bytes for less accuracy, so this is the one of the two that is here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from locallearn.block import Block, State, WithHead
from locallearn.chain import Chain, Row
from locallearn.fields import Count, Fraction
from locallearn.rule import Batch, Info, Message, Rule
from locallearn.rules._common import Local, cross_entropy, forward_body, head_key, label, unknown_classes
from locallearn.rules._heads import average_pool
from locallearn.search import Linear


class Copy(NamedTuple):
    """One block of an auxiliary network: its parameters, and the map to its channels, [n_in, n_out], where it needs one."""

    params: Any
    adapter: Any = ()


def depth_at(i: int, hidden: int, depth: int, decay: float) -> int:
    """d_l: how many hidden blocks the auxiliary network of block i takes over."""
    fallen = decay * i / max(1, hidden - 2)
    return max(1, round((1 - fallen) * depth + fallen))


def sampled(i: int, hidden: int, depth: int) -> list[int]:
    """k_1 … k_d: numbers of the hidden blocks above block i that are copied."""
    above = hidden - 1 - i
    return list(range(i + 1, hidden)) if depth >= above else [round(i + above * j / depth) for j in range(1, depth + 1)]


def originals(block: Block, depth: int, decay: float) -> list[Block]:
    """The blocks that the auxiliary network copies, the top one last."""
    hidden = block.count - 1
    numbers = sampled(block.index, hidden, depth_at(block.index, hidden, depth, decay))
    return [block.later[k - block.index - 1] for k in [*numbers, hidden]]


def fitted(h: jax.Array, shape: tuple[int, ...], adapter: Any) -> jax.Array:
    """Features as a copy takes them: [batch, *shape]. h: [batch, ..., channels]."""
    if h.shape[1:] != shape:
        h = average_pool(h, shape[:-1]) if h.ndim == len(shape) + 1 else h.mean(tuple(range(1, h.ndim - 1)))
    return h if isinstance(adapter, tuple) else h @ adapter


def class_scores(block: Block, params: WithHead, x: jax.Array, *, depth: int, decay: float) -> jax.Array:
    """a_l(h_l), or what the top says: [batch, classes]."""
    h = block.apply(params.block, x)
    if not block.top:
        for original, copy in zip(originals(block, depth, decay), params.head, strict=True):
            h = original.apply(copy.params, fitted(h, original.in_shape, copy.adapter))
    return h


def learn(block: Block, state: State, x: jax.Array, y: jax.Array, **how: Any) -> Local:
    """loss_l, and its gradient by the block's parameters and its auxiliary network's."""
    return Local(*jax.value_and_grad(lambda params: cross_entropy(class_scores(block, params, x, **how), y))(state.params))


def accuracy(block: Block, state: State, x: jax.Array, y: jax.Array, **how: Any) -> jax.Array:
    """Share of the batch that this block's auxiliary network tells right."""
    return jnp.mean(jnp.argmax(class_scores(block, state.params, x, **how), -1) == y)


@dataclass(frozen=True)
class AugLocal(Rule):
    """AugLocal. depth: d, hidden blocks in the auxiliary network of the bottom. decay: τ, the paper's pyramid coefficient."""

    depth: Count = 3
    decay: Fraction = 0.5

    space: ClassVar = {"decay": Linear(0.1, 1.0)}
    messages: ClassVar = {
        "activation": Message("activation", "up", "h_l, once"),
        "label": Message("label", "broadcast", "y, from the top to every block"),
    }
    family: ClassVar = "local losses"
    assumes: ClassVar = "labels and the architecture of later blocks in every block; only forward locked"

    def problems(self, blocks: Sequence[Block]) -> list[str]:
        """Blocks must know those above them, and have no more positions than those below."""
        found = super().problems(blocks) + unknown_classes(blocks)
        if any(len(block.later) != len(blocks) - 1 - block.index for block in blocks):
            return [*found, "needs blocks that know those above them: pass the model's list through `locallearn.block.stacked`"]
        for block in blocks:
            shape = block.out_shape
            for after in [] if block.top else originals(block, self.depth, self.decay):
                taken = after.in_shape
                if len(taken) > 1 and (len(taken) != len(shape) or any(a < b for a, b in zip(shape[:-1], taken[:-1], strict=True))):
                    what = f"features of shape {list(shape)} cannot be brought to the shape {list(taken)} of block {after.index}"
                    return [*found, f"{what}, which the auxiliary network of block {block.index} copies"]
                shape = after.out_shape
        return found

    def init(self, block: Block, key: jax.Array) -> State:
        """Copies begin as blocks do, adapters from N(0, 1/fan-in)."""
        if block.top:
            return block.state(WithHead(block.init(key), ()))
        copies, channels = [], block.out_shape[-1]
        for k, original in enumerate(originals(block, self.depth, self.decay)):
            own, wanted = jax.random.fold_in(head_key(key), k), original.in_shape[-1]
            fits = channels == wanted
            adapter = () if fits else jax.random.normal(jax.random.fold_in(own, 1), (channels, wanted)) / math.sqrt(channels)
            copies.append(Copy(original.init(own), adapter))
            channels = original.out_shape[-1]
        return block.state(WithHead(block.init(key), tuple(copies)))

    def gradients(self, chain: Chain, state: Row, batch: Batch) -> tuple[Row, Row, Info]:
        """The whole algorithm."""
        x, _ = chain.sweep_up("activation", forward_body, state, first=batch.x)
        y = chain.broadcast("label", chain.at_top(label, batch.y))
        local = chain.map(learn, state, x, y, depth=self.depth, decay=self.decay)
        return local.grads, state.memory, Info(local.loss[-1], x)

    def diagnose(self, chain: Chain, state: Row, batch: Batch) -> dict[str, Row]:
        """Accuracy of each block's auxiliary network on the batch."""
        x, _ = chain.sweep_up("activation", forward_body, state, first=batch.x)
        y = chain.broadcast("label", chain.at_top(label, batch.y))
        return {"accuracy": chain.map(accuracy, state, x, y, depth=self.depth, decay=self.decay)}

    def predict(self, chain: Chain, state: Row, x: Any) -> Any:
        """Class scores of the top block."""
        return chain.sweep_up("activation", forward_body, state, first=x)[1][-1]
