"""A procedural benchmark on which depth pays: the random hierarchy model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Ge, Le, Lt

from locallearn.data.dataset import Arrays
from locallearn.data.generated import TEST, TRAIN, Generated
from locallearn.fields import Count, Fraction

_FIRST = 0x6869657261726368  # keeps the random numbers apart from those of the batch order under the same seed
_STREAMS = {"grammar": 0, TRAIN: 1, TEST: 2}


@dataclass(frozen=True)
class Hierarchy(Generated):
    """Sentences of a random grammar: a class is a symbol, which stands for two symbols, each of which stands for two, and so on down.

    x float32 [2^levels, symbols]: the visible symbols, one-hot, less their mean and over their standard deviation. As many balanced classes
    as symbols.

    The random hierarchy model (Cagnetta, Petrini, Tomasini, Favero and Wyart 2024, "How Deep Neural Networks Learn Compositional Data",
    Physical Review X 14, 031001, https://arxiv.org/abs/2307.02129), with pairs (s = 2): at every level each symbol has `synonyms` pairs
    of symbols of the level below that mean it, drawn without replacement from all, so that no pair means two things. An example takes one
    of the pairs of its class, then one of those of each of the two, and so on. Its paper finds that deep networks learn it from about
    symbols x synonyms^levels examples, and shallow ones from as many as are possible at all. `noise` replaces visible symbols.
    """

    name: ClassVar[str] = "hierarchy"

    samples: Count = 20000  # training examples
    test_samples: Count = 4000
    # Of the grammar and the examples, not of the run: another seed gives another grammar.
    seed: Annotated[int, Ge(0), Lt(2**63)] = 0
    levels: Annotated[int, Ge(1), Le(8)] = 4
    symbols: Annotated[int, Ge(2), Le(64)] = 8  # of every level, and classes
    synonyms: Count = 4  # pairs that mean the same; at most as many as there are symbols
    noise: Fraction = 0.0  # probability with which a visible symbol is replaced by one drawn evenly from all

    def problems(self) -> Iterator[tuple[str, str]]:
        """More pairs than there are."""
        if self.synonyms > self.symbols:
            yield "synonyms", f"must be at most `symbols`, {self.symbols}: there are {self.symbols**2} pairs for as many symbols"

    @property
    def classes(self) -> int:
        """As many as symbols."""
        return self.symbols

    @property
    def example_shape(self) -> tuple[int, int]:
        """Positions and symbols."""
        return 2**self.levels, self.symbols

    def grammar(self) -> np.ndarray:
        """Of each level from the top, the pairs of each symbol: int[levels, symbols, synonyms, 2]."""
        rng, v = self._rng("grammar"), self.symbols
        drawn = [rng.permutation(v * v)[: v * self.synonyms] for _ in range(self.levels)]
        return np.stack([np.stack(np.divmod(pairs, v), -1).reshape(v, self.synonyms, 2) for pairs in drawn])

    def _examples(self, count: int, stream: int) -> Arrays:
        rng = self._rng(stream)
        y = rng.permutation(np.arange(count, dtype=np.int32) % self.classes)
        words = y[:, None]
        for pairs in self.grammar():
            words = pairs[words, rng.integers(0, self.synonyms, words.shape)].reshape(count, -1)
        replaced = rng.random(words.shape) < self.noise
        words = np.where(replaced, rng.integers(0, self.symbols, words.shape), words)
        x = np.eye(self.symbols, dtype=np.float32)[words] - np.float32(1 / self.symbols)
        return Arrays(x * np.float32(self.symbols / math.sqrt(self.symbols - 1)), y)

    def _rng(self, stream: int | str) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=np.array([self.seed, _FIRST + _STREAMS[stream]], np.uint64)))
