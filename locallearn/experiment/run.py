"""One run, from a configuration to a result: in memory, or with a directory from which it goes on after any interruption."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from locallearn.config.combination import Tuned
from locallearn.config.run import Config, write_yaml
from locallearn.errors import ConfigError, LocallearnError, Problem
from locallearn.experiment import checkpoint
from locallearn.experiment.events import Ended, Listener, Started
from locallearn.experiment.files import NoRoom
from locallearn.experiment.lines import Lines
from locallearn.experiment.lock import Held, Lock
from locallearn.experiment.planning import plan
from locallearn.experiment.prepare import Making, load_data, prepare
from locallearn.experiment.provenance import commit, here, now, provenance, relative, versions
from locallearn.experiment.record import actors_of, record_of, stage_at
from locallearn.experiment.result import Result, load
from locallearn.experiment.store import FAILED, FINISHED, SUFFIX, Store, move_away
from locallearn.networks import UnknownNetwork, parse_network
from locallearn.runtime.framed import EagerSession
from locallearn.runtime.fused import FusedSession
from locallearn.runtime.replicated import EagerReplicas
from locallearn.runtime.session import Session
from locallearn.runtime.setup import Setup
from locallearn.runtime.training import Compiled, Evaluated, Event, Finished, Recovered, RolledBack, Snapshot, Watched, train


def silent(event: Any) -> None:
    """Tells nobody."""


class Interrupted(LocallearnError):
    """The run was asked to stop; with a directory, the same command goes on."""

    exit_code = 130


TRANSPORTS = ("socket", "ray")
"""What may carry frames between actors."""


class FailedBefore(LocallearnError):
    """The run failed earlier and was not to be tried again."""


class Shared(NamedTuple):
    """Of runs with the same structure: what `Setup.once` found out, and compiled programs."""

    known: dict[Any, Any]
    programs: dict[Any, Any]


@dataclass(frozen=True)
class How:
    """How a run is carried out: nothing here changes its result.

    on: `local` (one compiled program), `eager` (message by message) or `ray` (one actor for each shard). address: of a Ray that runs
    already. transport: of the frames between actors, one of `TRANSPORTS`. network: emulated between them. keep_seconds: least time
    between checkpoints. interrupted: asked after every event, true to stop. load: gets data into memory. retry: whether a run that failed
    is tried again. shared: what earlier runs left for others that differ in seeds and rates alone. source, varied, tuned: noted
    beside the run, where it comes from, what sets it apart in a sweep and what tuning has to do with it.
    """

    on: str = "local"
    address: str | None = None
    transport: str = "socket"
    network: str | None = None
    keep_seconds: float = 5.0
    tell: Listener = silent
    interrupted: Callable[[], bool] = lambda: False
    load: Callable[[Any], Any] = load_data
    retry: bool = True
    source: str | None = None
    shared: dict[str, Shared] = field(default_factory=dict)
    varied: Mapping[str, Any] = field(default_factory=dict)
    tuned: Tuned | None = None

    @property
    def tested(self) -> bool:
        """Whether the run ends with a look at the test set: trials do not."""
        return self.tuned is None or self.tuned.trial is None

    def __post_init__(self) -> None:
        if self.on not in SUFFIX:
            raise LocallearnError(f"`{self.on}` is no way to run; there are {', '.join(SUFFIX)}")
        if self.transport not in TRANSPORTS:
            raise LocallearnError(f"`{self.transport}` is no transport; there are {', '.join(TRANSPORTS)}")
        if self.network is not None:
            parse_network(self.network)
            if self.on != "ray":
                raise UnknownNetwork("a network is emulated between actors: add `--on ray`, or ask `locallearn time` of a finished run")


def run_name(config: Config, on: str = "local") -> Path:
    """`<label>-<hash8>/seed-<n>`, with a suffix for every way to run but `local`."""
    return Path(f"{config.label()}-{config.identity()}", seed_name(config, on))


def seed_name(config: Config, on: str) -> str:
    """`seed-<n>`, with a suffix for every way to run but `local`."""
    return f"seed-{config.seed}{SUFFIX[on]}"


def runnable(config: Config, on: str) -> None:
    """ConfigError for what only one process can do."""
    if on == "ray" and config.diagnostics:
        what = "need the whole network in one process: leave them out, or take --on local or --on eager"
        raise ConfigError([Problem("diagnostics", what)])
    if on == "ray" and config.schedule and config.schedule.staleness:
        what = "shards run ahead under a virtual clock, in one process: take --on local or --on eager, or leave it out"
        raise ConfigError([Problem("schedule.staleness", what)])


def execute(config: Config, how: How = How(), directory: Path | None = None, fresh: bool = False) -> Result:
    """The result of a configuration. With a directory: what is finished there is loaded, what was interrupted goes on.

    fresh: move what the directory holds to `...~1` and begin anew.
    """
    runnable(config, how.on)
    if directory is None:
        return _train(config, how, _prepared(config, how), None)
    if fresh:
        move_away(directory)
    store = Store(directory)
    done = _finished(config, how, store)
    if done:
        return done
    store.make()
    with Lock(directory) as lock:  # where another process may have finished it in the meantime
        return _finished(config, how, store) or _stored(config, replace(how, tell=_while_held(lock, how.tell)), store)


def _finished(config: Config, how: How, store: Store) -> Result | None:
    if not store.holds(config.canonical()) or store.state != FINISHED:
        return None
    result = load(store.directory)
    how.tell(Ended(result, skipped=True))
    return result


def _while_held(lock: Lock, tell: Listener) -> Listener:
    """Held for a process that was taken for dead, such as one that slept: another one has the run now."""

    def told(event: Any) -> None:
        lock.check()
        tell(event)

    return told


def _stored(config: Config, how: How, store: Store) -> Result:
    """Within the lock."""
    if store.state == FAILED and not how.retry:
        failure = store.read("failure.json")
        raise FailedBefore(f"{store.directory}: failed before ({failure['type']}: {failure['message']}); use --retry-failed")
    store.retry()
    store.clean()
    if not store.holds(config.canonical()):
        meta = {**provenance(), "on": how.on, "source": how.source, "varied": dict(how.varied)}
        if how.tuned:
            meta["tuned"] = how.tuned._asdict()
        meta |= {"cluster": config.asked()} if how.on == "ray" else {}
        store.begin(write_yaml(config, _header(how, meta)), meta)
    try:
        setup = _prepared(config, how)
        return _train(config, how, setup, store)
    except Exception as error:
        if not isinstance(error, Interrupted | Held | NoRoom):  # with the run itself nothing is wrong
            store.fail(failure_of(error, store))
        raise


def _train(config: Config, how: How, setup: Setup, store: Store | None) -> Result:
    """From the last checkpoint, if there is one, to the end."""
    resume = checkpoint.latest(store.checkpoints) if store else None
    curve = store.rewind(resume.step if resume else 0) if store else []
    notes = _resumed(store, how) if store and resume else ()
    tell = _told(how, store)
    tell(Started(config, setup, how.on, _device(), store and store.directory, resume and resume.step, notes))
    if store:
        store.write_plan(plan(setup))
    events = _events(config, how, setup, resume, math.inf if store is None and how.on != "ray" else how.keep_seconds)
    reached, losses = resume.step if resume else 0, {"rollbacks": 0, "seconds_lost": 0.0}
    for told in events:
        event = told._replace(traffic=told.traffic.at(setup.count)) if isinstance(told, Evaluated | Snapshot | Finished) else told
        if isinstance(event, Evaluated):
            curve.append(record_of(setup, event))
            if store:
                store.append(curve[-1])
        elif isinstance(event, Snapshot) and store:
            checkpoint.save(store.checkpoints, checkpoint.names(setup, stage_at(setup, event.step)), event)
            reached = event.step
        elif isinstance(event, Watched) and store:
            store.write_actors(actors_of(event, setup.stages[0].wiring.shards))
        elif isinstance(event, RolledBack):
            losses["rollbacks"] += 1
        elif isinstance(event, Recovered):
            losses["seconds_lost"] += event.seconds
        elif isinstance(event, Finished):
            result = _end(config, setup, store, event, curve, losses)
            tell(Ended(result))
            return result
        tell(event)
        if how.interrupted() and (_kept_in_time(event) or how.on == "ray" or not store):
            events.close()
            kept = f"the same command goes on from step {reached}" if store else "nothing was kept, for the run has no directory"
            raise Interrupted(f"interrupted after step {event.step}; {kept}")
    raise AssertionError("a training ends with Finished")


def _kept_in_time(event: Event) -> bool:
    """Whether nothing would be lost if the run ended now. In one process a snapshot follows at once; actors have theirs."""
    return isinstance(event, Snapshot | Compiled)


def session_for(config: Config, how: How, setup: Setup) -> Session:
    """A session that needs no other process."""
    if how.on == "eager":
        return EagerSession(setup) if setup.replicas.count == 1 else EagerReplicas(setup)
    return FusedSession(setup, _shared(config, how).programs)


def _prepared(config: Config, how: How) -> Setup:
    return prepare(config, how.load, how.tested, _shared(config, how).known)


def _shared(config: Config, how: How) -> Shared:
    """What runs of the last structure left for the next one; trials have smaller evaluations than runs that are tested."""
    key = f"{config.structure()} {how.tested}"
    if key not in how.shared:
        how.shared.clear()
    return how.shared.setdefault(key, Shared({}, {}))


def _events(config: Config, how: How, setup: Setup, resume: Snapshot | None, keep_seconds: float) -> Generator[Event, None, None]:
    """The training's events; closing the generator ends the training."""
    if how.on != "ray":
        yield from train(session_for(config, how, setup), resume, keep_seconds, how.interrupted)
        return
    from locallearn.runtime.cluster import train_on_ray

    network = parse_network(how.network) if how.network else None
    yield from train_on_ray(
        Making.of(config, setup, how.tested),
        resume=resume,
        address=how.address,
        keep_seconds=keep_seconds,
        transport=how.transport,
        network=network,
        name=f"{config.label()}-{config.identity()}-seed-{config.seed}",
        cluster=config.cluster,
    )


