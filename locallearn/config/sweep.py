"""A sweep: every combination of what varies, as a list of runs, worked out before anything is run.

    base: fashion.yaml                 # a run's file, beside the sweep's; or the run itself, written here
    vary:                              # every combination, the last entry changing fastest
      task:                            # not a key of a run: its entries change several keys together, under a label
        - {label: 1-D, data: {name: strokes1d}, model.widths: [40, 100, 10]}
        - {label: images, data: {name: fashion14}, model.widths: [196, 100, 10]}
      rule: [{name: backprop}, {name: predictive_coding, steps: 20}]
      codecs.default: [exact, int8]    # a key of a run: its values replace what the base has there, whole
    overrides:                         # in order, after what varies
      - {when: {rule.name: backprop, task: 1-D}, set: {train.optimizer.rate: 3.0e-3}}
    skip:
      - {when: {rule.name: backprop, codecs.default: int8}, because: known from an earlier sweep}
    seeds: [0, 1, 2]
    target: {validation_accuracy: 0.95}
    baselines: true                    # beside these, see `locallearn.config.baselines`
    tune: {trials: 8, space: {train.optimizer.rate: {log: [1.0e-4, 1.0e-1]}}}       # see `locallearn.config.tuning`

A condition (`when`) holds where every key has the value, or one of the values if it is given a list. Its keys are dotted keys of the
run, also those left at their defaults, and names of entries with labels.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from locallearn.config.axes import Axis, Choice, axes_of
from locallearn.config.baselines import BASELINE, NAMES, Baselines, of_method, unsaid
from locallearn.config.catalog import Catalog, default_catalog
from locallearn.config.combination import Combination, Run, folder, in_words, varied_values, written_values
from locallearn.config.conditions import holds, useless
from locallearn.config.document import Document, NotAMapping, printable, split_key
from locallearn.config.mistakes import Located, Mistake, fail, locate
from locallearn.config.reading import read
from locallearn.config.run import Seed, check
from locallearn.config.schema import Reader
from locallearn.config.tuning import Plan, Studies, Study, Tune, clashes, space_of
from locallearn.errors import ConfigError, Problem
from locallearn.fields import Fraction

MAX_RUNS = 10_000


@dataclass(frozen=True)
class Skipped:
    """A combination that is not run, and why."""

    varied: Mapping[str, Any]
    because: str


@dataclass(frozen=True)
class Target:
    """What every run is meant to reach."""

    validation_accuracy: Fraction


@dataclass(frozen=True)
class Sweep:
    """An expanded sweep: its runs in file order, what was left out, and its target. With `tune` studies stand in the place of runs."""

    runs: tuple[Run, ...]
    skipped: tuple[Skipped, ...] = ()
    target: Target | None = None
    tune: Tune | None = None
    studies: tuple[Study, ...] = ()

    @property
    def first(self) -> list[Run]:
        """What waits for no result: the runs, or the trials of all studies."""
        return [*self.runs, *(trial for study in self.studies for trial in study.trials)]


@dataclass(frozen=True)
class _Skip:
    when: dict[str, Any]
    because: str


@dataclass(frozen=True)
class _Override:
    when: dict[str, Any]
    set: dict[str, Any]


@dataclass(frozen=True)
class _File:
    """What a sweep's YAML file holds."""

    base: Any
    vary: dict[str, Any] = field(default_factory=dict)
    seeds: tuple[Seed, ...] | None = None
    overrides: tuple[_Override, ...] = ()
    skip: tuple[_Skip, ...] = ()
    target: Target | None = None
    baselines: bool | tuple[str, ...] = False
    tune: Tune | None = None

    @property
    def beside(self) -> tuple[str, ...]:
        """Names of the baselines that are asked for."""
        return self.baselines if isinstance(self.baselines, tuple) else NAMES if self.baselines else ()

    def problems(self) -> list[tuple[str, str]]:
        """Seeds that are no list of different numbers."""
        wrong = self.seeds is not None and (not self.seeds or len(set(self.seeds)) < len(self.seeds))
        return [("seeds", "must be different numbers, at least one")] if wrong else []


