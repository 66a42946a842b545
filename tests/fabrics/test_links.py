"""Links over sockets, without Ray: order, back-pressure, both ways at once, strangers, damage, and a neighbour that is gone."""

import contextlib
import os
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from locallearn.runtime.frame import TRAIN, Address, FrameError, frame
from locallearn.runtime.links import LIMIT, QUEUE, LinkLost, Links, greet

HOST = "127.0.0.1"
SECRET = b"s" * 32


def address(step, src=0, dst=1, micro=0):
    return Address(TRAIN, src, dst, micro, step, 0)


def message(where, size=1):
    return frame(where, [np.full(size, where.step % 251, np.uint8)])


@pytest.fixture
def linked():
    """`linked(count)`: so many shards that know each other; they hang up at the end."""
    made = []

    def make(count, secrets=None):
        shards = [Links(k, HOST, 7, (secrets or [SECRET] * count)[k]) for k in range(count)]
        made.extend(shards)
        for shard in shards:
            shard.connect([other.place for other in shards])
        return shards

    yield make
    for shard in made:
        shard.close()


def in_time(fn, *args, seconds=20):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(fn, *args).result(seconds)


def test_frames_arrive_whole_and_are_taken_by_address(linked):
    a, b = linked(2)
    sizes = [0, 1, 65_535, 65_536, 65_537, 3_000_000, 5]
    wheres = [address(k) for k in range(len(sizes))]
    sender = threading.Thread(target=lambda: [a.post(w, message(w, n)) for w, n in zip(wheres, sizes, strict=True)])
    sender.start()
    taken = [in_time(b.take, w, "x") for w in reversed(wheres)]
    sender.join(5)
    assert taken == [message(w, n) for w, n in zip(reversed(wheres), reversed(sizes), strict=True)]


def test_take_says_what_it_waits_for_and_wakes_at_once(linked):
    a, b = linked(2)
    with ThreadPoolExecutor(1) as pool:
        taken = pool.submit(b.take, address(3), "error")
        while not b.waiting.get(0):
            time.sleep(0.001)
        assert b.waiting[0] == (address(3), "error")
        a.post(address(3), message(address(3)))
        assert taken.result(5) == message(address(3))
    assert b.waiting[0] is None


def test_big_frames_cross_both_ways_at_once(linked):
    """All sends come before the first receive: what the kernel does not take must not stop the sender."""
    a, b = linked(2)
    size = 20_000_000

    def swap(me, there, back):
        me.post(there, message(there, size))
        return me.take(back, "x")

    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(swap, a, address(1, 0, 1), address(2, 1, 0))
        two = pool.submit(swap, b, address(2, 1, 0), address(1, 0, 1))
        assert one.result(30) == message(address(2, 1, 0), size)
        assert two.result(30) == message(address(1, 0, 1), size)


def test_a_sender_is_held_back_and_nothing_is_lost(linked):
    a, b = linked(2)
    count, size = 300, 1_000_000
    sent = []

    def send():
        for step in range(count):
            a.post(address(step), message(address(step), size))
            sent.append(step)

    sender = threading.Thread(target=send)
    sender.start()
    sender.join(1.0)
    assert sender.is_alive(), "nothing held the sender back although nobody took a frame"
    kernel = 16_000_000 // size
    assert len(sent) <= QUEUE + kernel
    for step in range(count):
        assert in_time(b.take, address(step), "x") == message(address(step), size)
    sender.join(5)
    assert not sender.is_alive()


def test_a_link_that_nobody_waits_on_is_not_read(linked):
    """Shard 2 waits for shard 1, and meanwhile holds shard 0 back."""
    a, b, c = linked(3)
    size, done = 1_000_000, threading.Event()

    def send():
        for step in range(200):
            a.post(address(step, 0, 2), message(address(step, 0, 2), size))
        done.set()

    threading.Thread(target=send, daemon=True).start()
    with ThreadPoolExecutor(1) as pool:
        taken = pool.submit(c.take, address(0, 1, 2), "x")
        assert not done.wait(1.0)
        b.post(address(0, 1, 2), message(address(0, 1, 2)))
        taken.result(5)
    for step in range(200):
        c.take(address(step, 0, 2), "x")
    assert done.wait(5)


def test_threads_of_microbatches_share_a_link(linked):
    a, b = linked(2)
    steps, micros = 200, 4

    def send(micro):
        for step in range(steps):
            a.post(address(step, micro=micro), message(address(step, micro=micro)))

    def take(micro):
        return [b.take(address(step, micro=micro), "x") for step in range(steps)]

    with ThreadPoolExecutor(2 * micros) as pool:
        takes = [pool.submit(take, micro) for micro in reversed(range(micros))]
        for micro in range(micros):
            pool.submit(send, micro)
        for micro, taken in zip(reversed(range(micros)), takes, strict=True):
            assert taken.result(20) == [message(address(step, micro=micro)) for step in range(steps)]


