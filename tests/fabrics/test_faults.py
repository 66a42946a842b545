"""Ten thousand frames and more through links that drop, double, swap, delay, cut and alter them: none goes unnoticed, and all arrive."""

import random
import socket
import struct
import threading
import time

import numpy as np
import pytest

from locallearn.runtime import links
from locallearn.runtime.ends import RECORD_BYTES
from locallearn.runtime.frame import TRAIN, Address, FrameError, frame
from locallearn.runtime.handshake import Position
from locallearn.runtime.links import Links
from locallearn.runtime.mailbox import MISSING_SECONDS, Mailbox

HOST, SECRET = "127.0.0.1", b"s" * 32
HANDSHAKE = 32 + 32
"""Bytes of the caller: its hello and its proof."""


class Culprit:
    """Stands between a sender and a receiver, passes records and frames on, and does one wrong to a connection before it is made anew.

    done: how many wrongs. Doubling and delaying break nothing, so they happen again and again.
    """

    def __init__(self, place, kind, share, seed):
        self._to, self._kind, self._share, self._random = place, kind, share, random.Random(seed)
        self._listener = socket.create_server((HOST, 0))
        self.place, self.done = self._listener.getsockname()[:2], 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                caller, _ = self._listener.accept()
            except OSError:
                return
            called = socket.create_connection(self._to)
            threading.Thread(target=self._back, args=(called, caller), daemon=True).start()
            threading.Thread(target=self._forth, args=(caller, called), daemon=True).start()

    def _back(self, called, caller):
        try:
            while part := called.recv(4096):
                caller.sendall(part)
        except OSError:
            pass
        for wire in (called, caller):
            wire.close()

    def _forth(self, caller, called):
        harmed, held = False, b""
        try:
            called.sendall(caller.recv(HANDSHAKE // 2, socket.MSG_WAITALL))
            called.sendall(caller.recv(HANDSHAKE // 2, socket.MSG_WAITALL))
            while head := caller.recv(RECORD_BYTES, socket.MSG_WAITALL):
                (size,) = struct.unpack_from(">I", head)
                data = head + (caller.recv(size, socket.MSG_WAITALL) if size else b"")
                if not harmed and size and self._random.random() < self._share:
                    self.done += 1
                    harmed = self._kind not in ("double", "delay")
                    data, held = self._wrong(data)
                called.sendall(data)
                if held and size and data:
                    held = called.sendall(held) or b""
        except OSError:
            pass

    def _wrong(self, data):
        """What is passed on instead, and what after the next frame."""
        match self._kind:
            case "drop":
                return b"", b""
            case "double":
                return data + data, b""
            case "swap":
                return b"", data
            case "delay":
                time.sleep(0.02)
                return data, b""
            case "cut":
                return data[: self._random.randrange(1, len(data))], b""
        bit = self._random.randrange(8 * len(data))
        return data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :], b""


def address(step):
    return Address(TRAIN, 0, 1, 0, step, 0)


def message(step):
    return frame(address(step), [np.full(step % 97, step % 251, np.uint8)])


@pytest.mark.parametrize("kind", ["drop", "double", "swap", "delay", "cut", "alter"])
def test_every_fault_of_a_link_is_noticed_and_mended(monkeypatch, caplog, kind):
    monkeypatch.setattr(links, "BEAT_SECONDS", 0.02)
    count = 2000
    a, b = Links(0, HOST, 7, SECRET), Links(1, HOST, 7, SECRET)
    culprit = Culprit(b.place, kind, 0.02, seed=5)
    a.connect([a.place, culprit.place])
    b.connect([])
    sender = threading.Thread(target=lambda: [a.post(address(step), message(step)) for step in range(count)], daemon=True)
    sender.start()
    doubled = 0
    for step in range(count):
        b.reached(Position(step))
        assert b.take(address(step), "x") == message(step)
    doubled = b._from[0].doubled if 0 in b._from else 0
    sender.join(10)
    mended = sum("is to be made anew" in line for line in caplog.messages)
    for one in (a, b):
        one.close()
    assert culprit.done > 20
    harmful = kind not in ("double", "delay")
    assert mended in ((culprit.done - 1, culprit.done) if harmful else (0,)), "the last may not have been read any more"
    assert doubled == (culprit.done if kind == "double" else 0) or harmful


@pytest.mark.parametrize("kind", ["drop", "double", "swap", "cut", "alter"])
def test_every_fault_of_a_call_is_harmless_or_an_error(kind):
    """Two hundred lives of ten frames, in each of which one goes wrong."""
    chance = random.Random(6)
    for _ in range(200):
        mailbox, calls = Mailbox(), [(step, message(step + 1)) for step in range(10)]
        wrong(calls, chance, kind)
        for call in calls:
            mailbox.put(*call)
        for now in (0.0, MISSING_SECONDS):
            mailbox.promised(0, 10, now)
        if kind in ("double", "swap"):
            assert [mailbox.take(address(step + 1), "x") for step in range(10)] == [message(step + 1) for step in range(10)]
        else:
            with pytest.raises(FrameError, match=r"lost on their way|altered|shorter than its header|version"):
                [mailbox.take(address(step + 1), "x") for step in range(10)]


def wrong(calls, chance, kind):
    which = chance.randrange(10)
    number, data = calls[which]
    match kind:
        case "drop":
            del calls[which]
        case "double":
            calls.insert(chance.randrange(11), calls[which])
        case "swap":
            chance.shuffle(calls)
        case "cut":
            calls[which] = number, data[: chance.randrange(len(data))]
        case "alter":
            bit = chance.randrange(8 * len(data))
            calls[which] = number, data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :]
