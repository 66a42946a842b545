"""One-line defects of learning rules, of the kinds that one really makes; the tests of the rule must notice each of them.

`EQUIVALENT` are changes that look like defects and change nothing, each with the reason; the tests must not notice them.
"""

from __future__ import annotations

from typing import NamedTuple


class Defect(NamedTuple):
    """`right`, which stands once in the file of the rule, replaced by `wrong`. what: is broken."""

    rule: str
    what: str
    right: str
    wrong: str


DEFECTS = [
    # Backpropagation and feedback alignment
    Defect(
        "backprop",
        "the error skips the derivative of the block",
        "return Pulled(*pull(delta))",
        "return Pulled(pull(delta)[0], 0 * pull(delta)[1])",
    ),
    Defect(
        "deep_supervision",
        "the read-out's error does not reach the block",
        "read(params.head, h), y)",
        "read(params.head, jax.lax.stop_gradient(h)), y)",
    ),
    Defect("deep_supervision", "the weight is left out", "weight * cross_entropy(read", "cross_entropy(read"),
    Defect(
        "deep_supervision",
        "the chosen blocks are those without a read-out",
        "or block.index in self.blocks",
        "or block.index not in self.blocks",
    ),
    Defect("solo", "members learn from each other's error", "of_each(delta, members), strict", "of_each(delta, members)[::-1], strict"),
    Defect("solo", "all members begin alike", "jax.random.fold_in(key, m) for m", "jax.random.fold_in(key, 1) for m"),
    Defect("solo", "scores are averaged, not probabilities", "jax.nn.log_softmax(scores) for", "scores for"),
    Defect("solo", "the second shard's blocks stay", "if not shard]", "if shard < 2]"),
    Defect("feedback_alignment", "weight transport: backpropagation in disguise", "block.pre(feedback, x), h)", "block.pre(params, x), h)"),
    Defect(
        "feedback_alignment", "the derivative of `post` is left out on the way down", "*through_feedback(d))", "*through_feedback(delta))"
    ),
    Defect(
        "direct_feedback",
        "the sign of the feedback",
        "delta = e if block.top else jnp.tensordot",
        "delta = e if block.top else -jnp.tensordot",
    ),
    Defect(
        "direct_feedback", "ternary errors lose their negative half", "bits[:, : block.classes] - bits", "bits[:, : block.classes] + bits"
    ),
    Defect("sign_symmetry", "magnitudes without signs", "m * jnp.sign(w)", "m * jnp.abs(jnp.sign(w))"),
    Defect(
        "sign_symmetry",
        "batchwise random magnitudes are drawn once",
        "jax.random.fold_in(key, block.index))\n    return",
        "jax.random.PRNGKey(block.index))\n    return",
    ),
    Defect(
        "kolen_pollack",
        "the feedback weights learn away from the forward ones",
        "() if block.bottom else pulled.of_pre",
        "() if block.bottom else jax.tree.map(lambda g: -g, pulled.of_pre)",
    ),
    Defect("direct_kolen_pollack", "a transpose", "jnp.tensordot(e.T, h, 1)", "jnp.tensordot(e.T, h, 1)[::-1]"),
    Defect("drtp", "a dropped minus: blocks run away from their targets", "return -jax.nn.one_hot", "return jax.nn.one_hot"),
    Defect("pepita", "clean and modulated are swapped", "(clean - modulated)", "(modulated - clean)"),
    Defect(
        "pepita",
        "learns at the clean input",
        "chain.map(local_gradient, state.params, x_mod, delta)",
        "chain.map(local_gradient, state.params, x, delta)",
    ),
    # Targets and decoupled
    Defect(
        "difference_target",
        "no difference correction",
        "x + invert(block, inverse, target) - invert(block, inverse, h)",
        "invert(block, inverse, target)",
    ),
    Defect("difference_target", "the inverse is not trained where it is used", "seen = x + epsilon", "seen = x - epsilon * 0"),
    Defect(
        "local_difference_reconstruction",
        "a dropped minus in the reconstruction loss",
        "jnp.sum(of_output**2) - 2 *",
        "jnp.sum(of_output**2) + 2 *",
    ),
    Defect("counter_current", "products run away from the classes", "(products - wanted)", "(products + wanted)"),
    Defect("dual_propagation", "the dyad is not symmetric", "u + sign * nudge / 2", "u + (sign + 1) * nudge / 2"),
    Defect("dual_propagation", "the phases are swapped", "dyad.minus - dyad.plus", "dyad.plus - dyad.minus"),
    Defect(
        "synthetic_gradients",
        "errors of other examples than those that were sent",
        "h[::every], some, speed) - told",
        "h[: told.shape[0]], some, speed) - told",
    ),
    Defect("features_replay", "the error meets the input of another step", "state.memory.inputs[0]", "state.memory.inputs[-1]"),
    # Energy-based
    Defect("_predictive", "the error pushes activities the wrong way", "slope = eps - above", "slope = eps + above"),
    Defect("_predictive", "precision is not divided out", "pull(eps / (-precision * mu.shape[0]))", "pull(eps / (-1.0 * mu.shape[0]))"),
    Defect("_predictive", "the first round is left out", "turn(at_rest, unit, x))", "(unit, x))"),
    Defect("incremental_predictive_coding", "the first round is left out", "turn(at_rest, state, unit, x))", "(state, unit, x))"),
    Defect("incremental_predictive_coding", "a dropped minus", "g / (-precision * mu.shape[0])", "g / (precision * mu.shape[0])"),
    Defect("nudged_predictive_coding", "the nudge is not divided out", "g / beta.astype(g.dtype)", "g / 1.0"),
    Defect("zero_divergence", "activities move although they are at rest", "rate * above  #", "(1 + rate) * above  #"),
    Defect("error_predictive_coding", "errors are not pulled back to zero", "e - rate * (e + slope)", "e - rate * slope"),
    Defect("equilibrium_propagation", "one-sided and centred are scaled alike", "2 * self.beta if self.nudge", "self.beta if self.nudge"),
    Defect("equilibrium_propagation", "the phases are swapped", "(minus - plus) / scale", "(plus - minus) / scale"),
    Defect(
        "contrastive_hebbian", "blocks are not scaled by their depth", "gain ** (block.count - 1 - block.index)", "gain ** (block.index)"
    ),
    Defect(
        "holomorphic_equilibrium_propagation",
        "the turn of the circle is forgotten",
        "-2 / (self.points * self.beta * turn)",
        "-2 / (self.points * self.beta)",
    ),
    Defect(
        "_settling",
        "feedback through the wrong weights",
        "return block.post(state.params, u if above is None else u + gain * above)",
        "return block.post(state.params, u if above is None else u - gain * above)",
    ),
    # Layerwise
    Defect(
        "local_classifier", "the two losses are exchanged", "return (1 - beta) * pred + beta * sim", "return beta * pred + (1 - beta) * sim"
    ),
    Defect("backlink", "the error from above takes the place of the block's own", "jax.tree.map(jnp.add, grads.block, more)", "more"),
    Defect(
        "decoupled_greedy",
        "the loss of another head",
        "return cross_entropy(class_scores(block, params, x), y)",
        "return -cross_entropy(class_scores(block, params, x), y)",
    ),
    Defect(
        "cascaded_forward",
        "scores without their softmax",
        "return jax.nn.softmax(class_scores(block, state.params, x))",
        "return class_scores(block, state.params, x)",
    ),
    Defect(
        "auglocal",
        "the auxiliary network learns, the block does not",
        "cross_entropy(class_scores(block, params, x, **how), y))(state.params))",
        "cross_entropy(class_scores(block, params._replace(block=jax.lax.stop_gradient(params.block)), x, **how), y))(state.params))",
    ),
    Defect(
        "mono_forward", "a block's goodness is not its own", "flat(a) @ params.head.T", "flat(jax.lax.stop_gradient(a)) @ params.head.T"
    ),
    # Forward-Forward
    Defect(
        "_readout",
        "a hard negative may be the right label",
        "jnp.where(jax.nn.one_hot(y, block.classes, dtype=bool), -jnp.inf, scores)",
        "scores",
    ),
    Defect("_readout", "the lowest layer is read as well", "reads = skip < block.index", "reads = skip <= block.index"),
    Defect("forward_forward", "positive and negative are swapped", "[-excess[:size], excess[size:]]", "[excess[:size], -excess[size:]]"),
    Defect("symba", "the margin is pushed down", "jax.nn.softplus(-alpha *", "jax.nn.softplus(alpha *"),
    Defect(
        "selective_goodness",
        "the threshold is on the wrong side",
        "[threshold - positive, negative - threshold]",
        "[positive - threshold, threshold - negative]",
    ),
    Defect(
        "deeper_forward", "centred by the wrong axis", "centred = v - v.mean(-1, keepdims=True)", "centred = v - v.mean(0, keepdims=True)"
    ),
    Defect("softhebb", "Oja's decay is forgotten", "(yx - decay * w) / places", "yx / places"),
    # Self-supervised
    Defect("clapp", "a saccade is learnt as a fixation", "jnp.maximum(0, 1 + u.leaves)", "jnp.maximum(0, 1 - u.leaves)"),
    Defect("clapp", "a forgotten stop-gradient", "scores(z, still(c), forth, away)", "scores(z, c, forth, away)"),
    Defect("clapp", "the prediction goes backward through its matrix", "predicted = c @ w.T", "predicted = c @ w"),
    Defect("blockwise_barlow_twins", "different features are drawn together", "weight * (jnp.sum(c**2) -", "-weight * (jnp.sum(c**2) -"),
    Defect("blockwise_barlow_twins", "correlations within a view", "normalised(a).T @ normalised(b)", "normalised(a).T @ normalised(a)"),
    Defect("blockwise_barlow_twins", "features keep their means", "(z - z.mean(axes)) / jnp.sqrt", "z / jnp.sqrt"),
    Defect("_views", "both views get the same noise", "first=view, number=1", "first=view, number=0"),
    # Perturbation and denoising
    Defect("spsa", "a one-sided difference", "(plus - minus) / (2 * epsilon)", "(plus - minus) / epsilon"),
    Defect(
        "forward_gradient",
        "tangents do not pass through the blocks above",
        "jax.jvp(block.apply, (state.params, x), (v, t))",
        "jax.jvp(block.apply, (state.params, x), (v, 0 * t))",
    ),
    Defect(
        "node_perturbation",
        "the noise is not that of the noisy pass",
        "pull(each * xi)",
        "pull(each * jnp.roll(xi, 1, 0))",
    ),
    Defect("activity_forward_gradient", "the estimate is not along its direction", "y, v, groups) * v / len(u)", "y, v, groups) / len(u)"),
    Defect("noprop", "the noise of the wrong time", "alpha_bar(block.index, block.count)", "alpha_bar(block.index + 1, block.count)"),
    Defect(
        "boltzmann",
        "dream and data are swapped",
        "v, kind) - free_energy(block, params, v_k, kind)",
        "v_k, kind) - free_energy(block, params, v, kind)",
    ),
]

EQUIVALENT = [
    Defect(
        "zero_divergence",
        "the bottom block's error could be pulled onto its input too, and thrown away: XLA drops what nobody uses",
        "return Moment(down[0] if down else None,",
        "return Moment(None if block.bottom else down[0],",
    ),
    Defect(
        "spsa",
        "with as many directions up as down, the sum of the two losses is symmetric in them",
        "Projected((plus + minus) / 2,",
        "Projected((minus + plus) / 2,",
    ),
]
