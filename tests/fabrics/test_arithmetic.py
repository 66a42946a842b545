"""What a fused step computes, counted in its optimised program: nothing twice, and from clamped data nothing in every round."""

import jax.numpy as jnp
import pytest

from locallearn.chain import Chain, Row
from locallearn.codec import Context
from locallearn.models import MLP
from locallearn.rules.backprop import Backprop
from locallearn.rules.equilibrium_propagation import EquilibriumPropagation
from locallearn.rules.error_predictive_coding import ErrorPredictiveCoding
from locallearn.rules.predictive_coding import PredictiveCoding
from locallearn.runtime.fused import FusedSession
from locallearn.runtime.local import Fused
from tests.benchmarks.common import products, random_setup

WIDTHS, BATCH = (48, 32, 32, 10), 16
BOTTOM, ABOVE, TOP = BATCH * 48 * 32, BATCH * (32 * 32 + 32 * 10), BATCH * 32 * 10
"""Multiplications of one product with the bottom block's weights, with those of all others, and with the top's."""


@pytest.mark.parametrize(
    ("rule", "bottom", "above", "top"),
    [
        (Backprop(), 2, 3, 0),
        (PredictiveCoding(steps=5), 2, 2 * 4 + 3, 1),
        (ErrorPredictiveCoding(steps=5), 2, 2 * 5 + 2, 0),
        (EquilibriumPropagation(free=6, nudged=4), 2, 2 * 6 - 1 + 2 * 2 * 4 + 2, 0),
    ],
    ids=lambda value: type(value).__name__,
)
def test_products_of_a_step(rule, bottom, above, top):
    """A forward pass and the gradients, and in each round one product up and one down above the data.

    In the first round of predictive coding only the top has an error, and that pass's prediction.
    """
    activation = "hard_sigmoid" if isinstance(rule, EquilibriumPropagation) else "tanh"
    setup = random_setup(rule, WIDTHS, model=MLP(WIDTHS, activation=activation), batch=BATCH, shards=3)
    session = FusedSession(setup)
    session.enter(setup.stages[0])
    assert products(session.programs[0].loop.as_text()) == bottom * BOTTOM + above * ABOVE + top * TOP


def test_what_rounds_leave_as_it_was_comes_out_as_it_went_in():
    stage = random_setup("backprop", WIDTHS).stages[0]
    chain = Chain(stage.blocks, Fused(stage.wiring, {}, Context(jnp.arange(BATCH))))
    data, moved, passed = jnp.ones(3), jnp.ones(3), jnp.zeros(2)

    def turn(number, carry):
        row, also = carry
        return Row([data, row[1] + 1]), also

    row, also = chain.repeat(4, turn, (Row([data, moved]), passed))
    assert row[0] is data
    assert also is passed
    assert row[1].tolist() == [5, 5, 5]
