"""From stored examples to what the bottom block sees: against numpy, and the same in every fabric, batch and resumed run."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locallearn.config.run import resolve
from locallearn.data.cifar import Cifar10
from locallearn.data.dataset import Arrays, Split
from locallearn.data.images import Mnist
from locallearn.data.intake import Augment, Intake
from locallearn.errors import ConfigError
from locallearn.rule import step_keys
from locallearn.runtime.framed import EagerSession
from locallearn.runtime.fused import FusedSession, Orders, _steps
from locallearn.runtime.intake import seen, seen_in_training, training_program
from locallearn.runtime.stale import kept
from locallearn.runtime.training import Finished, Snapshot, train

KEY = jax.random.PRNGKey(7)


def images(count, side=8, channels=3, seed=0):
    """Bytes, none of them 0: what is black was put there."""
    return np.random.default_rng(seed).integers(1, 256, (count, side, side, channels)).astype(np.uint8)


def taken(augment, x, key=KEY, index=None, **intake):
    index = np.arange(len(x)) if index is None else index
    return np.asarray(training_program(Intake(augment=augment, **intake))(x, key, np.asarray(index, np.int32)))


# Scaling.


@pytest.mark.parametrize("options", [{}, {"centred": True}, {"standardised": True}])
def test_bytes_are_scaled_as_numpy_scales_them_bit_for_bit(options):
    intake = Cifar10(**options).intake
    x = images(5, 32)
    by_hand = (x.astype(np.float32) - np.float32(intake.offset)) * np.float32(intake.scale)
    for program in (seen, jax.jit(seen, static_argnums=0)):
        np.testing.assert_array_equal(np.asarray(program(intake, x)), by_hand)


def test_scaled_values_are_those_of_the_papers():
    x = np.array([0, 51, 255], np.uint8)[:, None, None, None] * np.ones((1, 32, 32, 3), np.uint8)
    unit = x.astype(np.float64) / 255
    np.testing.assert_allclose(seen(Cifar10().intake, x), unit, atol=1e-6)
    np.testing.assert_allclose(seen(Cifar10(centred=True).intake, x), 2 * unit - 1, atol=1e-6)
    standard = (unit - [0.4914, 0.4822, 0.4465]) / [0.2470, 0.2435, 0.2616]
    np.testing.assert_allclose(seen(Cifar10(standardised=True).intake, x), standard, atol=1e-6)


def test_what_is_a_float_already_is_left_alone():
    x = jnp.ones((2, 32, 32, 3))
    assert seen(Cifar10().intake, x) is x


@pytest.mark.parametrize(("options", "black"), [({}, 0), ({"centred": True}, -1), ({"standardised": True}, -0.1307 / 0.3081)])
def test_what_is_cropped_is_filled_with_black(options, black):
    assert Mnist(**options).intake.blank == pytest.approx(black)
    x = np.full((50, 28, 28, 1), 3, np.float32)
    found = taken(Augment(crop=4), x, blank=Mnist(**options).intake.blank)
    np.testing.assert_allclose(np.unique(found), [black, 3], atol=1e-6)


# Augmentation, each against numpy by hand.


def shifted(image, down, right):
    """The image moved, black where nothing was."""
    moved = np.zeros_like(image)
    height, width = image.shape[:2]
    for i in range(height):
        for j in range(width):
            if 0 <= i - down < height and 0 <= j - right < width:
                moved[i, j] = image[i - down, j - right]
    return moved


@pytest.mark.parametrize("name", ["crop", "jitter"])
def test_crop_and_jitter_are_all_shifts_alike(name):
    x = np.repeat(images(1), 900, axis=0)
    found = taken(Augment(**{name: 1}), x)
    shifts = {(i, j): shifted(x[0], i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)}
    counts = [sum(np.array_equal(one, expected) for one in found) for expected in shifts.values()]
    assert sum(counts) == 900
    assert min(counts) > 60  # 100 each; the standard deviation is 9.4


def test_crop_and_jitter_are_drawn_apart():
    x = np.repeat(images(1), 600, axis=0)
    found = taken(Augment(crop=1, jitter=1), x)
    both = {shifted(shifted(x[0], *a), *b).tobytes() for a in places(1) for b in places(1)}
    assert {one.tobytes() for one in found} <= both
    assert any(np.array_equal(one, shifted(x[0], 2, 2)) for one in found)


def places(reach):
    return [(i, j) for i in range(-reach, reach + 1) for j in range(-reach, reach + 1)]


def test_half_of_the_images_are_flipped_left_to_right():
    x = images(4000, 4)
    found = taken(Augment(flip=True), x)
    flipped = (found == x[:, :, ::-1]).all((1, 2, 3))
    assert (flipped | (found == x).all((1, 2, 3))).all()
    assert abs(flipped.mean() - 0.5) < 0.03  # 0.008 is one standard deviation


@pytest.mark.parametrize("side", [1, 4, 5])
def test_cutout_is_a_square_around_any_pixel(side):
    x = np.ones((2000, 8, 8, 2), np.float32)
    found = taken(Augment(cutout=side), x)
    assert (found[..., 0] == found[..., 1]).all()
    squares = set()
    for i in range(8):
        for j in range(8):
            image = np.ones((8, 8, 1), np.float32)
            image[max(0, i - side // 2) : i - side // 2 + side, max(0, j - side // 2) : j - side // 2 + side] = 0
            squares.add(image.tobytes())
    assert {one[..., :1].tobytes() for one in found} == squares


def test_the_hole_is_zero_after_scaling():
    intake = Cifar10(standardised=True).intake
    found = taken(Augment(cutout=8), images(40, 32), offset=intake.offset, scale=intake.scale)
    plain = np.asarray(seen(intake, images(40, 32)))
    assert ((found == 0) | (found == plain)).all()
    assert (found == 0).any((1, 2, 3)).all()


def test_everything_together_is_one_after_the_other():
    """The same keys, so each part alone finds its own numbers again."""
    x, intake = images(30, 32), Cifar10().intake
    every = Augment(crop=4, flip=True, jitter=2, cutout=16)
    found = taken(every, x, offset=intake.offset, scale=intake.scale)
    by_hand = x
    for part in (Augment(crop=4), Augment(jitter=2), Augment(flip=True)):
        by_hand = taken(part, by_hand)
    by_hand = taken(Augment(cutout=16), np.asarray(seen(intake, by_hand)))
    np.testing.assert_array_equal(found, by_hand)


# Random numbers.


def test_numbers_follow_from_the_step_and_the_example_alone():
    x, every = images(6), Augment(crop=2, flip=True, cutout=3)
    whole = taken(every, x)
    order = np.array([4, 0, 5])
    np.testing.assert_array_equal(taken(every, x[order], index=order), whole[order])
    assert not np.array_equal(taken(every, x, key=jax.random.PRNGKey(8)), whole)
    assert not np.array_equal(taken(every, np.repeat(x[:1], 6, 0))[0], taken(every, np.repeat(x[:1], 6, 0))[1])


def test_evaluations_are_not_augmented():
    x = jnp.asarray(images(3))
    assert seen(Intake(augment=Augment(crop=2, flip=True, cutout=4)), x) is x


# Runs.

WIDTHS = (75, 8, 7, 3)
EVERY = Augment(crop=1, flip=True, jitter=1, cutout=2)
BYTES = Intake(offset=(10.0, 20.0, 30.0), scale=(0.01, 0.02, 0.03), augment=EVERY)


@pytest.fixture(scope="module")
def pictures():
    """60 training, 11 validation and 17 test images of 5x5x3 bytes."""
    rng = np.random.default_rng(0)
    return Split(*(Arrays(images(n, 5, seed=n), rng.integers(0, 3, n).astype(np.int32)) for n in (60, 11, 17)))


def setup_of(make_setup, pictures, intake, **options):
    return make_setup(options.pop("rule", "backprop"), split=pictures, widths=WIDTHS, intake=intake, **options)


def trained(session, setup, steps=7):
    running = session(setup)
    running.enter(setup.stages[0])
    running.advance(0, steps)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(running._state)]


def assert_near(a, b, tolerance=2e-5):
    for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


def test_the_bottom_sees_the_same_bits_in_every_fabric(make_setup, pictures):
    """What Fused feeds into its step is what a shard computes for itself."""
    running = EagerSession(setup_of(make_setup, pictures, BYTES))
    running.enter(running.setup.stages[0])
    batch = running.batch(3)
    fused = jax.jit(functools.partial(seen_in_training, BYTES))(pictures.train.x[batch.index], step_keys(0, 3, 4)[0], batch.index)
    assert np.asarray(batch.x).tobytes() == np.asarray(fused).tobytes()
    assert (batch.x.dtype, batch.x.shape) == (np.float32, (12, 5, 5, 3))


@pytest.mark.parametrize("rule", ["backprop", "direct_feedback"])
def test_fabrics_agree(make_setup, pictures, rule):
    both = [trained(session, setup_of(make_setup, pictures, BYTES, rule=rule)) for session in (FusedSession, EagerSession)]
    assert_near(*both)
    without = trained(FusedSession, setup_of(make_setup, pictures, dataclasses.replace(BYTES, augment=None), rule=rule))
    with pytest.raises(AssertionError):
        assert_near(both[0], without)


@pytest.mark.parametrize("session", [FusedSession, EagerSession])
def test_microbatches_see_what_the_whole_batch_sees(make_setup, pictures, session):
    whole, parts = (trained(session, setup_of(make_setup, pictures, BYTES, microbatches=m)) for m in (1, 3))
    assert_near(whole, parts)


def test_evaluations_agree(make_setup, pictures):
    counts = []
    for session in (FusedSession, EagerSession):
        running = session(setup_of(make_setup, pictures, BYTES))
        running.enter(running.setup.stages[0])
        counts.append([running.correct(part, lossless=True) for part in pictures])
    assert counts[0] == counts[1]


def test_resuming_is_bit_equal(make_setup, pictures, assert_same):
    events = list(train(FusedSession(setup_of(make_setup, pictures, BYTES)), keep_seconds=0))
    snapshot = next(event for event in events if isinstance(event, Snapshot))
    again = list(train(FusedSession(setup_of(make_setup, pictures, BYTES)), snapshot, keep_seconds=0))
    ends = [next(event for event in part if isinstance(event, Finished)) for part in (events, again)]
    assert 0 < snapshot.step < 10
    assert_same(*(end.shards for end in ends))


def test_off_costs_nothing(make_setup, pictures):
    """The program is the one that knows of no intake; with one it is another."""
    floats = Split(*(Arrays(part.x.astype(np.float32), part.y) for part in pictures))

    def program(**options):
        setup = setup_of(make_setup, floats, Intake())
        index, keys = np.zeros((4, setup.batch), np.int32), np.zeros((4, 2), np.uint32)
        run = jax.jit(functools.partial(_steps, setup.stages[0], **options))
        carry = setup.begin(setup.stages[0]), setup.memory(setup.stages[0]), kept(setup.begin(setup.stages[0]), 0)
        delays = np.zeros((4, len(setup.stages[0].blocks)), np.int32)
        orders = Orders(index, keys, delays, np.zeros(4, bool), np.int32(0), np.int32(0))
        return run.lower(carry, *floats.train, orders).as_text()

    assert program() == program(intake=Intake(blank=-1.0))
    assert program() != program(intake=Intake(augment=Augment(flip=True)))


def test_tokens_arrive_as_integers():
    found = seen(Intake(tokens=True), np.array([[1, 255]], np.uint8))
    assert found.dtype == jnp.int32
    assert found.tolist() == [[1, 255]]


# Configuration.


def config(augment, data="fashion14", widths=(196, 10)):
    model = {"name": "mlp", "widths": list(widths), "shards": 1}
    source = {"rule": {"name": "backprop"}, "model": model, "data": {"name": data, "augment": augment}, "train": {"epochs": 1}}
    return resolve(source)


def test_augmentation_is_part_of_a_run():
    plain, flipped = config(None), config({"flip": True})
    assert flipped.augment == Augment(flip=True)
    assert plain.digest() != flipped.digest()
    assert "augment" not in plain.canonical()["data"]
    assert resolve(flipped.canonical()).digest() == flipped.digest()


@pytest.mark.parametrize(
    ("augment", "data", "said"),
    [
        ({"crop": 14}, "fashion14", "is too much for images of 14 pixels a side; at most 13"),
        ({"cutout": 15}, "fashion14", "at most 14"),
        ({"flip": True}, "strokes1d", r"is for images \[height, width, channels\]; an example has shape \[40\]"),
        ({"flop": True}, "fashion14", "did you mean `flip`"),
        ({"crop": -1}, "fashion14", "greater than or equal to 0"),
    ],
)
def test_augmentation_that_does_not_fit_is_a_mistake(augment, data, said):
    with pytest.raises(ConfigError, match=said):
        config(augment, data, (196 if data == "fashion14" else 40, 10))
