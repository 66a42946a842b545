"""DiffusionBlocks: every block denoises its own range of noise levels, trained by score matching, apart from the others.

Shing, Koyama & Akiba (2025), "DiffusionBlocks: Block-wise Neural Network Training via Diffusion Interpretation", for classifiers.
https://arxiv.org/abs/2506.14202
Preconditioning: Karras, Aittala, Aila & Laine (2022), "Elucidating the Design Space of Diffusion-Based Generative Models".
https://arxiv.org/abs/2206.00364

Noise levels follow ln σ ~ N(-1.2, 1.2²) between σ_min = 0.002 and σ_max = 80. Cut into L ranges of equal probability, from the noisiest
down, σ_0 = σ_max > … > σ_L = σ_min, block l owns [σ_{l+1}, σ_l], widened on both sides by the share γ of its logarithm. With
u = onehot(y), σ_d = 0.5, and an affine read-out R_l of the block's own:

    z      = u + σ ε,  ε ~ N(0, I)                 in training; σ from the block's range, for each example
    D_l    = σ_d²/(σ² + σ_d²) z + σ σ_d/√(σ² + σ_d²) f_l(x, z/√(σ² + σ_d²), ¼ ln σ; θ_l)
    p_l    = softmax(R_l(D_l))
    loss_l = mean of (σ² + σ_d²)/(σ σ_d)² cross-entropy(p_l, y)
    z     ← z + (σ_{l+1} - σ_l) (z - p_l) / σ_l    in predictions: one Euler step of the probability flow for each block, from z = 0

The prediction is the largest of the top block's p. (The paper's blocks are groups of layers of a transformer, its label embeddings and
read-out are learnt by all of them; here the labels are one-hot, so that nothing is shared.)

In training the data and the labels cross to each shard once, batch x size of x numbers and one byte for each example; no block waits for
another. A prediction sends x to each shard and z up, batch x classes numbers for a boundary.

What makes it work: few blocks (three to ten) of the model `denoiser`, Adam at 1e-3 with a falling rate. As in NoProp, each block sees all
of x: compare with NoProp's control of independent classifiers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Annotated, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge, Lt

from locallearn.block import Block, State, WithHead
from locallearn.chain import Chain, Row
from locallearn.rule import Batch, Info, Message, Rule
from locallearn.rules._common import label
from locallearn.rules._perturbation import each_cross_entropy
from locallearn.rules.noprop import Learnt, no_denoiser, scores
from locallearn.search import Linear

LOG_SIGMA = NormalDist(-1.2, 1.2)
SIGMA_MIN, SIGMA_MAX, SIGMA_DATA = 0.002, 80.0, 0.5


class Readout(NamedTuple):
    """R_l. kernel: [classes, classes], bias: [classes]."""

    kernel: jax.Array
    bias: jax.Array


def edges(blocks: int) -> list[float]:
    """σ_0 … σ_L."""
    low, high = (LOG_SIGMA.cdf(math.log(s)) for s in (SIGMA_MIN, SIGMA_MAX))
    inner = [math.exp(LOG_SIGMA.inv_cdf(high - (high - low) * k / blocks)) for k in range(1, blocks)]
    return [SIGMA_MAX, *inner, SIGMA_MIN]


def quantiles(block: Block, overlap: float) -> tuple[float, float]:
    """The probabilities of ln σ between which a block draws."""
    high, low = (math.log(s) for s in edges(block.count)[block.index : block.index + 2])
    more = overlap * (high - low)
    return LOG_SIGMA.cdf(max(low - more, math.log(SIGMA_MIN))), LOG_SIGMA.cdf(min(high + more, math.log(SIGMA_MAX)))


def guess(block: Block, params: WithHead, x: jax.Array, z: jax.Array, sigma: jax.Array) -> tuple[jax.Array, jax.Array]:
    """R_l(D_l): [batch, classes], and what the block saw. sigma: [batch, 1]."""
    whole = sigma**2 + SIGMA_DATA**2
    f, seen = scores(block, params.block, x, z / jnp.sqrt(whole), jnp.log(sigma) / 4)
    denoised = SIGMA_DATA**2 / whole * z + sigma * SIGMA_DATA / jnp.sqrt(whole) * f
    return denoised @ params.head.kernel + params.head.bias, seen


def learn(block: Block, state: State, x: jax.Array, y: jax.Array, key: jax.Array, *, overlap: float) -> Learnt:
    """loss_l and its gradient at one draw of σ and z. x: [batch, *example_shape], y: [batch] int."""
    levels, noise = jax.random.split(jax.random.fold_in(key, block.index))
    low, high = quantiles(block, overlap)
    share = jax.random.uniform(levels, (len(y), 1), x.dtype, low, high)
    sigma = jnp.exp(LOG_SIGMA.mean + LOG_SIGMA.stdev * jax.scipy.special.ndtri(share))
    u = jax.nn.one_hot(y, block.classes, dtype=x.dtype)
    z = u + sigma * jax.random.normal(noise, u.shape, u.dtype)
    weight = (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2

    def loss(params: WithHead) -> tuple[jax.Array, Any]:
        out, seen = guess(block, params, x, z, sigma)
        error = jnp.sum((jax.nn.softmax(out) - u) ** 2, 1).mean()
        return (weight[:, 0] * each_cross_entropy(out, y)).mean(), (seen, error)

    (value, (seen, error)), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
    return Learnt(value, grads, seen, error)


def step_down(block: Block, state: State, x: jax.Array, z: Any) -> jax.Array:
    """z one Euler step on; at the top the class scores: [batch, classes]."""
    z = jnp.zeros((x.shape[0], block.classes), x.dtype) if z is None else z
    sigma, after = edges(block.count)[block.index : block.index + 2]
    out, _ = guess(block, state.params, x, z, jnp.full((len(z), 1), sigma, z.dtype))
    return out if block.top else z + (after - sigma) / sigma * (z - jax.nn.softmax(out))


@dataclass(frozen=True)
class DiffusionBlocks(Rule):
    """DiffusionBlocks for classifiers. overlap: γ."""

    overlap: Annotated[float, Ge(0), Lt(1)] = 0.05

    space: ClassVar = {"overlap": Linear(0.0, 0.3)}
    messages: ClassVar = {
        "input": Message("input", "broadcast from the bottom", "x, to every shard, also in predictions"),
        "label": Message("label", "broadcast", "y, from the top to every block"),
        "state": Message("evaluation", "up", "z, in predictions alone"),
    }
    family: ClassVar = "denoising blocks"
    assumes: ClassVar = "data and labels in every block; nothing is locked"

    @property
    def additive_over_batch(self) -> bool:
        """Parts of a batch would have other noise."""
        return False

    def problems(self, blocks: Sequence[Block]) -> list[str]:
        """Blocks must see x and z."""
        return super().problems(blocks) + no_denoiser(blocks)

    def init(self, block: Block, key: jax.Array) -> State:
        """R_l begins as ten times the identity: as sure of a label as softmax can well express."""
        return block.state(WithHead(block.init(key), Readout(10.0 * jnp.eye(block.classes), jnp.zeros(block.classes))))

    def gradients(self, chain: Chain, state: Row, batch: Batch) -> tuple[Row, Row, Info]:
        """The whole algorithm."""
        learnt = self.learnt(chain, state, batch)
        return learnt.grads, state.memory, Info(learnt.loss[-1], learnt.inputs)

    def learnt(self, chain: Chain, state: Row, batch: Batch) -> Row:
        """What each block finds."""
        x = chain.broadcast("input", batch.x, source="bottom")
        y = chain.broadcast("label", chain.at_top(label, batch.y))
        return chain.map(learn, state, x, y, batch.key, overlap=self.overlap)

    def diagnose(self, chain: Chain, state: Row, batch: Batch) -> dict[str, Row]:
        """How far each block's p is from the label."""
        return {"denoising_error": self.learnt(chain, state, batch).error}

    def predict(self, chain: Chain, state: Row, x: Any) -> Any:
        """The class scores of the top block."""
        shown = chain.broadcast("input", x, source="bottom")
        return chain.sweep_up("state", step_down, state, shown, first=None)[1][-1]
