"""The grammar means one thing by every sentence, and an examiner who knows it tells every class."""

import numpy as np
import pytest

from locallearn.config.run import resolve
from locallearn.data.hierarchy import Hierarchy
from locallearn.errors import ConfigError


def symbols_of(x):
    """The visible symbols."""
    return np.argmax(x, -1)


def parsed(words, grammar):
    """What the sentences mean, from the bottom up: the class, -1 where a pair means nothing."""
    v = grammar.shape[1]
    for pairs in grammar[::-1]:
        meaning = np.full((v + 1, v + 1), -1)
        for symbol in range(v):
            meaning[pairs[symbol, :, 0], pairs[symbol, :, 1]] = symbol
        words = meaning[words[:, ::2], words[:, 1::2]]
    return words[:, 0]


@pytest.mark.parametrize("fields", [{}, {"levels": 2, "symbols": 10, "synonyms": 10, "seed": 3}])
def test_a_parser_tells_every_class(fields):
    source = Hierarchy(samples=1500, test_samples=400, **fields)
    data = source.load()
    for part in (data.train, data.test):
        np.testing.assert_array_equal(parsed(symbols_of(part.x), source.grammar()), part.y)


def test_no_pair_means_two_things_and_all_are_used():
    source = Hierarchy(samples=20000)
    grammar = source.grammar()
    assert grammar.shape == (4, 8, 4, 2)
    assert all(len(np.unique(pairs.reshape(-1, 2), axis=0)) == 32 for pairs in grammar)
    words = symbols_of(source.load().train.x).reshape(-1, 2)
    seen = np.unique(words, axis=0, return_counts=True)
    known = np.unique(grammar[-1].reshape(-1, 2), axis=0)
    np.testing.assert_array_equal(seen[0], known)
    assert len({tuple(pair) for pair in grammar[0].reshape(-1, 2)} & {tuple(pair) for pair in grammar[1].reshape(-1, 2)}) < 32


def test_shapes_balance_and_statistics():
    data = Hierarchy(samples=8003).load()
    assert (data.train.x.shape, data.train.x.dtype, data.classes) == ((8003, 16, 8), np.float32, 8)
    assert np.ptp(np.bincount(data.train.y, minlength=8)) <= 1
    x = data.train.x.astype(float)
    assert abs(x.mean()) < 1e-6
    assert x.std() == pytest.approx(1, abs=1e-6)  # one of eight, whatever the sentence


def test_a_single_symbol_tells_little_and_the_parser_is_lost_in_noise():
    source = Hierarchy(samples=20000, noise=0.1)
    data = source.load()
    clean = symbols_of(Hierarchy(samples=20000).load().train.x)
    words = symbols_of(data.train.x)
    assert np.mean(words != clean) == pytest.approx(0.1 * 7 / 8, abs=0.003)
    assert np.mean(parsed(words, source.grammar()) == data.train.y) < 0.5


def test_test_set_and_grammar_depend_on_the_seed_alone():
    one, more, other = Hierarchy(samples=10).load(), Hierarchy(samples=3000).load(), Hierarchy(samples=10, seed=1)
    np.testing.assert_array_equal(one.test.x, more.test.x)
    assert one.fingerprint == Hierarchy(samples=10).load().fingerprint
    assert np.any(other.grammar() != Hierarchy().grammar())


def test_fingerprint_is_known():
    """If only this fails after an update of numpy, its numbers have changed: results before cannot be redone."""
    assert Hierarchy(samples=100, test_samples=50).load().fingerprint == "40bc9cffa990d7a3212faf783182c929766398cde7522c010b73613c66a3abbe"


def test_more_synonyms_than_symbols():
    with pytest.raises(ConfigError, match=r"synonyms.*at most `symbols`, 8"):
        resolve(
            {
                "rule": {"name": "backprop"},
                "model": {"name": "code_convnet", "patches": True},
                "data": {"name": "hierarchy", "synonyms": 9},
                "train": {"steps": 1},
            }
        )
