"""Links over sockets, without Ray: order, back-pressure, both ways at once, strangers, and a neighbour that goes and comes again."""

import contextlib
import os
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from locallearn.errors import LocallearnError
from locallearn.runtime import ends, handshake, links
from locallearn.runtime.ends import LIMIT, QUEUE, RECORD_BYTES, LinkLost, record
from locallearn.runtime.frame import EVALUATE, TRAIN, Address, FrameError, frame
from locallearn.runtime.handshake import Position, greet
from locallearn.runtime.links import Links

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

    def make(count, secrets=None, replay=ends.REPLAY):
        shards = [Links(k, HOST, 7, (secrets or [SECRET] * count)[k], replay=replay) for k in range(count)]
        made.extend(shards)
        for shard in shards:
            shard.connect([other.place for other in shards])
        return shards

    yield make
    for shard in made:
        shard.close()


def in_time(fn, *args, seconds=20):
    pool = ThreadPoolExecutor(1)
    try:
        return pool.submit(fn, *args).result(seconds)
    finally:
        pool.shutdown(wait=False)  # who waits in vain is let go when the links are closed


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


def wait_until(condition, seconds=5):
    deadline = time.perf_counter() + seconds
    while not condition():
        assert time.perf_counter() < deadline
        time.sleep(0.005)


def test_a_neighbour_that_goes_is_noticed_at_once(linked):
    """By who waits for it, and by who sends to it at the next heartbeat; both say what they wait for, and go on waiting."""
    a, b, c = linked(3)
    for one, other in ((0, 1), (2, 0)):
        where = address(0, one, other)
        (a, b, c)[one].post(where, message(where))
        (a, b, c)[other].take(where, "x")
    assert [a.lost, b.lost, c.lost] == [{}, {}, {}]
    with taking(b, address(1)) as taken:
        time.sleep(0.1)
        gone = time.perf_counter()
        a.close()
        wait_until(lambda: 0 in b.lost)
        assert time.perf_counter() - gone < 2
        wait_until(lambda: 0 in c.lost)
        assert b.waiting[0] == (address(1), "x")
        assert not taken.done()
        b.close()


def test_a_neighbour_that_says_nothing_is_lost_and_one_that_is_busy_is_not(linked, monkeypatch):
    monkeypatch.setattr(ends, "SILENCE_SECONDS", 0.8)
    monkeypatch.setattr(links, "BEAT_SECONDS", 0.1)
    a, b = linked(2)
    a.post(address(0), message(address(0)))
    b.take(address(0), "x")
    with taking(b, address(1)) as taken:
        time.sleep(2.0)
        assert [a.lost, b.lost] == [{}, {}], "heartbeats say that both live"
        assert a.beat_bytes >= 10 * RECORD_BYTES
        a._to[1].beat = lambda: None  # as a frozen machine
        wait_until(lambda: 0 in b.lost)
        a.post(address(1), message(address(1)))
        del a._to[1].beat
        assert taken.result(5) == message(address(1)), "who was thought gone is heard again"


@contextlib.contextmanager
def taking(one, where):
    """A thread waits for a frame; whatever happens, it ends."""
    with ThreadPoolExecutor(1) as pool:
        try:
            yield pool.submit(one.take, where, "x")
        except BaseException:
            one.close()
            raise


def moved(shards, k, start):
    """A new shard k in the place of the old one, which is gone."""
    new = Links(k, HOST, 7, SECRET)
    new.connect([new.place if other is shards[k] else other.place for other in shards], start)
    for other in shards[:k] + shards[k + 1 :]:
        other.moved(k, new.place)
    return new


