"""Connections whose requests are refused rest while there are many of them, and then are read again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

import pytest
from tests.serving.frontends.raw import NoSocket, message, request_headers

from normfold.protos import grpc_service as pb
from normfold.serving.errors import Overloaded
from normfold.serving.frontends.http2 import rests
from normfold.serving.frontends.http2.call import Service
from normfold.serving.frontends.http2.connection import ServerConnection
from normfold.serving.frontends.http2.connection_places import ConnectionPlaces
from normfold.serving.frontends.http2.holding import Holding
from normfold.serving.frontends.http2.limits import FULL_READ_BYTES
from normfold.serving.frontends.http2.requests import Requests
from normfold.serving.frontends.http2.rests import EACH_SECONDS, LEAST_SECONDS, MOST_SECONDS, Rests
from normfold.serving.frontends.limits import DEFAULT_LIMITS
from normfold.serving.rpc.methods import Method
from normfold.serving.rpc.traffic import Traffic
from normfold.serving.wire import http2_frames as h2
from normfold.serving.wire.http2_headers import written

FEW, MANY = 20, 150
#: A request that is not refused, and has a large answer.
LARGE = b"large"
PING = h2.frame(h2.PING, 0, 0, bytes(8))


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(rests, "monotonic", clock)
    return clock


class Connection:
    step_until = 0.0


def test_few_never_rest_and_many_wait_for_each_other_but_not_for_long(clock):
    every = Rests()
    assert [every.seconds(Connection()) for _ in range(FEW)] == [0.0] * FEW
    waits = [every.seconds(Connection()) for _ in range(MANY)]
    assert waits == sorted(waits)
    assert (waits[0], waits[-1]) == (pytest.approx(LEAST_SECONDS), pytest.approx(MOST_SECONDS))
    clock.now += MOST_SECONDS
    assert every.seconds(Connection()) == 0.0


def test_few_that_are_refused_again_and_again_never_rest_however_often(clock):
    every, few = Rests(), [Connection() for _ in range(FEW)]
    for _ in range(1000):
        assert [every.seconds(each) for each in few] == [0.0] * FEW
        clock.now += 0.0003


Still = Callable[[object], Overloaded | None]


def refusal(still: Still | None) -> Overloaded:
    error = Overloaded("full", 1.0)
    error.alike, error.still = 2, still
    return error


def full(_: object) -> Overloaded:
    return refusal(full)


def full_no_more(_: object) -> None:
    return None


def asked(stream: int, data: bytes = b"m1") -> bytes:
    block = written(*[(name.encode(), value.encode()) for name, value in request_headers("Infer")])
    return h2.frame(h2.HEADERS, h2.END_HEADERS, stream, block) + h2.frame(h2.DATA, 1, stream, message(data))


Connected = tuple[ServerConnection, NoSocket]
Check = Callable[[Callable[[], Connected]], Coroutine[object, object, None]]


@pytest.fixture
def refusing() -> Callable[..., None]:
    """Runs a check with a function that opens one more connection to a server that refuses every request."""

    def run(check: Check, still: Still | None = full) -> None:
        def answer(data: bytes) -> bytes:
            if data == LARGE:
                return bytes(2 * h2.DEFAULT_WINDOW)
            raise refusal(still)

        async def serve() -> None:
            method = Method("/t.T/Infer", pb.ModelInferRequest, wire_unary=answer)
            service = Service(Requests([method]), Traffic(), 1 << 20, DEFAULT_LIMITS, Holding(1 << 30))

            def opened() -> Connected:
                connection, socket = ServerConnection(service, ConnectionPlaces(1)), NoSocket()
                connection.connection_made(socket)
                connection.data_received(h2.PREFACE + h2.settings({}))
                socket.written = b""
                return connection, socket

            await check(opened)

        asyncio.run(serve())

    return run


async def until_read(socket: NoSocket) -> None:
    async with asyncio.timeout(30):
        while not socket.is_read:
            await asyncio.sleep(0.005)


def refused_by_many(opened: Callable[[], Connected]) -> None:
    for _ in range(2 * FEW):
        opened()[0].data_received(asked(1))


def ends(socket: NoSocket) -> int:
    return sum(frame.kind == h2.HEADERS and frame.flags & h2.END_STREAM for frame in socket.frames())


def test_all_are_refused_at_once_and_those_that_rest_are_read_again(refusing, clock):
    async def check(opened) -> None:
        all_of_them = [opened() for _ in range(2 * FEW)]
        for connection, socket in all_of_them:
            connection.data_received(asked(1) + asked(3))
            assert ends(socket) == 2
        assert [socket.is_read for _, socket in all_of_them] == [True] * FEW + [False] * FEW
        connection, socket = all_of_them[-1]
        connection.resume_writing()  # its client has taken some bytes: no reason to read it now
        assert not socket.is_read
        await until_read(socket)
        clock.now += MOST_SECONDS
        connection.data_received(asked(5))
        assert ends(socket) == 1
        assert socket.is_read

    refusing(check)


def test_a_connection_that_ends_while_it_rests_is_not_read_again(refusing, clock):
    async def check(opened) -> None:
        refused_by_many(opened)
        connection, socket = opened()
        connection.data_received(asked(1))
        assert not socket.is_read
        connection.connection_lost(None)
        await asyncio.sleep(MOST_SECONDS)
        assert not socket.is_read

    refusing(check)


def test_only_a_turn_in_which_something_was_refused_is_followed_by_a_rest(refusing, clock):
    async def check(opened) -> None:
        connection, socket = opened()
        connection.data_received(asked(1))
        refused_by_many(opened)
        clock.now += EACH_SECONDS
        connection.data_received(PING)
        assert socket.is_read
        connection.data_received(asked(3))
        assert not socket.is_read

    refusing(check)


def test_a_connection_does_not_rest_while_an_answer_waits_for_its_client(refusing, clock):
    async def check(opened) -> None:
        refused_by_many(opened)
        connection, socket = opened()
        connection.data_received(asked(1, LARGE) + asked(3))
        assert ends(socket) == 1
        assert socket.is_read
        for stream in (0, 1):
            connection.data_received(h2.frame(h2.WINDOW_UPDATE, 0, stream, (1 << 20).to_bytes(4, "big")))
        assert ends(socket) == 1
        connection.data_received(asked(5))
        assert not socket.is_read

    refusing(check)


def test_no_rest_follows_a_turn_that_leaves_a_part_of_its_bytes(refusing, clock):
    async def check(opened) -> None:
        refused_by_many(opened)
        connection, socket = opened()
        connection.data_received(asked(1) + h2.frame(32, 0, 0, bytes(FULL_READ_BYTES)))  # of an unknown kind
        assert ends(socket) == 1
        for _ in range(10):  # the next turn refuses nothing
            await asyncio.sleep(0)
        assert socket.is_read

    refusing(check, full_no_more)


def test_no_rest_follows_a_refusal_that_says_nothing_about_the_next_request(refusing, clock):
    async def check(opened) -> None:
        connection, socket = opened()
        for stream in range(1, 4 * FEW, 2):
            connection.data_received(asked(stream))
        assert ends(socket) == 2 * FEW
        assert socket.is_read

    refusing(check, None)
