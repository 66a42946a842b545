"""Looking at runs: their plan before they begin, and one of them in detail."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from locallearn.commands.waits import waits_text
from locallearn.errors import LocallearnError
from locallearn.experiment.store import RUNNING, Store
from locallearn.replicas import replica_steps
from locallearn.report.depth import course
from locallearn.report.table import to_csv
from locallearn.report.tabular import aligned, short, shown
from locallearn.traffic import ASIDE
from locallearn.words import WIDTH, decimal, duration, plural, size, span, those


def plan_text(path: Path, sets: Sequence[str], form: str) -> str:
    """`locallearn plan` for a run's file or a sweep's."""
    from locallearn.config.reading import read
    from locallearn.config.sweep import is_sweep

    document = read(path)
    if is_sweep(document.data):
        if sets:
            raise LocallearnError("--set changes a run; a sweep is changed in its file")
        return _sweep_plan(document, form, ())
    from locallearn.config.run import resolve
    from locallearn.experiment.planning import plan
    from locallearn.experiment.prepare import prepare

    config = resolve(document, sets)
    found = plan(prepare(config))
    if config.network:
        found["network"] = config.network
    if form == "json":
        return json.dumps(found, indent=1)
    if form == "csv":
        rows = [
            {"start": s["start"], "stop": s["stop"], **channel}
            for s in found["stages"]
            for channel in (*s["channels"], *s.get("average_channels", ()))
        ]
        return to_csv(rows, list(dict.fromkeys(key for row in rows for key in row)) if rows else ["start"]).rstrip("\n")
    return _plan_table(found)


def _plan_table(found: Mapping[str, Any]) -> str:
    lines = []
    for stage in found["stages"]:
        if len(found["stages"]) > 1:
            lines += [f"steps {stage['start']} to {stage['stop']}"]
        rows = [["message", "link", "messages a step", "payload", found["count"]]]
        for c in by_shards(stage["channels"]):
            rows.append([c["message"], c["link"], str(c["messages"]), size(c["payload"]), size(c["bytes"])])
        totals = [str(stage["messages_per_step"]), size(stage["payload_bytes_per_step"]), size(stage["bytes_per_step"])]
        lines += [aligned([*rows, ["together", "", *totals]], (2, 3, 4))]
        lines += [f"{plural(stage['hops_per_step'], 'message')} of a step must wait for one another", ""]
        lines += _average_lines(stage, found["count"]) if "average_every" in stage else []
    kinds = [(kind, f"{kind} {size(amount)}") for kind, amount in found["bytes_by_kind"].items()]
    training, beside = (", ".join(text for kind, text in kinds if (kind in ASIDE) is aside) for aside in (False, True))
    lines += [
        f"{plural(found['steps'], 'step')} send {'at most ' * found['at_most']}{size(found['bytes'])} "
        f"in {plural(found['messages'], 'message')}, {size(found['bytes_worst_link'])} on the busiest link",
        f"by kind: {training}" if training else "nothing crosses from shard to shard",
    ]
    lines += [f"beside training: {beside}"] if beside else []
    lines += [f"actors (--on ray) send it at the pace of {found['network']}"] if "network" in found else []
    return "\n".join(lines)


def _average_lines(stage: Mapping[str, Any], count: str) -> list[str]:
    """What replicas average, beside the steps. count: what bytes are counted."""
    rows = [["message", "link", "messages an average", "payload", count]]
    for c in by_shards(stage["average_channels"]):
        rows.append([c["message"], c["link"], str(c["messages"]), size(c["payload"]), size(c["bytes"])])
    often = "step" if stage["average_every"] == 1 else f"{stage['average_every']} steps"
    waits = f"{plural(stage['hops_per_average'], 'message')} of which must wait for one another"
    return [aligned(rows, (2, 3, 4)), f"an average after every {often} and at the end, {waits}", ""]


def by_shards(channels: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Channels with a `link` in words. Those of several replicas are one: `0 > 1 x4` in each of four, `0 ring x4` between them."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for channel in channels:
        key = tuple(channel[name] for name in ("message", "kind", "src", "dst"))
        one = found.setdefault(key, dict(zip(("message", "kind", "src", "dst"), key, strict=True)) | {"links": 0})
        for name in channel.keys() & {"messages", "payload", "framed", "bytes"}:
            one[name] = one.get(name, 0) + channel[name]
        one["links"] += 1
    copied = any("src_replica" in channel for channel in channels)

    def link(one: Mapping[str, Any]) -> str:
        words = f"{one['src']} ring" if one["src"] == one["dst"] else f"{one['src']} > {one['dst']}"
        return f"{words} x{one['links']}" if copied else words

    return [one | {"link": link(one)} for one in found.values()]


def dry_run_text(path: Path, only: Sequence[str]) -> str:
    """`locallearn sweep --dry-run`."""
    from locallearn.config.reading import read

    return _sweep_plan(read(path), "table", only)


def _sweep_plan(document: Any, form: str, only: Sequence[str]) -> str:
    """One row for each combination, and the sum over all runs."""
    from locallearn.config.selection import selected
    from locallearn.config.sweep import load
    from locallearn.experiment.planning import plan
    from locallearn.experiment.prepare import cached_loader, prepare
    from locallearn.report.tuning import tuning_plan

    sweep = selected(load(document), only)
    if sweep.tune:
        return tuning_plan(sweep.studies, form)
    remember = cached_loader()
    together: dict[str, list[Any]] = {}
    for run in sweep.runs:
        together.setdefault(run.name, []).append(run)
    rows = []
    for name, runs in together.items():
        found = plan(prepare(runs[0].config, remember))
        total = {"bytes": found["bytes"], "messages": found["messages"], "all_bytes": found["bytes"] * len(runs)}
        rows.append({"run": name, "seeds": len(runs), "steps": found["steps"], **total})
    if form != "table":
        return shown(rows, form)
    words = {"run": short, "seeds": str, "steps": str, "bytes": size, "messages": str}
    count, amount = sum(row["seeds"] for row in rows), sum(row["all_bytes"] for row in rows)
    left_out = [f"skipped: {', '.join(map(str, entry.varied.values()))} ({entry.because})" for entry in sweep.skipped]
    return "\n".join([shown(rows, form, words), "", *left_out, f"{plural(count, 'run')} send {size(amount)} in all"])


def show_text(directory: Path, form: str = "table") -> str:
    """`locallearn show`: where it comes from, configuration, curve, traffic by link, and the failure if there is one."""
    store = Store(directory)
    store.begun()
    ending, failure, meta, records = *(store.read(f"{name}.json") for name in ("result", "failure", "meta")), store.records()
    if form == "json":
        told = {"state": store.state, "config": store.read_config(), "meta": meta, "records": records, "result": ending, "failure": failure}
        told |= {"actors": actors} if (actors := store.read("actors.json")) else {}
        return json.dumps(told, indent=1, ensure_ascii=False)
    parts = [f"{directory}  {store.state}\n{_origin(meta)}", store.path("config.yaml").read_text().rstrip()]
    parts += [part for part in (_curve(records), course(records)) if part] if records else []
    if ending:
        tested = f"test {decimal(ending['test_accuracy'], 4)} (lossless {decimal(ending['test_accuracy_lossless'], 4)})"
        tested += _ages(ending.get("delays", ())) + _presence(ending, store.read_config() or {})
        parts.append(f"ended after {plural(ending['step'], 'step')} ({ending['reason']}): {tested}\n{_links(ending['traffic'])}")
    waits = waits_text(store.read("actors.json"), store.state == RUNNING)
    parts += [waits] if waits else []
    if failure:
        parts.append(f"failed after step {failure['step']} with {failure['type']}: {failure['message']}\n{failure['traceback'].rstrip()}")
    return "\n\n".join(parts)


def _ages(delays: Sequence[Sequence[int]]) -> str:
    """How old the weights were that each shard's steps began with."""
    ages = [f"{sum(k * count for k, count in enumerate(own)) / sum(own):.2f} ({len(own) - 1})" for own in delays if sum(own)]
    return f"\nage of weights by shard, in updates: mean (most)  {', '.join(ages)}" if ages else ""


