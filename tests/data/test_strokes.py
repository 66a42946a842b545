"""The generator: deterministic, balanced, and each knob does what it says."""

import time

import numpy as np
import pytest

from locallearn.data.strokes import Strokes1d, _resample, _smooth

QUIET = {"noise": 0, "white_noise": 0, "shear": 0, "scale": 0}


@pytest.fixture(scope="module")
def data():
    return Strokes1d().load()


def test_shapes_types_and_statistics(data):
    assert (data.train.x.shape, data.test.x.shape) == ((4000, 40), (1000, 40))
    x = Strokes1d(samples=20000).load().train.x.astype(float)
    assert abs(x.mean()) < 0.02
    assert abs(x.std() - 1) < 0.01


def test_known_statistics_of_the_original(data):
    """MNIST-1D's 5,000 default examples have these autocorrelations and this kurtosis (computed once from its file)."""
    x = np.concatenate([data.train.x, data.test.x]).astype(float)
    autocorrelation = [np.mean(x[:, k:] * x[:, :-k]) for k in (1, 2, 4, 8, 16)]
    np.testing.assert_allclose(autocorrelation, [0.815, 0.533, 0.264, 0.092, -0.020], atol=0.03)
    assert abs(np.mean(x**4) - 4.40) < 0.25


def test_fingerprint_of_the_default_is_known(data):
    """If only this fails after an update of numpy, its normal numbers have changed: results before cannot be redone."""
    assert data.fingerprint == "f35734dcf9aa49562e70ac2035d08e63aee83fe898230aa77b38e6af35231dc0"


def test_same_fields_same_data_and_another_seed_fresh_data(data):
    assert Strokes1d().load().fingerprint == data.fingerprint
    other = Strokes1d(seed=1).load()
    everything = np.concatenate([data.train.x, data.test.x, other.train.x, other.test.x])
    assert len(np.unique(everything, axis=0)) == 10000


def test_test_set_does_not_depend_on_the_number_of_training_examples(data):
    np.testing.assert_array_equal(Strokes1d(samples=10).load().test.x, data.test.x)


@pytest.mark.parametrize("count", [10, 4000, 1007])
def test_classes_are_balanced_and_mixed(count):
    y = Strokes1d(samples=count).load().train.y
    assert np.ptp(np.bincount(y, minlength=10)) <= 1
    assert len(set(y[: max(10, count // 50)])) > 4


def test_without_distortion_only_padding_varies():
    data = Strokes1d(shift=0, samples=5000, **QUIET).load()
    for label in range(10):
        assert len(np.unique(data.train.x[data.train.y == label], axis=0)) == 25  # paddings 36 to 60
    assert np.all(data.train.x[:, -1] == data.train.x[0, -1])  # blank


def test_six_is_an_upturned_zero():
    data = Strokes1d(shift=0, samples=5000, **QUIET).load()
    blank = data.train.x[0, -1]
    zeros, sixes = (np.unique(data.train.x[data.train.y == label] - blank, axis=0) for label in (0, 6))
    np.testing.assert_allclose(np.sort(zeros.sum(1)), np.sort(-sixes.sum(1)), atol=1e-2)


def test_shift_moves_strokes_to_the_right():
    def centres(shift):
        data = Strokes1d(shift=shift, samples=2000, **QUIET).load()
        height = np.abs(data.train.x - data.train.x.max(axis=1, keepdims=True).min())
        return (height * np.arange(40)).sum(1) / height.sum(1)

    assert np.std(centres(47)) > 3 * np.std(centres(0))


def test_scale_bounds_the_height():
    flat = {**QUIET, "shift": 0, "samples": 2000}
    plain, scaled = Strokes1d(**flat).load().train.x, Strokes1d(**{**flat, "scale": 1.0}).load().train.x
    blank = plain[0, -1]
    ratio = np.abs(scaled - blank).max(1) / np.abs(plain - blank).max(1)
    assert 0.5 - 1e-3 <= ratio.min() < 0.52
    assert 1.48 < ratio.max() <= 1.5 + 1e-3


def test_shear_is_a_ramp():
    flat = {**QUIET, "shift": 0, "samples": 2000}
    ramps = Strokes1d(**{**flat, "shear": 3.0}).load().train.x - Strokes1d(**flat).load().train.x
    np.testing.assert_allclose(np.diff(ramps, 2), 0, atol=1e-3)
    rise = (ramps[:, -1] - ramps[:, 0]) * 0.153  # in the generator's own units
    assert -1.5 <= rise.min() < -1.45
    assert 1.45 < rise.max() <= 1.5


def test_noise_is_of_the_background_and_white_noise_of_all():
    flat = {**QUIET, "shift": 0, "samples": 2000}
    plain = Strokes1d(**flat).load().train.x
    background = Strokes1d(**{**flat, "noise": 1.0}).load().train.x - plain
    white = Strokes1d(**{**flat, "white_noise": 1.0}).load().train.x - plain
    assert np.all(background[:, :6] == 0)  # every stroke covers the first 12 of 72 points
    assert background[:, 20:].std() > 1
    assert np.all(white.std(axis=0) > 1)


def test_smoothing_by_hand():
    noise = np.zeros((1, 40))
    noise[0, 20] = 1
    weights = np.exp(-(np.arange(-8, 9) ** 2) / 8)
    np.testing.assert_allclose(_smooth(noise)[0, 12:29], weights / weights.sum())
    np.testing.assert_allclose(_smooth(np.full((1, 20), 3.0)), 3)
    np.testing.assert_allclose(_smooth(np.eye(1, 20)).sum(), 1)  # mirrored, nothing is lost


def test_resampling_agrees_with_numpy():
    values = np.random.default_rng(0).normal(size=(3, 72))
    places = np.linspace(0, 71, 40)
    np.testing.assert_allclose(_resample(values, 40), [np.interp(places, np.arange(72), row) for row in values])


def test_five_thousand_examples_take_less_than_half_a_second():
    best = min(timed(Strokes1d().load) for _ in range(3))
    assert best < 0.5


def timed(call):
    start = time.process_time()  # not what other programs take
    call()
    return time.process_time() - start
