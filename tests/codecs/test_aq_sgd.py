"""AQ-SGD: backpropagation whose activations cross as quantised differences to what the receiver has of each example.

Wang et al. (2022), arXiv:2206.01299: with m(ξ) at both ends, m ← m + Q(a - m) at each visit of example ξ, and ‖x - Q(x)‖ ≤ c ‖x‖,

    ‖a_t - m_t‖ ≤ c ‖a_t - m_{t-1}‖ ≤ c (‖a_{t-1} - m_{t-1}‖ + ‖a_t - a_{t-1}‖)

so that what is lost goes to zero as activations settle, however few the bits.
"""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from locallearn.codec import build
from locallearn.runtime.fused import FusedSession
from locallearn.train import Optimizer

C = {"int8": 1 / 254, "int4": 1 / 14, "int2": 1 / 2}
"""c in the maximum norm: half a step of 2^(bits - 1) - 1 steps to a row's largest number."""


@pytest.mark.parametrize("name", C)
@settings(max_examples=10)
@given(seed=st.integers(0, 99), slower=st.floats(0.1, 1.0))
def test_what_the_receiver_lacks_is_bounded_by_what_changed(series, name, seed, slower):
    rng = np.random.default_rng(seed)
    drift = rng.normal(size=(9, 4, 12)) * slower ** np.arange(9)[:, None, None]
    a = np.cumsum(drift, 0).astype(np.float32)
    arrived, _ = series((("difference", (None, 4)), (name, ())), a)
    lost = np.abs(a - arrived).max(-1)
    before, changed = np.vstack([np.zeros((1, 4)), lost[:-1]]), np.abs(np.diff(a, axis=0, prepend=0)).max(-1)
    rounding = 1e-6 * np.abs(a).max()
    assert np.all(lost <= C[name] * (before + changed) + rounding)


def settled(begun, spec):
    """Largest difference between what a receiver was told last of each training example and the activation that there is now."""
    codec = {"activation": build(spec), "error": build((("int8", ("stochastic",)),))}
    running = begun(FusedSession, "backprop", codec, 2, steps=250, optimizer=Optimizer(rate=0.01, schedule="cosine"))
    running.advance(0, 250)
    (channel,) = [c for c in running._memory[0] if c.kind == "activation"]
    known = running._memory[0][channel][1][0]
    assert np.array_equal(known.about, np.arange(60))
    h = running.setup.split.train.x
    for block, state in zip(running.stage.blocks[:2], running._state, strict=False):
        h = block.apply(state.params, h)
    return float(jax.numpy.abs(known.values - h).max() / jax.numpy.abs(h).max())


def test_training_settles_and_with_it_what_is_lost(begun):
    """At two bits what was lost of a value is a quarter and more of its row's largest; of a difference that vanishes it vanishes."""
    assert settled(begun, (("difference", (None, 60)), ("int2", ()))) < 1e-3
    assert settled(begun, (("difference", (None, 60)), ("int4", ()))) < 1e-3
