"""What every test shares: the CPU, no network, and runs small enough to compile in about a second."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
# Programs of tests run a few times on tiny arrays: what XLA spends on making them fast would be most of the suite's time. Processes that
# tests start inherit this; the README's commands run without it. With XLA_FLAGS= and JAX_DISABLE_MOST_OPTIMIZATIONS=0 nothing does.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1")

# A busy machine starts a node of Ray slowly.
os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")

import ipaddress
import socket
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import settings

from locallearn.codec import Codec, build, nbytes
from locallearn.data.dataset import Arrays, Split
from locallearn.models import MODELS
from locallearn.replicas import AVERAGE
from locallearn.rules import RULES
from locallearn.runtime.influence import at_work
from locallearn.runtime.ring import MESSAGES
from locallearn.runtime.setup import Setup, Stage
from locallearn.runtime.wiring import Wiring, choose_codecs, deal
from locallearn.train import Optimizer

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

EXACT = (("exact", ()),)
ADAM = Optimizer(rate=0.01)
MODEL = {
    "incremental_predictive_coding": {"activation": "leaky_relu", "init": "lecun", "gain": 0.58},  # as its rate near 1 needs
    "error_predictive_coding": {"activation": "leaky_relu"},  # six units of relu die
    "equilibrium_propagation": {"activation": "hard_sigmoid", "init": "glorot", "gain": 0.5},
    "holomorphic_equilibrium_propagation": {"activation": "tanh", "init": "glorot", "gain": 0.5},
    "contrastive_hebbian": {"activation": "hard_sigmoid", "init": "glorot"},
    "channelwise": {"widths": (12, 9, 6, 6, 3)},  # as many units for each of the three classes
    "deeper_forward": {"widths": (12, 9, 6, 6, 3)},
    "softhebb": {"norm": "layer"},  # units begin long: activities would grow from block to block
    "boltzmann": {"activation": "sigmoid", "init": "glorot"},
    "noprop": {"name": "denoiser", "depth": 4},
    "diffusion_blocks": {"name": "denoiser", "depth": 4},
}
"""What a rule asks of its model besides the default."""


@pytest.fixture(scope="session", autouse=True)
def no_network():
    """Connections leave this machine in no test; those within it (Ray's) are left alone."""
    connect = socket.socket.connect

    def guarded(self, address):
        outside = self.type & socket.SOCK_STREAM and isinstance(address, tuple) and _is_outside(address[0])
        if outside:
            raise OSError(f"a test tried to reach {address}")
        return connect(self, address)

    socket.socket.connect = guarded
    yield
    socket.socket.connect = connect


def _is_outside(host):
    try:
        return ipaddress.ip_address(host).is_global
    except ValueError:
        return host != "localhost" and host != socket.gethostname()


def _blobs(rng, count):
    """Three Gaussian classes, each with four of the 12 numbers around 1.5: a rule may paint labels over the first three."""
    y = rng.integers(0, 3, count).astype(np.int32)
    x = rng.normal(size=(count, 12)) + 1.5 * np.repeat(np.eye(3), 4, axis=1)[y]
    return Arrays(x.astype(np.float32), y)


@pytest.fixture(scope="session")
def tiny_split():
    """60 training, 11 validation and 17 test examples: neither evaluation fills its last batch."""
    rng = np.random.default_rng(0)
    return Split(*(_blobs(rng, count) for count in (60, 11, 17)))


class Phase(NamedTuple):
    """A stage to be: which rule, for how many steps, and which blocks learn (all of them with None)."""

    rule: object
    steps: int
    learn: tuple[int, ...] | None = None


@pytest.fixture(scope="session")
def phase():
    """The type of a stage to be: `phase(rule, steps, learn)`."""
    return Phase


@pytest.fixture(scope="session")
def make_setup(tiny_split):
    """`make_setup(rule, codec=..., shards=..., microbatches=...)`: a run of a 12-8-7-6-3 network on 60 examples, 5 steps an epoch.

    rule: a name, a rule or several `phase`s. codec: a spec for `build`, a codec, or a dictionary of codecs by message or kind.
    """

    def make(
        rule="backprop",
        codec=EXACT,
        shards=2,
        *,
        microbatches=1,
        steps=10,
        every=5,
        seed=0,
        split=tiny_split,
        widths=(12, 8, 7, 6, 3),
        optimizer=ADAM,
        batch=12,
        **options,
    ):
        phases = rule if isinstance(rule, list) else [Phase(rule, steps)]
        stages, start = [], 0
        for part in phases:
            name = part.rule if isinstance(part.rule, str) else None
            one = RULES[name]() if name else part.rule
            asked = {"name": "mlp", "widths": widths} | MODEL.get(name, {})
            model = MODELS[asked.pop("name")](**asked)
            blocks = [
                replace(b, tx=optimizer.build(part.steps, b.index), learns=part.learn is None or b.index in part.learn, batch=batch)
                for b in model.blocks(split.train.x.shape[1:], widths[-1])
            ]
            assert not one.problems(blocks)
            chosen = codec if isinstance(codec, dict) else {}
            default = codec if isinstance(codec, Codec) else build(EXACT if chosen else codec)
            wiring = Wiring(deal(len(blocks), shards), one.messages, choose_codecs(one.messages, chosen, default))
            average = choose_codecs(MESSAGES, chosen, default)[AVERAGE]
            stages.append(Stage(one, at_work(one, blocks), wiring, start, start + part.steps, average))
            start += part.steps
        return Setup(tuple(stages), split, batch, every, seed, microbatches, **options)

    return make


@pytest.fixture(scope="session")
def begun(make_setup):
    """`begun(Session, **options of make_setup)`: a session that has entered its first stage."""

    def begin(session, *args, **options):
        running = session(make_setup(*args, **options))
        running.enter(running.setup.stages[0])
        return running

    return begin


@pytest.fixture(scope="session")
def assert_same():
    """`assert_same(a, b)`: two snapshots (lists of lists of arrays) agree bit for bit."""

    def check(a, b):
        assert [[x.shape for x in shard] for shard in a] == [[x.shape for x in shard] for shard in b]
        for s, (mine, other) in enumerate(zip(a, b, strict=True)):
            for k, (x, y) in enumerate(zip(mine, other, strict=True)):
                assert x.dtype == y.dtype
                assert x.tobytes() == y.tobytes(), f"shard {s}, array {k}"

    return check


@pytest.fixture(scope="session")
def compilations():
    """`compilations()`: how many programs XLA has compiled in this process so far, operations called one by one among them."""
    count = [0]

    def listen(event, duration, **about):
        count[0] += event == "/jax/core/compile/backend_compile_duration"

    jax.monitoring.register_event_duration_secs_listener(listen)
    return lambda: count[0]


@pytest.fixture(scope="session")
def metered():
    """`metered(inner)`: the inner codec, which counts in its own memory, inside the compiled program, what it sends in training."""

    def wrap(inner):
        def init(spec, key):
            sender, receiver = inner.init(spec, key)
            return (jnp.zeros(2, jnp.int32), sender), receiver

        def encode(x, sender, context):
            counted, kept = sender
            packet, kept = inner.encode(x, kept, context)
            return packet, (counted + jnp.array([nbytes(packet), 1]), kept) if context.training else sender

        return Codec(init, encode, inner.decode)

    return wrap
