"""Replicas: against one chain with their whole batch, against each other, and their ring against its closed form."""

import math

import jax
import numpy as np
import pytest

from locallearn.chain import Row
from locallearn.codec import build
from locallearn.data.dataset import Arrays, Split, batches
from locallearn.experiment import checkpoint
from locallearn.replicas import AVERAGE, Outer, Replicas
from locallearn.rule import step_keys
from locallearn.rules import RULES
from locallearn.runtime.averaging import begin_agreement, settle
from locallearn.runtime.framed import EagerSession
from locallearn.runtime.fused import FusedSession
from locallearn.runtime.replicated import EagerReplicas
from locallearn.runtime.ring import Deal, FusedRing, initial_memory
from locallearn.runtime.wiring import Wiring
from locallearn.traffic import Channel, Traffic
from locallearn.train import Optimizer

SGD = Optimizer(name="sgd", rate=0.1)
FEEDBACK = ("error_feedback", ())
LOSSY = {
    "int8": (("int8", ()),),
    "int8 with feedback": (FEEDBACK, ("int8", ())),
    "sign": (FEEDBACK, ("sign", ())),
    "topk": (FEEDBACK, ("topk", (0.2,))),
    "low_rank": (FEEDBACK, ("low_rank", (1,))),
}
NUMBERS = (12 * 8 + 8, 8 * 7 + 7, 7 * 6 + 6, 6 * 3 + 3)
"""Parameters of the four blocks."""


def close(a, b, tolerance=1e-5):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


def trained(session, steps=6):
    session.advance(0, steps)
    return session


def weight(codec):
    return {"weight": build(codec)}


# Against one chain.


