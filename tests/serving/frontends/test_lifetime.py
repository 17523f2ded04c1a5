"""The age, the idle time and the silence of a connection, on both frontends; no call in flight is lost."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

import grpc
import pytest
from tests.serving.frontends.conftest import serving
from tests.serving.frontends.raw import Raw, message

from normfold.serving.frontends.http2.lifetime import FAREWELL, HELLO, Lifetime
from normfold.serving.frontends.http2.sending import Sender
from normfold.serving.frontends.limits import ClientLimits
from normfold.serving.wire import http2_frames as h2

HELLO_MESSAGE = message(b"hello")


def last_of(goaway) -> int:
    assert goaway.payload[4:8] == bytes(4)
    return int.from_bytes(goaway.payload[:4], "big")


def parting(client: Raw) -> int:
    """Answer the first GOAWAY and its PING; the last stream of the second GOAWAY."""
    assert last_of(client.until(h2.GOAWAY)) == h2.LARGEST_WINDOW
    ping = client.until(h2.PING)
    assert (ping.flags, ping.payload) == (0, FAREWELL)
    client.send(h2.frame(h2.PING, h2.ACK, 0, ping.payload))
    return last_of(client.until(h2.GOAWAY))


def test_at_its_age_a_connection_ends_with_two_goaways_and_its_calls_are_answered():
    with serving(limits=ClientLimits(max_age_seconds=0.2)) as served:
        client = Raw(served.address)
        client.ask(1, None, "Stream")
        assert last_of(client.until(h2.GOAWAY)) == h2.LARGEST_WINDOW
        ping = client.until(h2.PING)
        client.ask(3, HELLO_MESSAGE)  # it has not seen the GOAWAY yet
        assert client.answer(3)[0] == HELLO_MESSAGE
        client.send(h2.frame(h2.PING, h2.ACK, 0, ping.payload))
        assert last_of(client.until(h2.GOAWAY)) == 3
        client.ask(5, HELLO_MESSAGE)  # behind the last stream: it is not answered, and may be sent elsewhere
        client.send(h2.frame(h2.DATA, h2.END_STREAM, 1, HELLO_MESSAGE))
        assert client.answer(1)[0] == HELLO_MESSAGE
        assert client.frame() is None


def test_a_client_that_does_not_answer_the_farewell_must_leave_all_the_same(monkeypatch):
    monkeypatch.setattr("normfold.serving.frontends.http2.lifetime.FAREWELL_SECONDS", 0.1)
    with serving(limits=ClientLimits(max_age_seconds=0.2)) as served:
        client = Raw(served.address)
        assert last_of(client.until(h2.GOAWAY)) == h2.LARGEST_WINDOW
        assert last_of(client.until(h2.GOAWAY)) == 0
        assert client.frame() is None


def test_calls_that_outlast_the_grace_are_cut():
    with serving(limits=ClientLimits(max_age_seconds=0.2, age_grace_seconds=0.2)) as served:
        client = Raw(served.address)
        client.ask(1, HELLO_MESSAGE, "Wait")
        assert parting(client) == 1
        assert client.frame() is None
        until = time.monotonic() + 20
        while not served.methods.cancelled and time.monotonic() < until:
            time.sleep(0.01)
        assert served.methods.cancelled == 1


def test_a_connection_without_calls_is_closed_and_one_with_calls_is_not():
    with serving(limits=ClientLimits(max_idle_seconds=0.4)) as served:
        busy, idle = Raw(served.address), Raw(served.address)
        busy.ask(1, None, "Stream")
        assert parting(idle) == 0
        assert idle.frame() is None
        busy.send(h2.frame(h2.DATA, h2.END_STREAM, 1, HELLO_MESSAGE))
        assert busy.answer(1)[0] == HELLO_MESSAGE


def test_a_silent_client_is_asked_and_one_that_does_not_answer_is_gone():
    with serving(limits=ClientLimits(keepalive_seconds=0.2, keepalive_timeout_seconds=0.3)) as served:
        client = Raw(served.address)
        for _ in range(2):
            ping = client.until(h2.PING)
            assert (ping.flags, ping.payload) == (0, HELLO)
            client.send(h2.frame(h2.PING, h2.ACK, 0, ping.payload))
        client.until(h2.PING)
        assert client.frame() is None


def test_a_client_that_has_ended_its_side_of_the_socket_and_can_answer_no_ping_gets_its_answer():
    with serving(limits=ClientLimits(keepalive_seconds=0.05, keepalive_timeout_seconds=0.05)) as served:
        client = Raw(served.address)
        client.ask(1, message(b"0.5"), "Each")
        client.socket.shutdown(socket.SHUT_WR)
        assert client.answer(1)[0] == message(b"0.5")


class Still:
    """A connection on which nothing happens, and what was done with it."""

    def __init__(self) -> None:
        self.sender = Sender(None)
        self.reads, self.last, self.choked, self.silent, self.leaving = 0, 0, False, False, False
        self.calls, self.aborted = 0, False

    def busy(self) -> bool:
        return self.calls > 0

    def flush(self) -> None:
        pass

    def leave(self) -> None:
        self.leaving = True

    def abort(self) -> None:
        self.aborted = True

    def done(self) -> str:
        """What was done since the last time."""
        sent = "".join("PG"[frame[3] == h2.GOAWAY] for frame in self.sender.out)
        self.sender.out.clear()
        return sent + "L" * self.leaving + "A" * self.aborted


def done_at(limits: ClientLimits, *steps: tuple[float, dict[str, object]]) -> list[str]:
    """What is done at each of some times, of which the connection is changed first: P(ING), G(OAWAY), L(eft), A(bort).

    The client does not answer.
    """
    connection, lifetime, found = Still(), Lifetime(limits, 0.0), []
    for now, changes in steps:
        vars(connection).update(changes)
        lifetime.look(connection, now)
        found.append(connection.done())
    return found


@pytest.mark.parametrize(
    ("heard", "done"),
    [
        ({}, ["", "P", "", "", "A"]),
        ({"reads": 1}, ["", "P", "", "", ""]),
        ({"choked": True}, ["", "P", "", "", ""]),  # its answer waits behind what we do not read
        ({"silent": True}, ["", "P", "", "", ""]),
    ],
    ids=["nothing", "something", "we do not read", "it has ended its side"],
)
def test_a_client_is_asked_once_and_gone_unless_something_is_heard_or_cannot_be(heard, done):
    limits = ClientLimits(keepalive_seconds=10.0, keepalive_timeout_seconds=5.0)
    assert done_at(limits, (9.9, {}), (10.0, {}), (12.0, {}), (14.9, heard), (15.0, {})) == done


@pytest.mark.parametrize(
    ("called", "done"),
    [
        ({}, ["", "GP", "L"]),
        ({"last": 1}, ["", "", "GP"]),  # a call that began and ended between two looks
        ({"calls": 1}, ["", "", ""]),
    ],
    ids=["no call", "a short one", "a long one"],
)
def test_a_connection_is_idle_from_its_last_call_on(called, done):
    limits = ClientLimits(max_idle_seconds=10.0, keepalive_seconds=0.0)
    assert done_at(limits, (9.0, called), (10.0, {}), (19.0, {})) == done


def test_an_old_connection_is_asked_once_to_leave_then_left_and_at_last_cut():
    limits = ClientLimits(max_age_seconds=100.0, age_grace_seconds=20.0, max_idle_seconds=5.0, keepalive_seconds=0.0)
    steps = [(111.0, {"calls": 1}), (112.9, {}), (113.0, {}), (130.9, {}), (131.0, {})]
    assert done_at(limits, *steps) == ["GP", "", "L", "L", "LA"]


@pytest.mark.parametrize(
    ("payload", "asked", "leaves"), [(FAREWELL, True, True), (FAREWELL, False, False), (HELLO, True, False)]
)
def test_only_the_answer_to_the_farewell_lets_a_connection_leave(payload, asked, leaves):
    connection, lifetime = Still(), Lifetime(ClientLimits(), 0.0)
    if asked:
        lifetime.part(connection, 1.0)
    lifetime.answered(connection, payload)
    assert connection.leaving is leaves


def test_ages_differ_by_a_tenth_and_no_more():
    def ends_by(now: float) -> bool:
        connection = Still()
        Lifetime(limits, 0.0).look(connection, now)
        return bool(connection.sender.out)

    limits = ClientLimits(max_age_seconds=100.0, keepalive_seconds=0.0)
    assert not any(ends_by(89.9) for _ in range(100))
    assert 10 < sum(ends_by(100.0) for _ in range(200)) < 190
    assert all(ends_by(110.1) for _ in range(100))


@pytest.mark.parametrize("name", ["http2", "grpcio"])
def test_a_real_client_loses_no_call_while_its_connections_age(name):
    """Two threads call for a second on a connection of 0.2 s; every call is answered."""
    with serving(name=name, limits=ClientLimits(max_age_seconds=0.2)) as served:
        with grpc.insecure_channel(served.address) as channel:
            echo, soon = channel.unary_unary("/t.T/Echo"), channel.unary_unary("/t.T/Soon")
            until, answered, failures = time.monotonic() + 1.0, [0, 0], []

            def ask(number: int, method: grpc.UnaryUnaryMultiCallable) -> None:
                while time.monotonic() < until:
                    try:
                        answered[number] += method(b"x", timeout=20) == b"x"
                    except grpc.RpcError as error:
                        failures.append(error)

            threads = [threading.Thread(target=ask, args=each) for each in enumerate((echo, soon))]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert failures == []
        assert min(answered) > 1


def test_grpcio_ends_connections_at_their_age_and_without_calls_too():
    for limits in (ClientLimits(max_age_seconds=0.3), ClientLimits(max_idle_seconds=0.3)):
        with serving(name="grpcio", limits=limits) as served:
            Raw(served.address).until(h2.GOAWAY)


def test_grpcio_asks_a_silent_client_again_and_again():
    with serving(name="grpcio", limits=ClientLimits(keepalive_seconds=0.2)) as served:
        client = Raw(served.address)
        pings = 0
        while pings < 6:
            ping = client.until(h2.PING)
            pings += not ping.flags & h2.ACK
            client.send(h2.frame(h2.PING, h2.ACK, 0, ping.payload))


def test_a_server_that_drains_beside_another_loses_no_call():
    """Eight clients on one port of two servers; one of them ends while all clients go on calling."""
    with serving(reuse_port=True) as first, serving(first.address, reuse_port=True), contextlib.ExitStack() as stack:
        pools = [("grpc.use_local_subchannel_pool", 1)]
        channels = [stack.enter_context(grpc.insecure_channel(first.address, options=pools)) for _ in range(8)]
        answered, failures, stopping = [0] * 8, [], threading.Event()

        def ask(number: int) -> None:
            method = channels[number].unary_unary("/t.T/Soon")
            while not stopping.is_set():
                try:
                    answered[number] += method(b"x", timeout=20) == b"x"
                except grpc.RpcError as error:
                    failures.append(error)

        def all_have(more: int) -> None:
            least = [count + more for count in answered]
            while any(count < each for count, each in zip(answered, least, strict=True)):
                time.sleep(0.01)

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        all_have(3)
        first.on_loop(first.frontend.drain(10))
        first.on_loop(first.traffic.close(10))
        assert first.on_loop(first.frontend.stop(10))
        all_have(3)
        stopping.set()
        for thread in threads:
            thread.join()
    assert failures == []
