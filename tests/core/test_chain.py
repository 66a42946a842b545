"""Every verb against a hand-written loop over three blocks, on a fabric that moves values and writes down what it did."""

import pickle
from typing import NamedTuple

import jax
import pytest

from locallearn.chain import ABSENT, RESTING, Chain, Fabric, Row


class Named(str):
    """A block that is nothing but a name."""

    rests = False


class Resting(Named):
    rests = True


BLOCKS = tuple(map(Named, ("bottom", "middle", "top")))
ABC = Row("abc")


class Recorder(Fabric):
    """Values go where they are sent; `log` has each computation's block and each exchange's moves."""

    placement = (0, 1, 2)

    def __init__(self):
        self.log = []

    def compute(self, i, fn, block, *args, **options):
        assert block == BLOCKS[i]
        self.log.append(i)
        return fn(block, *args, **options)

    def exchange(self, name, moves):
        self.log.append((name, [(move.src, move.dst, move.value) for move in moves]))
        return [f"{move.value}@{move.dst}" for move in moves]

    def repeat(self, times, body, carry):
        for number in range(times):
            carry = body(number, carry)
        return carry


@pytest.fixture
def chain():
    return Chain(BLOCKS, Recorder())


def join(block, *values, sep=" "):
    return sep.join([block, *map(str, values)])


class Out(NamedTuple):
    down: str
    kept: str


def pull(block, own, d):
    return Out(down=f"d{own}", kept=f"{block} {own} {d}")


def test_map_gives_each_block_its_own_entries_and_what_is_no_row_to_all(chain):
    assert chain.map(join, ABC, "k", Row([1, 2, 3])).values == ("bottom a k 1", "middle b k 2", "top c k 3")
    assert chain.fabric.log == [0, 1, 2]


def test_options_are_passed_by_name(chain):
    assert chain.map(join, ABC, sep="-").values == ("bottom-a", "middle-b", "top-c")
    assert chain.at_top(join, ABC, sep="-") == "top-c"
    assert chain.sweep_up("m", join, ABC, first="x", sep="-")[1][0] == "bottom-a-x"


def test_at_top_and_at_bottom_compute_in_one_block(chain):
    assert chain.at_top(join, ABC, "y") == "top c y"
    assert chain.at_bottom(join, ABC) == "bottom a"
    assert chain.fabric.log == [2, 0]


def test_with_top_replaces_the_top_entry_alone(chain):
    assert chain.with_top(ABC, "z").values == ("a", "b", "z")
    assert ABC.values == ("a", "b", "c")
    assert chain.fabric.log == []


def test_up_sends_every_entry_at_once(chain):
    assert chain.up("m", ABC, first="x").values == ("x", "a@1", "b@2")
    assert chain.fabric.log == [("m", [(0, 1, "a"), (1, 2, "b")])]


def test_down_sends_every_entry_at_once(chain):
    assert chain.down("m", ABC, last="z").values == ("b@0", "c@1", "z")
    assert chain.fabric.log == [("m", [(1, 0, "b"), (2, 1, "c")])]


def test_sweep_up_goes_from_block_to_block(chain):
    x, y = chain.sweep_up("m", join, ABC, first="x")
    x0 = "x"
    y0 = f"bottom a {x0}"
    x1 = f"{y0}@1"
    y1 = f"middle b {x1}"
    x2 = f"{y1}@2"
    y2 = f"top c {x2}"
    assert x.values == (x0, x1, x2)
    assert y.values == (y0, y1, y2)
    assert chain.fabric.log == [0, ("m", [(0, 1, y0)]), 1, ("m", [(1, 2, y1)]), 2]


def test_sweep_down_sends_the_attribute_down(chain):
    out = chain.sweep_down("m", pull, ABC, last="z")
    assert out.kept.values == ("bottom a db@0", "middle b dc@1", "top c z")
    assert chain.fabric.log == [2, ("m", [(2, 1, "dc")]), 1, ("m", [(1, 0, "db")]), 0]


def test_broadcast_reaches_every_other_block_and_keeps_the_source_as_it_is(chain):
    assert chain.broadcast("m", "v").values == ("v@0", "v@1", "v")
    assert chain.broadcast("m", "v", source="bottom").values == ("v", "v@1", "v@2")
    assert chain.fabric.log == [("m", [(2, 0, "v"), (2, 1, "v")]), ("m", [(0, 1, "v"), (0, 2, "v")])]


def test_broadcast_knows_no_other_source(chain):
    with pytest.raises(ValueError, match="middle"):
        chain.broadcast("m", "v", source="middle")


def test_to_bottom_and_to_top_are_one_message_each(chain):
    assert chain.to_bottom("m", "v") == "v@0"
    assert chain.to_top("m", "v") == "v@2"
    assert chain.fabric.log == [("m", [(2, 0, "v")]), ("m", [(0, 2, "v")])]


def test_gather_adds_up_from_the_bottom_in_order(chain):
    result = chain.gather("m", ABC, join)
    assert result == "top middle a@1 b@2 c"
    assert chain.fabric.log == [("m", [(0, 1, "a")]), 1, ("m", [(1, 2, "middle a@1 b")]), 2]


