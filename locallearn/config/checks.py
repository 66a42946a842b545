"""The second stage of checking: what needs the shapes of the data and the blocks of the model.

What is asked: `model.problems(example_shape, classes)`, `model.blocks(example_shape, classes)`, `rule.problems(blocks)`, `data.problems()`;
and of the data `example_shape`, `classes` and `train_size`. Each may be absent. A `problems` hook gives sentences, or (field, sentence).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from locallearn.config.catalog import Catalog
from locallearn.config.document import KeyPath
from locallearn.config.keeping import kept_too_long
from locallearn.config.mistakes import Mistake, hint
from locallearn.config.replicas import between_replicas
from locallearn.config.schema import hooked
from locallearn.errors import LocallearnError, RuleError
from locallearn.replicas import ALONE, AVERAGE, Replicas
from locallearn.schedule import Schedule
from locallearn.train import Train


def cross_checks(found: Mapping[str, Any], catalog: Catalog) -> list[Mistake]:
    """Mistakes between sections. found: the sections that have none of their own, by name."""
    rules = _rules(found)
    mistakes = list(_codec_keys(found["codecs"], rules, catalog)) if rules else []
    data, held = found.get("data", (None, None))
    if data is not None:
        own = list(hooked(data.problems(), ("data",))) if hasattr(data, "problems") else []
        mistakes += own or [*_sizes(data, held, found.get("train"), found.get("replicas", ALONE)), *_augment(data, held)]
        if own:
            return mistakes
    mistakes += [*_microbatches(rules, found.get("train")), *_in_flight(found.get("schedule"), found.get("train"))]
    mistakes += between_replicas(found.get("replicas", ALONE), rules, found)
    if held is not None and "probe" in found.get("diagnostics", ()) and not held.validation:
        mistakes.append(Mistake(("diagnostics",), "value", "a probe is scored on validation examples: give `data.validation`"))
    if data is not None and hasattr(data, "classes") and rules:
        mistakes += _labels_fit(found["codecs"], rules, data.classes)
    if "model" in found and hasattr(data, "example_shape"):
        mistakes += _shapes(found, rules, data)
    return mistakes


def train_size(data: Any) -> int | None:
    """Training examples before any split, if the data set can say so without being loaded."""
    if hasattr(data, "train_size"):
        return data.train_size
    return len(data.train.y) if hasattr(data, "train") else None


def _rules(found: Mapping[str, Any]) -> list[tuple[KeyPath, Any]]:
    """Every rule of the run with its place: the run's own and those of phases."""
    rules: list[tuple[KeyPath, Any]] = [(("rule",), found["rule"])] if "rule" in found else []
    phases = found["train"].phases if "train" in found else ()
    return rules + [(("train", "phases", k, "rule"), phase.rule) for k, phase in enumerate(phases) if phase.rule]


def _codec_keys(codecs: Mapping[str, Any], rules: Sequence[tuple[KeyPath, Any]], catalog: Catalog) -> Iterator[Mistake]:
    from locallearn.rule import KINDS

    messages = list(dict.fromkeys(name for _, rule in rules for name in getattr(rule, "messages", ())))
    for key in codecs:
        if key not in ("default", *KINDS, *messages, AVERAGE):
            name = catalog.name_of(rules[0][1], "rules") or type(rules[0][1]).__name__
            what = f"is neither a kind nor a message that {name} sends"
            words = list(dict.fromkeys(["default", *messages, *KINDS, AVERAGE]))
            yield Mistake(("codecs", key), "value", what + hint(key, words, "keys"))


def _labels_fit(codecs: Mapping[str, Any], rules: Sequence[tuple[KeyPath, Any]], classes: int) -> Iterator[Mistake]:
    """Labels that are packed as whole numbers must be fewer than the codec holds."""
    from locallearn.codec.integers import PACKED_VALUES

    kinds = {name: getattr(message, "kind", None) for _, rule in rules for name, message in getattr(rule, "messages", {}).items()}
    for key, spec in codecs.items():
        name, args = spec[-1]
        values = args[0] if args else PACKED_VALUES
        labels = "label" in (key, kinds.get(key)) or (key == "default" and "label" in kinds.values())
        if name == "packed" and values < classes and labels:
            yield Mistake(("codecs", key), "value", f"holds {values} values, but the data has {classes} classes: write packed({classes})")


