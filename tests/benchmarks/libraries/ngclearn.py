"""Predictive coding in ngc-learn: the circuit of its museum's exhibit pc_discrim, rounds by `scan`, as other exhibits run theirs.

Differences that are ngc-learn's: a state is what comes before the activation function (Whittington and Bogacz), so that μ_l = W tanh(z) and
the weights after a step are others; gradients are summed over the batch, which Adam forgets but for its epsilon; each process (reset,
projection, rounds, learning) is a program of its own, called from Python with the whole state; in every step weights are copied to those
of the projection and of the feedback. Better than the exhibit: `scan` instead of a call for each round; the product with the clamped input
is computed once and not in every round; the first error at the top sees the projection's output.
"""

import itertools

import jax
import jax.numpy as jnp
from ngclearn import Context, MethodProcess
from ngclearn.components import GaussianErrorCell, HebbianSynapse, RateCell, StaticSynapse
from ngclearn.utils.distribution_generator import DistributionGenerator as Draw
from ngcsimlib.global_state import stateManager

WIDTHS, ROUNDS, RATE, BATCH = (784, 300, 300, 10), 20, 0.1, 64


def process(name, *methods):
    """These methods one after the other, compiled."""
    made = MethodProcess(name=name)
    for method in methods:
        made = made >> method
    return made


def cells(name, hidden):
    """Four layers of rate cells: states that follow their slope, or that pass on what they get."""
    tau, f = (1 / RATE if hidden else 0.0), "tanh"
    kinds = [(0.0, "identity"), (tau, f), (tau, f), (0.0, "identity")]
    return [
        RateCell(f"{name}{i}", n_units=n, tau_m=t, act_fx=g, batch_size=BATCH)
        for i, (n, (t, g)) in enumerate(zip(WIDTHS, kinds, strict=True))
    ]


class Circuit:
    """z: states, e: errors, W: predictions, E: feedback; q, Q: the projection."""

    def __init__(self, layers):
        shapes = list(itertools.pairwise(WIDTHS))
        keys = jax.random.split(jax.random.PRNGKey(0), 8)
        drawn = {"weight_init": Draw.uniform(low=-0.3, high=0.3)}
        bias = {"bias_init": Draw.constant(value=0.0)}
        with Context("Circuit"):
            self.z, self.q = cells("z", True), cells("q", False)
            self.e = [GaussianErrorCell(f"e{i + 1}", n_units=n, batch_size=BATCH) for i, n in enumerate(WIDTHS[1:])]
            self.eq = GaussianErrorCell("eq3", n_units=10, batch_size=BATCH)
            learning = {"eta": 1e-3, "w_bound": 0.0, "optim_type": "adam", "sign_value": -1.0, "batch_size": BATCH}
            self.W = [HebbianSynapse(f"W{i + 1}", shape=s, key=keys[i], **learning, **drawn, **bias) for i, s in enumerate(shapes)]
            self.Q = [StaticSynapse(f"Q{i + 1}", shape=s, key=keys[i], batch_size=BATCH, **bias, **drawn) for i, s in enumerate(shapes)]
            self.E = [StaticSynapse(f"E{i + 2}", shape=s[::-1], key=keys[i], batch_size=BATCH, **drawn) for i, s in enumerate(shapes[1:])]
            for i, (W, e) in enumerate(zip(self.W, self.e, strict=True)):
                self.z[i].zF >> W.inputs
                W.outputs >> e.mu
                self.z[i + 1].z >> e.target
                self.z[i].zF >> W.pre
                e.dmu >> W.post
                self.q[i].zF >> self.Q[i].inputs
                self.Q[i].outputs >> self.q[i + 1].j
            for i, E in enumerate(self.E):
                self.e[i + 1].dmu >> E.inputs
                E.outputs >> self.z[i + 1].j
                self.e[i].dtarget >> self.z[i + 1].j_td
            self.q[3].z >> self.eq.mu
            self.reset = process("reset", *(cell.reset for cell in [*self.q, self.eq, *self.z, *self.e]))
            through = [self.q[0]] + [part for Q, q in zip(self.Q, self.q[1:], strict=True) for part in (Q, q)]
            self.project = process("project", *(part.advance_state for part in [*through, self.eq]))
            self.clamped = process("clamped", self.z[0].advance_state, self.W[0].advance_state, self.z[3].advance_state)
            self.advance = process("advance", *(part.advance_state for part in [*self.E, *self.z[1:3], *self.W[1:], *self.e]))
            self.evolve = process("evolve", *(W.evolve for W in self.W))
        for W, (kernel, b) in zip(self.W, layers, strict=True):
            W.weights.set(jnp.asarray(kernel))
            W.biases.set(jnp.asarray(b))
        self.rounds = jnp.asarray(self.advance.pack_rows(ROUNDS, **dict.fromkeys(self.advance.get_keywords(), 1.0)))

    def train_on_batch(self, x, y):
        """Projection, rounds, learning."""
        self.reset.run()
        for W, Q in zip(self.W, self.Q, strict=True):
            Q.weights.set(W.weights.get())
            Q.biases.set(W.biases.get())
        for W, E in zip(self.W[1:], self.E, strict=True):
            E.weights.set(jnp.transpose(W.weights.get()))
        self.z[0].j.set(x)
        self.q[0].j.set(x)
        self.z[3].j.set(y)
        self.eq.target.set(y)
        self.project.run(dt=1.0)
        self.z[1].z.set(self.q[1].z.get())
        self.z[2].z.set(self.q[2].z.get())
        self.e[2].dmu.set(self.eq.dmu.get())
        self.clamped.run(dt=1.0)
        stateManager.state, _ = self.advance.scan(self.rounds)
        self.evolve.run(dt=1.0)


def make(task):
    """`train`, `weights`, as `served` asks for them."""
    circuit = Circuit(task.layers)
    batches = [(jnp.asarray(x), jnp.asarray(y)) for x, y in task.batches()]

    def train():
        for x, y in batches:
            circuit.train_on_batch(x, y)
        jax.block_until_ready([W.weights.get() for W in circuit.W])

    return train, lambda: [(W.weights.get(), W.biases.get().ravel()) for W in circuit.W]
