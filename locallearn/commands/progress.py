"""Progress of a run on a terminal, or as plain lines for a pipe."""

from __future__ import annotations

import time
from typing import Any, Self, TextIO

from locallearn.experiment.events import Ended, Started
from locallearn.experiment.lines import Lines
from locallearn.runtime.training import Compiled, Progress
from locallearn.words import decimal, duration, number


class Plain:
    """Every line as it comes; no control codes."""

    def __init__(self, out: TextIO):
        self.out, self.lines = out, Lines()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.out.flush()

    def __call__(self, event: Any) -> None:
        """One event of a run."""
        for line in self.lines(event):
            print(line, file=self.out, flush=True)


class Live:
    """The same lines, and below them one that follows the steps and goes away at the end."""

    def __init__(self, out: TextIO):
        from rich.console import Console
        from rich.live import Live as RichLive

        self.lines = Lines()
        self.console = Console(file=out, highlight=False, markup=False, emoji=False, soft_wrap=True)
        self.live = RichLive(console=self.console, transient=True, auto_refresh=False)
        self._marked = (0.0, 0)

    def __enter__(self) -> Self:
        self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def __call__(self, event: Any) -> None:
        """One event of a run."""
        for line in self.lines(event):
            self.console.print(line, style="bold" if isinstance(event, Started | Ended) else None)
        if isinstance(event, Started):
            self._show("preparing")
        elif isinstance(event, Compiled):
            self._marked = (time.monotonic(), event.step)
        elif isinstance(event, Progress):
            self._show(status(event, self.lines.steps, *self._marked))
        elif isinstance(event, Ended):
            self._show("")

    def _show(self, text: str) -> None:
        from rich.text import Text

        self.live.update(Text(text, style="dim"), refresh=True)


def status(event: Progress, steps: int, since: float, first: int) -> str:
    """`step 350 of 600, 421/s, 1 s left, loss 0.41`."""
    elapsed = time.monotonic() - since
    rate = (event.step - first) / elapsed if elapsed > 0 else 0.0
    left = f", {duration((steps - event.step) / rate)} left" if rate else ""
    return f"    step {event.step} of {steps}, {number(rate)}/s{left}, loss {decimal(event.loss)}"


def shown_on(out: TextIO) -> Plain | Live:
    """What suits the stream."""
    return Live(out) if out.isatty() else Plain(out)
