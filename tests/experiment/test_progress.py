"""What a run and a sweep show, word for word."""

import io
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from locallearn.commands import progress as shown
from locallearn.commands.progress import Live, Plain, shown_on
from locallearn.commands.sweepprogress import SweepProgress, failures, fitted
from locallearn.config.sweep import Run
from locallearn.experiment.api import configuration
from locallearn.experiment.events import Ended, Started
from locallearn.experiment.lines import Lines, wrapped
from locallearn.experiment.prepare import prepare
from locallearn.experiment.sweeping import Begun, Failure, Outcome, Planned
from locallearn.runtime.training import Compiled, Evaluated, Progress
from locallearn.traffic import Channel, Traffic
from locallearn.words import duration, number, plural, size

CONFIG = {
    "rule": {"name": "backprop"},
    "model": {"name": "mlp", "widths": [40, 8, 10], "shards": 2},
    "data": {"name": "strokes1d", "samples": 200, "test_samples": 50},
    "train": {"steps": 40, "batch": 16, "evaluate_every": 20},
    "codecs": {"error": ["error_feedback", "int8"]},
}


def sent(count):
    traffic = Traffic()
    traffic.count(Channel("activation", "activation", 0, 1), count - 20)
    return traffic


def result(**changes):
    fields = {"test_accuracy": 0.8611, "step": 40, "reason": "steps", "traffic": sent(3 * 2**20), "seconds": 3.14, "directory": None}
    return SimpleNamespace(**{**fields, **changes})


@pytest.fixture(scope="module")
def events():
    config = configuration(CONFIG)
    setup = prepare(config)
    return [
        Started(config, setup, "local", "cpu", Path("runs/tiny/x/seed-0"), None),
        Compiled(0, 1.4),
        Progress(10, 2.5),
        Evaluated(20, 0.5, 1.4, 2.125, 0.25, 0.25, sent(2**20)),
        Evaluated(40, 0.75, 1.4, float("nan"), None, None, sent(3 * 2**20)),
        Ended(result(directory=Path("runs/tiny/x/seed-0"))),
    ]


GOLDEN = """\
backprop  mlp 40-8-10  2 shards  error error_feedback+int8  fused on cpu
plan     2 messages, 744 B a step  -> 29.1 KiB for 40 steps
compile  1.4 s
    step     loss   valid        sent       rate
      20    2.125   0.250    1.00 MiB     40.0/s
      40      nan       -    3.00 MiB     80.0/s
done     0.861 test after 40 steps, 3.00 MiB, 3.1 s
         runs/tiny/x/seed-0
"""


def test_a_run_in_plain_lines(events):
    out = io.StringIO()
    with Plain(out) as plain:
        for event in events:
            plain(event)
    assert out.getvalue() == GOLDEN
    assert max(map(len, GOLDEN.splitlines())) <= 80
    assert isinstance(shown_on(io.StringIO()), Plain)


def test_the_plan_line_is_the_arithmetic():
    """8 examples wide 16: 16 x 8 float32 up; int8 with one scale for each row down; 20 bytes of header each; two decisions."""
    up, down = 16 * 8 * 4 + 20, 16 * (8 + 4) + 20
    assert up + down == 744
    assert size(40 * (up + down) + 2 * 21) == "29.1 KiB"


def test_a_terminal_shows_the_same_lines(events, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    with shown_on(out) as live:
        assert isinstance(live, Live)
        for event in events:
            live(event)
    text = out.getvalue()
    for line in GOLDEN.splitlines():
        assert line in text
    assert "step 10 of 40" in text
    assert "\x1b[3" not in text  # no colours


def test_notes_on_resuming_ray_and_ending(events):
    started = events[0]._replace(on="ray", resumed=20, notes=("begun under other versions",))
    lines = Lines()(started)
    assert "ray on cpu" in lines[0]
    assert lines[2:] == [
        "ray      starting actors; without --address in a Ray of its own, 5 to 10 s",
        "resume   from step 20 of 40",
        "note     begun under other versions",
    ]
    assert Lines()(Ended(result(reason="accuracy"), skipped=True)) == [
        "already  0.861 test after 40 steps (accuracy reached), 3.00 MiB, 3.1 s",
    ]


def test_the_rate_after_a_resume_counts_from_there(events):
    lines = Lines()
    lines(events[0]._replace(resumed=20))
    assert lines(events[4]._replace(seconds=1.0))[-1].endswith("-")  # how long the first part took is not known
    assert lines(events[4]._replace(step=60, seconds=2.0))[-1].endswith("20.0/s")


def test_status(monkeypatch):
    monkeypatch.setattr(shown.time, "monotonic", lambda: 12.0)
    assert shown.status(Progress(30, 0.41), 130, 2.0, 10) == "    step 30 of 130, 2.00/s, 50 s left, loss 0.410"


def test_long_heads_wrap():
    assert wrapped(["a" * 40, "b" * 38, "c"]) == ["a" * 40 + "  " + "b" * 38, "         c"]


def runs():
    config = configuration(CONFIG)
    return [
        Run(config, {"rule.name": "backprop", "codecs.default": codec}, f"backprop-{codec}-0") for codec in ("exact", "int8", "float16")
    ]


def test_a_sweep_in_plain_lines(monkeypatch):
    out = io.StringIO()
    first, second, third = runs()
    where = Path("runs/s")
    wrong = Outcome(2, second, where / "b", "new", "failed", failure=Failure.of(ValueError("first line\nsecond")))
    with SweepProgress(out) as progress:
        progress(Planned([first, second, third], Counter(finished=1, interrupted=1, new=1)))
        for k, outcome in enumerate(
            [
                Outcome(1, first, where / "a", "finished", "finished", result()),
                wrong,
                Outcome(3, third, where, "interrupted", "finished", result()),
            ]
        ):
            progress(Begun(k + 1, outcome.run))
            progress(outcome)
    lines = out.getvalue().splitlines()
    assert lines[0] == "3 runs: 1 finished, 1 resumed, 1 new"
    assert lines[1][9:] == "[2/3] backprop int8 seed 0                FAILED ValueError: first line"
    assert lines[2][9:] == "[3/3] backprop float16 seed 0             0.861  3.00 MiB     3.1 s"
    assert len(lines) == 3
    assert failures([wrong]) == ["1 run failed:", "  backprop int8 seed 0: ValueError: first line\nsecond", "    runs/s/b"]


def test_words():
    assert [size(n) for n in (0, 999, 1000, 2**20, 1.18 * 2**20, 999.4 * 2**20, 2**30 * 59)] == [
        *("0 B", "999 B", "0.98 KiB", "1.00 MiB", "1.18 MiB", "999 MiB", "59.0 GiB"),
    ]
    assert [number(n) for n in (0.5, 42.25, 421, 1234, 5e6)] == ["0.50", "42.2", "421", "1.23k", "5.00M"]
    assert [duration(s) for s in (0.44, 12.4, 60, 200, 3600, 7500)] == ["0.4 s", "12 s", "1 min", "3 min 20 s", "1 h", "2 h 5 min"]
    assert (plural(1, "run"), plural(0, "run")) == ("1 run", "0 runs")


def test_a_long_name_keeps_its_seed():
    assert fitted("forward_forward Fashion-MNIST int8 seed 12", 34) == "forward_forward Fashion…t8 seed 12"
    assert fitted("short", 8) == "short   "
