"""Where the numbers come from: rules and settings, what failed, versions and machines, and the commands that make them again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from locallearn.experiment.store import DIVERGED, FAILED, FINISHED, Store
from locallearn.report.material import Material, family
from locallearn.report.tabular import cell, flattened
from locallearn.report.web.elements import Html, bullets, code, details, folded, named, section, table, tag, together
from locallearn.words import plural

TRACEBACKS = 20
TOLD_ELSEWHERE = ("seed", "rule.name")


def rules(material: Material) -> Html:
    """What each rule assumes, and the settings in which the combinations differ."""
    return section("rules", "Rules and settings", _assumptions(material), _settings(material))


def _assumptions(material: Material) -> Html:
    from locallearn.report.costs import costs_by_name
    from locallearn.rules import OURS, RULES

    rows = []
    for name in dict.fromkeys(group.rule for group in material.groups):
        known = RULES.get(name)
        waits = ", ".join(costs_by_name(name).locking) or "nothing" if name in OURS else "–"
        rows.append([name.replace("_", " "), family(name) or "–", known.assumes if known else "a rule that is not installed here", waits])
    return table(["rule", "family", "assumes", "a block's update waits for"], rows, words=4)


def _settings(material: Material) -> Html:
    """For each task: in what its combinations differ, and what they share."""
    parts: list[object] = []
    for panel in dict.fromkeys(group.panel for group in material.groups):
        groups = [group for group in material.groups if group.panel == panel]
        configs = [flattened(Store(material.root / group.first).read_config() or {}) for group in groups]
        keys = [key for key in dict.fromkeys(key for config in configs for key in config) if key not in TOLD_ELSEWHERE]
        differing = [key for key in keys if len({cell(config.get(key)) for config in configs}) > 1]
        rows = [
            [named(material, group), "; ".join(f"{key} {cell(config[key])}" for key in differing if config.get(key) is not None)]
            for group, config in zip(groups, configs, strict=True)
        ]
        shared = [[key, cell(configs[0][key])] for key in keys if key not in differing and configs[0].get(key) is not None]
        own = folded(["", "where settings differ"], rows, words=2)
        parts += [tag("h3", panel), own, details(f"Settings that all of them share ({len(shared)})", table(["", "value"], shared, words=2))]
    return together(parts)


def failures(material: Material) -> Html:
    """Every run that failed or diverged, with its reason; how many are not over."""
    rows: list[Sequence[object]] = []
    for number, (run, told) in enumerate(material.failures.items()):
        reason = f"{told.get('type', 'an error')}: {told.get('message', 'without a word')}"
        trace = [details("traceback", code(str(told["traceback"])))] if told.get("traceback") and number < TRACEBACKS else []
        rows.append([run, FAILED, f"step {told.get('step', 0)}", together([reason, *trace])])
    for row in material.diverged:
        rows.append([str(row["run"]), DIVERGED, f"step {row.get('step', 0)}", "The loss was not finite any more; counts as a miss."])
    open_ = Counter(str(row["state"]) for row in material.last if row["state"] not in (FINISHED, FAILED))
    rest = [tag("p", f"Not over: {', '.join(f'{count} {state}' for state, count in open_.items())}.")] if open_ else []
    if not rows and not rest:
        return section("failures", "Failures", tag("p", "No run failed or diverged."))
    return section("failures", "Failures", folded(["run", "", "at", "reason"], rows, words=4, limit=60, first=20), *rest)


def provenance(material: Material) -> Html:
    """Versions, commits, machines; more than one of a kind is marked."""
    metas = list(material.metas.values())
    packages = dict.fromkeys(name for meta in metas for name in meta.get("versions", {}))
    facts: dict[str, Counter[str]] = {
        "commit": Counter(str(meta.get("git") or "unknown") for meta in metas),
        "machine": Counter(str(meta.get("host", "unknown")) for meta in metas),
        "system": Counter(str(meta.get("system", "unknown")) for meta in metas),
        "device": Counter(", ".join(meta.get("devices", ())) or "unknown" for meta in metas),
        "threads": Counter(cell(meta.get("threads")) for meta in metas),
        "fabric": Counter(str(row["fabric"]) for row in material.last),
        **{name: Counter(str(meta.get("versions", {}).get(name, "unknown")) for meta in metas) for name in packages},
    }
    rows = [[name, _counted(counts), tag("small", "differs", class_="warn") if len(counts) > 1 else ""] for name, counts in facts.items()]
    dirty = sum("changed" in str(meta.get("git")) for meta in metas)
    started = sorted(str(meta["started"]) for meta in metas if "started" in meta)
    notes: list[object] = [f"Runs were started from {started[0]} to {started[-1]}."] if started else []
    notes += [tag("span", f"{plural(dirty, 'run')} began from files that no commit holds.", class_="warn")] if dirty else []
    resumed = sum(bool(meta.get("resumed")) for meta in metas)
    notes += [f"{plural(resumed, 'run')} went on after an interruption."] if resumed else []
    return section("provenance", "Provenance", bullets(notes), table(["", "", ""], rows, words=3))


def _counted(counts: Counter[str]) -> str:
    if len(counts) == 1:
        return next(iter(counts))
    shown = [f"{name} ({plural(count, 'run')})" for name, count in counts.most_common(6)]
    return ", ".join(shown) + (f", and {len(counts) - 6} more" if len(counts) > 6 else "")


def reproduce(material: Material, command: str) -> Html:
    """The commands, from a clone."""
    metas = list(material.metas.values())
    commits = Counter(str(meta["git"]).split()[0] for meta in metas if meta.get("git"))
    commands = dict.fromkeys(str(meta["command"]) for meta in metas if meta.get("command"))
    lines = [
        *(f"git checkout {commit}" for commit, _ in commits.most_common(1)),
        "python3 -m venv .venv && . .venv/bin/activate && pip install -e .",
        *list(commands)[:12],
        command,
    ]
    more = [tag("p", f"{len(commands) - 12} commands more in the runs' meta.json.")] if len(commands) > 12 else []
    sweeps = [details(name, code(text)) for name, text in material.sweeps.items()]
    return section("reproduce", "How to reproduce", code("\n".join(lines)), *more, *sweeps)