def test_repeat_numbers_the_rounds(chain):
    assert chain.repeat(3, lambda number, carry: [*carry, number], []) == [0, 1, 2]


@pytest.mark.parametrize("times", [0, -1])
def test_repeat_of_no_rounds_gives_the_carry_back(chain, times):
    assert chain.repeat(times, lambda number, carry: 1 / 0, "carry") == "carry"


def test_a_chain_of_one_block_sends_nothing():
    chain = Chain([Named("bottom")], Recorder())
    assert chain.to_bottom("m", "v") == chain.to_top("m", "v") == "v"
    assert chain.broadcast("m", "v").values == ("v",)
    assert chain.up("m", Row("a"), first="x").values == ("x",)
    assert chain.down("m", Row("a"), last="z").values == ("z",)
    assert chain.sweep_up("m", join, Row("a"), first="x")[1].values == ("bottom a x",)
    assert chain.gather("m", Row("a"), join) == "a"
    assert not [entry for entry in chain.fabric.log if entry != 0 and entry[1]]


def fail(block, *args):
    raise ZeroDivisionError("as asked")


def fail_in_the_middle(block, *args):
    return fail(block) if block == "middle" else Out("d", "k")


@pytest.mark.parametrize(
    ("verb", "use"),
    [
        ("map", lambda chain: chain.map(fail_in_the_middle, ABC)),
        ("sweep_up", lambda chain: chain.sweep_up("m", fail_in_the_middle, ABC, first="x")),
        ("sweep_down", lambda chain: chain.sweep_down("m", fail_in_the_middle, ABC, last="x")),
        ("gather", lambda chain: chain.gather("m", ABC, fail_in_the_middle)),
    ],
)
def test_an_error_in_a_block_names_block_verb_and_function(chain, verb, use):
    with pytest.raises(ZeroDivisionError) as caught:
        use(chain)
    assert caught.value.__notes__ == [f"in block 1 of 3, verb `{verb}`, function `fail_in_the_middle`"]


@pytest.mark.parametrize(
    ("verb", "use"),
    [
        ("up", lambda chain: chain.up("m", ABC, first="x")),
        ("down", lambda chain: chain.down("m", ABC, last="x")),
        ("sweep_up", lambda chain: chain.sweep_up("m", join, ABC, first="x")),
        ("sweep_down", lambda chain: chain.sweep_down("m", pull, ABC, last="x")),
        ("broadcast", lambda chain: chain.broadcast("m", "v")),
        ("to_bottom", lambda chain: chain.to_bottom("m", "v")),
        ("to_top", lambda chain: chain.to_top("m", "v")),
        ("gather", lambda chain: chain.gather("m", ABC, join)),
    ],
)
def test_an_error_on_the_way_names_verb_and_message(chain, verb, use):
    chain.fabric.exchange = fail
    with pytest.raises(ZeroDivisionError) as caught:
        use(chain)
    assert caught.value.__notes__ == [f"in verb `{verb}`, message `m`"]


def test_an_error_within_rounds_is_located_once_where_it_happened(chain):
    with pytest.raises(ZeroDivisionError) as caught:
        chain.repeat(2, lambda number, carry: chain.at_top(fail, carry), 0)
    assert caught.value.__notes__ == ["in block 2 of 3, verb `at_top`, function `fail`"]


def test_to_blocks_that_rest_nothing_goes_up_and_of_what_they_would_make_of_it_nothing_comes_down():
    chain = Chain([BLOCKS[0], BLOCKS[1], Resting("top")], Recorder())
    xs, ys = chain.sweep_up("m", join, first="x")
    assert xs.values == ("x", "bottom x@1", RESTING)
    assert ys.values[1:] == ("middle bottom x@1", RESTING)
    assert ys[2].down is RESTING
    assert chain.fabric.log == [0, ("m", [(0, 1, "bottom x")]), 1, ("m", [])]
    assert chain.broadcast("e", chain.at_top(join, ys)).values == (RESTING,) * 3
    assert chain.map(join, chain.up("m", ABC, first="f")).values == ("bottom f", "middle a@1", RESTING)
    assert chain.gather("g", ABC, join) is RESTING


def test_blocks_that_rest_say_what_they_have_and_are_told_as_the_top():
    chain = Chain([BLOCKS[0], BLOCKS[1], Resting("top")], Recorder())
    assert chain.at_top(join, ABC) == "top c"
    assert chain.broadcast("y", "v").values == ("v@0", "v@1", "v")
    assert chain.to_top("loss", "l", source=1) == "l@2"


def test_a_row_keeps_in_mind_what_is_not_there():
    leaves, tree = jax.tree.flatten(Row([1, RESTING, ABSENT]))
    assert leaves == [1]
    assert jax.tree.unflatten(tree, leaves).values == (1, RESTING, ABSENT)
    assert pickle.loads(pickle.dumps(RESTING)) is RESTING
    assert pickle.loads(pickle.dumps(ABSENT)) is ABSENT
