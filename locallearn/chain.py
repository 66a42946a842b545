"""The chain: the one vocabulary in which a learning rule is written.

A rule sees a network as a chain of blocks, bottom (0) to top (n-1). A `Row` holds one value for each block. `map` computes inside every
block; every verb that moves a value to another block takes the name of a message that the rule declared. There is no other way for a value
to leave its block, so whatever crosses from one shard to another is encoded and counted.

The verbs are a choreography: they are written once, for all blocks, over the three primitives of a `Fabric`. A fabric that holds one shard
runs that shard's part, with `ABSENT` in place of what lives elsewhere.
"""

from __future__ import annotations

import abc
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax

from locallearn.block import Block


class Absent:
    """A value that is not here. Its attributes are not, either."""

    __slots__ = ("_called", "_where")

    def __init__(self, called: str, where: str):
        self._called, self._where = called, where

    def __getattr__(self, name: str) -> Absent:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __repr__(self) -> str:
        return f"<{self._where}>"

    def __reduce__(self) -> str:
        return self._called


ABSENT = Absent("ABSENT", "on another shard")
"""A value that lives on another shard."""
RESTING = Absent("RESTING", "of a block that rests")
"""A value that nobody makes: of a block that rests (`Block.rests`), from what was not brought there. All shards know which these are."""


@jax.tree_util.register_pytree_node_class
class Row:
    """One value for each block; `row.name` is the row of that attribute of every value."""

    def __init__(self, values: Iterable[Any]):
        self.values = tuple(values)

    def __getitem__(self, i: int) -> Any:
        return self.values[i]

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.values)

    def __getattr__(self, name: str) -> Row:
        if name.startswith("__"):
            raise AttributeError(name)
        return Row(getattr(value, name) for value in self.values)

    def __repr__(self) -> str:
        return f"Row{self.values!r}"

    def tree_flatten(self) -> tuple[tuple[Any, ...], tuple[Absent | None, ...]]:
        """Leaves are the values that are here; which ones is static."""
        missing = tuple(value if type(value) is Absent else None for value in self.values)
        return tuple(value for value in self.values if type(value) is not Absent), missing

    @classmethod
    def tree_unflatten(cls, missing: tuple[Absent | None, ...], children: Iterable[Any]) -> Row:
        """The inverse of `tree_flatten`."""
        present = iter(children)
        return cls(next(present) if absent is None else absent for absent in missing)


class Move(NamedTuple):
    """One value on its way from block `src` to block `dst`."""

    src: int
    dst: int
    value: Any


class Fabric(abc.ABC):
    """Where shards live, and how a message crosses from one to another. Fabrics are abstract or final.

    `placement[i]` is the shard of block `i`; shards are numbered from the bottom and hold contiguous blocks.
    """

    placement: Sequence[int]

    @abc.abstractmethod
    def compute(self, i: int, fn: Callable[..., Any], block: Block, *args: Any, **options: Any) -> Any:
        """`fn(block, *args, **options)` inside block `i`. `options` are static."""

    @abc.abstractmethod
    def exchange(self, name: str, moves: Sequence[Move]) -> list[Any]:
        """Make every move, all sends before the first receive; return what arrives, move by move.

        Moves of one exchange between the same ordered pair of shards carry the same value (a broadcast) and are one message.
        """

    @abc.abstractmethod
    def repeat(self, times: int, body: Callable[[Any, Any], Any], carry: Any) -> Any:
        """`carry = body(round, carry)` for round = 0 .. times-1."""


