"""A run's configuration: resolved from YAML or a dictionary, complete, immutable, with an identity."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le

from locallearn.cluster import PLAIN, Cluster
from locallearn.config.catalog import Catalog, default_catalog
from locallearn.config.checks import cross_checks
from locallearn.config.codecs import EXACT, CodecSpec, parse_codecs, spelled
from locallearn.config.document import Document
from locallearn.config.mistakes import Located, Mistake, fail, locate
from locallearn.config.plain import plain
from locallearn.config.schema import Reader
from locallearn.config.settings import with_settings
from locallearn.data.intake import Augment
from locallearn.errors import ConfigError
from locallearn.fields import Count
from locallearn.markers import Named
from locallearn.networks import Line
from locallearn.replicas import ALONE, Replicas
from locallearn.schedule import Schedule
from locallearn.traffic import Level
from locallearn.train import Problems, Stop, Train

NO_STOP = Stop()
Seed = Annotated[int, Ge(0), Le(2**32 - 1)]


@dataclass(frozen=True)
class Placement:
    """How blocks are dealt to shards: evenly to `shards` of them, or a new shard begins at each block in `cuts`.

    bridge: features or channels that cross each shard boundary, through a learned projection (`locallearn.models.bridge`).
    """

    shards: Count | None = None
    cuts: tuple[Count, ...] | None = None
    bridge: Count | None = None

    def problems(self) -> Problems:
        """Exactly one of the two must be given."""
        if self.shards is None and self.cuts is None:
            return [("shards", "is missing")]
        return [("cuts", "give `shards` or `cuts`, not both")] if None not in (self.shards, self.cuts) else []

    def of(self, blocks: int) -> tuple[int, ...]:
        """The shard of each block; RuleError if there are too few blocks."""
        from locallearn.runtime.wiring import cut, deal

        return deal(blocks, self.shards or 1) if self.cuts is None else cut(blocks, self.cuts)

    def held(self, blocks: Sequence[Any], rule: Any) -> tuple[Sequence[Any], tuple[int, ...]]:
        """(the blocks that a rule trains of a model's, the shard of each): with a bridge at each boundary, if there is to be one."""
        placement = self.of(len(blocks))
        if hasattr(rule, "deployed"):
            blocks, placement = rule.deployed(blocks, placement)
        if self.bridge is None:
            return blocks, placement
        from locallearn.rule import ELEMENTWISE

        return _bridged(tuple(blocks), placement, self.bridge, getattr(rule, "needs", "") == ELEMENTWISE), placement


@functools.lru_cache(maxsize=32)
def _bridged(blocks: tuple[Any, ...], placement: tuple[int, ...], width: int, elementwise: bool) -> Sequence[Any]:
    """For the many runs of a sweep that share them."""
    from locallearn.models.bridge import bridged

    return bridged(blocks, placement, width, elementwise=elementwise)


@dataclass(frozen=True)
class Held:
    """How a run uses a data set.

    validation: training examples set aside to choose by: a share of them (with a point) or a count. augment: what training images go
    through, on the device.
    """

    validation: Annotated[int, Ge(0)] | Annotated[float, Ge(0)] = 0.1
    augment: Augment | None = None

    def problems(self) -> Problems:
        """A share is below 1."""
        wrong = isinstance(self.validation, float) and self.validation >= 1
        return [("validation", "a share must be below 1; a count has no point")] if wrong else []

    def count(self, total: int) -> int:
        """How many of `total` examples."""
        return self.validation if isinstance(self.validation, int) else round(self.validation * total)


@dataclass(frozen=True)
class RunFile:
    """What a run's YAML file holds."""

    rule: Annotated[Any, Named("rules")]
    model: Annotated[Any, Named("models", Placement, {"shards": 1})]
    data: Annotated[Any, Named("datasets", Held, {})]
    train: Train
    codecs: Any = field(default_factory=dict)
    replicas: Replicas = ALONE
    stop: Stop = NO_STOP
    schedule: Schedule | None = None
    count: Level = "framed"
    diagnostics: tuple[Literal["angle", "norms", "probe", "rule"], ...] = ()
    cluster: Cluster = PLAIN
    network: Line | None = None
    seed: Seed = 0


RUN_KEYS = tuple(item.name for item in dataclasses.fields(RunFile))


@dataclass(frozen=True)
class Config:
    """Everything that decides the result of a run; and, which decides nothing, where on a `cluster` its shards are to live and which
    `network` is emulated between them there.

    validation: share (float) or count (int) of the training examples held back. augment: what training images go through. codecs: by
    message name, kind or `default`; a name beats its kind, a kind beats the default. diagnostics: what evaluations find out besides.
    schedule: the virtual clock that it trains under. count: what its bytes are, in records, totals and budgets.
    """

    rule: Any
    model: Any
    placement: Placement
    data: Any
    validation: float | int
    train: Train
    codecs: Mapping[str, CodecSpec] = field(default_factory=lambda: {"default": EXACT})
    stop: Stop = NO_STOP
    seed: int = 0
    augment: Augment | None = None
    diagnostics: tuple[str, ...] = ()
    schedule: Schedule | None = None
    count: Level = "framed"
    replicas: Replicas = ALONE
    cluster: Cluster = field(default=PLAIN, compare=False)
    network: str | None = field(default=None, compare=False)
    catalog: Catalog = field(default_factory=default_catalog, repr=False, compare=False)

    def canonical(self) -> dict[str, Any]:
        """What decides the result as plain data, all defaults written: for YAML and JSON, and to be resolved again."""
        return self._content() | {"seed": self.seed}

    def aside(self) -> dict[str, Any]:
        """What decides nothing, as plain data: of `cluster` the keys that are not at their default, and `network`."""
        usual = plain(PLAIN, self.catalog)
        asked = {key: value for key, value in plain(self.cluster, self.catalog).items() if value != usual[key]}
        return {"cluster": asked, "network": self.network}

    def _content(self, identity: bool = False) -> dict[str, Any]:
        write = functools.partial(plain, catalog=self.catalog, identity=identity)
        return {
            "rule": write(self.rule),
            "model": write(self.model) | {key: value for key, value in write(self.placement).items() if value is not None},
            "data": write(self.data) | {"validation": self.validation} | ({"augment": write(self.augment)} if self.augment else {}),
            "train": write(self.train),
            "codecs": {key: spelled(spec) for key, spec in self.codecs.items()},
            "stop": write(self.stop),
            **({"schedule": write(self.schedule)} if self.schedule else {}),
            **({"count": self.count} if self.count != "framed" else {}),
            **({"diagnostics": list(self.diagnostics)} if self.diagnostics else {}),
            **({"replicas": write(self.replicas)} if self.replicas.count > 1 else {}),
        }

    def digest(self) -> str:
        """SHA-256 (hex) of the canonical form without the seed: equal for runs that differ in the seed alone."""
        content = _whole_numbers(self._content(identity=True))
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def structure(self) -> str:
        """The digest without the optimizer's rates: equal for runs that what was compiled for one of them can train."""
        return self._structure

    @functools.cached_property
    def _structure(self) -> str:
        optimizer = dataclasses.replace(self.train.optimizer, rate=1.0, block_rates=None)
        return dataclasses.replace(self, train=dataclasses.replace(self.train, optimizer=optimizer)).digest()

    def identity(self) -> str:
        """The first eight digits of `digest`, for names."""
        return self.digest()[:8]

    @property
    def rule_name(self) -> str:
        """The rule's name in YAML, or its class."""
        return plain(self.rule, self.catalog)["name"]

    def label(self) -> str:
        """A short name for people and folders: the rule, and the codecs that are not `exact`."""
        words = {key: codec_label(spec) for key, spec in self.codecs.items() if spec != EXACT}
        parts = [word if key == "default" else f"{key}_{word}" for key, word in words.items()]
        copies = [f"{self.replicas.count}_replicas"] if self.replicas.count > 1 else []
        return slug("-".join([self.rule_name, *copies, *parts]))


def codec_label(spec: CodecSpec) -> str:
    """A codec in one word: `error_feedback+topk(0.1)`."""
    words = spelled(spec)
    return words if isinstance(words, str) else "+".join(words)


def slug(text: str) -> str:
    """The text as (part of) a folder name on any system."""
    return re.sub(r"[^A-Za-z0-9.+-]+", "_", text.replace("(", "").replace(")", "")).strip("._")[:80] or "run"


def resolve(source: Document | Mapping[str, Any], sets: Sequence[str] = (), catalog: Catalog | None = None) -> Config:
    """The configuration in a document, or in a dictionary from Python, with `key=value` settings on top.

    In a dictionary `rule`, `model` and `data` may also be objects, bare or as the `name` of their section; a bare model is one shard.
    ConfigError holds every mistake, in the order of the lines.
    """
    document = source if isinstance(source, Document) else Document(source)
    document, located = with_settings(document, sets)
    config, more = check(document, catalog or default_catalog())
    fail([*located, *more])
    assert config is not None  # without mistakes there is one
    return config


def check(document: Document, catalog: Catalog) -> tuple[Config | None, list[Located]]:
    """The configuration, or None, and every mistake with its place."""
    if not isinstance(document.data, Mapping):
        return None, locate([Mistake((), "value", "a configuration is keys with values")], document)
    if not set(document.data) & {"rule", "model", "data"} and set(document.data) & {"base", "vary", "seeds"}:
        what = "this is a sweep, not a run: start it with `locallearn sweep`"
        return None, locate([Mistake((), "value", what)], document)
    reader = Reader(catalog)
    reader.keys(document.data, (), [RunFile])
    found = reader.found(RunFile, document.data, ())
    found["codecs"] = parse_codecs(reader, found.get("codecs", {}), ("codecs",))
    mistakes = reader.mistakes + cross_checks(found, catalog)
    return (None if mistakes else _config(found, catalog)), locate(mistakes, document)


def _config(found: Mapping[str, Any], catalog: Catalog) -> Config:
    model, placement = found["model"]
    data, held = found["data"]
    rest = {key: value for key, value in found.items() if key not in ("model", "data")}
    return Config(model=model, placement=placement, data=data, validation=held.validation, augment=held.augment, catalog=catalog, **rest)


def write_yaml(config: Config, header_comment: str = "") -> str:
    """The canonical form as YAML text, below a comment."""
    comment = "".join(f"# {line}".rstrip() + "\n" for line in header_comment.splitlines())
    return comment + as_yaml(config.canonical())


def as_yaml(data: Any) -> str:
    """Plain data as YAML text, by the parser in C where there is one: of a sweep's small runs this is a large part."""
    import yaml

    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    return yaml.dump(data, Dumper=dumper, sort_keys=False, default_flow_style=None, width=120)


def _whole_numbers(value: Any) -> Any:
    """1.0 as 1: a default written as an integer and the same value read from a file must not differ."""
    if isinstance(value, dict):
        return {key: _whole_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_whole_numbers(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


__all__ = ["RUN_KEYS", "Config", "ConfigError", "Held", "Placement", "RunFile", "as_yaml", "check", "resolve", "slug", "write_yaml"]
