"""Progress of a sweep: a count at the start, a line for each run that ends, and on a terminal one for the run in progress."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, Self, TextIO

from locallearn.commands.progress import status
from locallearn.config.sweep import Run
from locallearn.experiment.store import FAILED, FINISHED, INTERRUPTED, NEW, RUNNING
from locallearn.experiment.sweeping import Begun, Failure, Outcome, Planned
from locallearn.experiment.tuning import Chosen, Waiting
from locallearn.runtime.training import Compiled, Progress
from locallearn.words import decimal, duration, plural, size

WORDS = {FINISHED: "finished", INTERRUPTED: "resumed", NEW: "new", FAILED: "failed", RUNNING: "running elsewhere"}


class SweepProgress:
    """Shows a sweep on a stream. Call it with what a Course tells; give `of_run` to its runs."""

    def __init__(self, out: TextIO, quiet: bool = False):
        self.out, self.quiet = out, quiet
        self.total, self.number, self.done, self.waiting = 0, 0, 0, 0
        self.name, self.steps = "", 0
        self.begun = time.monotonic()
        self._marked = (0.0, 0)
        self.live: Any = None

    def __enter__(self) -> Self:
        if self.out.isatty() and not self.quiet:
            from rich.console import Console
            from rich.live import Live

            self.live = Live(console=Console(file=self.out, highlight=False, soft_wrap=True), transient=True, auto_refresh=False)
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def __call__(self, news: Any) -> None:
        """What the sweep as a whole tells."""
        match news:
            case Planned():
                self.total = len(news.runs)
                self.waiting, self.done, self.begun = self.total - news.states.get(FINISHED, 0), 0, time.monotonic()
                self.line(counted(news))
            case Begun():
                self.number, self.name = news.number, run_words(news.run)
                self.show("under way")
            case Outcome():
                self._outcome(news)
            case Chosen():
                self.line(chosen_words(news))
            case Waiting():
                self.line(f"waiting for {plural(news.trials, 'trial')} of another process")

    def of_run(self, event: Any) -> None:
        """What the run in progress tells."""
        if isinstance(event, Compiled):
            self._marked = (time.monotonic(), event.step)
        elif isinstance(event, Progress):
            self.show(status(event, self.steps, *self._marked).strip())
        elif hasattr(event, "setup"):
            self.steps = event.setup.steps

    def line(self, text: str) -> None:
        """A line that stays."""
        if self.live:
            self.live.console.print(text, markup=False, emoji=False)
        elif not self.quiet:
            print(text, file=self.out, flush=True)

    def show(self, text: str) -> None:
        """What the run in progress is doing, and how long the sweep has to go."""
        if self.live:
            from rich.text import Text

            left = (time.monotonic() - self.begun) / self.done * (self.waiting - self.done) if self.done else None
            eta = f", sweep {duration(left)} left" if left else ""
            self.live.update(
                Text(f"{self._place(self.number)} {self.name}: {text}{eta}", style="dim", overflow="ellipsis", no_wrap=True), refresh=True
            )

    def _outcome(self, outcome: Outcome) -> None:
        if outcome.before == FINISHED:
            return
        self.done += 1
        text = f"{self._place(outcome.number)} {fitted(run_words(outcome.run), 34)}  {outcome_words(outcome)}"
        self.line(text if self.live else f"{time.strftime('%H:%M:%S')} {text}")

    def _place(self, number: int) -> str:
        digits = len(str(self.total))
        return f"[{number:>{digits}}/{self.total}]"


def counted(planned: Planned) -> str:
    """`25 runs: 14 finished, 3 resumed, 8 new`."""
    counts = [f"{planned.states[state]} {word}" for state, word in WORDS.items() if planned.states.get(state)]
    trials = all(run.tuned and run.tuned.trial is not None for run in planned.runs)
    return f"{plural(len(planned.runs), 'trial' if trials else 'run')}: {', '.join(counts)}"


def chosen_words(chosen: Chosen) -> str:
    """What a study chose."""
    name = chosen.study.name.rpartition("-")[0].rpartition("-")[0]
    if chosen.trial is None:
        return f"study {chosen.study.number} of {name}: {chosen.why}"
    values = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in chosen.values.items())
    valid = decimal(chosen.figures.get("validation_accuracy"))
    return f"study {chosen.study.number} of {name} chose trial {chosen.trial}: {values} (valid {valid})"


def run_words(run: Run) -> str:
    """What sets a run apart, in a few words."""
    words = [str(value) for key, value in run.varied.items() if key != "rule.name" and value is not None and value != "exact"]
    rule = [] if run.config.rule_name in words else [run.config.rule_name]
    last = [f"seed {run.config.seed}"]
    if run.tuned:
        last = [f"study {run.tuned.study}", *(last if run.tuned.trial is None else [f"trial {run.tuned.trial}"])]
    return " ".join([*rule, *words, *last])


def outcome_words(outcome: Outcome) -> str:
    """Accuracy, bytes and time; or how the run failed."""
    result = outcome.result
    if outcome.state == RUNNING:
        return "running in another process"
    if result is None:
        kind, text, _ = outcome.failure or Failure("", "", earlier=False)
        return f"FAILED {kind}: {(text.strip().splitlines() or [''])[0]}"
    ended = "" if result.reason == "steps" else f"  {result.reason}"
    accuracy = decimal(result.test_accuracy) if result.test_accuracy is not None else f"valid {decimal(result.accuracy)}"
    return f"{accuracy}{size(result.traffic.bytes):>10} {duration(result.seconds):>9}{ended}"


def failures(outcomes: Iterable[Outcome]) -> list[str]:
    """Each failed run with its error and directory, for the end."""
    failed = [(outcome, outcome.failure) for outcome in outcomes if outcome.failure]
    lines = [f"{plural(len(failed), 'run')} failed:"] if failed else []
    for outcome, failure in failed:
        lines += [f"  {run_words(outcome.run)}: {failure.kind}: {failure.text}", f"    {outcome.directory}"]
    return lines


def fitted(text: str, width: int) -> str:
    """The text in exactly so many columns, if need be without its middle: the seed stands at its end."""
    return f"{text:<{width}}" if len(text) <= width else f"{text[: width - 11]}…{text[-10:]}"


__all__ = ["SweepProgress", "counted", "failures", "fitted", "outcome_words", "run_words"]
