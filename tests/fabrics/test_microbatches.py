"""Equal parts of a batch, each with messages of its own: the mean of their gradients is the whole batch's gradient."""

import jax
import numpy as np
import pytest

from locallearn.runtime.framed import EagerSession
from locallearn.runtime.fused import FusedSession
from locallearn.train import Optimizer

SGD = Optimizer(name="sgd", rate=0.1)


def trained(session, steps=4):
    loss = session.advance(0, steps)
    return loss, [np.asarray(leaf) for leaf in jax.tree.leaves(session._state)]


@pytest.fixture(scope="module")
def whole(begun):
    return trained(begun(FusedSession, shards=2, optimizer=SGD))


@pytest.mark.parametrize("parts", [2, 3, 4])
@pytest.mark.parametrize("session", [FusedSession, EagerSession])
def test_microbatches_give_the_step_of_the_whole_batch(begun, whole, session, parts):
    loss, state = trained(begun(session, shards=2, optimizer=SGD, microbatches=parts))
    assert loss == pytest.approx(whole[0], rel=1e-5)
    for x, y in zip(state, whole[1], strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)


def test_each_microbatch_has_its_own_memory_of_each_channel(begun):
    running = begun(EagerSession, codec=(("error_feedback", ()), ("int8", ())), shards=2, microbatches=3)
    running.advance(0, 1)
    residuals = [np.asarray(leaf) for slot in running._memories() for leaf in jax.tree.leaves(slot)]
    assert [leaf.shape for leaf in residuals] == [(4, 7)] * 6
    assert len({leaf.tobytes() for leaf in residuals}) == 6


def test_a_batch_that_cannot_be_cut_evenly_is_an_error(begun):
    with pytest.raises((ValueError, TypeError)):
        begun(EagerSession, microbatches=5).advance(0, 1)
