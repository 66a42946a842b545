"""What `reuse` keeps for ever must stay what it was: it is refused for messages that change because a block learns while they cross."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from locallearn.config.mistakes import Mistake

Change = tuple[str, int]
"""A message, and a block that learns while it crosses, whose work is in it."""


def kept_too_long(found: Mapping[str, Any], blocks: Sequence[Any]) -> Iterator[Mistake]:
    """Codecs that keep rows for ever which go on changing. found: the sections; blocks: the model's."""
    codecs, train, (_, placement) = found["codecs"], found["train"], found["model"]
    kept = {key for key, spec in codecs.items() if any(name == "reuse" and not any(args[1:]) for name, args in spec)}
    if not kept:
        return
    phases = train.parts(len(placement.held(blocks, found["rule"])[0]))
    for number, phase in enumerate(phases):
        rule = phase.rule or found["rule"]
        held, shards = placement.held(blocks, rule)
        learners = tuple(range(len(held))) if phase.learn == "all" else phase.learn
        for name, block in _changes(rule, tuple(held), tuple(shards), learners, train.batch):
            key = next(key for key in (name, rule.messages[name].kind, "default") if key in codecs)
            if key in kept:
                when = f" in phase {number}" if len(phases) > 1 else ""
                kept.remove(key)
                yield Mistake(("codecs", key), "value", _told(name, block, when, train.greedy))


def _told(name: str, block: int, when: str, greedy: bool) -> str:
    what = f"keeps each row of `{name}` for ever, but block {block}, whose work is in it, goes on learning{when}, which nobody would see"
    after = "" if greedy else "train one block after the other (`train: {greedy: true}`), or "
    return f"{what}; {after}let rows cross again after some uses: `reuse(60000, 4)`"


@functools.lru_cache(maxsize=64)
def _changes(rule: Any, blocks: tuple[Any, ...], placement: tuple[int, ...], learners: tuple[int, ...], batch: int) -> list[Change]:
    """Of the messages that cross in a phase with a row for each example, those that a block's learning changes."""
    studied = _studied(rule, blocks, batch)
    highest = studied.highest(learners)
    return [
        (name, min(sent.blocks & set(learners)))
        for (name, src, dst), sent in studied.sent.items()
        if placement[src] != placement[dst] and (dst <= highest or dst < src)
        if sent.spec.shape[:1] == (batch,) and sent.blocks & set(learners)
    ]


@functools.lru_cache(maxsize=32)
def _studied(rule: Any, blocks: tuple[Any, ...], batch: int) -> Any:
    """Once for all phases: who takes part in what does not depend on who learns."""
    from locallearn.runtime.influence import study

    return study(rule, blocks, batch)
