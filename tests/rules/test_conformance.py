"""Every rule through one table: what a rule must do to be one, whatever its mathematics."""

import re
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from locallearn.chain import Chain
from locallearn.codec import CODECS, COMBINATORS, Codec, Context, exact
from locallearn.rule import Batch, split_batch, step_keys
from locallearn.rules import RULES
from locallearn.runtime import segments
from locallearn.runtime.framed import EagerSession
from locallearn.runtime.fused import FusedSession
from locallearn.runtime.local import Fused
from locallearn.runtime.wiring import deal
from locallearn.traffic import ASIDE
from locallearn.train import Optimizer

STEPS = 300
FLOOR = {
    "default": 0.8,
    "softhebb": 0.6,  # no label reaches its three hidden blocks of six to eight units
    "clapp": 0.6,  # likewise
    "blockwise_barlow_twins": 0.6,  # likewise
    "forward_gradient": 0.45,  # one random direction for 177 parameters
    "spsa": 0.45,  # likewise
}
"""Share of all 88 examples classified right after so many steps; chance is a third."""
TRAINS_WITH = {
    "counter_current": Optimizer(name="sgd", rate=0.3, clip=1.0),  # as published; steps of one size push relu units into silence
    "boltzmann": Optimizer(rate=0.1),  # three layers of random bits, all of which learn at once
    "forward_gradient": Optimizer(rate=0.03),
    "spsa": Optimizer(rate=0.03),
    "incremental_predictive_coding": Optimizer(rate=0.002),  # each step is eight steps of the optimizer
}
"""The optimizer of a rule that Adam at 0.01 does not suit."""
CODEC_SPECS = [((name, ()),) for name in CODECS if name not in COMBINATORS] + [((name, ()), ("int8", ())) for name in sorted(COMBINATORS)]
CODEC_SPECS += [(("difference", (0.01,)), ("int8", ())), (("deflate", ()), ("difference", (0.0,)))]
EVERYDAY = 15
"""Every rule meets one in so many codecs, and every codec one in so many rules; the slow suite has all pairs."""
SHARDS = 3
ON_REQUEST = {"forward_forward": {"neutral", "score", "error", "wrong"}}
"""Messages that only an option of the rule asks for; its own tests count them."""


@pytest.fixture(scope="module", params=RULES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def case(name, begun, metered):
    """One compiled run of the rule, with a count inside its program: the fused session, and its first snapshot."""
    optimizer = TRAINS_WITH.get(name, Optimizer(rate=0.01))
    fused = begun(FusedSession, name, metered(exact()), SHARDS, optimizer=optimizer, steps=STEPS)
    return SimpleNamespace(fused=fused, initial=fused.snapshot(), setup=fused.setup, stage=fused.stage, rule=fused.stage.rule)


def counted(session):
    """(bytes, messages) of every channel, as the program itself counted them."""
    return {channel: tuple(np.asarray(sender[0]).tolist()) for channel, (sender, _) in session._memory[0].items()}


def test_it_learns(name, case):
    case.fused.restore(case.initial)
    before = case.fused.advance(0, 5)
    after = case.fused.advance(5, STEPS)
    right = sum(case.fused.correct(part, lossless=False) for part in case.setup.split)
    assert np.isfinite(after)
    assert right >= FLOOR.get(name, FLOOR["default"]) * 88, (before, after)


def test_the_program_sends_what_is_planned(case):
    case.fused.restore(case.initial)
    case.fused.advance(0, 3)
    planned = case.setup.plan_step(case.stage).traffic * 3
    assert counted(case.fused) == {c: (planned.payload[c], planned.messages[c]) for c in planned.messages}


def test_frames_give_the_same_step_with_the_planned_bytes_and_compile_once(case, compilations):
    eager = EagerSession(case.setup)
    eager.enter(case.stage)
    eager.restore(case.initial)
    eager.advance(0, 2)
    programs = eager.compiled, compilations()
    eager.advance(2, 3)
    assert (eager.compiled, compilations()) == programs
    assert eager.traffic == case.setup.plan_step(case.stage).traffic * 3
    case.fused.restore(case.initial)
    case.fused.advance(0, 3)
    for x, y in zip(jax.tree.leaves(eager._state), jax.tree.leaves(case.fused._state), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-3)  # a tenth of one step of Adam
    validation = case.setup.split.validation
    assert abs(eager.correct(validation, lossless=False) - case.fused.correct(validation, lossless=False)) <= 1
    assert eager.traffic == case.setup.plan_step(case.stage).traffic * 3 + case.setup.plan_evaluation(case.stage).traffic


def test_nothing_compiles_again_and_pieces_are_bit_equal(case, compilations, assert_same):
    fused = case.fused
    fused.restore(case.initial)
    fused.advance(0, 7)
    whole = fused.snapshot()
    before = compilations()
    fused.restore(case.initial)
    fused.advance(0, 2)
    kept = fused.snapshot()
    fused.advance(2, 7)
    assert_same(fused.snapshot(), whole)
    fused.restore(kept)
    fused.advance(2, 3)
    fused.advance(3, 7)
    assert_same(fused.snapshot(), whole)
    assert compilations() == before


def test_it_sends_the_messages_that_it_declares(case, make_setup, phase, name):
    """In phases in which all blocks learn, or those below the top."""
    sent = set()
    for setup in (make_setup([phase(name, 5, (0, 1))], shards=4), make_setup(name, shards=4)):
        stage = setup.stages[0]
        sent |= {c.message for plan in (setup.plan_step, setup.plan_evaluation) for c in plan(stage).traffic.messages}
    assert sent == set(case.rule.messages) - ON_REQUEST.get(name, set())
    assert not {c.kind for c in setup.plan_step(stage).traffic.messages} & set(ASIDE), "what training sends counts in the headline"


def silent():
    """A codec that lets nothing through: every message arrives as zeros."""
    plain = exact()
    return Codec(plain.init, plain.encode, lambda packet, receiver, spec, context: (jax.numpy.zeros(spec.shape, spec.dtype), receiver))


def test_a_block_feels_another_only_through_messages(case):
    """With one block in each shard and messages that arrive empty, no change in one block changes another's update."""
    stage, state, batch = case.stage, begin(case), first_batch(case.setup)

    def updates(codec):
        wiring = stage.wiring._replace(placement=deal(4, 4), codecs=dict.fromkeys(stage.wiring.codecs, codec))

        @jax.jit
        def step(state):
            return stage.rule.step(Chain(stage.blocks, Fused(wiring, {}, Context(batch.index))), state, batch)[0]

        return [blocks_bytes(step(s)) for s in [state, *(shifted(state, j) for j in range(4))]]

    base, *others = updates(silent())
    for j, other in enumerate(others):
        assert [i for i in range(4) if other[i] != base[i]] == [j]
    base, *others = updates(exact())
    if case.stage.rule.family == "denoising blocks":  # nothing but data and labels crosses in training
        assert all(other[i] == base[i] for j, other in enumerate(others) for i in range(4) if i != j)
        return
    assert any(other[i] != base[i] for j, other in enumerate(others) for i in range(4) if i != j), "with messages they do feel each other"


def begin(case):
    case.fused.restore(case.initial)
    return case.fused._state


def first_batch(setup):
    index, data = np.arange(12, dtype=np.int32), setup.split.train
    return Batch(data.x[index], data.y[index], index, step_keys(0, 0, 1)[0])


def shifted(state, j):
    """The state with other parameters in block j."""
    moved = jax.tree.map(lambda p: p * 1.5 + 0.1, state[j].params)
    return type(state)(s._replace(params=moved) if i == j else s for i, s in enumerate(state))


def blocks_bytes(state):
    return [b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(s)) for s in state]


