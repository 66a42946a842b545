"""`reuse`: rows cross once for each example, and bytes are those of the rows that cross."""

import jax.numpy as jnp
import numpy as np
import pytest

from locallearn.codec import Context, build

N = 6


def spec(*inner, **options):
    return (("reuse", tuple(options.values())), *inner)


def rows(index, version=0):
    """The row of an example, which changes with each version."""
    return np.stack([np.random.default_rng([i, version]).normal(size=N).astype(np.float32) for i in index])


def sent(codec, packet):
    return int(build(codec).wire.size(tuple(map(jnp.asarray, packet))))


BATCHES = [[0, 1, 2, 3], [4, 5, 0, 6], [3, 2, 1, 0], [7, 4, 8, 1]]
FRESH = [4, 3, 0, 2]


@pytest.mark.parametrize(
    ("inner", "row"), [(("exact", ()), 4 * N), (("int8", ()), N + 4), (("int4", ("nearest", "symmetric", "one")), N // 2)]
)
def test_a_row_crosses_once_and_arrives_for_ever_as_it_first_did(cross, inner, row):
    codec, memory, first = spec(inner, examples=16), None, {}
    for version, (index, fresh) in enumerate(zip(BATCHES, FRESH, strict=True)):
        x = rows(index, version)
        packet, y, memory = cross(codec, x, memory, index=index)
        plain = cross((inner,), x)[1]
        for k, i in enumerate(index):
            np.testing.assert_array_equal(y[k], first.setdefault(i, plain[k]))
        assert fresh * row - row < sent(codec, packet) <= fresh * row if fresh else sent(codec, packet) == 0


def test_an_example_that_comes_twice_in_a_batch_crosses_once(cross):
    codec, memory, first = spec(("exact", ()), examples=4), None, {}
    for version, (index, fresh) in enumerate([([2, 2, 5, 2, 0], 3), ([5, 1, 1, 0, 1], 1), ([4, 4, 8, 4, 8], 2)]):
        packet, y, memory = cross(codec, rows(index, version), memory, index=index)  # 5 and 1, 0 and 4 and 8 share a place
        for k, i in enumerate(index):
            np.testing.assert_array_equal(y[k], first.setdefault(i, rows([i], version)[0]))
        assert 4 * N * (fresh - 1) < sent(codec, packet) <= 4 * N * fresh


def test_labels_lie_by_bits(cross):
    codec, memory = spec(("packed", (10,)), examples=16), None
    for index, fresh in zip(BATCHES, FRESH, strict=True):
        y = np.array([(3 * i + 1) % 10 for i in index], np.int32)
        packet, came, memory = cross(codec, y, memory, index=index)
        np.testing.assert_array_equal(came, y)
        assert sent(codec, packet) <= -(-fresh // 2)


def test_both_ends_know_when_nothing_is_said(cross):
    codec, memory = spec(("exact", ()), examples=16), None
    for index, fresh in zip(BATCHES, FRESH, strict=True):
        before = memory
        _, _, memory = cross(codec, rows(index), memory, index=index)
        if before is not None:
            said = [bool(build(codec).silent(end[0], Context(np.array(index, np.int32)))) for end in before]
            assert said == [fresh == 0] * 2


def test_after_so_many_uses_a_row_crosses_again(cross):
    codec, memory, versions = spec(("exact", ()), examples=4, uses=3), None, []
    for version in range(7):
        _, y, memory = cross(codec, rows([0, 1], version), memory, index=[0, 1])
        versions.append(next(v for v in range(7) if np.array_equal(y, rows([0, 1], v))))
    assert versions == [0, 0, 0, 3, 3, 3, 6]


def test_examples_that_share_a_place_cross_again(cross):
    codec, memory = spec(("exact", ()), examples=4), None
    for version, index in enumerate([[0, 1], [4, 1], [0, 4]]):
        x = rows(index, version)
        _, y, memory = cross(codec, x, memory, index=index)
        arrived = {0: [0, 0], 1: [1, 0], 2: [2, 1]}[version]  # versions: 1 is kept from the first batch, 4 from the second
        np.testing.assert_array_equal(y, np.concatenate([rows([i], v) for i, v in zip(index, arrived, strict=True)]))


def test_evaluations_send_every_row_and_remember_nothing(cross):
    codec = spec(("exact", ()), examples=16)
    _, _, memory = cross(codec, rows([0, 1]), index=[0, 1])
    packet, y, after = cross(codec, rows([0, 1], 5), memory, training=False, index=[0, 1])
    np.testing.assert_array_equal(y, rows([0, 1], 5))
    assert sum(part.nbytes for part in packet) == 2 * N * 4
    for a, b in zip(np.asarray(after[1][0].about), np.asarray(memory[1][0].about), strict=True):
        assert a == b


@pytest.mark.parametrize("inner", [("error_feedback", ()), ("vq", ()), ("int8", ("nearest", "symmetric", "message"))])
def test_what_remembers_or_mixes_rows_is_refused(inner):
    with pytest.raises(ValueError, match="`reuse` needs a codec after it"):
        build(spec(inner, examples=16))


def test_messages_without_a_row_for_each_example_cross_as_ever(cross):
    codec, memory, x = spec(("int8", ()), examples=16), None, rows([0, 1, 2])
    for _ in range(2):
        packet, y, memory = cross(codec, x, memory, index=[5, 6, 7, 8, 9, 10])
        np.testing.assert_array_equal(y, cross((("int8", ()),), x)[1])
        assert sent(codec, packet) > 3 * N
        assert not build(codec).silent(memory[0][0], Context(np.array([5, 6, 7, 8, 9, 10], np.int32)))
