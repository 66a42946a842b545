"""What a shard tells of itself while it runs: a log, and numbers that a Prometheus can fetch from Ray.

Numbers, each with the run, the shard and its replica, under the names that Ray gives them: `ray_locallearn_sent_bytes_total` (framed) and
`ray_locallearn_messages_total` by message, kind and link, `ray_locallearn_steps_total`, `ray_locallearn_step`, and
`ray_locallearn_waiting_seconds_total`, the time in which the shard waited for frames. They count what was really done: a step that is done
again after a loss counts again.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

from locallearn.runtime.training import Compiled, Evaluated, Event, Finished, Snapshot
from locallearn.traffic import Channel, Traffic
from locallearn.words import called, decimal, duration, size

OWN = ("run", "shard", "replica")
LINK = (*OWN, "message", "kind", "link")


class Numbers:
    """The numbers of one shard. run: its name. replica: None where there is but one."""

    def __init__(self, run: str, shard: int, replica: int | None = None):
        from ray.util import metrics

        self._tags = {"run": run, "shard": str(shard), "replica": str(replica or 0)}
        count = metrics.Counter
        self._bytes = count("locallearn_sent_bytes", "Framed bytes that this shard sent.", tag_keys=LINK)
        self._messages = count("locallearn_messages", "Messages that this shard sent.", tag_keys=LINK)
        self._steps = count("locallearn_steps", "Training steps.", tag_keys=OWN)
        self._waiting = count("locallearn_waiting_seconds", "Seconds that this shard waited for frames.", tag_keys=OWN)
        self._step = metrics.Gauge("locallearn_step", "The step that this shard is at.", tag_keys=OWN)
        self.begin(Traffic(), 0, 0.0)

    def begin(self, traffic: Traffic, step: int, waited: float) -> None:
        """From here on it is counted: a snapshot brings what was sent before."""
        self._sent: dict[Channel, tuple[int, int]] = _amounts(traffic)
        self._done, self._waited = step, waited

    def tell(self, traffic: Traffic, step: int, waited: float) -> None:
        """What has come since the last time."""
        for channel, (framed, messages) in _amounts(traffic).items():
            before = self._sent.get(channel, (0, 0))
            link = f"{channel.src}>{channel.dst}" if channel.src_replica == channel.dst_replica else f"{channel.src} ring"
            tags = {**self._tags, "message": channel.message, "kind": channel.kind, "link": link}
            _add(self._bytes, framed - before[0], tags)
            _add(self._messages, messages - before[1], tags)
            self._sent[channel] = framed, messages
        _add(self._steps, step - self._done, self._tags)
        _add(self._waiting, waited - self._waited, self._tags)
        self._step.set(step, self._tags)
        self._done, self._waited = step, waited


def _amounts(traffic: Traffic) -> dict[Channel, tuple[int, int]]:
    return {channel: (traffic.framed(channel), count) for channel, count in traffic.messages.items()}


def _add(counter: Any, amount: float, tags: dict[str, str]) -> None:
    if amount > 0:
        counter.inc(amount, tags)


class Diary:
    """The log of one shard, with the step in every line; Ray keeps it with the actor."""

    def __init__(self, shard: int, replica: int | None = None):
        name = called(shard, replica)
        self._logger = logging.getLogger(f"locallearn.{name}".replace(" ", "-"))
        self._logger.propagate = False
        self._logger.setLevel(logging.INFO)
        if not self._logger.handlers:
            handler = logging.StreamHandler(sys.stderr)
            handler.setFormatter(logging.Formatter(f"%(asctime)s  {name}  %(message)s"))
            self._logger.addHandler(handler)

    def write(self, step: int, text: str) -> None:
        """A line."""
        self._logger.info("step %d  %s", step, text)

    def event(self, event: Event) -> None:
        """What is worth a line; mere progress is not."""
        match event:
            case Compiled():
                self.write(event.step, f"compiled in {duration(event.seconds)}")
            case Evaluated():
                known = event.train_loss is not None or event.accuracy is not None
                found = f", loss {decimal(event.train_loss)}, valid {decimal(event.accuracy)}" if known else ""
                self.write(event.step, f"evaluated{found}, sent {size(event.traffic.bytes)}")
            case Snapshot():
                self.write(event.step, "snapshot")
            case Finished():
                self.write(event.step, f"finished: {event.reason}")