def _sizes(data: Any, held: Any, train: Train | None, replicas: Replicas) -> Iterator[Mistake]:
    """Enough examples for the validation set and a batch of every replica."""
    try:
        total = train_size(data)
    except LocallearnError as error:
        yield Mistake(("data",), "value", str(error))
        return
    if total is None or held.problems():
        return
    count = held.count(total)
    if count >= total or (held.validation and not count):
        what = "leaves nothing to train on" if count else "rounds to no example; give a count"
        yield Mistake(("data", "validation"), "value", f"of {total} training examples {what}")
    elif train is not None and train.batch > total - count:
        what = f"is more than the {total - count} training examples ({total} less {count} for validation)"
        yield Mistake(("train", "batch"), "value", what)
    elif train is not None and train.batch * replicas.count > total - count:
        what = f"{replicas.count} batches of {train.batch} are more than the {total - count} training examples; take fewer replicas"
        yield Mistake(("replicas", "count"), "value", f"{what} or a smaller `train.batch`")


def _augment(data: Any, held: Any) -> Iterator[Mistake]:
    """Augmentation that examples of this shape cannot go through."""
    if held.augment is not None and hasattr(data, "example_shape"):
        yield from hooked(held.augment.misfits(tuple(data.example_shape)), ("data", "augment"))


def _microbatches(rules: Sequence[tuple[KeyPath, Any]], train: Train | None) -> Iterator[Mistake]:
    if train is not None and train.microbatches > 1:
        for path, rule in rules:
            if not getattr(rule, "additive_over_batch", True):
                what = "this rule's gradient of a batch is not the mean over its parts, so it takes `microbatches: 1`"
                yield Mistake(path if len(path) > 1 else ("train", "microbatches"), "value", what)


def _in_flight(schedule: Schedule | None, train: Train | None) -> Iterator[Mistake]:
    """Microbatches of steps that overlap: a frame's header tells so many apart."""
    from locallearn.runtime.frame import MICROS

    if schedule is not None and train is not None and (schedule.staleness + 1) * train.microbatches > MICROS:
        what = f"{schedule.staleness + 1} steps of {train.microbatches} microbatches would be in flight; {MICROS} microbatches are the most"
        yield Mistake(("schedule", "staleness"), "value", what)


def _shapes(found: Mapping[str, Any], rules: Sequence[tuple[KeyPath, Any]], data: Any) -> Iterator[Mistake]:
    """What only the blocks can tell."""
    model, placement = found["model"]
    own = list(hooked(model.problems(data.example_shape, data.classes), ("model",))) if hasattr(model, "problems") else []
    if own or not hasattr(model, "blocks"):
        yield from own
        return
    batch = found["train"].batch if "train" in found else 1
    blocks = _blocks(model, tuple(data.example_shape), data.classes, batch)
    foreign = _tokens(blocks, data)
    if foreign:
        yield Mistake(("model", "name"), "value", foreign)
        return
    try:
        placement.of(len(blocks))
    except LocallearnError as error:
        key = "shards" if placement.cuts is None else "cuts"
        yield Mistake(("model", key), "value", str(error))
        placement = type(placement)(shards=1)
    first, fits = None, "rule" in found
    for path, rule in rules:
        try:
            held, shards = placement.held(blocks, rule)
        except LocallearnError as error:
            yield Mistake(("model", "bridge"), "value", str(error))
            return
        first = first or shards
        own = list(hooked(rule.problems(held), path)) if hasattr(rule, "problems") else []
        if own and placement.bridge and not list(rule.problems(blocks)):
            own = [Mistake(("model", "bridge"), "value", f"does not suit the rule, which {own[0].text}")]
        if shards != first:
            own = [Mistake(path, "value", "trains another cut of the model than the run's own rule: it takes a run of its own")]
        fits = fits and not own
        yield from own or [*_statistics(rule, held, path, found.get("train")), *_staleness(rule, held, shards, path, found)]
    if "cluster" in found and first is not None:
        yield from hooked(found["cluster"].misfits(max(first) + 1), ("cluster",))
    if "train" in found:
        wrong = list(_block_numbers(found["train"], len(first or blocks)))
        yield from wrong or (kept_too_long(found, blocks) if fits else [])


