"""Mailboxes and outboxes without Ray: order, damage, and how far a sender may run ahead."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from locallearn.runtime.frame import TRAIN, Address, FrameError, frame
from locallearn.runtime.mailbox import MISSING_SECONDS, WINDOW, Mailbox, Outbox


def address(step, micro=0):
    return Address(TRAIN, 0, 1, micro, step, 0)


def message(step, micro=0):
    return frame(address(step, micro), [np.array([step], np.int32)])


def test_frames_are_taken_by_address_whatever_the_order_of_arrival():
    mailbox = Mailbox()
    for step in random.Random(0).sample(range(50), 50):
        mailbox.put(step, message(step))
    assert [mailbox.take(address(step), "x") for step in range(50)] == [message(step) for step in range(50)]


def test_take_waits_for_exactly_its_frame_and_says_so():
    mailbox = Mailbox()
    with ThreadPoolExecutor(1) as pool:
        taken = pool.submit(mailbox.take, address(7), "error")
        mailbox.put(0, message(8))
        while not mailbox.waiting.get(0):
            pass
        assert mailbox.waiting[0] == (address(7), "error")
        assert not taken.done()
        mailbox.put(1, message(7))
        assert taken.result(5) == message(7)
    assert mailbox.waiting[0] is None


def test_a_call_that_comes_twice_is_dropped():
    mailbox = Mailbox()
    for number in (0, 0, 2, 1, 2, 1, 0):
        mailbox.put(number, message(number))
    assert [mailbox.take(address(step), "x") for step in range(3)] == [message(step) for step in range(3)]


def test_a_frame_that_never_comes_is_an_error_when_its_sender_speaks_of_it():
    mailbox = Mailbox()
    for number in (0, 1, 3, 4):
        mailbox.put(number, message(number))
    mailbox.promised(0, 6, now=100.0)
    mailbox.put(5, message(5))
    mailbox.promised(0, 7, now=100.0 + MISSING_SECONDS - 0.1)
    mailbox.take(address(0), "x")
    mailbox.promised(0, 9, now=100.0 + MISSING_SECONDS)
    with pytest.raises(FrameError, match="1 frames from shard 0 were lost"):
        mailbox.take(address(2), "x")


def test_a_late_frame_is_no_error():
    mailbox = Mailbox()
    for turn in range(10):
        mailbox.promised(0, turn + 1, now=turn * MISSING_SECONDS / 2)
        mailbox.put(turn, message(turn))
    assert mailbox.take(address(9), "x") == message(9)


def test_a_doubled_and_a_damaged_frame_are_errors_of_the_shard_that_waits():
    mailbox = Mailbox()
    mailbox.put(0, message(1))
    mailbox.put(1, message(1))
    with pytest.raises(FrameError, match="twice"):
        mailbox.take(address(2), "x")
    mailbox.put(2, message(2)[:-1] + b"\xff")
    with pytest.raises(FrameError, match="checksum"):
        mailbox.take(address(2), "x")


class Wire:
    """An outbox and a mailbox with a thread pool between them, in place of Ray."""

    def __init__(self):
        self.pool, self.mailbox = ThreadPoolExecutor(32), Mailbox()
        self.sent = 0
        self.outbox = Outbox(
            0, self._deliver, lambda dst, *asked: self.pool.submit(self.mailbox.taken, *asked), lambda future: future.result()
        )

    def _deliver(self, dst, number, data):
        self.sent += 1
        self.pool.submit(self.mailbox.put, number, data)


def test_a_sender_is_held_back_and_nothing_is_lost():
    wire = Wire()
    sender = threading.Thread(target=lambda: [wire.outbox.post(address(step), message(step)) for step in range(300)])
    sender.start()
    sender.join(0.3)
    assert sender.is_alive(), "nothing held the sender back although nobody took a frame"
    assert wire.sent <= WINDOW
    for step in range(300):
        assert wire.mailbox.take(address(step), "x") == message(step)
        assert wire.sent <= step + 1 + WINDOW
    sender.join(5)
    assert not sender.is_alive()


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
