"""Codecs in short trainings: every fabric sends the same bytes, never more than planned, and remembers the same; snapshots hold it all."""

import threading

import jax
import numpy as np
import pytest

from locallearn.codec import build
from locallearn.rules import RULES
from locallearn.runtime.framed import EagerSession
from locallearn.runtime.fused import FusedSession
from locallearn.runtime.peers import PeersSession
from locallearn.traffic import Traffic

STEPS, HALF = 4, 2
SHARDS = 2


def codec(*spec):
    return build(tuple((name, tuple(args)) for name, *args in spec))


CASES = {
    "sums and sparse": (
        "backprop",
        {
            "activation": codec(("difference", None, 60), ("int4", "stochastic")),
            "error": codec(("error_feedback",), ("randomk", 0.4), ("int8",)),
        },
    ),
    "events": (
        RULES["predictive_coding"](steps=3),
        {"activation": codec(("difference", 0.02), ("int8",)), "error": codec(("deflate",), ("difference", 0.001))},
    ),
    "codebook and rank": (
        "backprop",
        {"activation": codec(("vq", 4, 3, 2)), "error": codec(("error_feedback",), ("low_rank", 1), ("bfloat16",))},
    ),
    "seldom and late": (
        "direct_feedback",
        {"activation": codec(("every", 2), ("ternary", "stochastic")), "error": codec(("delayed", 1), ("topk", 0.5), ("float8",))},
    ),
    "kept where they arrive": (
        "decoupled_greedy",
        {"activation": codec(("reuse", 50), ("int4", "nearest", "symmetric", "one")), "label": codec(("reuse", 60, 2), ("packed", 3))},
    ),
}
"""Rule, and codecs by kind: every codec that remembers, and every wire."""


class Post:
    """Carries frames from thread to thread, by address."""

    buffered = False

    def __init__(self):
        self._frames, self._came = {}, threading.Condition()

    def post(self, address, data):
        with self._came:
            self._frames[address] = bytearray(data)
            self._came.notify_all()

    def take(self, address, name):
        with self._came:
            assert self._came.wait_for(lambda: address in self._frames, timeout=60), f"no {name} at {address}"
            return self._frames.pop(address)


def course(session):
    """Train, evaluate, train on: (snapshot in the middle, at the end; traffic in the middle, at the end; what was right)."""
    session.enter(session.setup.stages[0])
    session.advance(0, HALF)
    kept, sent = session.snapshot(), session.traffic
    right = session.correct(session.setup.split.validation, lossless=False)
    after = session.traffic
    session.advance(HALF, STEPS)
    return kept, session.snapshot(), sent, after, session.traffic, right


@pytest.fixture(scope="module", params=CASES, ids=str)
def setup(request, make_setup):
    rule, codecs = CASES[request.param]
    return make_setup(rule, codecs, SHARDS, every=HALF, batch=30 if "kept" in request.param else 12)


@pytest.fixture(scope="module")
def eager(setup):
    return EagerSession(setup)


@pytest.fixture(scope="module")
def fused(setup):
    return FusedSession(setup)


@pytest.fixture(scope="module")
def alone(eager):
    return course(eager)


@pytest.fixture(scope="module")
def compiled(fused):
    return course(fused)


def test_apart_as_together_bit_for_bit_and_byte_for_byte(setup, alone, assert_same):
    post, ends = Post(), [None] * SHARDS

    def run(shard):
        ends[shard] = course(PeersSession(setup, shard, post))

    threads = [threading.Thread(target=run, args=(shard,)) for shard in range(SHARDS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k in (0, 1):
        assert_same([end[k][0] for end in ends], alone[k])
    for k in (2, 3, 4):
        assert sum((end[k] for end in ends), Traffic()) == alone[k]
    assert ends[-1][-1] == alone[-1]


def test_compiled_as_one_program_the_same_bytes(setup, alone, compiled):
    for k in (2, 3, 4):
        assert compiled[k].messages == alone[k].messages
        for channel, payload in alone[k].payload.items():
            assert compiled[k].payload[channel] == pytest.approx(payload, rel=0.03 if setup.stages[0].wiring.metered([channel]) else 0)
    for a, b in zip(jax.tree.leaves(compiled[0]), jax.tree.leaves(alone[0]), strict=True):
        if a.dtype == np.float32:
            assert np.mean(~np.isclose(a, b, rtol=1e-3, atol=1e-3)) < 0.05  # a number may round, or an event happen, to either side


def test_no_more_than_planned(setup, alone, compiled):
    stage = setup.stages[0]
    step, evaluation = setup.plan_step(stage).traffic, setup.plan_evaluation(stage).traffic
    varies = stage.wiring.metered(setup.plan_step(stage).channels)
    for course in (alone, compiled):
        for sent, planned in ((course[2], step * HALF), (course[3], step * HALF + evaluation), (course[4], step * STEPS + evaluation)):
            for channel in planned.messages:
                messages = [at.messages[channel] for at in (sent, planned)]
                assert messages[0] <= messages[1] if stage.wiring.codecs[channel.message].silent else messages[0] == messages[1]
                if channel._replace(kind=stage.rule.messages[channel.message].kind) in varies:
                    assert 0 < sent.payload[channel] <= planned.payload[channel]
                else:
                    assert sent.payload[channel] == planned.payload[channel]
    if varies:
        assert alone[4].bytes < (step * STEPS).bytes


@pytest.mark.parametrize("kind", ["eager", "fused"])
def test_a_run_goes_on_from_a_snapshot_with_the_same_bits_and_bytes(request, kind, alone, compiled, assert_same):
    """Every memory of a codec is in it."""
    kept, end, _, after, final, right = alone if kind == "eager" else compiled
    session = request.getfixturevalue(kind)
    session.restore(kept)
    session.traffic = Traffic()
    assert session.correct(session.setup.split.validation, lossless=False) == right
    session.advance(HALF, STEPS)
    assert_same(session.snapshot(), end)
    assert session.traffic.bytes == final.bytes - after.bytes


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["backprop", "equilibrium_propagation"])
@pytest.mark.parametrize("spec", ["int2", "sign", "binary", "packed", "low_rank", "topk", "random_projection"])
def test_every_other_codec_in_a_short_training(make_setup, rule, spec):
    setup = make_setup(rule, ((spec, ()),), SHARDS)
    alone, compiled = course(EagerSession(setup)), course(FusedSession(setup))
    assert alone[2:5] == compiled[2:5]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(alone[1]))
