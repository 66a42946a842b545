"""The course of a run in lines of plain text: what a pipe, log.txt and a terminal all show."""

from __future__ import annotations

import textwrap
from typing import Any

from locallearn.config.codecs import EXACT
from locallearn.config.run import Config, codec_label
from locallearn.experiment.events import Ended, Started
from locallearn.experiment.planning import planned_traffic, varies
from locallearn.experiment.provenance import relative
from locallearn.experiment.result import Result
from locallearn.experiment.store import FABRICS
from locallearn.runtime.setup import Setup
from locallearn.runtime.training import Compiled, Evaluated, Joined, Progress, Recovered, RolledBack
from locallearn.words import WIDTH, decimal, duration, number, plural, size, those

HEADER = f"{'step':>8}{'loss':>9}{'valid':>8}{'sent':>12}{'rate':>11}"


class Lines:
    """Turns the events of one run into lines; call it with each."""

    def __init__(self) -> None:
        self.steps, self.step, self._titled, self._compiled = 0, 0, False, 0.0
        self._rated: tuple[int, float] | None = (0, 0.0)

    def __call__(self, event: Any) -> list[str]:
        """What to show for an event; often nothing."""
        match event:
            case Started():
                return self._started(event)
            case Compiled():
                seconds, self._compiled = event.seconds - self._compiled, event.seconds
                return [f"compile  {duration(seconds)}"] if seconds else []
            case Evaluated():
                return self._evaluated(event)
            case Progress():
                self.step = event.step
                return []
            case RolledBack():
                who = "all" if event.shard is None else f"shard {event.shard}"
                without = f", without {those(event.dropped)}" if event.dropped else ""
                return [*_folded("lost", event.reason), f"back     {who} to step {event.step} of {self.steps}{without}"]
            case Joined():
                return [f"joined   {those(event.replicas)}, from step {event.step} of {self.steps} on"]
            case Recovered():
                return [f"again    at step {event.step}, {duration(event.seconds)} after it was lost"]
            case Ended():
                return _ended(event)
            case _:
                return []

    def _started(self, event: Started) -> list[str]:
        self.steps, self.step = event.setup.steps, event.resumed or 0
        self._rated = (0, 0.0) if event.resumed is None else None  # what came before took a time that is not told
        lines = [*headline(event), plan_line(event.setup)]
        if event.on == "ray":
            lines.append("ray      starting actors; without --address in a Ray of its own, 5 to 10 s")
        if event.resumed is not None:
            lines.append(f"resume   from step {event.resumed} of {self.steps}")
        return lines + [line for note in event.notes for line in _folded("note", note)]

    def _evaluated(self, event: Evaluated) -> list[str]:
        since, self._rated = self._rated, (event.step, event.seconds)
        self.step = event.step
        rate = f"{number((event.step - since[0]) / (event.seconds - since[1]))}/s" if since and event.seconds > since[1] else "-"
        loss, valid = decimal(event.train_loss), decimal(event.accuracy)
        row = f"{event.step:>8}{loss:>9}{valid:>8}{size(event.traffic.bytes):>12}{rate:>11}"
        title, self._titled = ([] if self._titled else [HEADER]), True
        return [*title, row]


def headline(event: Started) -> list[str]:
    """Rule, model, shards, codecs, and where it runs."""
    config, setup = event.config, event.setup
    shards = plural(setup.stages[0].wiring.shards, "shard")
    parts = [config.rule_name, model_words(config, setup), shards, codec_words(config), f"{FABRICS[event.on]} on {event.device}"]
    return wrapped(parts)


def model_words(config: Config, setup: Setup) -> str:
    """`mlp 196-256-10`, or the model's name and number of blocks."""
    model = config.canonical()["model"]
    widths = model.get("widths")
    detail = "-".join(map(str, widths)) if widths else plural(len(setup.stages[0].blocks), "block")
    return f"{model['name']} {detail}"


def codec_words(config: Config) -> str:
    """`int8`, or `exact, error int8`."""
    words = [codec_label(config.codecs["default"])]
    words += [f"{key} {codec_label(spec)}" for key, spec in config.codecs.items() if key != "default"]
    return ", ".join(words if config.codecs["default"] != EXACT or len(words) == 1 else words[1:])


def plan_line(setup: Setup) -> str:
    """What a step sends, and what the run will."""
    step = setup.plan_step(setup.stages[-1]).traffic
    first = f"plan     {plural(step.message_count, 'message')}, {size(step.bytes)} a step"
    return f"{first}  -> {'at most ' * varies(setup)}{size(planned_traffic(setup).bytes)} for {plural(setup.steps, 'step')}"


def _ended(event: Ended) -> list[str]:
    word = "already" if event.skipped else "done"
    where = [f"         {relative(str(event.result.directory))}"] if event.result.directory else []
    return [f"{word:<9}{outcome(event.result)}", *where]


def _folded(word: str, text: str) -> list[str]:
    """A text in lines of 80 columns, behind a word."""
    return textwrap.wrap(text, WIDTH, initial_indent=f"{word:<9}", subsequent_indent=" " * 9)


def outcome(result: Result) -> str:
    """`0.861 test after 600 steps, 707 MiB, 3.1 s`, and why if it ended early."""
    early = {"steps": "", "accuracy": " (accuracy reached)", "bytes": " (bytes spent)"}.get(result.reason, f" ({result.reason})")
    return (
        f"{decimal(result.test_accuracy)} test after {plural(result.step, 'step')}{early}, "
        f"{size(result.traffic.bytes)}, {duration(result.seconds)}"
    )


def wrapped(parts: list[str]) -> list[str]:
    """Parts in a line, two spaces apart; what is too much goes to the next, indented."""
    lines = [parts[0]]
    for part in parts[1:]:
        longer = f"{lines[-1]}  {part}"
        if len(longer) <= WIDTH:
            lines[-1] = longer
        else:
            lines.append(f"         {part}")
    return lines