def test_who_takes_the_place_of_a_lost_shard_is_told_again_what_it_needs(linked):
    a, b, c = shards = linked(3)
    for step in range(20):
        a.post(address(step), message(address(step)))
        if step < 15:
            b.take(address(step), "x")
            b.post(address(step, 1, 2), message(address(step, 1, 2)))
            a.reached(Position(step))
        if step < 12:
            c.reached(Position(step))
            c.take(address(step, 1, 2), "x")
    b.close()
    again = moved(shards, 1, Position(step=8))
    try:
        for step in range(8, 20):
            assert in_time(again.take, address(step), "x") == message(address(step))
            again.post(address(step, 1, 2), message(address(step, 1, 2)))
        for step in range(12, 20):
            assert in_time(c.take, address(step, 1, 2), "x") == message(address(step, 1, 2))
        assert [a.lost, c.lost] == [{}, {}]
    finally:
        again.close()


def test_who_takes_a_place_and_has_nothing_to_say_yet_is_not_lost(linked):
    """Whether the old connection's end was noticed before or not."""
    a, b, c = shards = linked(3)
    for dst, one in ((1, b), (2, c)):
        a.post(address(0, 0, dst), message(address(0, 0, dst)))
        one.take(address(0, 0, dst), "x")
        one.reached(Position(1))
    with taking(b, address(1)) as taken:
        a.close()
        wait_until(lambda: 0 in b.lost)
        again = moved(shards, 0, Position(step=1))
        assert b.lost == {}
        with taking(c, address(1, 0, 2)) as other:
            time.sleep(0.2)
            assert [b.lost, c.lost] == [{}, {}]
            for dst, answer in ((1, taken), (2, other)):
                again.post(address(1, 0, dst), message(address(1, 0, dst)))
                assert answer.result(5) == message(address(1, 0, dst))
    again.close()


def test_what_is_not_kept_any_more_is_an_error(linked):
    a, b = shards = linked(2, replay=1000)
    for step in range(50):
        a.post(address(step), message(address(step), 100))
        b.take(address(step), "x")
    b.close()
    again = moved(shards, 1, Position(step=8))
    with pytest.raises(LinkLost, match="asks for step 8, and what was sent then is not kept any more"):
        post_for_seconds(a)
    again.close()


def test_what_every_snapshot_has_is_not_kept(linked):
    """Labels of a later step may have left before it; an evaluation has numbers of its own."""
    a, b = shards = linked(2)
    for step in (0, 1, 2, 9, 3, 4, 5, 6, 7, 8, 10):
        a.post(address(step), message(address(step), 100))
    aside = Address(EVALUATE, 0, 1, 0, 4, 0)
    a.post(aside, message(aside, 100))
    for step in range(8):
        b.take(address(step), "x")
    a.forget(Position(step=3, aside=4))
    a.forget(Position(step=8, aside=4))
    b.close()
    again = moved(shards, 1, Position(step=8, aside=4))
    for where in (*map(address, (8, 9, 10)), aside):
        assert in_time(again.take, where, "x") == message(where, 100)
    again.close()
    before = moved([a, again], 1, Position(step=2))
    with pytest.raises(LinkLost, match="asks for step 2, and what was sent then is not kept any more"):
        post_for_seconds(a)
    before.close()


def post_for_seconds(one):
    for step in range(50, 1000):
        one.post(address(step), message(address(step)))
        time.sleep(0.01)


def test_who_calls_again_is_heard_from_then_on(linked):
    a, b = linked(2)
    a.post(address(0), message(address(0)))
    b.take(address(0), "x")
    with taking(b, address(1)) as taken:
        a.moved(1, b.place)
        a.post(address(1), message(address(1)))
        assert taken.result(5) == message(address(1))


def test_a_caller_who_hung_up_in_line_does_not_make_the_listener_deaf(monkeypatch):
    """`accept` then says that the connection was aborted, which is nothing of the listener's."""

    class Flaky:
        def __init__(self, listener):
            self._listener, self.refused = listener, 0

        def accept(self):
            if not self.refused:
                self.refused += 1
                raise ConnectionAbortedError
            return self._listener.accept()

        def __getattr__(self, name):
            return getattr(self._listener, name)

    listen = links.listen
    monkeypatch.setattr(links, "listen", lambda *where: Flaky(listen(*where)))
    a, b = (Links(k, HOST, 7, SECRET) for k in range(2))
    for shard in (a, b):
        shard.connect([a.place, b.place])
    a.post(address(0), message(address(0)))
    try:
        assert in_time(b.take, address(0), "x") == message(address(0))
        assert b._listener.refused == 1
    finally:
        a.close(), b.close()


