"""The section `baselines` of a sweep: what could embarrass the others, with the same data, model, training and trials.

    baselines: true                       # all that the model and the data allow
    baselines: [backprop, solos, DiLoCo]  # or some, by name

Their names: backprop, backprop int8, backprop int4, AQ-SGD, deep supervision, solo, solos, data-parallel, data-parallel sign, data-parallel
topk, PowerSGD, local SGD, DiLoCo; and, where a clock or a network is given, microbatches and microbatches int4.

They stand beside the product of `vary`, once for each combination of its entries that say nothing of `rule`, `codecs` or `replicas`; for
the others the base stands. Of a model that every machine has whole there are as many replicas as the others have shards, which share each
batch.
Blocks learn together, whatever `train.greedy` says.
`overrides` hold for them as for other runs, with one label more: `{when: {baseline: DiLoCo}, set: {replicas.average_every: 100}}`;
`skip` leaves some out. With `tune` each has as many trials as any other. A baseline that is among the other runs is not run again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from locallearn.config.axes import Axis
from locallearn.config.catalog import Catalog
from locallearn.config.checks import train_size
from locallearn.config.document import Document, split_key
from locallearn.config.mistakes import Located, Mistake, hint, locate
from locallearn.config.run import Config, Held, check

BASELINE = "baseline"
"""The label that they have."""
BACKPROP = {"name": "backprop"}
METHOD = ("rule", "codecs", "replicas")
"""Keys that a baseline has its own of."""


class Setting(NamedTuple):
    """What they depend on. machines: shards of all replicas. batch: of all replicas together. examples: to train on. timed: whether the
    time on a network is looked at."""

    shards: int
    machines: int
    batch: int
    examples: int
    timed: bool


def _setting(config: Config) -> Setting:
    placement, count = config.placement, config.replicas.count
    shards = placement.shards or len(placement.cuts or ()) + 1
    total = train_size(config.data) or 0
    timed = config.network is not None or (config.schedule is not None and config.schedule.network is not None)
    return Setting(shards, shards * count, config.train.batch * count, total - Held(config.validation).count(total), timed)


def _changes(at: Setting) -> dict[str, dict[str, Any]]:
    """Of each baseline that makes sense: what sets it apart from backpropagation through one chain, every bit sent."""
    found: dict[str, dict[str, Any]] = {"backprop": {}}
    int4 = {"activation": "int4", "error": "int4(stochastic)"}
    if at.shards > 1:
        aq_sgd = {"activation": [f"difference(none, {at.examples})", "int4"], "error": "int4(stochastic)"}
        found |= {
            "backprop int8": {"codecs": {"activation": "int8", "error": "int8(stochastic)"}},
            "backprop int4": {"codecs": int4},
            **({"AQ-SGD": {"codecs": aq_sgd}} if at.examples else {}),
            "deep supervision": {"rule": {"name": "deep_supervision"}},
            "solo": {"rule": {"name": "solo"}},
        }
    if at.shards > 1 and at.timed:
        parts = {"train.microbatches": max(k for k in range(1, at.shards + 1) if at.batch % k == 0)}
        found |= {"microbatches": parts, "microbatches int4": {**parts, "codecs": int4}}
    if at.machines > 1:
        n = at.machines
        found["solos"] = {"rule": {"name": "solo", "members": n}}
        whole = {"model.shards": 1, "model.cuts": None, "train.batch": max(1, at.batch // n), "train.microbatches": 1, "schedule": None}
        gradients = {**whole, "replicas": {"count": n, "average": "gradients"}}
        seldom = {"count": n, "average_every": 16}
        found |= {
            "data-parallel": gradients,
            "data-parallel sign": {**gradients, "codecs": {"average": ["error_feedback", "sign"]}},
            "data-parallel topk": {**gradients, "codecs": {"average": ["error_feedback", "topk(0.01)"]}},
            "PowerSGD": {**gradients, "codecs": {"average": ["error_feedback", "low_rank(2)"]}},
            "local SGD": {**whole, "replicas": seldom},
            "DiLoCo": {**whole, "replicas": {**seldom, "outer": {"name": "nesterov"}}},
        }
    return found


NAMES = tuple(_changes(Setting(2, 2, 2, 2, True)))


def of_method(axis: Axis) -> bool:
    """Whether some entry of an axis says how is trained or what is sent, which baselines say themselves."""
    return any(split_key(key)[0] in METHOD for choice in axis.choices for key in choice.changes)


def unsaid(names: Sequence[str], vary: Mapping[str, Any]) -> Iterator[Mistake]:
    """Names of no baseline, and the label that they have as an entry of `vary`."""
    for k, name in enumerate(names):
        if name not in NAMES:
            yield Mistake(("baselines", k), "name", f"is no baseline{hint(name, NAMES, 'baselines')}")
    if names and BASELINE in vary:
        yield Mistake(("vary", BASELINE), "value", "is the label that `baselines` have: give it another name")


Overridden = Callable[[Document, str, bool], Document]
"""A run with the overrides that hold for it as this baseline: all, or those that are about baselines."""


class Baselines:
    """Makes them; collects mistakes.

    names: those that are wanted, None for all that the model and the data allow. others: runs, none of which is made again.
    """

    def __init__(self, names: Sequence[str] | None, sweep: Document, catalog: Catalog, others: Iterable[Document]):
        self.names, self.sweep, self.catalog = names, sweep, catalog
        self.located: list[Located] = []
        place = sweep.place(("baselines",))
        self._places = {(): place._replace(text=None)} if place else {}
        self._known = {config.digest() for run in others if (config := check(run, catalog)[0])}

    def around(self, run: Document, overridden: Overridden) -> Iterator[tuple[str, Document]]:
        """Those beside a run, each with its name.

        Overrides come first, for the batch and the shards that they set are those to be shared; what they say of a baseline comes last,
        too.
        """
        config, located = check(self._ruled(run, BACKPROP, "backprop", overridden), self.catalog)
        if config is None or config.train.phases:
            what = "the base trains in phases of its own, in which they have no part: leave it out"
            self.located += located or locate([Mistake(("baselines",), "value", what)], self.sweep)
            return
        for name, changes in _changes(_setting(config)).items():
            if self.names is None or name in self.names:
                own = self._ruled(run, changes.get("rule", BACKPROP), name, overridden)
                own = overridden(self._put(own, _rest(name, _setting(check(own, self.catalog)[0] or config))), name, True)
                if self._new(own):
                    yield name, own

    def _ruled(self, run: Document, rule: Mapping[str, Any], name: str, overridden: Overridden) -> Document:
        return overridden(self._put(run, {"rule": rule, "codecs": {}}), name, False)

    def _put(self, run: Document, changes: Mapping[str, Any]) -> Document:
        for key, value in changes.items():
            run = run.put(split_key(key), Document(value, self._places))
        return run

    def _new(self, run: Document) -> bool:
        """Whether it is no run of the others; one with a mistake, to be told, if it was asked for by name."""
        config, _ = check(run, self.catalog)
        if config is None:
            return self.names is not None
        new = config.digest() not in self._known
        self._known.add(config.digest())
        return new


def _rest(name: str, at: Setting) -> dict[str, Any]:
    """What a baseline changes but for the rule: in one chain that learns as a whole, on batches of all replicas."""
    chain = {"codecs": {}, "replicas": {}, "train.batch": at.batch, "train.greedy": False, "train.arrivals": None}
    return {key: value for key, value in (chain | _changes(at)[name]).items() if key != "rule"}