def _told(how: How, store: Store | None) -> Listener:
    """Whoever listens, and the log of the run."""
    if store is None:
        return how.tell
    lines = Lines()

    def tell(event: Any) -> None:
        for line in lines(event):
            store.log(f"{now()}  {line}")
        how.tell(event)

    return tell


def _end(
    config: Config, setup: Setup, store: Store | None, event: Finished, curve: list[dict[str, Any]], losses: Mapping[str, Any]
) -> Result:
    """Store the weights, then the result: whoever is killed in between trains on from the last checkpoint to the same end."""
    stage = stage_at(setup, event.step)
    names = checkpoint.names(setup, stage)
    last = curve[-1] if curve else {"seconds": 0.0, "compile_seconds": 0.0}
    ending = {
        "step": event.step,
        "phase": setup.stages.index(stage),
        "reason": event.reason,
        "test_accuracy": event.test_accuracy,
        "test_accuracy_lossless": event.test_accuracy_lossless,
        "seconds": last["seconds"],
        "compile_seconds": last["compile_seconds"],
        **losses,
    }
    if store:
        checkpoint.save(store.checkpoints, names, Snapshot(event.step, last["seconds"], event.traffic, event.shards), final=True)
        totals = {"bytes": event.traffic.bytes, "payload_bytes": event.traffic.payload_bytes, "messages": event.traffic.message_count}
        store.finish({**ending, **totals, "finished": now(), "traffic": event.traffic.rows()})
    arrays = {name: array for shard, own in zip(event.shards, names, strict=True) for name, array in zip(own, shard, strict=True)}
    return Result(
        settings=config.canonical(),
        curve=curve,
        traffic=event.traffic,
        directory=store.directory if store else None,
        _arrays=lambda: arrays,
        _config=lambda: config,
        **ending,
    )


