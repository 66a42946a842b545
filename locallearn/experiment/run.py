"""One run, from a configuration to a result: in memory, or with a directory from which it goes on after any interruption."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from locallearn.config.run import Config, write_yaml
from locallearn.errors import LocallearnError, NoRay, ShardLost
from locallearn.experiment import checkpoint
from locallearn.experiment.events import Ended, Listener, Started
from locallearn.experiment.files import NoRoom
from locallearn.experiment.how import How, runnable
from locallearn.experiment.lines import Lines
from locallearn.experiment.lock import Held, Lock
from locallearn.experiment.planning import plan
from locallearn.experiment.provenance import commit, here, now, provenance, relative, versions
from locallearn.experiment.record import actors_of, delays_of, record_of
from locallearn.experiment.result import Result, load
from locallearn.experiment.store import FAILED, FINISHED, SUFFIX, Store, move_away
from locallearn.experiment.threads import as_it_began, other_threads, threads
from locallearn.experiment.training import prepared, training
from locallearn.runtime.placement import Unplaced
from locallearn.runtime.setup import Setup
from locallearn.runtime.training import Compiled, Evaluated, Event, Finished, Joined, Placed, Recovered, RolledBack, Snapshot, Watched

OF_THE_CLUSTER = tuple(kind.__name__ for kind in (NoRay, ShardLost, Unplaced))
"""Failures that say nothing of a run, only of the machines that there were: the same command tries again, also where others are not."""


class Interrupted(LocallearnError):
    """The run was asked to stop; with a directory, the same command goes on."""

    exit_code = 130


class FailedBefore(LocallearnError):
    """The run failed earlier and was not to be tried again."""


def run_name(config: Config, on: str = "local") -> Path:
    """`<label>-<hash8>/seed-<n>`, with a suffix for every way to run but `local`."""
    return Path(f"{config.label()}-{config.identity()}", seed_name(config, on))


def seed_name(config: Config, on: str) -> str:
    """`seed-<n>`, with a suffix for every way to run but `local`."""
    return f"seed-{config.seed}{SUFFIX[on]}"


def execute(config: Config, how: How, directory: Path | None = None, fresh: bool = False) -> Result:
    """The result of a configuration. With a directory: what is finished there is loaded, what was interrupted goes on.

    fresh: move what the directory holds to `...~1` and begin anew.
    """
    runnable(config, how.on)
    if directory is None:
        return _train(config, how, prepared(config, how), None)
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
    failure = store.read("failure.json") if store.state == FAILED and not how.retry else {}
    if failure and failure["type"] not in OF_THE_CLUSTER:
        raise FailedBefore(f"{store.directory}: failed before ({failure['type']}: {failure['message']}); use --retry-failed")
    store.retry()
    store.clean()
    checkpoint.sweep_up(store.checkpoints)
    if not store.holds(config.canonical()):
        meta = {**provenance(), "on": how.on, "threads": threads(config, how), "source": how.source, "varied": dict(how.varied)}
        if how.tuned:
            meta["tuned"] = how.tuned._asdict()
        meta |= {**config.aside(), "network": how.line(config)} if how.on == "ray" else {}
        store.begin(write_yaml(config, _header(how, meta)), meta)
    try:
        setup = prepared(config, how)
        return _train(config, how, setup, store)
    except Exception as error:
        if not isinstance(error, Interrupted | Held | NoRoom):  # with the run itself nothing is wrong
            store.fail(failure_of(error, store))
        raise


def _train(config: Config, how: How, setup: Setup, store: Store | None) -> Result:
    """From the last checkpoint, if there is one, to the end."""
    resume = checkpoint.latest(store.checkpoints) if store else None
    curve = store.rewind(resume.step if resume else 0) if store else []
    notes = (*_paced(config, how), *(_resumed(store, config, how) if store and resume else ()))
    config = as_it_began(config, store.read("meta.json")) if store else config
    tell = _told(how, store)
    tell(Started(config, setup, how.on, _device(), store and store.directory, resume and resume.step, notes))
    if store:
        store.write_plan(plan(setup))
    reached, losses = resume.step if resume else 0, {"rollbacks": 0, "seconds_lost": 0.0}
    with contextlib.closing(training(config, how, setup, resume, store is not None)) as events:  # which others train, wherever this ends
        for event in _noted(setup, store, events, curve, losses):
            if isinstance(event, Finished):
                result = _end(config, setup, store, event, curve, losses)
                tell(Ended(result))
                return result
            tell(event)
            reached = event.step if isinstance(event, Snapshot) else reached
            if how.interrupted() and (_kept_in_time(event) or how.elsewhere or not store):
                kept = f"the same command goes on from step {reached}" if store else "nothing was kept, for the run has no directory"
                raise Interrupted(f"interrupted after step {event.step}; {kept}")
    raise AssertionError("a training ends with Finished")


def _noted(
    setup: Setup, store: Store | None, events: Iterable[Event | Placed], curve: list[dict[str, Any]], losses: dict[str, Any]
) -> Iterator[Event]:
    """The events, with bytes counted as the run counts them; what is kept of each is kept before it is told."""
    for told in events:
        if isinstance(told, Placed):
            if store:
                store.write_meta({**store.read("meta.json"), "host": told.host, "devices": list(told.devices)})
            continue
        event = told._replace(traffic=told.traffic.at(setup.count)) if isinstance(told, Evaluated | Snapshot | Finished) else told
        if isinstance(event, Evaluated):
            curve.append(record_of(setup, event))
            if store:
                store.append(curve[-1])
        elif isinstance(event, Snapshot) and store:
            checkpoint.save(store.checkpoints, checkpoint.names(setup, setup.stage_at(event.step)), event)
        elif isinstance(event, Watched) and store:
            store.write_actors(actors_of(event, setup.stages[0].wiring.shards))
        elif isinstance(event, RolledBack | Joined):
            losses["rollbacks"] += isinstance(event, RolledBack)
            if isinstance(event, Joined) or event.dropped:  # with other replicas, what came after it comes out otherwise
                curve[:] = [record for record in curve if record["step"] <= event.step]
                if store:
                    store.rewind(event.step)
        elif isinstance(event, Recovered):
            losses["seconds_lost"] += event.seconds
        yield event


def _kept_in_time(event: Event) -> bool:
    """Whether nothing would be lost if the run ended now. In this process a snapshot follows at once; others have sent theirs."""
    return isinstance(event, Snapshot | Compiled)


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
    stage = setup.stage_at(event.step)
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
        "delays": [list(own) for own in event.delays or delays_of(setup, event.step)],
        "present": event.present,
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


def _paced(config: Config, how: How) -> Iterator[str]:
    """What becomes of an emulated network, and of counting what sockets add where there are none."""
    if line := how.line(config):
        yield f"links between actors are paced as of {line}"
    elif config.network:
        yield f"network {config.network} is emulated between actors: with --on ray"
    if how.on == "ray" and config.count == "wire" and how.carrier(config) == "ray":
        yield "`count: wire` counts frames as they are on sockets; as calls of Ray they take more, which nothing here counts"


def _resumed(store: Store, config: Config, how: How) -> tuple[str, ...]:
    """Note the resume in meta.json; warn if versions, or threads, have changed."""
    meta = store.read("meta.json")
    before = meta.get("versions", {})
    changed = [f"{name} {before[name]} -> {version}" for name, version in versions().items() if before.get(name, version) != version]
    notes = [f"begun under other versions ({', '.join(changed)}): the result may differ in its last bits"] if changed else []
    meta.setdefault("resumed", []).append({"at": now(), "versions": versions(), "git": commit()})
    store.write_meta(meta)
    return (*notes, *other_threads(config, how, meta))


def _header(how: How, meta: Mapping[str, Any]) -> str:
    source = f"from {relative(how.source)}" if how.source else "from Python"
    return f"{source}{' @ ' + meta['git'] if meta['git'] else ''}\n{meta['command']}"


def _device() -> str:
    import jax

    return jax.default_backend()