@functools.lru_cache(maxsize=32)
def _blocks(model: Any, example_shape: tuple[int, ...], classes: int, batch: int) -> Any:
    """The blocks of a model, for the many runs of a sweep that share it: their shapes are worked out once."""
    blocks = model.blocks(example_shape, classes)
    return tuple(dataclasses.replace(block, batch=batch) if hasattr(block, "batch") else block for block in blocks)


def _tokens(blocks: Sequence[Any], data: Any) -> str | None:
    """Whether a model of text meets other data, or text another model, in a sentence."""
    text = getattr(getattr(data, "intake", None), "tokens", False)
    takes_text = "int" in str(getattr(blocks[0], "in_dtype", ""))
    if text == takes_text:
        return None
    return "takes numbers, but this data is text: take the model transformer" if text else "takes text, but this data is none"


def _statistics(rule: Any, blocks: Sequence[Any], path: KeyPath, train: Train | None) -> Iterator[Mistake]:
    """What batch normalisation asks of the rule and of the batch."""
    if not any(getattr(block, "has_statistics", False) for block in blocks):
        return
    from locallearn.rule import WHOLE_BATCH
    from locallearn.runtime.setup import rehearse

    try:
        rehearse(rule, blocks)
    except RuleError as error:
        yield Mistake(path, "value", str(error))
    if train is not None and train.microbatches > 1:
        yield Mistake(("train", "microbatches"), "value", WHOLE_BATCH)


def _staleness(rule: Any, blocks: Sequence[Any], placement: tuple[int, ...], path: KeyPath, found: Mapping[str, Any]) -> Iterator[Mistake]:
    """Steps that are to overlap, of a rule whose steps cannot."""
    schedule = found.get("schedule")
    if schedule is None or not schedule.staleness:
        return
    batch = found["train"].batch if "train" in found else 1
    why = _unsuited(rule, tuple(blocks), placement, tuple(found["codecs"].items()), batch)
    if why:
        place = path if len(path) > 1 else ("schedule", "staleness")
        yield Mistake(place, "value", f"the steps of this rule cannot overlap: {why}")


@functools.lru_cache(maxsize=64)
def _unsuited(
    rule: Any, blocks: tuple[Any, ...], placement: tuple[int, ...], codecs: tuple[tuple[str, Any], ...], batch: int
) -> str | None:
    """For the many runs of a sweep that share all of these."""
    from locallearn.codec import build
    from locallearn.network.timetable import unsuited
    from locallearn.runtime.setup import Stage
    from locallearn.runtime.wiring import Wiring, choose_codecs

    chosen = {key: build(spec) for key, spec in codecs}
    wiring = Wiring(placement, rule.messages, choose_codecs(rule.messages, chosen, chosen["default"]))
    return unsuited(Stage(rule, blocks, wiring, 0, 1), batch)


def _block_numbers(train: Train, count: int) -> Iterator[Mistake]:
    rates = train.optimizer.block_rates
    if rates is not None and len(rates) != count:
        what = f"has {len(rates)} entries for {count} blocks"
        yield Mistake(("train", "optimizer", "block_rates"), "value", what)
    for k, phase in enumerate(train.phases):
        if phase.learn != "all" and max(phase.learn, default=0) >= count:
            yield Mistake(("train", "phases", k, "learn"), "value", f"the model has blocks 0 to {count - 1}")