@pytest.fixture
def shapes_alone(monkeypatch):
    """Programs of Eager give zeros of the right shape and dtype and compile nothing; frames are made as ever."""

    def traced(run):
        def program(inputs):
            return jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), jax.eval_shape(run, inputs))

        return program

    monkeypatch.setattr(segments, "jax", SimpleNamespace(jit=traced, tree=jax.tree))


def test_codecs_take_the_planned_bytes(name, make_setup, shapes_alone):
    for k in range(list(RULES).index(name) % EVERYDAY, len(CODEC_SPECS), EVERYDAY):
        takes_the_planned_bytes(make_setup(name, CODEC_SPECS[k], shards=SHARDS))


@pytest.mark.slow
@pytest.mark.parametrize("codec", CODEC_SPECS, ids=lambda spec: "+".join(part for part, _ in spec))
def test_every_codec_takes_the_planned_bytes(name, codec, make_setup, shapes_alone):
    takes_the_planned_bytes(make_setup(name, codec, shards=SHARDS))


def takes_the_planned_bytes(setup):
    """In a step and in an evaluation; at most those where a codec's frames vary in size."""
    stage = setup.stages[0]
    session = EagerSession(setup)
    session.enter(stage)
    session.advance(0, 1)
    step = setup.plan_step(stage)
    both = step.traffic + setup.plan_evaluation(stage).traffic
    if not stage.wiring.metered(step.channels):
        assert session.traffic == step.traffic
        session.correct(setup.split.test, lossless=False)
        assert session.traffic == both
        return
    session.correct(setup.split.test, lossless=False)
    assert session.traffic.messages == both.messages
    assert all(session.traffic.payload[channel] <= planned for channel, planned in both.payload.items())


def test_the_gradient_of_a_batch_is_the_mean_over_its_parts(case):
    stage, batch = case.stage, first_batch(case.setup)
    if not stage.rule.additive_over_batch:
        pytest.skip("this rule says that its step is no mean over parts of the batch")

    def gradients(state, batch):
        wiring = stage.wiring._replace(codecs=dict.fromkeys(stage.wiring.codecs, exact()))
        return stage.rule.gradients(Chain(stage.blocks, Fused(wiring, {}, Context(batch.index))), state, batch)[0]

    @jax.jit
    def both(state):
        parts = [gradients(state, part) for part in split_batch(batch, 2)]
        return gradients(state, batch), jax.tree.map(lambda a, b: (a + b) / 2, *parts)

    for whole, mean in zip(*map(jax.tree.leaves, both(begin(case))), strict=True):
        np.testing.assert_allclose(whole, mean, rtol=1e-4, atol=1e-6)


def test_its_page_has_title_citation_and_equations(name):
    doc = sys.modules[RULES[name].__module__].__doc__
    title, *rest = doc.strip().splitlines()
    assert title.endswith(".")
    assert re.search(r"\(\d{4}[a-z]?\)", doc), "the year of a publication"
    assert re.search(r"https?://\S+", doc), "a link"
    assert any(line.startswith("    ") and re.search(r"[=∝←]", line) for line in rest), "an equation"
    assert RULES[name].__doc__
    assert RULES[name].assumes
    assert RULES[name].family