def test_ports_come_from_the_range():
    with socket.create_server((HOST, 0)) as first:
        port = first.getsockname()[1]
        one = Links(0, HOST, 7, SECRET, ports=(port, port + 20))
        try:
            assert port < one.place[1] <= port + 20
            with pytest.raises(LocallearnError, match=f"every port from {port} to {port} is taken on {HOST}"):
                Links(1, HOST, 7, SECRET, ports=(port, port))
        finally:
            one.close()


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


def test_a_frame_that_is_always_damaged_is_an_error(linked):
    a, b = linked(2)
    a.post(address(3), message(address(3))[:-1] + b"\xff")
    with pytest.raises(FrameError, match="checksum"):
        in_time(b.take, address(3), "x")


def test_two_frames_with_one_address_are_an_error(linked):
    a, b = linked(2)
    for size in (1, 2):
        a.post(address(1), message(address(1), size))
    with pytest.raises(FrameError, match="twice, and not the same"):
        in_time(b.take, address(2), "x")


def calling(place):
    return socket.create_connection(place, timeout=5)


def test_strangers_are_hung_up_on_and_leave_a_line_in_the_log(linked, caplog):
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
    wait_until(lambda: len(caplog.messages) == 4)
    assert all(line.startswith("shard 1: hung up on a stranger at 127.0.0.1:") for line in caplog.messages)


def test_strangers_who_hold_the_line_do_not_keep_a_neighbour_out(linked, monkeypatch):
    """More of them than may be heard at a time, who all call before the neighbour, and say a byte now and then."""
    monkeypatch.setattr(links, "STRANGERS", 8)
    a, b = linked(2)
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(calling(b.place)) for _ in range(12)]
        for wire in idle[-8:]:
            wire.sendall(b"l")
        a.post(address(0), message(address(0)))
        assert in_time(b.take, address(0), "x", seconds=5) == message(address(0))
        wait_until(lambda: [reply(wire) for wire in idle[:4]] == [b""] * 4)


def test_who_says_it_byte_by_byte_has_no_longer_for_it(linked, monkeypatch):
    monkeypatch.setattr(handshake, "PATIENCE", 0.5)
    _, b = linked(2)

    def drip(wire):
        for _ in range(30):  # a hello has 32 bytes
            wire.sendall(b"l")
            time.sleep(0.1)

    with calling(b.place) as wire, pytest.raises(OSError, match=r"reset|Broken pipe"):
        drip(wire)


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
        post_for_seconds(a)


def test_a_handshake_cannot_be_replayed(linked):
    """What a listener said to one caller does not open the door to another: its number is fresh each time."""
    _, b = linked(2)
    hello = struct.pack(">8sIHH16s", b"llearn02", 7, 0, 1, b"n" * 16)

    def asked():
        with calling(b.place) as wire:
            wire.sendall(hello)
            return wire.recv(56, socket.MSG_WAITALL)

    first, second = asked(), asked()
    assert len(first) == 56
    assert first[:16] != second[:16]
    assert first[24:] != second[24:]


def test_a_frame_beyond_the_limit_is_refused_unread(linked):
    a, b = linked(2)
    with calling(b.place) as wire:
        greet(wire, SECRET, 7, 0, 1)
        wire.sendall(record(LIMIT + 1, 0))
        with taking(b, address(0)) as taken:
            wait_until(lambda: "longer than the limit" in b.lost.get(0, ""))
            a.post(address(0), message(address(0)))
            assert taken.result(5) == message(address(0)), "the right one is heard"
