"""An evaluation counts what a network classifies right: against numpy, with padding, through codecs and without."""

from typing import ClassVar

import numpy as np
import pytest

from locallearn.codec import Codec, exact
from locallearn.rule import Message, forward
from locallearn.rules import RULES
from locallearn.runtime.framed import EagerSession
from locallearn.runtime.fused import FusedSession
from locallearn.runtime.session import padded

BOTH = pytest.mark.parametrize("kind", [FusedSession, EagerSession])


def right(session, part, crossing=1):
    """Right answers of the network, in numpy. crossing: a factor on what goes from the first shard of two to the second."""
    h = part.x.astype(np.float64)
    for i, state in enumerate(session._state):
        h = h @ np.asarray(state.params["linear"]["kernel"], np.float64) + np.asarray(state.params["linear"]["bias"], np.float64)
        h = np.maximum(h, 0) if i < 3 else h
        h = h * crossing if i == 1 else h
    return int(np.sum(np.argmax(h, 1) == part.y))


@BOTH
@pytest.mark.parametrize("size", [500, 7, 1])
def test_right_answers_are_counted_as_numpy_counts_them(begun, monkeypatch, kind, size):
    monkeypatch.setattr("locallearn.runtime.setup.EVALUATION_BATCH", size)
    session = begun(kind, shards=2)
    session.advance(0, 5)
    for part in session.setup.split:
        assert session.correct(part, lossless=False) == session.correct(part, lossless=True) == right(session, part)


@pytest.mark.parametrize("size", [1, 4, 11, 20])
def test_padding_has_no_label_and_every_example_comes_once(tiny_split, size):
    batches = list(padded(tiny_split.validation, size))
    assert {len(x) for x, _, _ in batches} == {len(y) for _, y, _ in batches} == {size}
    y, index = (np.concatenate([batch[k] for batch in batches]) for k in (1, 2))
    assert np.array_equal(y[:11], tiny_split.validation.y)
    assert np.all(y[11:] == -1)
    assert np.array_equal(np.concatenate([batch[0] for batch in batches])[:11], tiny_split.validation.x)
    assert np.array_equal(index, np.arange(len(index)))


def negated():
    """A codec that turns every sign, in evaluations alone: it shows which way an evaluation went."""
    plain = exact()

    def decode(packet, receiver, spec, context):
        return (packet[0] if context.training else -packet[0]), receiver

    return Codec(plain.init, plain.encode, decode)


@BOTH
def test_deployed_accuracy_goes_through_the_codecs_and_lossless_does_not(begun, kind):
    session = begun(kind, codec=negated(), shards=2)
    session.advance(0, 60)
    part = session.setup.split.train
    assert session.correct(part, lossless=True) == right(session, part)
    assert session.correct(part, lossless=False) == right(session, part, crossing=-1) < right(session, part)


def test_only_codecs_that_cross_make_a_run_lossy(make_setup):
    assert make_setup(codec=(("int8", ()),), shards=2).stages[0].lossy
    assert not make_setup(codec=(("int8", ()),), shards=1).stages[0].lossy
    assert not make_setup(shards=2).stages[0].lossy


class Scores(RULES["backprop"]):
    """Evaluates with a message of its own."""

    messages: ClassVar = {**RULES["backprop"].messages, "score": Message("scalar", "up", "summed over the blocks")}

    def predict(self, chain, state, x):
        y = chain.sweep_up("activation", forward, state, first=x)[1]
        return chain.at_top(the_total, y, chain.gather("score", chain.map(first_three, y), plus))


def first_three(block, y):
    return y[:, :3]


def plus(block, total, own):
    return total + own


def the_total(block, y, total):
    return total


def test_messages_of_an_evaluation_alone_are_planned_and_metered(begun):
    for kind in (EagerSession, FusedSession):
        session = begun(kind, Scores(), shards=3)
        session.correct(session.setup.split.test, lossless=False)
        assert session.traffic == session.setup.plan_evaluation(session.stage).traffic
        assert {channel.message for channel in session.traffic.messages} == {"activation", "score"}
        assert session.traffic.bytes == 0
