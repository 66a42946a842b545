"""The section `tune` of a sweep: trials on the validation set, the same number for every rule, of which each study chooses one.

    tune:
      trials: 8                        # in each study of each combination
      studies: 3                       # independent searches: the spread of what tuning finds is a result, too
      choose_by: validation_accuracy   # at the end; or validation_accuracy_lossless, or bytes_to_target (needs `target`)
      per: [rule, task]                # entries of `vary` that are tuned apart, on the first combination of each; by default all
      seed: 1000                       # of the first study's trials, 1001 of the second's: none of `seeds`
      space:                           # for every rule, dotted keys; a rule's own `space` is added where the file does not set the key
        train.optimizer.rate: {log: [1.0e-4, 1.0e-1]}
        train.optimizer.beta1: {linear: [0.5, 0.95]}
        rule.steps: {whole: [2, 20]}   # where the rule has such a key
        train.optimizer.schedule: [constant, cosine]

A sweep with it expands to trials, and for every choice that a study can make to the runs that follow: all of them are checked before
anything runs, and which of them are run depends on the trials' results alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from locallearn.config.catalog import Catalog
from locallearn.config.combination import Combination, Run, Tuned, folder, in_words, varied_values
from locallearn.config.document import MISSING, Document, NotAMapping, split_key
from locallearn.config.fieldtypes import fields_of, prepared
from locallearn.config.mistakes import Located, Mistake, hint, locate, nearest
from locallearn.config.run import RUN_KEYS, Config, Seed, check
from locallearn.errors import Problem
from locallearn.fields import Count
from locallearn.search import KINDS, Choice, Range, values

BYTES = "bytes_to_target"


@dataclass(frozen=True)
class Tune:
    """How a sweep is tuned."""

    trials: Count
    studies: Count = 1
    choose_by: Literal["validation_accuracy", "validation_accuracy_lossless", "bytes_to_target"] = "validation_accuracy"
    per: str | tuple[str, ...] | None = None
    seed: Seed = 1000
    space: dict[str, Any] = field(default_factory=dict)

    @property
    def axes(self) -> tuple[str, ...] | None:
        """Names of what is tuned apart; None for everything that varies."""
        return (self.per,) if isinstance(self.per, str) else self.per


@dataclass(frozen=True)
class Study:
    """One search. trials: its runs. follow: for each of them, what is run if it is chosen: its combinations with every seed."""

    number: int
    trials: tuple[Run, ...]
    follow: tuple[tuple[Run, ...], ...]

    @property
    def name(self) -> str:
        """Of its folder: what is tuned, and the study."""
        return f"{self.trials[0].name.partition('/')[0]}/study-{self.number}"


class Plan(NamedTuple):
    """What a sweep's file says about tuning, with the ranges read; and its seeds, None for the runs' own."""

    tune: Tune
    space: Mapping[str, Range]
    seeds: tuple[int, ...] | None


def space_of(given: Mapping[str, Any]) -> tuple[dict[str, Range], list[Mistake]]:
    """The ranges of `tune.space`, and what is wrong with them."""
    space: dict[str, Range] = {}
    mistakes: list[Mistake] = []
    for key, value in given.items():
        path = ("tune", "space", key)
        head = split_key(key)[0]
        if head == "seed" or head not in RUN_KEYS or not all(split_key(key)):
            near = nearest(head, RUN_KEYS)
            mistakes.append(Mistake(path, "value", f"is no key of a run that could be tuned{f'; did you mean `{near}`?' if near else ''}"))
            continue
        try:
            space[key] = _range(value)
        except ValueError as error:
            mistakes.append(Mistake(path, "value", str(error)))
    return space, mistakes


def _range(value: Any) -> Range:
    if isinstance(value, list | tuple):
        return Choice(tuple(value))
    kind = next(iter(value), None) if isinstance(value, Mapping) and len(value) == 1 else None
    if kind not in KINDS:
        raise ValueError(f"must be a list of values, or one of {', '.join(f'{{{name}: [low, high]}}' for name in KINDS)}")
    ends = prepared(value[kind], tuple[float, ...])
    if not isinstance(ends, list | tuple) or len(ends) != 2 or not all(_is_number(end) for end in ends):
        raise ValueError(f"`{kind}` takes two numbers, [low, high]")
    return KINDS[kind](*ends)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def clashes(sweep: Document, tune: Tune, space: Mapping[str, Range], seeds: Sequence[Any]) -> Iterator[Mistake]:
    """What the section says against the rest of the file."""
    vary, overrides = (sweep.data.get(name) or {} for name in ("vary", "overrides"))
    for name in tune.axes or ():
        if name not in vary:
            yield Mistake(("tune", "per"), "name", f"is no entry of `vary`{hint(name, list(vary), 'entries')}")
    for number in range(tune.studies):
        if tune.seed + number in seeds:
            yield Mistake(("tune", "seed"), "value", f"seed {tune.seed + number} is among `seeds`; the trials' must be none of them")
    if tune.choose_by == BYTES and sweep.at(("target", "validation_accuracy")) is MISSING:
        yield Mistake(("tune", "choose_by"), "value", "needs `target: {validation_accuracy: ...}`")
    for key in space:
        if key in vary:
            yield Mistake(("tune", "space", key), "value", "is under `vary`, too: a key is varied or tuned")
        for k, override in enumerate(overrides):
            if key in override.get("set", {}):
                yield Mistake(("overrides", k, "set", key), "value", "is tuned, so that an override has no effect")


class Studies:
    """The studies of a sweep's combinations; collects mistakes."""

    def __init__(self, sweep: Document, plan: Plan, catalog: Catalog):
        self.sweep, self.plan, self.catalog = sweep, plan, catalog
        self.located: list[Located] = []
        self._names: dict[int, str] = {}
        self._digests: dict[str, Mapping[str, Any]] = {}
        self._used: set[str] = set()

    def of(self, combinations: Sequence[Combination], axes: Sequence[str]) -> list[Study]:
        """In the order of the combinations."""
        apart = [k for k, name in enumerate(axes) if self.plan.tune.axes is None or name in self.plan.tune.axes]
        together: dict[tuple[int, ...], list[Combination]] = {}
        for combination in combinations:
            together.setdefault(tuple(id(combination.choices[k]) for k in apart), []).append(combination)
        found = [study for group in together.values() for study in self._group(group)]
        for key in self.plan.space:
            if key not in self._used:
                self._note(Mistake(("tune", "space", key), "value", "no rule of this sweep has this key"))
        return found

    def _note(self, mistake: Mistake) -> None:
        self.located += locate([mistake], self.sweep)

    def _group(self, group: Sequence[Combination]) -> Iterator[Study]:
        """What is tuned once: on its first combination, for all of them."""
        tune, first = self.plan.tune, group[0]
        space = self._space(first)
        if not space:
            self._note(Mistake(("tune", "space"), "value", f"is empty, and so is the rule's own, for {in_words(first.labels)}"))
            return
        for number in range(tune.studies):
            tried = values(list(space.values()), tune.trials, number)
            trials, follow = [], []
            for k, found in enumerate(tried):
                chosen = dict(zip(space, found, strict=True))
                configs = [self._config(combination, chosen) for combination in group]
                if None in configs:
                    return  # the other trials would only say it again
                made = [(c, config) for c, config in zip(group, configs, strict=True) if config]
                trials.append(self._trial(*made[0], Tuned(number, chosen, k)))
                follow.append(tuple(run for one in made for run in self._follow(*one, Tuned(number, chosen))))
            yield Study(number, tuple(trials), tuple(follow))

    def _space(self, combination: Combination) -> dict[str, Range]:
        """The file's ranges that the rule has keys for, then the rule's own where the file sets nothing."""
        name = combination.run.at(("rule", "name"))
        rule = self.catalog.rules.get(name) if isinstance(name, str) else None
        known = fields_of(rule) if rule else {}
        space = {key: each for key, each in self.plan.space.items() if split_key(key)[0] != "rule" or split_key(key)[1] in known}
        self._used |= set(space)
        own = {f"rule.{key}": each for key, each in getattr(rule, "space", {}).items()}
        return space | {key: each for key, each in own.items() if key not in space and combination.run.at(split_key(key)) is MISSING}

    def _config(self, combination: Combination, chosen: Mapping[str, Any]) -> Config | None:
        run = combination.run
        for key, value in chosen.items():
            place = self.sweep.place(("tune", "space", key) if key in self.plan.space else ("tune",))
            try:
                run = run.put(split_key(key), Document(value, {(): place._replace(text=None)} if place else {}))
            except NotAMapping as error:
                self._note(Mistake(("tune", "space", key), "value", f"`{error}` has no keys of its own that could be tuned"))
                return None
        config, located = check(run, self.catalog)
        if config is not None and not config.validation:
            located = [Located((0, 0), Problem("data.validation", "is 0, and a study chooses on validation examples"))]
        self.located += located
        return None if located else config

    def _trial(self, combination: Combination, config: Config, tuned: Tuned) -> Run:
        name = f"{self._name(combination, config, tuned)}/trials/study-{tuned.study}-trial-{tuned.trial}-{config.identity()}"
        config = dataclasses.replace(config, seed=self.plan.tune.seed + tuned.study)
        return Run(config, varied_values(combination, config), name, tuned)

    def _follow(self, combination: Combination, config: Config, tuned: Tuned) -> Iterator[Run]:
        name = f"{self._name(combination, config, tuned)}/study-{tuned.study}-{config.identity()}"
        varied = varied_values(combination, config)
        for seed in self.plan.seeds or (config.seed,):
            yield Run(dataclasses.replace(config, seed=seed), varied, name, tuned)

    def _name(self, combination: Combination, config: Config, tuned: Tuned) -> str:
        """The folder of a combination: as of an untuned one, with an identity that its tuned values have no part in."""
        if id(combination) in self._names:
            return self._names[id(combination)]
        varied = {key: value for key, value in varied_values(combination, config).items() if key not in tuned.values}
        content = Document(config.canonical() | {"seed": None})
        for key in tuned.values:
            content = content.put(split_key(key), Document(None))
        digest = hashlib.sha256(json.dumps(content.data, sort_keys=True).encode()).hexdigest()
        if digest in self._digests:
            what = f"two combinations are the same run: {in_words(self._digests[digest])}; and {in_words(varied)}"
            self._note(Mistake(("vary",), "value", what))
        self._digests[digest] = varied
        return self._names.setdefault(id(combination), f"{folder(config, varied)}-{digest[:8]}")