@pytest.mark.parametrize(("count", "average"), [(2, "gradients"), (3, "gradients"), (2, "parameters")])
def test_one_step_at_a_time_they_are_one_chain_with_the_whole_batch(begun, count, average):
    together = trained(begun(FusedSession, batch=12, optimizer=SGD))
    apart = trained(begun(FusedSession, batch=12 // count, optimizer=SGD, replicas=Replicas(count, average)))
    close(apart._evaluated[0], together._state)


def test_so_they_are_with_an_optimizer_and_microbatches_if_gradients_are_averaged(begun):
    together = trained(begun(FusedSession, batch=12))
    apart = trained(begun(FusedSession, batch=6, microbatches=2, replicas=Replicas(2, "gradients")))
    close(apart._evaluated[0], together._state)


def test_a_rule_that_draws_noise_draws_as_a_microbatch_would(begun):
    rule = RULES["node_perturbation"]()
    together = trained(begun(FusedSession, rule, batch=12, microbatches=2, optimizer=SGD))
    apart = trained(begun(FusedSession, rule, batch=6, optimizer=SGD, replicas=Replicas(2, "gradients")))
    close(apart._evaluated[0], together._state)


def test_on_the_same_data_they_are_one(begun, tiny_split):
    same = Arrays(*(np.repeat(part[:1], 60, axis=0) for part in tiny_split.train))
    split = Split(same, tiny_split.validation, tiny_split.test)
    one = trained(begun(FusedSession, split=split, batch=4))
    three = trained(begun(FusedSession, split=split, batch=4, replicas=Replicas(3, average_every=3)))
    close(three._evaluated[0], one._state)


def test_each_has_its_own_part_of_every_batch_order_and_its_own_keys(make_setup):
    setup = make_setup(batch=4, replicas=Replicas(3), seed=5)
    parts = [EagerSession(setup, r) for r in range(3)]
    (want,) = batches(5, 60, 12, 7, 8)
    (key,) = step_keys(5, 7, 8)
    for r, session in enumerate(parts):
        session.enter(setup.stages[0])
        batch = session.batch(7)
        np.testing.assert_array_equal(batch.index, want[4 * r : 4 * r + 4])
        np.testing.assert_array_equal(batch.key, jax.random.fold_in(key, r))


# Outer steps.


def test_diloco_at_rate_1_without_momentum_is_local_sgd(begun):
    local, outer = (
        trained(begun(FusedSession, batch=4, replicas=Replicas(3, average_every=2, outer=outer)))
        for outer in (None, Outer(momentum=0, rate=1))
    )
    for x, y in zip(jax.tree.leaves(local._evaluated), jax.tree.leaves(outer._evaluated), strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.mark.parametrize("name", ["sgd", "momentum", "nesterov"])
def test_outer_steps_by_hand(make_setup, name):
    setup = make_setup(replicas=Replicas(2, outer=Outer(name, 0.5, Outer.momentum if name == "sgd" else 0.8)))
    block, rng = setup.stages[0].blocks[0], np.random.default_rng(0)
    state = setup.begin(setup.stages[0])[0]
    agreement = begin_agreement(block, state, replicas=setup.replicas)
    changes = [jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), state.params) for _ in range(3)]
    want, velocity = jax.tree.map(np.asarray, state.params), jax.tree.map(np.zeros_like, changes[0])
    for change in changes:
        velocity = jax.tree.map(lambda v, d: 0.8 * v + d, velocity, change)
        ahead = jax.tree.map(lambda v, d: 0.8 * v + d, velocity, change)
        want = jax.tree.map(lambda w, d: w + 0.5 * d, want, {"sgd": change, "momentum": velocity, "nesterov": ahead}[name])
        state, agreement = settle(block, state, agreement, change, outer=setup.replicas.outer)
    close(state.params, want)
    close(agreement.agreed, want)


# The ring by itself.


@pytest.mark.parametrize("count", [2, 3, 4])
def test_the_ring_sends_what_its_closed_form_says(make_setup, count):
    setup = make_setup(batch=4, shards=2, replicas=Replicas(count))
    plan = setup.plan_average(setup.stages[0])
    whole = [count * math.ceil(n / count) for n in NUMBERS]
    assert plan.traffic.payload_bytes == 2 * (count - 1) * sum(whole) * 4
    assert plan.traffic.message_count == 2 * (count - 1) * count * len(NUMBERS)
    assert plan.hops == 2 * (count - 1)
    links = {Channel(AVERAGE, "weight", s, s, r, (r + 1) % count) for s in (0, 1) for r in range(count)}
    assert set(plan.traffic.messages) == links


def ring_rounds(spec, count, rounds):
    """(what each replica meant to average in each round, the means that arrived [count, ...], the memory after it) of one block."""
    deal, rng = Deal(build(spec), count), np.random.default_rng(1)
    values = [
        {"k": rng.normal(size=(count, 12, 5)), "b": rng.normal(size=(count, 5)), "c": rng.normal(size=(count, 2))} for _ in range(rounds)
    ]
    values = jax.tree.map(lambda leaf: leaf.astype(np.float32), values)
    memory = {0: initial_memory(deal, jax.tree.map(lambda leaf: leaf[0], values[0]), jax.random.PRNGKey(0))}
    wiring = Wiring((0,), {}, {})

    @jax.jit
    def run(value, memory):
        ring = FusedRing(wiring, deal, memory)
        return ring.average(Row([value]))[0], ring.memory

    means = []
    for value in values:
        mean, memory = run(value, memory)
        means.append(jax.tree.map(np.asarray, mean))
    return values, means, jax.tree.map(np.asarray, memory[0])


@pytest.mark.parametrize("spec", [(("exact", ()),), *LOSSY.values()], ids=["exact", *LOSSY])
def test_every_replica_gets_the_same_bits_and_nothing_is_lost_for_good(spec):
    count, rounds = 3, 4
    values, means, memory = ring_rounds(spec, count, rounds)
    for mean in means:
        assert all((leaf == leaf[:1]).all() for leaf in jax.tree.leaves(mean))
    meant, came = (sum(tree["k"] for tree in trees) for trees in (jax.tree.map(lambda leaf: leaf.mean(0), values), means))
    if spec[0] == FEEDBACK:  # sum of what was sent + what is still to be sent = sum of what was meant
        came = came[0] + residual(memory, count)
        np.testing.assert_allclose(came, meant, rtol=1e-4, atol=1e-4)
    else:
        np.testing.assert_allclose(came[0], meant, atol=1e-5 if spec == (("exact", ()),) else 0.1)


def residual(memory, count):
    """What the feedback of all ends of the matrix's ring holds back, as a matrix of 12 rows."""
    hops, shared = memory.senders[0][0], memory.sharer[0][0]  # [replica, hop, 4, 5], [replica, 4, 5]
    parts = np.zeros((count, 4, 5))
    for replica in range(count):
        parts[(replica + 1) % count] += shared[replica]
        for hop in range(count - 1):
            parts[(replica - hop) % count] += hops[replica, hop] / count
    return parts.reshape(12, 5)


# The fabrics against each other.

EXACT = (("exact", ()),)
KINDS = {
    "gradients": (Replicas(3, "gradients"), EXACT),
    "diloco": (Replicas(3, average_every=2, outer=Outer()), EXACT),
    "low rank": (Replicas(2, average_every=2), weight(LOSSY["low_rank"])),
    "deflated": (Replicas(2, average_every=3), weight((("deflate", ()), ("int8", ())))),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_compiled_program_and_frames_agree_and_send_what_was_planned(begun, kind):
    replicas, codec = KINDS[kind]
    fused, eager = (
        trained(begun(session, batch=4, shards=2, replicas=replicas, codec=codec), 5) for session in (FusedSession, EagerReplicas)
    )
    for a, b in zip(fused.snapshot(), eager.snapshot(), strict=True):
        close(a, b, 1e-3)
    assert fused.traffic == eager.traffic
    setup, stage = fused.setup, fused.stage
    averages = setup.averages(stage, 5)
    assert averages == 5 // replicas.average_every
    planned = setup.plan_step(stage).traffic * 5 + setup.plan_average(stage).traffic * averages
    if kind == "deflated":
        assert fused.traffic.messages == planned.messages
        assert 0.5 * planned.by_kind()["weight"] < fused.traffic.by_kind()["weight"] < planned.by_kind()["weight"]
    else:
        assert fused.traffic == planned


def test_all_replicas_agree_on_the_same_bits(begun):
    eager = trained(begun(EagerReplicas, batch=4, shards=2, replicas=Replicas(3), codec=weight(LOSSY["int8 with feedback"])), 3)
    rows = [[np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(s.state.params)] for s in eager.sessions.values()]
    assert rows[0] == rows[1] == rows[2]
    states = [[np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(s.state)] for s in eager.sessions.values()]
    assert states[0] != states[1]  # optimizers are each replica's own


def test_the_result_does_not_depend_on_the_placement_bit_for_bit(begun):
    states = []
    for shards in (1, 3):
        eager = trained(begun(EagerReplicas, batch=4, shards=shards, replicas=Replicas(3, average_every=2)), 3)
        states.append([np.asarray(leaf).tobytes() for session in eager.sessions.values() for leaf in jax.tree.leaves(session.state)])
    assert states[0] == states[1]


@pytest.mark.parametrize("session", [FusedSession, EagerReplicas])
def test_an_interrupted_run_goes_on_to_the_same_bits(begun, assert_same, session):
    options = {"batch": 4, "replicas": Replicas(2, average_every=3, outer=Outer()), "codec": weight(LOSSY["int8 with feedback"])}
    whole = begun(session, **options)
    whole.advance(0, 5)  # between two averages
    kept = whole.snapshot()
    names = checkpoint.names(whole.setup, whole.stage)
    assert [len(own) for own in names] == [len(own) for own in kept]
    assert len({name for own in names for name in own}) == sum(map(len, kept))
    whole.advance(5, 9)
    again = begun(session, **options)
    again.restore(kept)
    again.advance(5, 9)
    assert_same(whole.snapshot(), again.snapshot())


def test_evaluations_see_what_was_agreed_on_and_so_does_whoever_ends_early(begun):
    for session in (FusedSession, EagerReplicas):
        running = begun(session, batch=4, replicas=Replicas(2, average_every=4))
        start = running.correct(running.setup.split.test, lossless=False)
        running.advance(0, 3)
        assert running.correct(running.setup.split.test, lossless=False) == start
        drifted = running.snapshot()
        running.conclude()
        params = [k for k, name in enumerate(checkpoint.names(running.setup, running.stage)[0]) if name.startswith("block0/params")]
        first = begun(session, batch=4, replicas=Replicas(2, average_every=4)).snapshot()
        for k in params:
            np.testing.assert_array_equal(running.snapshot()[0][k], first[0][k])
            assert not np.array_equal(drifted[0][k], first[0][k])


def test_decisions_reach_every_shard_of_every_replica(begun):
    eager, fused = (begun(session, batch=4, shards=2, replicas=Replicas(3)) for session in (EagerReplicas, FusedSession))
    for session in (eager, fused):
        assert session.decide(2) == 2
        assert session.decide(1) == 1
        assert session.traffic == session.setup.plan_decision(session.stage).traffic * 2
    assert eager.traffic.message_count == 2 * (3 * 2 - 1)


def test_a_block_that_does_not_learn_sends_nothing(begun, phase):
    run = begun(FusedSession, [phase("local_classifier", 4, (1,)), phase("local_classifier", 4, (2,))], batch=4, replicas=Replicas(2))
    plan = run.setup.plan_average(run.stage)
    assert plan.traffic.message_count == 4
    run.advance(0, 4)
    run.enter(run.setup.stages[1])
    run.advance(4, 8)
    first, second = ([np.asarray(leaf)[k] for leaf in jax.tree.leaves(run._state.params)] for k in (0, 1))
    close(first, second, 0)


def test_one_replica_changes_nothing(begun, assert_same):
    plain, one = (trained(begun(FusedSession, **options)) for options in ({}, {"replicas": Replicas(1, average_every=3, outer=Outer())}))
    assert_same(plain.snapshot(), one.snapshot())
    assert plain.traffic == one.traffic
    assert one.setup.plan_average(one.stage).traffic == Traffic()


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_has_replicas(begun, rule):
    running = trained(begun(FusedSession, rule, batch=6, replicas=Replicas(2, average_every=2)), 4)
    before = running.setup.begin(running.stage)
    moved = [
        not np.array_equal(a, np.asarray(b)[0])
        for a, b in zip(jax.tree.leaves(before.params), jax.tree.leaves(running._state.params), strict=True)
    ]
    assert any(moved)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(running._state.params))
    close(*(jax.tree.map(lambda leaf, r=r: np.asarray(leaf)[r], running._state.params) for r in (0, 1)), 0)