def test_a_neighbour_that_goes_is_noticed_at_once(linked):
    a, b = linked(2)
    a.post(address(0), message(address(0)))
    b.take(address(0), "x")
    with ThreadPoolExecutor(1) as pool:
        taken = pool.submit(b.take, address(1), "x")
        time.sleep(0.1)
        a.close()
        with pytest.raises(LinkLost, match="the link with shard 0 ended") as lost:
            taken.result(2)
    assert lost.value.shard == 0
    assert b.waiting[0] == (address(1), "x"), "what it waited for stays known"


def test_sending_to_a_neighbour_that_is_gone_fails(linked):
    a, b = linked(2)
    a.post(address(0), message(address(0)))
    b.take(address(0), "x")
    b.close()
    with pytest.raises(LinkLost, match="the link with shard 1 ended"):
        post_for_a_second(a)


def post_for_a_second(links):
    """The first frame may still be taken by the kernel."""
    for step in range(1, 1000):
        links.post(address(step), message(address(step)))
        time.sleep(0.001)


def test_a_run_that_is_given_up_ends_every_wait(linked):
    a, b = linked(2)
    with ThreadPoolExecutor(2) as pool:
        unconnected = pool.submit(b.take, address(0), "x")
        a.post(address(1, micro=1), message(address(1, micro=1)))
        b.take(address(1, micro=1), "x")
        reading = pool.submit(b.take, address(2), "x")
        time.sleep(0.1)
        b.close()
        for waiting in (unconnected, reading):
            with pytest.raises((FrameError, LinkLost)):
                waiting.result(2)


def test_a_doubled_and_a_damaged_frame_are_errors(linked):
    a, b = linked(2)
    for _ in range(2):
        a.post(address(1), message(address(1)))
    with pytest.raises(FrameError, match="twice"):
        b.take(address(2), "x")
    a.post(address(3), message(address(3))[:-1] + b"\xff")
    with pytest.raises(FrameError, match="checksum"):
        b.take(address(3), "x")


def calling(place):
    return socket.create_connection(place, timeout=5)


def test_strangers_are_hung_up_on_and_disturb_nobody(linked):
    a, b = linked(2)
    silent = calling(b.place)
    for said in (b"GET / HTTP/1.1\r\n\r\n" + b"x" * 100, os.urandom(200), b""):
        with calling(b.place) as wire:
            with contextlib.suppress(OSError):  # it may have hung up already
                wire.sendall(said)
                wire.shutdown(socket.SHUT_WR)
            assert not reply(wire), "a stranger is told nothing"
    a.post(address(0), message(address(0)))
    assert in_time(b.take, address(0), "x") == message(address(0))
    silent.close()


def reply(wire):
    try:
        return wire.recv(100)
    except ConnectionResetError:
        return b""


@pytest.mark.parametrize(("run", "dst", "secret"), [(8, 1, SECRET), (7, 0, SECRET), (7, 1, b"t" * 32)])
def test_who_does_not_belong_to_the_run_is_refused(linked, run, dst, secret):
    _, b = linked(2)
    with calling(b.place) as wire, pytest.raises(OSError, match=r"secret|handshake|reset"):
        greet(wire, secret, run, 0, dst)


def test_a_listener_that_does_not_know_the_secret_gets_nothing(linked):
    a, _ = linked(2, [SECRET, b"t" * 32])
    with pytest.raises(LinkLost, match="does not know the secret"):
        a.post(address(0), message(address(0)))


def test_a_handshake_cannot_be_replayed(linked):
    """What a listener said to one caller does not open the door to another: its number is fresh each time."""
    _, b = linked(2)
    hello = struct.pack(">8sIHH16s", b"llearn01", 7, 0, 1, b"n" * 16)

    def asked():
        with calling(b.place) as wire:
            wire.sendall(hello)
            return wire.recv(48, socket.MSG_WAITALL)

    first, second = asked(), asked()
    assert len(first) == 48
    assert first[:16] != second[:16]
    assert first[16:] != second[16:]


def test_a_frame_beyond_the_limit_is_refused_unread(linked):
    _, b = linked(2)
    with calling(b.place) as wire:
        greet(wire, SECRET, 7, 0, 1)
        wire.sendall(struct.pack(">I", LIMIT + 1))
        with pytest.raises(FrameError, match="longer than the limit"):
            in_time(b.take, address(0), "x")
