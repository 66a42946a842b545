"""Mailboxes and outboxes without Ray: order, damage, and how far a sender may run ahead."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from locallearn.runtime.frame import TRAIN, Address, FrameError, frame
from locallearn.runtime.mailbox import WINDOW, Mailbox, Outbox


def address(step, micro=0):
    return Address(TRAIN, 0, 1, micro, step, 0)


def message(step, micro=0):
    return frame(address(step, micro), [np.array([step], np.int32)])


def test_frames_are_taken_by_address_whatever_the_order_of_arrival():
    mailbox = Mailbox()
    for step in random.Random(0).sample(range(50), 50):
        mailbox.put(message(step))
    assert [mailbox.take(address(step), "x") for step in range(50)] == [message(step) for step in range(50)]


def test_take_waits_for_exactly_its_frame_and_says_so():
    mailbox = Mailbox()
    with ThreadPoolExecutor(1) as pool:
        taken = pool.submit(mailbox.take, address(7), "error")
        mailbox.put(message(8))
        while not mailbox.waiting.get(0):
            pass
        assert mailbox.waiting[0] == (address(7), "error")
        assert not taken.done()
        mailbox.put(message(7))
        assert taken.result(5) == message(7)
    assert mailbox.waiting[0] is None


def test_a_doubled_and_a_damaged_frame_are_refused():
    mailbox = Mailbox()
    mailbox.put(message(1))
    with pytest.raises(FrameError, match="twice"):
        mailbox.put(message(1))
    with pytest.raises(FrameError, match="checksum"):
        mailbox.put(message(2)[:-1] + b"\xff")


class Wire:
    """An outbox and a mailbox with a thread pool between them, in place of Ray."""

    def __init__(self):
        self.pool, self.mailbox, self.most = ThreadPoolExecutor(32), Mailbox(), 0
        self.outbox = Outbox(
            0,
            send=lambda dst, data: self.pool.submit(self._deliver, data),
            await_all=lambda futures: [future.result() for future in futures],
            await_taken=lambda dst, stream, enough: self.mailbox.taken(stream, enough),
        )

    def _deliver(self, data):
        taken = self.mailbox.put(data)
        self.most = max(self.most, len(self.mailbox._frames))
        return taken


def test_a_sender_is_held_back_and_nothing_is_lost():
    wire = Wire()
    sender = threading.Thread(target=lambda: [wire.outbox.post(address(step), message(step)) for step in range(300)])
    sender.start()
    sender.join(0.3)
    assert sender.is_alive(), "nothing held the sender back although nobody took a frame"
    assert [wire.mailbox.take(address(step), "x") for step in range(300)] == [message(step) for step in range(300)]
    sender.join(5)
    assert not sender.is_alive()
    assert 1 < wire.most <= WINDOW


def test_microbatches_do_not_hold_each_other_back():
    wire = Wire()

    def send(micro):
        for step in range(100):
            wire.outbox.post(address(step, micro), message(step, micro))

    senders = [threading.Thread(target=send, args=(micro,)) for micro in range(3)]
    for sender in senders:
        sender.start()
    for micro in (2, 0, 1):
        for step in range(100):
            wire.mailbox.take(address(step, micro), "x")
    for sender in senders:
        sender.join(5)
        assert not sender.is_alive()


def test_errors_of_earlier_sends_come_up_at_a_later_one():
    wire = Wire()

    def flood():
        for step in [1] * (WINDOW + 1):
            wire.outbox.post(address(step), message(step))

    with pytest.raises(FrameError, match="twice"):
        flood()
