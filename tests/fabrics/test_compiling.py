"""Nothing compiles again at the second step: XLA's own count stands still."""

import pytest

from locallearn.runtime.framed import EagerSession
from locallearn.runtime.fused import FusedSession

FEEDBACK = (("error_feedback", ()), ("int8", ()))


def everything(session, start, stops):
    """Training in chunks of several lengths, both evaluations, a decision and a snapshot."""
    for stop in stops:
        session.advance(start, stop)
        start = stop
    for lossless in (False, True):
        session.correct(session.setup.split.validation, lossless)
    session.decide(1)
    return session.snapshot()


@pytest.mark.parametrize("microbatches", [1, 2])
@pytest.mark.parametrize("session", [FusedSession, EagerSession])
@pytest.mark.parametrize("rule", ["backprop", "predictive_coding"])
def test_nothing_compiles_after_the_first_steps(begun, compilations, session, rule, microbatches):
    running = begun(session, rule, codec=FEEDBACK, shards=2, microbatches=microbatches)
    kept = everything(running, 0, [1, 2])  # the second step of Eager takes its inputs from the first
    before, programs = compilations(), getattr(running, "compiled", 0)
    everything(running, 2, [3, 5, 9, 10])
    assert compilations() == before
    running.restore(kept)
    everything(running, 2, [9])
    assert compilations() == before
    assert getattr(running, "compiled", 0) == programs


def test_the_count_sees_a_compilation(begun, compilations):
    running = begun(EagerSession)
    before = compilations()
    running.advance(0, 1)
    assert compilations() > before
    assert running.compiled > 0


def test_eager_compiles_as_few_programs_as_its_messages_allow(begun):
    running = begun(EagerSession, shards=2)
    running.advance(0, 3)
    # below: forward, then backward and update; above: all of it, whose update waits for the step's end
    assert running.compiled <= 4
