"""Segments: what one shard computes between two receives, compiled as one program.

Calls are not run when they are made: they are noted, and run when a message needs what they give or the step ends. All the calls that a
message needs and that have not run yet become one program, found again by its structure in every later round and step. A shard that holds
eight blocks thus makes one call of XLA for a sweep over all eight, with encode and decode inside.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax


class _Call:
    """One noted call; `value` is there once it has run."""

    __slots__ = ("args", "done", "fn", "number", "options", "owner", "value")

    def __init__(self, number: int, fn: Any, owner: Any, args: tuple[Any, ...], options: tuple[tuple[str, Any], ...]):
        self.number, self.fn, self.owner, self.args, self.options = number, fn, owner, args, options
        self.done, self.value = False, None


class Deferred:
    """A value that a noted call will give; attributes of it are deferred too."""

    __slots__ = ("_call", "_path")

    def __init__(self, call: _Call, path: tuple[str, ...] = ()):
        self._call, self._path = call, path

    def __getattr__(self, name: str) -> Deferred:
        if name.startswith("__"):
            raise AttributeError(name)
        return Deferred(self._call, (*self._path, name))

    def __repr__(self) -> str:
        return repr(_follow(self._call.value, self._path)) if self._call.done else "<not computed yet>"


class Later:
    """A value that is found out when a program first needs it, and is that from then on; attributes of it are later, too."""

    __slots__ = ("_path", "_source")

    def __init__(self, source: Callable[[], Any], path: tuple[str, ...] = ()):
        self._source, self._path = source, path

    def __getattr__(self, name: str) -> Later:
        if name.startswith("__"):
            raise AttributeError(name)
        return Later(self._source, (*self._path, name))


class Segments:
    """Notes the calls of one shard and runs them in as few programs as the messages allow."""

    def __init__(self) -> None:
        self.programs: dict[Any, Callable[..., Any]] = {}
        self._numbers = itertools.count()

    @property
    def compiled(self) -> int:
        """How many programs were compiled so far."""
        return sum(program._cache_size() for program in self.programs.values())  # type: ignore[attr-defined]

    def defer(self, fn: Callable[..., Any], owner: Any, args: Sequence[Any], options: dict[str, Any]) -> Deferred:
        """Note `fn(owner, *args, **options)`; owner and options are static."""
        return Deferred(_Call(next(self._numbers), fn, owner, tuple(args), tuple(options.items())))

    def force(self, values: Any) -> Any:
        """The values (a tuple, nested as you like) with everything deferred in them computed."""
        is_deferred = lambda value: isinstance(value, Deferred)  # noqa: E731
        leaves, tree = jax.tree.flatten(values, is_leaf=is_deferred)
        calls = _pending(leaf._call for leaf in leaves if is_deferred(leaf))
        if calls:
            self._run(calls)
        return jax.tree.unflatten(tree, [_value(leaf) for leaf in leaves])

    def _run(self, calls: list[_Call]) -> None:
        place = {call.number: k for k, call in enumerate(calls)}
        inputs: list[Any] = []
        slots: dict[int, int] = {}

        def wire(arg: Any) -> tuple[int, Any]:
            if isinstance(arg, Deferred) and not arg._call.done:
                return place[arg._call.number], arg._path
            arg = _value(arg)
            slot = slots.setdefault(id(arg), len(inputs))
            if slot == len(inputs):
                inputs.append(arg)
            return -1, slot

        plan = tuple((call.fn, call.owner, call.options, tuple(map(wire, call.args))) for call in calls)
        program = self.programs.get(plan)
        if program is None:
            program = self.programs.setdefault(plan, jax.jit(_program(plan)))
        for call, value in zip(calls, program(inputs), strict=True):
            call.value, call.done, call.args = value, True, ()


def _pending(calls: Any) -> list[_Call]:
    """The calls that have not run, with all those that they wait for, in the order in which they were made."""
    found: dict[int, _Call] = {}
    stack = list(calls)
    while stack:
        call = stack.pop()
        if not call.done and call.number not in found:
            found[call.number] = call
            stack += [arg._call for arg in call.args if isinstance(arg, Deferred)]
    return [found[number] for number in sorted(found)]


def _program(plan: tuple[Any, ...]) -> Callable[[list[Any]], list[Any]]:
    def run(inputs: list[Any]) -> list[Any]:
        values: list[Any] = []
        for fn, owner, options, wires in plan:
            args = [inputs[key] if where < 0 else _follow(values[where], key) for where, key in wires]
            values.append(fn(owner, *args, **dict(options)))
        return values

    return run


def _value(value: Any) -> Any:
    if isinstance(value, Later):
        return _follow(value._source(), value._path)
    return _follow(value._call.value, value._path) if isinstance(value, Deferred) else value


def _follow(value: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        value = getattr(value, name)
    return value