def is_sweep(data: Any) -> bool:
    """Whether what a file holds is a sweep, by the keys that no run has."""
    return isinstance(data, Mapping) and bool({"base", "vary"} & set(data))


def load(source: Document | Mapping[str, Any], catalog: Catalog | None = None) -> Sweep:
    """The sweep in a document, or in a dictionary from Python, expanded: combinations in file order, the seeds of each together.

    ConfigError holds every mistake.
    """
    sweep = source if isinstance(source, Document) else Document(source)
    return _Expansion(sweep, catalog or default_catalog()).result()


class _Expansion:
    """One expansion: collects mistakes of the sweep's file, its base and its runs until `result`."""

    def __init__(self, sweep: Document, catalog: Catalog):
        self.sweep, self.catalog = sweep, catalog
        self.located: list[Located] = []

    def result(self) -> Sweep:
        file = self.file()
        combinations = self.combinations(file, self.base(file.base))
        self.stale(file, combinations)
        kept, skipped = self.kept(file, combinations)
        if file.tune is None:
            runs, studies = self.runs(file, kept), []
        else:
            runs, studies = [], self.studies(file, file.tune, kept)
        if not kept and not self.located:
            self.note(Mistake(("skip",), "value", "skips every combination"))
        self.give_up()
        return Sweep(tuple(runs), tuple(skipped), file.target, file.tune, tuple(studies))

    def note(self, *mistakes: Mistake) -> None:
        self.located += locate(mistakes, self.sweep)

    def give_up(self) -> None:
        """ConfigError, if there are mistakes so far."""
        fail(self.located)

    def file(self) -> _File:
        data = self.sweep.data
        if isinstance(data, Mapping) and "base" not in data and {"rule", "model", "data"} & set(data):
            self.note(Mistake((), "value", "this is a run, not a sweep: start it with `locallearn run`"))
            self.give_up()
        reader = Reader(self.catalog)
        file = reader.section(_File, data, ())
        self.note(*reader.mistakes)
        self.give_up()
        return file

    def base(self, base: Any) -> Document:
        if not isinstance(base, str):
            document = self.sweep.under(("base",))
        else:
            path = self.sweep.folder / base
            try:
                document = read(path, rank=-1)
            except ConfigError as error:
                name = printable(str(path))
                self.note(*(Mistake(("base",), "value", p.what) for p in error.problems if p.where == name))
                self.located += [Located((-1, 0), problem) for problem in error.problems if problem.where != name]
                self.give_up()
                raise
        if not isinstance(document.data, Mapping):
            self.note(Mistake(("base",), "value", "must be the path of a run's file, or a run"))
        elif is_sweep(document.data):
            self.note(Mistake(("base",), "value", "is itself a sweep; a base is a run"))
        self.give_up()
        return document

    def combinations(self, file: _File, base: Document) -> list[Combination]:
        axes, mistakes = axes_of(self.sweep, file.vary)
        self.note(*mistakes, *unsaid(file.beside, file.vary))
        contexts = [axis for axis in axes if not of_method(axis)]
        seeds = len(file.seeds or (0,))
        each = seeds if file.tune is None else file.tune.studies * (file.tune.trials + seeds)
        beside = len(file.beside) * math.prod(len(axis.choices) for axis in contexts)
        count = (math.prod(len(axis.choices) for axis in axes) + beside) * each
        if count > MAX_RUNS:
            self.note(Mistake(("vary",), "value", f"makes {count} runs; {MAX_RUNS} are the most"))
        self.give_up()
        overrides = [
            (override, {key: self.sweep.under(("overrides", k, "set", key)) for key in override.set})
            for k, override in enumerate(file.overrides)
        ]
        made = []
        for chosen in itertools.product(*(axis.choices for axis in axes)):
            run, labels = self.chosen(base, axes, chosen)
            made.append(Combination(self.overridden(run, labels, overrides), chosen, labels))
        return [*made, *self.baselines(file, base, axes, overrides, made)] if file.beside else made

    def baselines(
        self, file: _File, base: Document, axes: list[Axis], overrides: list[Any], others: list[Combination]
    ) -> Iterator[Combination]:
        """Those of every combination of what says nothing of the method, as far as they are not among the others."""
        made = Baselines(
            file.baselines if isinstance(file.baselines, tuple) else None, self.sweep, self.catalog, [other.run for other in others]
        )
        own = {name: Choice({}, name) for name in file.beside}
        for chosen in itertools.product(*([None] if of_method(axis) else axis.choices for axis in axes)):
            run, labels = self.chosen(base, axes, chosen)

            def overridden(run: Document, name: str, last: bool, labels: Mapping[str, str] = labels) -> Document:
                own = [override for override in overrides if not last or BASELINE in override[0].when]
                return self.overridden(run, {**labels, BASELINE: name}, own)

            for name, found in made.around(run, overridden):
                yield Combination(found, tuple(choice or own[name] for choice in chosen), {**labels, BASELINE: name})
        self.located += made.located

    def chosen(self, base: Document, axes: list[Axis], chosen: Sequence[Choice | None]) -> tuple[Document, dict[str, str]]:
        """The base with choices of the axes, None for no change; and their labels."""
        for choice in chosen:
            base = self.changed(base, choice.changes if choice else {})
        return base, {axis.name: c.label for axis, c in zip(axes, chosen, strict=True) if c and c.label is not None}

    def overridden(self, run: Document, labels: Mapping[str, str], overrides: list[Any]) -> Document:
        for override, changes in overrides:
            if holds(override.when, run, labels, self.catalog):
                run = self.changed(run, changes)
        return run

    def changed(self, run: Document, changes: Mapping[str, Document]) -> Document:
        for key, value in changes.items():
            try:
                run = run.put(split_key(key), value)
            except NotAMapping as error:
                place = value.place(())
                problem = Problem(place.where if place else key, f"`{error}` has no keys of its own that could be set")
                self.located.append(Located(place.order if place else (0, 0), problem))
        return run

    def stale(self, file: _File, combinations: list[Combination]) -> None:
        runs = [(c.run, c.labels) for c in combinations]
        for name in ("overrides", "skip"):
            for k, entry in enumerate(getattr(file, name)):
                self.note(*useless(entry.when, (name, k, "when"), runs, self.catalog))

    def kept(self, file: _File, combinations: list[Combination]) -> tuple[list[Combination], list[Skipped]]:
        kept, skipped = [], []
        for combination in combinations:
            reasons = [s.because for s in file.skip if holds(s.when, combination.run, combination.labels, self.catalog)]
            if reasons:
                skipped.append(Skipped(written_values(combination), reasons[0]))
            else:
                kept.append(combination)
        return kept, skipped

    def runs(self, file: _File, combinations: list[Combination]) -> list[Run]:
        runs: list[Run] = []
        names: dict[str, Mapping[str, Any]] = {}
        for combination in combinations:
            config, located = check(combination.run, self.catalog)
            self.located += located
            if config is None:
                continue
            varied = varied_values(combination, config)
            digest = config.digest()
            if digest in names:
                what = f"two combinations are the same run: {in_words(names[digest])}; and {in_words(varied)}"
                self.note(Mistake(("vary",), "value", what))
            names[digest] = varied
            name = f"{folder(config, varied)}-{digest[:8]}"
            seeds = file.seeds or (config.seed,)
            runs += [Run(dataclasses.replace(config, seed=seed), varied, name) for seed in seeds]
        return runs

    def studies(self, file: _File, tune: Tune, combinations: list[Combination]) -> list[Study]:
        space, mistakes = space_of(tune.space)
        self.note(*mistakes, *clashes(self.sweep, tune, space, file.seeds or [c.run.at(("seed",)) for c in combinations]))
        self.give_up()
        expansion = Studies(self.sweep, Plan(tune, space, file.seeds), self.catalog)
        found = expansion.of(combinations, list(file.vary))
        self.located += expansion.located
        return found
