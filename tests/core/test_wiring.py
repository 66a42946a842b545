"""Placements, the choice of codecs, and what each channel begins with."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from locallearn.codec import Spec, bfloat16, build, exact, int8
from locallearn.errors import RuleError
from locallearn.rule import Message
from locallearn.runtime.wiring import Wiring, choose_codecs, cut, deal, initial_memory
from locallearn.traffic import Channel

MESSAGES = {"activation": Message("activation", "up", ""), "state": Message("activation", "up", ""), "error": Message("error", "down", "")}


@st.composite
def blocks_and_shards(draw):
    blocks = draw(st.integers(1, 40))
    return blocks, draw(st.integers(1, blocks))


@given(blocks_and_shards())
def test_dealt_blocks_are_contiguous_and_even(case):
    blocks, shards = case
    placement = deal(blocks, shards)
    sizes = [placement.count(shard) for shard in range(shards)]
    assert list(placement) == sorted(placement)
    assert sum(sizes) == blocks == len(placement)
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)
    assert min(sizes) >= 1


@pytest.mark.parametrize("shards", [0, -1, 4])
def test_too_many_or_no_shards_are_refused(shards):
    with pytest.raises(RuleError, match=f"{shards} shards for 3 blocks"):
        deal(3, shards)


@given(st.integers(1, 20).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(1, n - 1)) if n > 1 else st.just(set()))))
def test_a_shard_begins_at_each_cut(case):
    blocks, cuts = case
    placement = cut(blocks, sorted(cuts))
    assert len(placement) == blocks
    assert placement[0] == 0
    assert {i for i in range(1, blocks) if placement[i] != placement[i - 1]} == cuts
    assert all(b - a in (0, 1) for a, b in itertools.pairwise(placement))


@given(blocks_and_shards())
def test_dealing_is_cutting_at_the_boundaries(case):
    placement = deal(*case)
    assert cut(case[0], [i for i in range(1, case[0]) if placement[i] != placement[i - 1]]) == placement


@pytest.mark.parametrize("cuts", [[0], [4], [2, 1], [1, 1], [-1]])
def test_cuts_that_make_no_placement_are_refused(cuts):
    with pytest.raises(RuleError, match="rise strictly, from 1 to 3"):
        cut(4, cuts)


def test_a_message_name_beats_its_kind_which_beats_the_default():
    chosen = choose_codecs(MESSAGES, {"activation": int8(), "state": int8(), "error": exact()}, exact())
    by_kind = choose_codecs({"h": MESSAGES["state"], "e": MESSAGES["error"]}, {"activation": (codec := bfloat16())}, exact())
    assert chosen["error"] is exact()
    assert by_kind == {"h": codec, "e": exact()}
    by_name = choose_codecs({"h": MESSAGES["state"]}, {"activation": int8(), "h": codec}, exact())
    assert by_name["h"] is codec


def wiring(placement=(0, 0, 1, 2)):
    return Wiring(placement, MESSAGES, {name: build((("error_feedback", ()), ("int8", ()))) for name in MESSAGES})


def test_channels_join_shards_and_nothing_crosses_within_one():
    assert wiring().channel("error", 2, 1) == Channel("error", "error", 1, 0)
    assert wiring().channel("state", 0, 3) == Channel("state", "activation", 0, 2)
    assert wiring().channel("error", 0, 1) is None
    assert wiring().shards == 3


@pytest.mark.parametrize(("name", "hint"), [("eror", "did you mean `error`"), ("xyz", r"declared: activation, state, error")])
def test_an_undeclared_message_is_refused_even_within_a_shard(name, hint):
    with pytest.raises(RuleError, match=f"sends `{name}` but does not declare.*{hint}"):
        wiring().channel(name, 0, 1)


def test_a_channels_memory_depends_on_seed_and_name_alone():
    keeps_key = exact()._replace(init=lambda spec, key: (key, spec.shape))

    def drawn(channel, seed):
        return initial_memory(wiring()._replace(codecs={"error": keeps_key}), {channel: Spec((2,), jnp.float32)}, seed)[channel]

    a, b = Channel("error", "error", 1, 0), Channel("error", "error", 2, 1)
    assert np.array_equal(drawn(a, 7)[0], drawn(a, 7)[0])
    assert not np.array_equal(drawn(a, 7)[0], drawn(b, 7)[0])
    assert not np.array_equal(drawn(a, 7)[0], drawn(a, 8)[0])
    assert drawn(a, 7)[1] == (2,)


def test_initial_memory_has_both_ends_of_every_channel():
    channels = {Channel("error", "error", 1, 0): Spec((4, 3), jnp.float32)}
    memory = initial_memory(wiring(), channels, 0)
    assert memory.keys() == channels.keys()
    assert [leaf.shape for leaf in jax.tree.leaves(memory)] == [(4, 3)]