def failure_of(error: BaseException, store: Store) -> dict[str, Any]:
    """The error as plain data, for failure.json."""
    records = store.records()
    text = "".join(traceback.format_exception(error))
    for root in (here(), Path(__file__).parents[2]):
        text = text.replace(f"{root}/", "")
    return {
        "type": type(error).__name__,
        "message": str(error),
        "notes": list(getattr(error, "__notes__", ())),
        "step": records[-1]["step"] if records else 0,
        "failed": now(),
        "traceback": text,
    }


def _resumed(store: Store, how: How) -> tuple[str, ...]:
    """Note the resume in meta.json; warn if versions have changed."""
    meta = store.read("meta.json")
    before = meta.get("versions", {})
    changed = [f"{name} {before[name]} -> {version}" for name, version in versions().items() if before.get(name, version) != version]
    meta.setdefault("resumed", []).append({"at": now(), "versions": versions(), "git": commit()})
    store.write_meta(meta)
    return (f"begun under other versions ({', '.join(changed)}): the result may differ in its last bits",) if changed else ()


def _header(how: How, meta: Mapping[str, Any]) -> str:
    source = f"from {relative(how.source)}" if how.source else "from Python"
    return f"{source}{' @ ' + meta['git'] if meta['git'] else ''}\n{meta['command']}"


def _device() -> str:
    import jax

    return jax.default_backend()
