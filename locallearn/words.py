"""Numbers as people read them."""

from __future__ import annotations

from collections.abc import Sequence

WIDTH = 80
"""Columns of text for a terminal."""


def size(count: float) -> str:
    """Bytes with three digits: `4 B`, `1.18 MiB`, `0.98 GiB`."""
    amount, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        if amount < 999.5:
            break
        amount, unit = amount / 1024, larger
    return f"{amount:.0f} B" if unit == "B" else f"{_three(amount)} {unit}"


def number(count: float) -> str:
    """A number with three digits: `421`, `1.2k`, `3.4M`."""
    amount, unit = float(count), ""
    for larger in ("k", "M", "G"):
        if amount < 999.5:
            break
        amount, unit = amount / 1000, larger
    return f"{_three(amount)}{unit}"


def duration(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def span(seconds: float) -> str:
    """A duration from microseconds to years: `350 us`, `21 ms`, `8.5 s`, `3 min 20 s`, `2 h 5 min`, `11.6 d`."""
    if seconds < 0.9995:
        return f"{seconds * 1e3:.3g} ms" if seconds >= 0.9995e-3 else f"{seconds * 1e6:.3g} us"
    return duration(seconds) if seconds < 48 * 3600 else f"{seconds / 86400:.3g} d" if seconds < 1e8 else f"{seconds / 31557600:.3g} years"


def plural(count: int, word: str, several: str = "") -> str:
    """`1 run`, `2 runs`. several: the word for them, if it is not the one with an s."""
    return f"{count} {word if count == 1 else several or f'{word}s'}"


def decimal(value: float | None, digits: int = 3) -> str:
    """A share or a loss; `-` where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def _three(amount: float) -> str:
    return f"{amount:.2f}" if amount < 9.995 else f"{amount:.1f}" if amount < 99.95 else f"{amount:.0f}"


def those(replicas: Sequence[int]) -> str:
    """`replica 1`, `replicas 0 and 2`, `replicas 0, 1 and 3`."""
    *most, last = map(str, replicas)
    return f"replicas {', '.join(most)} and {last}" if most else f"replica {last}"


def called(shard: int, replica: int | None = None) -> str:
    """`shard 2`, or of several replicas `shard 2 of replica 1`."""
    return f"shard {shard}" if replica is None else f"shard {shard} of replica {replica}"


def first_line(error: BaseException) -> str:
    """What an error says, in a line; its kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
