"""A slow network on a fast one: every frame leaves when a link of that rate would have let it through, and arrives a latency later.

The sender paces, so that nothing need be set up on the machine. A shard's frames share one line out, whatever shard they go to, as
`locallearn.network.clock` has it; a sender waits where QUEUE frames are in line.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Any

from locallearn.networks import Network
from locallearn.runtime.ends import QUEUE
from locallearn.runtime.frame import Address


class Paced:
    """A transport behind an emulated network. It has whatever else the transport has."""

    def __init__(self, transport: Any, network: Network):
        self._transport, self._network = transport, network
        self._line: deque[tuple[float, float, Address, bytes]] = deque()  # when the last bit leaves, when it arrives
        self._free = 0.0
        self._changed = threading.Condition()
        self._error: Exception | None = None
        self._closed = False
        threading.Thread(target=self._deliver, daemon=True, name="emulated link").start()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def post(self, address: Address, data: bytes) -> None:
        """Stand in line; wait only where the line is long."""
        with self._changed:
            while self._waiting() >= QUEUE and not self._error and not self._closed:
                self._changed.wait(max(0.0, self._line[-QUEUE][0] - time.monotonic()))
            if self._error:
                raise self._error
            self._free = max(self._free, time.monotonic()) + self._network.seconds(len(data))
            self._line.append((self._free, self._free + self._network.latency, address, data))
            self._changed.notify_all()

    def close(self) -> None:
        """End every wait."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._transport.close()

    def _waiting(self) -> int:
        """Frames whose last bit has not left."""
        now = time.monotonic()
        return sum(leaves > now for leaves, *_ in self._line)

    def _deliver(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._line)
                if self._closed:
                    return
                _, due, address, data = self._line[0]
            pause = due - time.monotonic()
            if pause > 0:
                time.sleep(pause)
            try:
                self._transport.post(address, data)
            except Exception as error:  # told to whoever sends next
                with self._changed:
                    self._error = error
                    self._changed.notify_all()
                return
            with self._changed:
                self._line.popleft()
                self._changed.notify_all()