def _presence(ending: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Which replicas were there, where some were lost."""
    present, count = ending.get("present", ()), config.get("replicas", {}).get("count", 1)
    if not present:
        return ""
    told = [f"{'all' if len(who) == count else those(who)} from step {start}" for start, who in present]
    done = f"{replica_steps(present, ending['step'], count)} of {ending['step'] * count} steps of replicas done"
    return "\n" + textwrap.fill(f"there were {', '.join(told)}: {done}", WIDTH)


def _origin(meta: Mapping[str, Any]) -> str:
    """When, where and how a run began; what tuning has to do with it."""
    tuned = meta.get("tuned", {})
    role = "" if not tuned else f", {_role(tuned)}"
    where = f"on {meta.get('host', 'an unknown machine')}, {', '.join(meta.get('devices', ()))}, {meta.get('on', '')}"
    resumed = f", gone on with {len(meta['resumed'])} times" if meta.get("resumed") else ""
    paced = f", paced as of {meta['network']}" if meta.get("network") else ""
    return f"begun {meta.get('started', '')} {where}{paced}{resumed}{role}"


def _role(tuned: Mapping[str, Any]) -> str:
    values = ", ".join(f"{key} {value}" for key, value in tuned.get("values", {}).items())
    name = "the choice" if tuned.get("trial") is None else f"trial {tuned['trial']}"
    return f"{name} of study {tuned.get('study')}: {values}"


def _curve(records: Sequence[Mapping[str, Any]]) -> str:
    names = {"step": str, "train_loss": decimal, "validation_accuracy": decimal, "bytes": size, "seconds": duration}
    short = {"train_loss": "loss", "validation_accuracy": "valid", "bytes": "sent", "seconds": "time"}
    if "simulated_seconds" in records[0]:
        names, short = names | {"simulated_seconds": span}, short | {"simulated_seconds": "simulated"}
    rows = [{short.get(key, key): record[key] for key in names} for record in records]
    return shown(rows, "table", {short.get(key, key): write for key, write in names.items()})


def _links(traffic: Sequence[Mapping[str, Any]]) -> str:
    rows = [["message", "kind", "link", "messages", "framed"]]
    rows += [[c["message"], c["kind"], c["link"], str(c["messages"]), size(c["framed"])] for c in by_shards(traffic)]
    return aligned(rows, (3, 4))
