"""What the section `replicas` asks of the rule and of codecs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from locallearn.config.codecs import CodecSpec
from locallearn.config.document import KeyPath
from locallearn.config.mistakes import Mistake
from locallearn.replicas import AVERAGE, Replicas

_UNSUITED = {
    "reuse": "keeps rows about examples",
    "difference": "is for values, and replicas send changes already",
    "every": "would repeat the last change; give `replicas.average_every`",
    "delayed": "would add changes to other parameters than they are changes of",
}


def between_replicas(replicas: Replicas, rules: Sequence[tuple[KeyPath, Any]], found: Mapping[str, Any]) -> Iterator[Mistake]:
    """A rule without gradients to average, codecs that changes and gradients cannot cross with, and what is of one chain.

    found: the other sections, by name.
    """
    if replicas.count == 1:
        return
    if found.get("schedule") is not None:
        what = "averages are taken after the same step of all shards, which a `schedule` lets be at different ones: leave one out"
        yield Mistake(("replicas", "count"), "value", what)
    if "train" in found and found["train"].arrivals:
        yield Mistake(("train", "arrivals"), "value", "is of one chain: replicas have their own parts of every batch order")
    if replicas.average == "gradients":
        yield from _without_gradients(rules)
    codecs: Mapping[str, CodecSpec] = found["codecs"]
    key = next(key for key in (AVERAGE, "weight", "default") if key in codecs)
    for name, _ in codecs[key]:
        if name in _UNSUITED:
            add = "" if key == AVERAGE else f"; choose another for `{AVERAGE}`"
            yield Mistake(("codecs", key), "value", f"what replicas average cannot cross with `{name}`, which {_UNSUITED[name]}{add}")


def _without_gradients(rules: Sequence[tuple[KeyPath, Any]]) -> Iterator[Mistake]:
    from locallearn.rule import Rule

    for path, rule in rules:
        if isinstance(rule, Rule) and type(rule).step is not Rule.step:
            what = "this rule updates inside its step and has no gradients to average: take `average: parameters`"
            yield Mistake(path if len(path) > 1 else ("replicas", "average"), "value", what)
