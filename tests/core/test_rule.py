"""What a step is made of: parts of batches, keys, means."""

from dataclasses import replace
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from locallearn.block import Block
from locallearn.chain import ABSENT
from locallearn.models import MLP
from locallearn.rule import KINDS, Batch, Message, Rule, block_keys, descend, init_state, mean, split_batch, step_keys
from locallearn.rules import RULES

BATCH = Batch(jnp.arange(24.0).reshape(6, 4), jnp.arange(6), 10 + jnp.arange(6), jax.random.PRNGKey(0))


@pytest.mark.parametrize("parts", [2, 3, 6])
def test_parts_of_a_batch_join_to_the_batch(parts):
    cut = split_batch(BATCH, parts)
    assert [len(part.y) for part in cut] == [6 // parts] * parts
    for name in ("x", "y", "index"):
        assert np.array_equal(jnp.concatenate([getattr(part, name) for part in cut]), getattr(BATCH, name))


def test_one_part_is_the_batch_itself():
    assert split_batch(BATCH, 1) == [BATCH]


def test_parts_have_keys_of_their_own():
    keys = [tuple(map(int, part.key)) for part in split_batch(BATCH, 3)]
    assert len({*keys, tuple(map(int, BATCH.key))}) == 4


def test_what_lives_elsewhere_stays_absent_in_every_part():
    assert all(part.x is ABSENT and len(part.y) == 3 for part in split_batch(BATCH._replace(x=ABSENT), 2))


def test_step_keys_do_not_depend_on_where_a_chunk_begins():
    whole = np.asarray(step_keys(5, 0, 9))
    for start, stop in [(0, 1), (0, 4), (4, 9), (8, 9)]:
        assert np.array_equal(step_keys(5, start, stop), whole[start:stop])


def test_step_keys_differ_between_steps_and_seeds():
    keys = {tuple(map(int, key)) for seed in (0, 1, 2) for key in step_keys(seed, 0, 50)}
    assert len(keys) == 150


def test_the_initial_state_of_a_block_depends_on_seed_and_place_alone():
    assert np.array_equal(block_keys(3, 2), block_keys(3, 5)[:2])
    blocks = MLP(widths=(4, 4, 4, 4)).blocks((4,))
    kernels = [np.asarray(s.params["linear"]["kernel"]) for seed in (0, 1) for s in init_state(RULES["backprop"](), blocks, seed)]
    assert len({kernel.tobytes() for kernel in kernels}) == 6


def test_mean_adds_in_order_and_divides():
    parts = [{"w": jnp.float32(1e8)}, {"w": jnp.float32(1.0)}, {"w": jnp.float32(-1e8)}]
    assert float(mean(None, *parts)["w"]) == float((np.float32(1e8) + np.float32(1) + np.float32(-1e8)) / 3)


@pytest.mark.parametrize("learns", [True, False])
def test_a_block_that_does_not_learn_keeps_the_rules_memory_too(learns):
    block = replace(MLP(widths=(3, 2)).blocks((3,))[0], tx=optax.sgd(1.0), learns=learns)
    state = block.state({"w": jnp.zeros(())}, memory=jnp.zeros(()))
    after = descend(block, state, {"w": jnp.ones(())}, jnp.ones(()))
    assert (float(after.params["w"]), float(after.memory)) == ((-1, 1) if learns else (0, 0))


class NeedsHalves(Rule):
    messages: ClassVar = {}
    needs: ClassVar = "pre and post"


def test_a_rule_that_needs_halves_refuses_a_composite_block():
    class Whole(nnx.Module):
        def __init__(self, rngs):
            pass

        def __call__(self, x):
            return x

    plain = MLP(widths=(3, 3)).blocks((3,))[0]
    assert NeedsHalves().problems([plain]) == []
    assert "block 4 is composite" in NeedsHalves().problems([plain, Block(Whole, (3,), index=4)])[0]
    assert RULES["backprop"]().problems([Block(Whole, (3,))]) == []


def test_a_rule_without_gradients_or_step_says_so():
    with pytest.raises(NotImplementedError, match="NeedsHalves defines neither `gradients` nor `step`"):
        NeedsHalves().step(None, None, BATCH)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_every_rule_declares_known_kinds(rule):
    assert all(isinstance(message, Message) and message.kind in KINDS and message.doc for message in rule.messages.values())
    assert not {message.kind for message in rule.messages.values()} & {"checkpoint", "control"}
