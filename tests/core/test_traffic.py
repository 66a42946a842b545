"""Traffic: sums of bytes and messages."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from locallearn.rule import KINDS
from locallearn.traffic import ASIDE, HEADER_BYTES, Channel, Traffic

UP = Channel("activation", "activation", 0, 1)
DOWN = Channel("error", "error", 1, 0)
FAR = Channel("label", "label", 2, 0)
SCORE = Channel("activation", "evaluation", 0, 1)
SAVED = Channel("state", "checkpoint", 1, 0)

channels = st.builds(Channel, st.sampled_from(["a", "b"]), st.sampled_from(KINDS), st.integers(0, 3), st.integers(0, 3))
counted = st.lists(st.tuples(channels, st.integers(0, 2**40), st.integers(1, 1000)), max_size=8)


def traffic(*counts):
    total = Traffic()
    for count in counts:
        total.count(*count)
    return total


def test_framed_bytes_are_the_payload_and_a_header_for_each_message():
    assert HEADER_BYTES == 20
    assert traffic((UP, 100), (UP, 60, 2)).framed(UP) == 160 + 3 * 20


def test_the_headline_leaves_evaluations_and_checkpoints_out():
    some = traffic((UP, 100), (DOWN, 10), (SCORE, 1000), (SAVED, 5000))
    assert ASIDE == ("evaluation", "checkpoint")
    assert some.bytes == 100 + 10 + 2 * 20
    assert some.payload_bytes == 110
    assert some.message_count == 2
    assert some.training == [UP, DOWN]


def test_by_kind_has_every_kind_and_by_link_only_training():
    some = traffic((UP, 100), (DOWN, 10), (FAR, 3), (SCORE, 1000), (SAVED, 5000), (Channel("other", "activation", 0, 1), 7))
    assert some.by_kind() == {"activation": 147, "checkpoint": 5020, "error": 30, "evaluation": 1020, "label": 23}
    assert some.by_link() == {(0, 1): 147, (1, 0): 30, (2, 0): 23}
    assert some.worst_link == 147


def test_nothing_sent_is_zero():
    nothing = Traffic()
    assert (nothing.bytes, nothing.payload_bytes, nothing.message_count, nothing.worst_link) == (0, 0, 0, 0)
    assert nothing.by_kind() == nothing.by_link() == {}
    assert nothing.rows() == []


def test_an_evaluation_counts_its_messages_as_evaluation_on_the_same_link():
    assert UP.counted(training=True) == UP
    assert UP.counted(training=False) == Channel("activation", "evaluation", 0, 1)


@given(counted, counted)
def test_sums_add_channel_by_channel(a, b):
    total = traffic(*a) + traffic(*b)
    assert total == traffic(*a, *b)
    assert total.bytes == traffic(*a).bytes + traffic(*b).bytes


@given(counted, st.integers(1, 5))
def test_times_is_repeated_addition(counts, times):
    total = Traffic()
    for _ in range(times):
        total = total + traffic(*counts)
    assert traffic(*counts) * times == total


@given(counted)
def test_no_sum_changes_what_it_adds(counts):
    some, again = traffic(*counts), traffic(*counts)
    _ = some + some, some * 3
    assert some == again


@given(counted)
def test_kinds_and_links_are_partitions_of_the_bytes(counts):
    some = traffic(*counts)
    assert sum(some.by_kind().values()) == sum(map(some.framed, some.messages))
    assert sum(some.by_link().values()) == some.bytes
    assert list(some.by_kind()) == sorted(some.by_kind())


@given(counted)
def test_rows_are_plain_and_come_back(counts):
    some = traffic(*counts)
    rows = json.loads(json.dumps(some.rows()))
    assert Traffic.of_rows(rows) == some
    assert [row["framed"] for row in rows] == [row["payload"] + 20 * row["messages"] for row in rows]
    assert rows == Traffic.of_rows(rows).rows()


def test_counts_do_not_overflow():
    assert (traffic((UP, 2**62)) * 2**20).payload_bytes == 2**82


@pytest.mark.parametrize(("payload", "packets"), [(0, 1), (1416, 1), (1417, 2), (100_000, 70)])
def test_what_counts_as_a_byte(payload, packets):
    """On the wire 12 bytes precede a frame, each packet takes 1448 of it behind 66 bytes of headers, and 66 acknowledge it."""
    sent = traffic((UP, 3 * payload, 3))
    assert sent.at("payload").bytes == sent.payload_bytes == 3 * payload
    assert sent.at("framed").bytes == sent.bytes == 3 * (payload + 20)
    assert sent.at("wire").bytes == 3 * (payload + 20 + 12 + 66 * packets + 66)
    assert sent.at("wire").worst_link == sent.at("wire").by_kind()[UP.kind] == sent.at("wire").bytes
    assert (sent.at("wire") * 2 + sent).bytes == 3 * sent.at("wire").bytes
