"""Replicas whose shards are apart, each with frames of its own to the others: bit for bit and byte for byte what one process does."""

from itertools import pairwise

import jax
import numpy as np
import pytest

from locallearn.codec import build
from locallearn.experiment import checkpoint
from locallearn.replicas import Outer, Replicas
from locallearn.runtime.framed import EagerSession
from locallearn.runtime.hearing import merge
from locallearn.runtime.regroup import brought, regrouped
from locallearn.runtime.replicated import EagerReplicas
from locallearn.runtime.training import Evaluated, Finished, train
from locallearn.traffic import Channel, Traffic
from tests.fabrics.coming_and_going import END, handed_over, scheduled, until
from tests.fabrics.threads import Threads

FEEDBACK = (("error_feedback", ()), ("int8", ()))


def assert_equal(one, other):
    assert isinstance(one, Finished)
    assert one.traffic == other.traffic
    assert (one.step, one.reason, one.test_accuracy) == (other.step, other.reason, other.test_accuracy)
    assert all(a.tobytes() == b.tobytes() for x, y in zip(one.shards, other.shards, strict=True) for a, b in zip(x, y, strict=True))


CASES = {
    "diloco": ("backprop", 2, {"replicas": Replicas(3, average_every=4, outer=Outer()), "codec": {"weight": build(FEEDBACK)}}),
    "gradients": ("backprop", 2, {"replicas": Replicas(2, "gradients"), "codec": build(FEEDBACK), "microbatches": 2}),
    "local sgd of a rule that runs ahead": ("mono_forward", 2, {"replicas": Replicas(2, average_every=5)}),
    "frames of many sizes": (
        "predictive_coding",
        1,
        {"replicas": Replicas(3, average_every=3), "codec": build((("deflate", ()), ("int8", ())))},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_they_are_those_of_one_process(make_setup, case):
    rule, shards, options = CASES[case]
    setup = make_setup(rule, shards=shards, batch=4, steps=12, every=6, **options)
    ours, apart = list(train(EagerReplicas(setup))), Threads(setup)
    assert_equal(apart.join(), ours[-1])
    each = zip(*([e for e in events if isinstance(e, Evaluated)] for events in apart.events), strict=True)
    assert [merge(list(parts), apart.top).traffic for parts in each] == [e.traffic for e in ours if isinstance(e, Evaluated)]
    for replica in range(setup.replicas.count):
        found = [[e.accuracy for e in events if isinstance(e, Evaluated)] for events in apart.events[replica * shards :][:shards]]
        assert found[-1] == ([e.accuracy for e in ours if isinstance(e, Evaluated)] if replica == 0 else [None, None])


def test_a_cut_between_two_averages_goes_on_bit_equal(make_setup):
    options = {"replicas": Replicas(3, average_every=4, outer=Outer()), "codec": {"weight": build(FEEDBACK)}}
    setup = make_setup(shards=2, batch=4, steps=16, every=8, **options)
    ours, apart = list(train(EagerReplicas(setup))), Threads(setup)
    assert all(apart.announce(6))
    assert_equal(apart.join(), ours[-1])
    (kept,) = apart.kept
    assert kept.step == 6
    assert_equal(Threads(setup, kept).join(), ours[-1])


# Replicas that come and go.

ALL = (0, 1, 2)
COURSES = {
    "the first leaves and comes back": (
        {"replicas": Replicas(3, average_every=4, outer=Outer()), "codec": {"weight": build(FEEDBACK)}, "shards": 2},
        [(0, ALL), (6, (1, 2)), (11, ALL)],
    ),
    "one is left alone, at an evaluation": (
        {"replicas": Replicas(2, "gradients"), "codec": build(FEEDBACK), "shards": 1},
        [(0, (0, 1)), (8, (1,))],
    ),
}


@pytest.mark.parametrize("course", COURSES)
def test_those_that_are_left_do_what_they_do_in_one_process(make_setup, course):
    options, schedule = COURSES[course]
    setup = make_setup(batch=4, steps=14, every=8, widths=(12, 8, 3), **options)
    kept, was = None, schedule[0][1]
    for (_, now), (stop, _) in pairwise([*schedule, (END, ())]):
        apart = Threads(setup, kept and handed_over(setup, kept, was, now), present=now)
        assert all(apart.announce(stop))
        last = apart.join()
        kept, was = apart.kept[0] if stop < END else None, now
    assert_equal(last, scheduled(setup, schedule)[-1])


def test_links_keep_the_names_of_those_that_are_left(make_setup):
    setup = make_setup(shards=2, batch=4, replicas=Replicas(4))
    session = EagerReplicas(setup, (1, 3))
    session.enter(setup.stages[0])
    session.advance(0, 2)
    assert session.decide(1) == 1
    sent = session.traffic.messages
    assert {c[4:] for c in sent if c.message == "average"} == {(1, 3), (3, 1)}
    assert {c[2:]: n for c, n in sent.items() if c.message == "decision"} == {(1, 1, 1, 3): 1, (1, 0, 1, 1): 1, (1, 0, 3, 3): 1}
    assert {c[4:] for c in sent if c.message == "activation"} == {(1, 1), (3, 3)}
    (rings,) = {sum(c.kind == "weight" for c in sent)}
    assert rings == 2 * 2
    assert sum(n for c, n in sent.items() if c.kind == "weight") == 2 * 2 * (2 - 1) * 2 * 4  # steps, turns of one hop, replicas, blocks


@pytest.mark.parametrize(("average", "tolerance"), [("gradients", 0), ("parameters", 1e-5)])
def test_one_that_is_alone_is_a_plain_run_of_its_own_batches(begun, monkeypatch, average, tolerance):
    """It sends nothing to others; what it agrees on with itself is where it is, to the last rounding."""
    alone = begun(lambda setup: EagerReplicas(setup, (1,)), batch=4, replicas=Replicas(2, average), codec=build(FEEDBACK))
    plain = begun(EagerSession, batch=4, codec=build(FEEDBACK))
    second = begun(lambda setup: EagerSession(setup, 1), batch=4, replicas=Replicas(2, average), codec=build(FEEDBACK))
    monkeypatch.setattr(plain, "batch", second.batch)
    alone.advance(0, 6)
    plain.advance(0, 6)
    assert "weight" not in alone.traffic.by_kind()
    assert alone.traffic.bytes == plain.traffic.bytes
    for mine, other in zip(jax.tree.leaves(alone.sessions[1].state), jax.tree.leaves(plain.state), strict=True):
        np.testing.assert_allclose(mine, other, rtol=tolerance, atol=tolerance)


def test_who_comes_takes_up_the_first_ones_state_with_what_was_agreed_on(make_setup):
    setup = make_setup(batch=4, replicas=Replicas(3, average_every=4, outer=Outer()), codec=build(FEEDBACK))
    stage, was = setup.stages[0], (0, 2)
    *_, kept = until(EagerReplicas(setup, was), None, 6)
    whole, names = regrouped(setup, kept, was, ALL), checkpoint.names(setup, stage)
    begun = EagerReplicas(setup)
    begun.enter(stage)
    found, fresh = (
        {name: array for own, arrays in zip(names, shards, strict=True) for name, array in zip(own, arrays, strict=True)}
        for shards in (whole.shards, begun.snapshot())
    )
    for name in [name for own in names[:2] for name in own]:
        mine, first = found[f"replica1/{name}"], found[name]
        if name.startswith(("link/", "ring/")):
            np.testing.assert_array_equal(mine, fresh[f"replica1/{name}"])
        elif "/params/" in name:
            np.testing.assert_array_equal(mine, found[f"agreement/{name.replace('/params/', '/agreed/')}"])
            assert not np.array_equal(mine, first)  # which went on since
        else:
            np.testing.assert_array_equal(mine, first)
    kinds = {name.split("/")[0] for name in names[0]}
    assert {"link", "ring", "agreement", "block0"} <= kinds
    held = [name for name in names[0] if name.startswith("block") or "/outer/" in name]
    bill = brought(setup, kept.step, was, ALL)
    assert bill.payload[Channel("state", "checkpoint", 0, 0, 0, 1)] == sum(found[name].nbytes for name in held)
    assert bill.bytes == 0  # beside the headline
    assert brought(setup, kept.step, was, was) == brought(setup, kept.step, ALL, was) == Traffic()


def test_who_stays_keeps_its_own_and_begins_a_new_ring(make_setup, assert_same):
    setup = make_setup(batch=4, replicas=Replicas(3, average_every=2), codec=build(FEEDBACK))
    *_, kept = until(EagerReplicas(setup), None, 4)
    names, left = checkpoint.names(setup, setup.stages[0]), regrouped(setup, kept, ALL, (2,))
    rings = [sum(name.startswith("replica2/ring/") for name in own) for own in names[4:]]
    assert all(rings)
    assert_same(left.shards, [own[: len(own) - ring] for own, ring in zip(kept.shards[4:], rings, strict=True)])
    assert regrouped(setup, kept, ALL, ALL) is kept
