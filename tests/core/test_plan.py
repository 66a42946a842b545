"""Plan refuses whatever breaks the contract of the chain, and finds the critical path."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import pytest

from locallearn.chain import Chain, Row
from locallearn.codec import Spec, exact
from locallearn.errors import RuleError
from locallearn.models import MLP
from locallearn.rule import Info, Message, Rule, forward
from locallearn.runtime.local import Plan, Planned
from locallearn.runtime.wiring import Wiring
from locallearn.traffic import Channel

MESSAGES = {"activation": Message("activation", "up", "h"), "error": Message("error", "down", "e")}


def spec(*shape):
    return Spec(shape, jnp.float32)


@pytest.fixture
def chain():
    """Four blocks in three shards, and a row of [2, 5] arrays that are each block's own."""
    blocks = MLP(widths=(4, 4, 4, 4, 4)).blocks((4,))
    return Chain(blocks, Plan(Wiring((0, 0, 1, 2), MESSAGES, dict.fromkeys(MESSAGES, exact()))))


@pytest.fixture
def own():
    return Row(Planned(spec(2, 5), i) for i in range(4))


def add(block, *values):
    return sum(values)


def pair(block, value):
    return value, value


class Sent(NamedTuple):
    down: jax.Array


def send(block, y, d):
    return Sent(y + d)


def test_a_value_of_another_block_is_refused(chain, own):
    with pytest.raises(RuleError, match="block 1 reads a value of block 2") as caught:
        chain.map(add, Row([own[0], own[2], own[2], own[3]]))
    assert caught.value.__notes__ == ["in block 1 of 4, verb `map`, function `add`"]


def test_a_value_of_another_block_is_refused_even_within_a_shard(chain, own):
    with pytest.raises(RuleError, match="block 1 reads a value of block 0"):
        chain.map(add, Row([own[0], own[0], own[2], own[3]]))


def test_a_value_hidden_in_a_tuple_is_refused(chain, own):
    with pytest.raises((RuleError, TypeError)):
        chain.map(add, (own, own))


def test_a_block_sends_only_what_is_its_own(chain, own):
    with pytest.raises(RuleError, match="block 3 sends `error`, a value that is not its own"):
        chain.broadcast("error", own[1])
    with pytest.raises(RuleError, match="block 0 sends `activation`, a value that is not its own"):
        chain.up("activation", Row([own[1], own[1], own[2], own[3]]), first=own[0])
    with pytest.raises(RuleError, match="not its own"):
        chain.broadcast("error", 1.0)


def test_a_received_value_belongs_to_the_receiver(chain, own):
    below = chain.up("activation", own, first=own[0])
    assert chain.map(add, own, below)._owner.values == (0, 1, 2, 3)
    with pytest.raises(RuleError, match="block 0 reads a value of block 1"):
        chain.at_bottom(add, own, below[1])


def test_an_undeclared_message_is_refused_with_a_suggestion(chain, own):
    with pytest.raises(RuleError, match=r"`activations` but does not declare it.*did you mean `activation`") as caught:
        chain.up("activations", own, first=own[0])
    assert caught.value.__notes__ == ["in verb `up`, message `activations`"]


def test_a_message_is_one_array(chain, own):
    several = chain.map(pair, own)
    with pytest.raises(RuleError, match="message `activation` is tuple, not one array"):
        chain.up("activation", several, first=own[0])


def test_a_message_keeps_one_shape_on_a_link(chain, own):
    chain.up("activation", own, first=own[0])
    with pytest.raises(RuleError, match="message `activation` has shape") as caught:
        chain.up("activation", Row(Planned(spec(3, 5), i) for i in range(4)), first=own[0])
    assert "(2, 5)" in str(caught.value)
    assert "(3, 5)" in str(caught.value)


def test_an_error_of_the_function_is_located(chain, own):
    def broken(block, value):
        return value @ value

    with pytest.raises(TypeError) as caught:
        chain.map(broken, own)
    assert "in block 0 of 4, verb `map`, function `broken`" in caught.value.__notes__


def test_every_crossing_is_counted_once_for_each_link(chain, own):
    chain.up("activation", own, first=own[0])
    chain.broadcast("error", own[3])
    size = 2 * 5 * 4
    assert chain.fabric.traffic.payload == {
        Channel("activation", "activation", 0, 1): size,
        Channel("activation", "activation", 1, 2): size,
        Channel("error", "error", 2, 0): size,
        Channel("error", "error", 2, 1): size,
    }
    assert set(chain.fabric.traffic.messages.values()) == {1}
    assert set(chain.fabric.channels) == set(chain.fabric.traffic.messages)


def test_rounds_are_counted_one_by_one(chain, own):
    chain.repeat(7, lambda number, row: chain.up("activation", row, first=own[0]), own)
    assert chain.fabric.traffic.messages == {Channel("activation", "activation", s, s + 1): 7 for s in (0, 1)}


def test_hops_are_the_messages_on_the_longest_path(chain, own):
    chain.broadcast("error", own[3])
    assert chain.fabric.hops == 1
    _, y = chain.sweep_up("activation", add, own, first=own[0])
    assert chain.fabric.hops == 2  # three shards, two boundaries
    chain.sweep_down("error", send, y, last=y[3])
    assert chain.fabric.hops == 4


def test_neighbours_that_exchange_for_k_rounds_wait_for_k_messages(chain, own):
    chain.repeat(7, lambda number, row: chain.map(add, row, chain.up("activation", row, first=own[0])), own)
    assert chain.fabric.hops == 2  # a value entered at the bottom waits for two; what each shard has of its own does not wait


def test_evaluation_is_counted_as_such(chain, own):
    plan = Plan(chain.fabric.wiring, training=False)
    Chain(chain.blocks, plan).up("activation", own, first=own[0])
    assert {channel.kind for channel in plan.traffic.messages} == {"evaluation"}
    assert {channel.kind for channel in plan.channels} == {"activation"}


@dataclass(frozen=True)
class Wrong(Rule):
    """A rule that leaves a value where it does not belong."""

    messages: ClassVar = MESSAGES
    family: ClassVar = "wrong"
    mistake: str = ""

    def step(self, chain, state, batch):
        y = chain.sweep_up("activation", forward, state, first=batch.x)[1]
        loss = chain.at_bottom(total, y) if self.mistake == "loss" else chain.at_top(total, y)
        new = Row([state[0], state[2], state[2], state[3]]) if self.mistake == "state" else state
        return new, Info(loss)

    def predict(self, chain, state, x):
        return chain.sweep_up("activation", forward, state, first=x)[1][-2 if self.mistake == "scores" else -1]


def total(block, y):
    return jnp.sum(y)


@pytest.mark.parametrize("mistake", ["loss", "state"])
def test_a_step_leaves_each_value_in_its_block(make_setup, mistake):
    setup = make_setup(Wrong(mistake))
    with pytest.raises(RuleError, match=mistake):
        setup.plan_step(setup.stages[0])
    right = make_setup(Wrong())
    right.plan_step(right.stages[0])


def test_scores_are_the_top_blocks(make_setup):
    setup = make_setup(Wrong("scores"))
    with pytest.raises(RuleError, match="scores"):
        setup.plan_evaluation(setup.stages[0])
    right = make_setup(Wrong())
    right.plan_evaluation(right.stages[0])