class Chain:
    """The verbs, over one fabric."""

    def __init__(self, blocks: Sequence[Block], fabric: Fabric):
        self.blocks = tuple(blocks)
        self.n = len(self.blocks)
        self.fabric = fabric

    @property
    def below_top(self) -> Chain:
        """All blocks but the top one, as a chain of their own: what they pass up ends below the top."""
        return self.up_to(self.n - 2)

    def up_to(self, highest: int) -> Chain:
        """The blocks from the bottom to block `highest`, as a chain of their own."""
        return Chain(self.blocks[: highest + 1], self.fabric)

    # Inside a block.

    def map(self, fn: Callable[..., Any], *rows: Any, **options: Any) -> Row:
        """fn(block, *own entries, **options) in every block."""
        return Row(self._at("map", i, fn, rows, options) for i in range(self.n))

    def at_top(self, fn: Callable[..., Any], *rows: Any, **options: Any) -> Any:
        """fn(block, *own entries, **options) in the top block only."""
        return self._at("at_top", self.n - 1, fn, rows, options)

    def at_bottom(self, fn: Callable[..., Any], *rows: Any, **options: Any) -> Any:
        """fn(block, *own entries, **options) in the bottom block only."""
        return self._at("at_bottom", 0, fn, rows, options)

    def with_top(self, row: Row, value: Any) -> Row:
        """The row with the top block's entry replaced by a value of the top block."""
        return Row([*row.values[:-1], value])

    def repeat(self, times: int, body: Callable[[Any, Any], Any], carry: Any) -> Any:
        """carry = body(round, carry), `times` times; the number of the round is an int32 scalar."""
        return self.fabric.repeat(times, body, carry) if times > 0 else carry

    # Between blocks.

    def up(self, name: str, row: Row, *, first: Any) -> Row:
        """Entry i goes to block i+1, all at once; the bottom block gets `first`."""
        return Row([first, *self._send("up", name, [Move(i, i + 1, row[i]) for i in range(self.n - 1)])])

    def down(self, name: str, row: Row, *, last: Any) -> Row:
        """Entry i goes to block i-1, all at once; the top block gets `last`."""
        return Row([*self._send("down", name, [Move(i + 1, i, row[i + 1]) for i in range(self.n - 1)]), last])

    def sweep_up(self, name: str, fn: Callable[..., Any], *rows: Any, first: Any, **options: Any) -> tuple[Row, Row]:
        """x_0 = first, y_i = fn(block, *own entries, x_i), x_{i+1} = y_i, one block after the other. Returns (x, y)."""
        xs, ys = [first], []
        for i in range(self.n):
            ys.append(self._at("sweep_up", i, fn, (*rows, xs[i]), options))
            if i + 1 < self.n:
                xs += self._send("sweep_up", name, [Move(i, i + 1, ys[i])])
        return Row(xs), Row(ys)

    def sweep_down(self, name: str, fn: Callable[..., Any], *rows: Any, last: Any, **options: Any) -> Row:
        """d = last at the top, out_i = fn(block, *own entries, d), and `out_i.down` travels on as the next block's d. Returns out."""
        outs, d = [], last
        for i in reversed(range(self.n)):
            out = self._at("sweep_down", i, fn, (*rows, d), options)
            outs.append(out)
            if i:
                (d,) = self._send("sweep_down", name, [Move(i, i - 1, out.down)])
        return Row(reversed(outs))

    def broadcast(self, name: str, value: Any, *, source: str = "top") -> Row:
        """A value of the top (or bottom) block goes to every block; it crosses to each shard once."""
        if source not in ("top", "bottom"):
            raise ValueError(f"a broadcast begins at `top` or `bottom`, not at `{source}`")
        src = self.n - 1 if source == "top" else 0
        others = [i for i in range(self.n) if i != src]
        arrived = dict(zip(others, self._send("broadcast", name, [Move(src, i, value) for i in others]), strict=True))
        return Row(arrived.get(i, value) for i in range(self.n))

    def to_bottom(self, name: str, value: Any) -> Any:
        """A value of the top block goes to the bottom block."""
        return self._send("to_bottom", name, [Move(self.n - 1, 0, value)])[0] if self.n > 1 else value

    def to_top(self, name: str, value: Any, *, source: int = 0) -> Any:
        """A value of the bottom block, or of the block `source`, goes to the top block."""
        return self._send("to_top", name, [Move(source, self.n - 1, value)])[0] if source < self.n - 1 else value

    def gather(self, name: str, row: Row, combine: Callable[..., Any]) -> Any:
        """combine(block, entry, ...) of every block's entry, accumulated upwards, at the top.

        The running value travels with the chain, one message for each shard boundary, so that the order of the sum, and with it every bit
        of the result, does not depend on the placement.
        """
        total = row[0]
        for i in range(1, self.n):
            (total,) = self._send("gather", name, [Move(i - 1, i, total)])
            total = self._at("gather", i, combine, (total, row[i]), {})
        return total

    # How every verb reaches the fabric; errors name the verb and the block.

    def _at(self, verb: str, i: int, fn: Callable[..., Any], rows: Sequence[Any], options: dict[str, Any]) -> Any:
        args = [row.values[i] if type(row) is Row else row for row in rows]
        if any(arg is RESTING for arg in args):
            return RESTING
        try:
            return self.fabric.compute(i, fn, self.blocks[i], *args, **options)
        except Exception as error:
            _locate(error, f"in block {i} of {self.n}, verb `{verb}`, function `{getattr(fn, '__name__', fn)}`")
            raise

    def _send(self, verb: str, name: str, moves: list[Move]) -> list[Any]:
        going = [self._goes(verb, move) for move in moves]
        try:
            arrived = iter(self.fabric.exchange(name, list(itertools.compress(moves, going))))
        except Exception as error:
            _locate(error, f"in verb `{verb}`, message `{name}`")
            raise
        return [next(arrived) if goes else RESTING for goes in going]

    def _goes(self, verb: str, move: Move) -> bool:
        """Whether a value is sent: to a block that rests nothing goes up, but what is told to the top."""
        return move.value is not RESTING and (move.src > move.dst or verb == "to_top" or not self.blocks[move.dst].rests)


def _locate(error: Exception, place: str) -> None:
    """Note where, unless an inner verb has; other notes (JAX adds its own) do not count."""
    if not any(note.startswith(("in block ", "in verb ")) for note in getattr(error, "__notes__", ())):
        error.add_note(place)
