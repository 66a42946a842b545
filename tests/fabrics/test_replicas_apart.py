"""Replicas whose shards are apart, each with frames of its own to the others: bit for bit and byte for byte what one process does."""

import pytest

from locallearn.codec import build
from locallearn.replicas import Outer, Replicas
from locallearn.runtime.hearing import merge
from locallearn.runtime.replicated import EagerReplicas
from locallearn.runtime.training import Evaluated, Finished, train
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
