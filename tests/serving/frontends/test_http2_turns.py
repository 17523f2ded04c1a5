"""The work of a turn: however dear the frames of a client are, the others are answered in between."""

from __future__ import annotations

import asyncio
import gzip
import itertools
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from time import monotonic

import hpack
import pytest
from tests.serving.frontends.conftest import MOST_BYTES, Methods
from tests.serving.frontends.raw import NoSocket, message, request_headers

from normfold.protos import grpc_service as pb
from normfold.serving.frontends.http2 import frame_reader, socket_side, turns
from normfold.serving.frontends.http2.call import Service
from normfold.serving.frontends.http2.connection import ServerConnection
from normfold.serving.frontends.http2.connection_places import ConnectionPlaces
from normfold.serving.frontends.http2.each_call import ASKED_AT_ONCE, COUNTED_BYTES
from normfold.serving.frontends.http2.frontend import Http2Frontend
from normfold.serving.frontends.http2.holding import Holding
from normfold.serving.frontends.http2.limits import (
    ENDED_CALLS,
    MOST_FRUITLESS,
    PORTION_BYTES,
    ROUND_MESSAGES,
    ROUND_SECONDS,
    ROUND_TURNS,
    SHORTEST_TURN_SECONDS,
    TURN_SECONDS,
    TURN_STREAMS,
)
from normfold.serving.frontends.http2.messages import MOST_MESSAGES, MessageReader
from normfold.serving.frontends.http2.requests import Requests
from normfold.serving.frontends.http2.sending import Sender
from normfold.serving.frontends.http2.turns import Steps, Turns
from normfold.serving.frontends.limits import DEFAULT_LIMITS
from normfold.serving.rpc.caller import CALLER
from normfold.serving.rpc.methods import Method
from normfold.serving.rpc.traffic import Traffic
from normfold.serving.wire import http2_frames as h2
from normfold.serving.wire.http2_headers import HeaderReader, written
from normfold.serving.wire.long_blocks import STEP_BYTES

HELLO = message(b"hello")
STREAMS = 1000
WIDE = h2.frame(h2.WINDOW_UPDATE, 0, 0, (1 << 30).to_bytes(4, "big"))


class Clock:
    """The clock of the reader of frames: each look at it takes a part of a turn."""

    def __init__(self, looks_a_turn: int) -> None:
        self.now, self._by = 0.0, TURN_SECONDS / looks_a_turn

    def __call__(self) -> float:
        self.now += self._by
        return self.now


@dataclass
class Stream:
    """A call, as the sender needs it."""

    number: int
    window: int


@pytest.fixture
def clock(monkeypatch) -> Callable[[int], None]:
    """A function that sets after how many looks at the clock a turn ends."""
    return lambda looks: monkeypatch.setattr(frame_reader, "monotonic", Clock(looks))


@pytest.fixture
def on_loop() -> Callable[[Callable[[Service], Coroutine[object, object, None]]], None]:
    """Runs a function with a service on an event loop."""

    def run(function: Callable[[Service], Coroutine[object, object, None]]) -> None:
        requests = Requests(Methods().table())
        service = Service(requests, Traffic(), MOST_BYTES, DEFAULT_LIMITS, Holding(1 << 30))
        asyncio.run(function(service))

    return run


def greeted(service: Service, *frames: bytes) -> tuple[ServerConnection, NoSocket]:
    connection, socket = ServerConnection(service, ConnectionPlaces(1)), NoSocket()
    connection.connection_made(socket)
    connection.data_received(h2.PREFACE + b"".join(frames or [h2.settings({})]))
    return connection, socket


def asked(stream: int, data: bytes = HELLO, method: str = "Echo") -> bytes:
    block = hpack.Encoder().encode(request_headers(method))
    return h2.frame(h2.HEADERS, h2.END_HEADERS, stream, block) + h2.frame(h2.DATA, h2.END_STREAM, stream, data)


async def with_answers_waiting(service: Service, window: int, *frames: bytes) -> tuple[ServerConnection, NoSocket]:
    """A connection with STREAMS answers that wait, because the windows of streams or of the connection are spent."""
    connection, socket = greeted(service, h2.settings({h2.INITIAL_WINDOW_SIZE: window}), *frames)
    for number in range(1, 2 * STREAMS, 2):
        connection.data_received(asked(number, message(bytes(2000))))
        await rest(connection)
    socket.written = b""
    return connection, socket


async def rest(connection: ServerConnection) -> int:
    """Take what is left of the frames; the turns that it takes."""
    turns = 0
    while connection._behind:
        turns += 1
        await asyncio.sleep(0)
    return turns


@pytest.mark.parametrize("last_bytes", [10, 3000])
def test_a_long_block_in_two_frames_is_read_before_what_is_behind_it(on_loop, last_bytes):
    async def read(service: Service) -> None:
        connection, socket = greeted(service)
        block = written(*[(n.encode(), v.encode()) for n, v in [*request_headers(), ("x-long", "x" * 9000)]])
        connection.data_received(
            h2.frame(h2.HEADERS, 0, 1, block[:-last_bytes])
            + h2.frame(h2.CONTINUATION, h2.END_HEADERS, 1, block[-last_bytes:])
            + h2.frame(h2.DATA, h2.END_STREAM, 1, HELLO)
            + asked(3)
        )
        await rest(connection)
        ends = [f.stream for f in socket.frames() if f.kind == h2.HEADERS and f.flags & h2.END_STREAM]
        assert ends == [1, 3]

    on_loop(read)


def test_settings_that_move_the_windows_of_many_streams_are_taken_a_few_at_a_time(clock, on_loop):
    async def moved(service: Service) -> None:
        connection, socket = await with_answers_waiting(service, 0, WIDE)
        clock(1)
        windows = [1, 0, 3, 2, 5, 4, 7, 6, 9, 8]
        connection.data_received(b"".join(h2.settings({h2.INITIAL_WINDOW_SIZE: window}) for window in windows))
        acknowledged, sizes = 0, dict.fromkeys(range(1, 2 * STREAMS, 2), 0)
        for turn in range(1, 1000):
            found = socket.frames()
            acknowledged += sum(each.kind == h2.SETTINGS for each in found)
            assert acknowledged <= turn
            assert sum(each.kind == h2.DATA for each in found) <= TURN_STREAMS
            for each in found:
                if each.kind == h2.DATA:
                    sizes[each.stream] += len(each.payload)
            if not connection._behind:
                break
            await asyncio.sleep(0)
        assert acknowledged == len(windows)
        assert all(8 <= size <= 9 for size in sizes.values())

    on_loop(moved)


def test_settings_that_move_the_windows_of_many_streams_soon_end_the_connection(on_loop):
    async def moved(service: Service) -> None:
        connection, socket = await with_answers_waiting(service, 0, WIDE)
        both = h2.settings({h2.INITIAL_WINDOW_SIZE: 1}) + h2.settings({h2.INITIAL_WINDOW_SIZE: 0})
        connection.data_received(both * (MOST_FRUITLESS // 20 // 2))
        await rest(connection)
        last = socket.frames()[-1]
        assert (last.kind, last.payload[4:8]) == (h2.GOAWAY, h2.ENHANCE_YOUR_CALM.to_bytes(4, "big"))

    on_loop(moved)


def test_a_larger_window_of_the_connection_costs_only_the_streams_that_get_some_of_it(on_loop, monkeypatch):
    tried = []
    send = Sender._send

    def counted(self, stream, data):
        tried.append(stream.number)
        return send(self, stream, data)

    async def widened(service: Service) -> None:
        connection, socket = await with_answers_waiting(service, 1 << 20)
        spent = connection._patience._spent
        monkeypatch.setattr(Sender, "_send", counted)
        connection.data_received(h2.frame(h2.WINDOW_UPDATE, 0, 0, (1024).to_bytes(4, "big")) * 39)
        await rest(connection)
        sent = {each.stream for each in socket.frames() if each.kind == h2.DATA}
        assert len(sent) == 39 * 1024 // 2005 + 2  # the first and the last get a part
        assert len(tried) <= len(sent) + 1
        assert connection._patience._spent == spent
        connection.data_received(h2.frame(h2.WINDOW_UPDATE, 0, 0, (100).to_bytes(4, "big")) * 39)
        await rest(connection)
        assert connection._patience._spent == spent + 39 - 39 * 100 // 1024

    on_loop(widened)


@pytest.mark.parametrize("wider", ["of the connection", "of the stream", "of all streams"])
def test_data_that_wait_for_a_larger_window_go_in_the_same_turn(on_loop, wider):
    async def widened(service: Service) -> None:
        connection, socket = greeted(service, h2.settings({h2.INITIAL_WINDOW_SIZE: 100_000}))
        connection.data_received(asked(1, message(bytes(65_000))) + asked(3, message(bytes(70_000))))
        if wider == "of the stream":
            connection.data_received(h2.settings({h2.INITIAL_WINDOW_SIZE: 0}) + WIDE)
        elif wider == "of all streams":
            connection.data_received(h2.settings({h2.INITIAL_WINDOW_SIZE: 500}) + WIDE)
        socket.written = b""
        connection.data_received(
            {
                "of the connection": WIDE,
                "of the stream": h2.frame(h2.WINDOW_UPDATE, 0, 3, (100_000).to_bytes(4, "big")),
                "of all streams": h2.settings({h2.INITIAL_WINDOW_SIZE: 100_000}),
            }[wider]
        )
        last = socket.frames()[-1]
        assert (last.kind, last.stream, last.flags) == (h2.HEADERS, 3, h2.END_HEADERS | h2.END_STREAM)
        assert not connection.calls

    on_loop(widened)


def long_block(coded_bytes: int) -> bytes:
    """The headers of a request, and one more in this many bytes of Huffman code."""
    value = bytes.fromhex("18c6318c63") * (coded_bytes // 5)
    size = bytearray(hpack.hpack.encode_integer(len(value), 7))
    size[0] |= 0x80
    return hpack.Encoder().encode(request_headers()) + b"\x00\x01x" + bytes(size) + value


def test_a_long_block_of_headers_is_read_in_many_turns_and_what_follows_waits_for_it(clock, on_loop):
    async def read(service: Service) -> None:
        connection, socket = greeted(service)
        clock(1)
        frames = h2.frame(h2.HEADERS, h2.END_HEADERS, 1, long_block(40_000)) + h2.frame(h2.DATA, 1, 1, HELLO)
        connection.data_received(frames + h2.frame(h2.PING, 0, 0, bytes(8)))
        assert not connection.calls
        assert connection.holding.bytes >= 40_000
        assert await rest(connection) >= 40_000 // STEP_BYTES
        assert connection.holding.bytes == 0
        kinds = [each.kind for each in socket.frames()]
        assert kinds[-4:] in ([h2.HEADERS, h2.DATA, h2.HEADERS, h2.PING], [h2.PING, h2.HEADERS, h2.DATA, h2.HEADERS])

    on_loop(read)


@pytest.mark.parametrize("headers", [b"\x88" * 50_000, b"\x41\x00" * 50_000])
def test_a_block_of_many_headers_refuses_its_call_alone_in_many_turns(clock, on_loop, headers):
    async def read(service: Service) -> None:
        connection, socket = greeted(service)
        clock(1)
        block = hpack.Encoder().encode(request_headers()) + headers
        connection.data_received(h2.frame(h2.HEADERS, h2.END_HEADERS | h2.END_STREAM, 1, block) + asked(3))
        assert connection.holding.bytes >= len(block)
        assert await rest(connection) >= 300
        assert connection.holding.bytes == 0
        answers = [each for each in socket.frames() if each.kind == h2.HEADERS and each.flags & h2.END_STREAM]
        assert [each.stream for each in answers] == [1, 3]
        assert (b"grpc-status", b"8") in HeaderReader().read(answers[0].payload)
        assert (b"grpc-status", b"0") in HeaderReader().read(answers[1].payload)

    on_loop(read)


def test_a_connection_that_ends_within_a_long_block_holds_nothing_of_it(clock, on_loop):
    async def gone(service: Service) -> None:
        connection, _ = greeted(service)
        clock(1)
        connection.data_received(h2.frame(h2.HEADERS, h2.END_HEADERS, 1, long_block(40_000)))
        connection.connection_lost(None)
        assert service.holding.bytes == 0
        assert not service.turns._behind

    on_loop(gone)


@pytest.mark.parametrize("method", ["Stream", "Iterate"])
@pytest.mark.parametrize("padded", [False, True])
def test_many_small_messages_in_one_frame_are_cut_out_a_few_at_a_time(on_loop, monkeypatch, method, padded):
    found = []
    feed = MessageReader.feed

    def noted(self, data):
        found.append(feed(self, data))
        return found[-1]

    async def cut(service: Service) -> None:
        monkeypatch.setattr(MessageReader, "feed", noted)
        connection, socket = greeted(service, h2.settings({h2.INITIAL_WINDOW_SIZE: 1 << 20}), WIDE)
        payload = b"\0" * padded + message(b"") * 10_000 + message(b"last")
        block = hpack.Encoder().encode(request_headers(method))
        connection.data_received(
            h2.frame(h2.HEADERS, h2.END_HEADERS, 1, block)
            + h2.frame(h2.DATA, h2.END_STREAM | h2.PADDED * padded, 1, payload)
        )
        while connection.calls or connection._flushing:
            await asyncio.sleep(0)
        assert max(map(len, found)) == MOST_MESSAGES
        assert sum(each.kind == h2.DATA for each in socket.frames()) == sum(map(len, found)) == 10_001
        assert not connection.uncut
        assert connection.holding.bytes == 0

    on_loop(cut)


@pytest.mark.parametrize("method", ["Stream", "Iterate"])
def test_a_call_that_ends_with_messages_uncut_leaves_nothing(on_loop, method):
    async def reset(service: Service) -> None:
        connection, _ = greeted(service)
        block = hpack.Encoder().encode(request_headers(method))
        connection.data_received(
            h2.frame(h2.HEADERS, h2.END_HEADERS, 1, block) + h2.frame(h2.DATA, 0, 1, message(b"") * 10_000)
        )
        connection.data_received(h2.frame(h2.RST_STREAM, 0, 1, bytes(4)))
        await rest(connection)
        assert not connection.uncut
        assert connection.holding.bytes == 0

    on_loop(reset)


@pytest.mark.parametrize("faulty", [True, False])
def test_a_connection_that_ends_with_messages_uncut_keeps_no_call(on_loop, faulty):
    async def ended(service: Service) -> None:
        connection, _ = greeted(service)
        block = hpack.Encoder().encode(request_headers("Stream"))
        connection.data_received(
            h2.frame(h2.HEADERS, h2.END_HEADERS, 1, block) + h2.frame(h2.DATA, 0, 1, message(b"") * 10_000)
        )
        assert connection.uncut
        if faulty:
            connection.data_received(h2.frame(h2.PING, 0, 1, bytes(8)))
        else:
            connection.connection_lost(None)
        assert not connection.uncut
        assert connection.holding.bytes == 0

    on_loop(ended)


FLOODS = {
    "pings": h2.frame(h2.PING, 0, 0, bytes(8)),
    "settings": h2.settings({}),
    "goodbyes": h2.frame(h2.GOAWAY, 0, 0, bytes(8)),
    "empty data": h2.frame(h2.DATA, 0, 2 * STREAMS + 1),
    "windows of the connection": h2.frame(h2.WINDOW_UPDATE, 0, 0, b"\0\0\0\1"),
    "windows of a stream": h2.frame(h2.WINDOW_UPDATE, 0, 1, b"\0\0\0\1"),
    "windows of all streams": h2.settings({h2.INITIAL_WINDOW_SIZE: 1}) + h2.settings({h2.INITIAL_WINDOW_SIZE: 0}),
    "long headers": h2.frame(h2.HEADERS, h2.END_HEADERS, 2 * STREAMS + 3, long_block(20_000)),
}


@pytest.mark.parametrize("name", FLOODS)
def test_others_are_answered_within_a_flood(clock, on_loop, name):
    async def flooded(service: Service) -> None:
        flooding, _ = await with_answers_waiting(service, 0, WIDE)
        flooding.data_received(
            h2.frame(h2.HEADERS, h2.END_HEADERS, 2 * STREAMS + 1, hpack.Encoder().encode(request_headers("Stream")))
        )
        good, socket = greeted(service)
        clock(4)
        times = {"windows of all streams": 100, "long headers": 1}.get(name, MOST_FRUITLESS - 500)
        flooding.data_received(FLOODS[name] * times)
        for stream in range(1, 11, 2):
            socket.written = b""
            good.data_received(asked(stream))
            assert socket.frames()[-1].flags == h2.END_HEADERS | h2.END_STREAM
            await asyncio.sleep(0)
            assert flooding._behind
        clock(1_000_000)
        await rest(flooding)
        assert not flooding.leaving

    on_loop(flooded)


def test_long_reads_of_one_turn_of_the_event_loop_share_its_time(monkeypatch):
    """Each of 20 connections had milliseconds of its own for data that came in one moment."""

    async def shared() -> None:
        made, now = Turns(), 100.0
        monkeypatch.setattr(turns, "monotonic", lambda: now)
        for _ in range(2):
            given = []
            for _ in range(20):
                given.append(made.long_read_seconds())
                now += given[-1]
            assert given[0] == TURN_SECONDS
            assert sum(given) <= ROUND_SECONDS + 20 * SHORTEST_TURN_SECONDS
            await asyncio.sleep(0)

    asyncio.run(shared())


def test_connections_with_long_reads_in_one_moment_do_less_each_than_one_alone(monkeypatch, on_loop):
    async def together(service: Service) -> None:
        connections = [greeted(service) for _ in range(4)]
        now = Clock(4)
        monkeypatch.setattr(turns, "monotonic", now)
        monkeypatch.setattr(frame_reader, "monotonic", now)
        for connection, socket in connections:
            socket.written = b""
            connection.data_received(h2.frame(h2.PING, 0, 0, bytes(8)) * 400)
        first, second, *_ = [len(socket.frames()) for _, socket in connections]
        assert second < first  # what is left of the time of both
        for connection, _ in connections:
            await rest(connection)

    on_loop(together)


def test_a_round_has_a_few_turns_and_what_fails_holds_up_nobody():
    async def rounds() -> Counter[int]:
        turns, loop, iteration, taken = Turns(), asyncio.get_running_loop(), 0, Counter[int]()
        failures: list[object] = []
        loop.set_exception_handler(lambda _, context: failures.append(context["exception"]))

        def turn() -> None:
            taken[iteration] += 1
            if taken.total() == 5:
                raise ValueError

        for _ in range(5 * ROUND_TURNS):
            turns.add(turn)
        while taken.total() < 5 * ROUND_TURNS:
            iteration += 1
            await asyncio.sleep(0)
            assert iteration < 100
        assert len(failures) == 1
        return taken

    assert set(asyncio.run(rounds()).values()) == {ROUND_TURNS}


@pytest.mark.parametrize("how", ["lost", "fault", "half closed"])
def test_the_calls_of_connections_that_end_together_end_in_turns(on_loop, how):
    """To cancel 60,000 calls took half a second, and nobody else was answered."""
    connections = 3 * ROUND_TURNS

    async def end(service: Service) -> None:
        ended = 0
        all_of_them = []
        for _ in range(connections):
            connection = ServerConnection(service, ConnectionPlaces(1))
            connection.connection_made(NoSocket())
            asked = b"".join(
                h2.frame(h2.HEADERS, h2.END_HEADERS, n, written(*request_headers_of("Wait"))) for n in range(1, 401, 2)
            )
            connection.data_received(h2.PREFACE + h2.settings({}) + asked)
            all_of_them.append(connection)
        while sum(len(c.calls) for c in all_of_them) < 200 * connections:
            await asyncio.sleep(0)
        for connection in all_of_them:
            if how == "lost":
                connection.connection_lost(None)
            elif how == "fault":
                connection.data_received(h2.frame(h2.SETTINGS, 0, 1))
                connection.data_received(h2.frame(h2.DATA, h2.END_STREAM, 1, HELLO))  # nothing more is read
            else:
                connection.eof_received()

        def open_calls() -> int:
            if how != "half closed":
                return service.traffic.in_flight
            return sum(not call.request_ended for c in all_of_them for call in c.calls.values())

        left = open_calls()
        assert left >= (200 - ENDED_CALLS) * connections  # at once only a few of each
        while left:
            await asyncio.sleep(0)
            ended, left = left - open_calls(), open_calls()
            assert ended <= ENDED_CALLS * ROUND_TURNS
        assert how == "half closed" or not any(c.busy() for c in all_of_them)
        for connection in all_of_them:
            connection.connection_lost(None)
        while service.traffic.in_flight:
            await asyncio.sleep(0)

    on_loop(end)


def request_headers_of(method: str) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in request_headers(method)]


def test_a_connection_that_was_choked_in_between_has_one_turn_in_each_round(clock, on_loop):
    """Each time that the client took data again it had one turn more, for as long as it had frames left."""

    async def choked(service: Service) -> None:
        connection, _ = greeted(service)
        clock(1)
        connection.data_received(h2.frame(h2.PING, 0, 0, bytes(8)) * 2000)
        for _ in range(5):
            connection.pause_writing()
            connection.resume_writing()
        await asyncio.sleep(0)
        before, rounds = connection.reads, 0
        while connection._behind:
            rounds += 1
            await asyncio.sleep(0)
        assert connection.reads - before <= rounds
        assert connection.reads > 10

    on_loop(choked)


def test_large_messages_of_streams_count_as_many(clock, on_loop):
    """Compressed, a frame has a thousand of them: to inflate and to read each takes a millisecond or two."""

    async def many(service: Service) -> None:
        count, data = 32, bytes(4 * COUNTED_BYTES)
        clock(10**6)
        connection, socket = greeted(service, h2.settings({h2.INITIAL_WINDOW_SIZE: 1 << 30}), WIDE)
        block = hpack.Encoder().encode(request_headers("Stream", grpc_encoding="gzip"))
        connection.data_received(h2.frame(h2.HEADERS, h2.END_HEADERS, 1, block))
        connection.data_received(h2.frame(h2.DATA, 0, 1, message(gzip.compress(data), 1) * count))
        answered: list[int] = []
        for _ in range(1000):
            answered.append(round(len(socket.written) / len(data)))
            socket.written = b""
            await asyncio.sleep(0)
        assert sum(answered) == count
        assert max(answered) <= ROUND_MESSAGES // 4
        connection.connection_lost(None)

    on_loop(many)


@pytest.mark.parametrize("method", ["Each", "Iterate"])
def test_streams_with_many_messages_answer_a_few_in_each_turn_of_the_event_loop(clock, on_loop, method):
    """All that have come would be answered together, and nothing else would run for a second."""

    async def many(service: Service) -> None:
        streams, each = 20, 3 * ROUND_MESSAGES
        clock(10**6)
        connection, socket = greeted(service, h2.settings({h2.INITIAL_WINDOW_SIZE: 1 << 20}), WIDE)
        connection.data_received(b"".join(asked(n, message(b"0") * each, method) for n in range(1, 2 * streams, 2)))
        answers = [0]
        while sum(answers) < streams * each:
            await asyncio.sleep(0)
            answers.append(sum(frame.kind == h2.DATA for frame in socket.frames()))
        assert max(answers) <= ROUND_MESSAGES + streams * ASKED_AT_ONCE
        connection.connection_lost(None)

    on_loop(many)


def test_a_stream_without_others_is_asked_all_messages_as_soon_as_they_come(clock, on_loop):
    """It would wait for turns, and have smaller batches, with nobody there to be kept waiting."""

    async def one(service: Service) -> None:
        count = ROUND_MESSAGES // 2
        clock(10**6)
        connection, socket = greeted(service)
        for number in (1, 3, 5):
            connection.data_received(asked(number, message(b"") * count, "Each"))
            assert sum(frame.kind == h2.DATA for frame in socket.frames()) == count
            await asyncio.sleep(0)
        connection.connection_lost(None)

    on_loop(one)


def test_streams_with_few_messages_each_go_on_together_in_a_turn(on_loop):
    """One stream in each turn would leave the batches as small as its few messages."""

    async def many(service: Service) -> None:
        steps, asked = Steps(service.turns), [0]

        def step(most: int) -> int:
            asked[-1] += 2
            return 2

        for _ in range(ROUND_MESSAGES):
            steps.add(step)
        while sum(asked) < 2 * ROUND_MESSAGES:
            asked.append(0)
            await asyncio.sleep(0)
        assert [count for count in asked if count] == [ROUND_MESSAGES] * 2

    on_loop(many)


def test_the_streams_of_a_connection_have_one_place_in_the_rounds(on_loop):
    """One with a thousand streams must not have a thousand turns for each turn of another connection."""

    async def many(service: Service) -> None:
        order: list[str] = []

        def step(name: str, most: int) -> int:
            order.append(name)
            return most

        many, one = Steps(service.turns), Steps(service.turns)
        for _ in range(100):
            many.add(partial(step, "many"))
        one.add(partial(step, "one"))
        while len(order) < 101:
            await asyncio.sleep(0)
        assert order.index("one") == 1

    on_loop(many)


def test_a_frontend_that_has_stopped_has_no_calls_left():
    """What comes after it ends the models and the event loop: calls must not be cancelled behind that."""

    async def stopped() -> None:
        methods, traffic, calls = Methods(), Traffic(), 20 * ENDED_CALLS
        server = Http2Frontend(methods.table(), traffic, MOST_BYTES)
        await server.start("127.0.0.1:0")
        host, _, port = server.address.rpartition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(h2.PREFACE + h2.settings({}) + b"".join(asked(n, HELLO, "Wait") for n in range(1, 2 * calls, 2)))
        while methods.waiting < calls:
            await asyncio.sleep(0.001)
        assert not await server.stop(0)
        assert traffic.in_flight == 0
        await asyncio.sleep(0)
        assert methods.cancelled == calls
        writer.close()

    asyncio.run(stopped())


@pytest.mark.parametrize("how", ["lost", "fault", "half closed"])
def test_a_connection_that_ends_with_few_calls_waits_for_no_round(clock, on_loop, how):
    async def end(service: Service) -> None:
        clock(10**6)
        connection, _ = greeted(service)
        connection.data_received(b"".join(asked(n, HELLO, "Wait") for n in range(1, 2 * ENDED_CALLS - 1, 2)))
        if how == "lost":
            connection.connection_lost(None)
        elif how == "fault":
            connection.data_received(h2.frame(h2.SETTINGS, 0, 1))
        else:
            connection.eof_received()
        assert not service.turns.going_on
        connection.connection_lost(None)
        assert service.holding.bytes == 0

    on_loop(end)


def test_a_connection_that_ends_with_a_fault_shortens_no_turns(clock, on_loop):
    async def faulty(service: Service) -> None:
        connections = [greeted(service)[0] for _ in range(3)]
        clock(1)
        for connection in connections:
            connection.data_received(h2.frame(h2.PING, 0, 0, bytes(8)) * 200 + h2.frame(h2.SETTINGS, 0, 1))
        assert service.turns.round_seconds < TURN_SECONDS
        for connection in connections:
            await rest(connection)
        assert all(connection.leaving for connection in connections)
        assert service.turns.round_seconds == service.turns.seconds == TURN_SECONDS

    on_loop(faulty)


@pytest.mark.parametrize("method", ["Echo", "Soon"])
def test_frames_that_are_left_are_answered_although_tls_has_ended_behind_them(clock, on_loop, method):
    async def ended(service: Service) -> None:
        connection, socket = greeted(service)
        clock(1)
        numbers = range(1, 101, 2)
        connection.data_received(b"".join(asked(n, HELLO, method) for n in numbers))
        assert connection._behind
        assert connection.eof_received()
        await rest(connection)
        while connection.busy():
            await asyncio.sleep(0.01)
        ends = [f.stream for f in socket.frames() if f.kind == h2.HEADERS and f.flags & h2.END_STREAM]
        assert sorted(ends) == list(numbers)
        connection.connection_lost(None)

    on_loop(ended)


def test_a_large_answer_that_a_client_takes_slowly_leaves_room_for_small_ones_on_the_same_connection():
    """The first stream that waited had the whole window of the connection until its end."""
    large, small = Stream(1, h2.LARGEST_WINDOW), Stream(3, h2.LARGEST_WINDOW)
    sender = Sender(Holding(1 << 30))
    assert sender.answer(large, bytes(10 * PORTION_BYTES))
    assert sender.answer(small, b"small")
    sender.widen(10 * PORTION_BYTES, None)
    assert sender.release() == []
    assert sender.refill() == [small]
    assert sender.waits(large)


def resumed_with_answer(service: Service) -> tuple[ServerConnection, NoSocket]:
    """A client that reads again, and whose answer of 50,000 bytes has waited for that."""
    connection, socket = greeted(service)
    connection.pause_writing()
    connection.data_received(asked(1, message(bytes(50_000))))
    connection.resume_writing()
    return connection, socket


def test_a_client_that_takes_an_answer_slowly_is_read_before_the_next_data_are_written(on_loop):
    """Each portion of a large answer filled the socket again: nothing was read before its end."""

    async def resumed(service: Service) -> None:
        connection, socket = resumed_with_answer(service)
        assert socket.is_read
        assert connection.on_the_way()  # a server that must end now has cut this answer
        await asyncio.sleep(0)  # here the event loop looks at its sockets, once it has called what was ready
        assert not any(frame.kind == h2.DATA for frame in socket.frames())
        await asyncio.sleep(0)
        assert [frame.stream for frame in socket.frames() if frame.flags == h2.END_HEADERS | h2.END_STREAM] == [1]
        assert not connection.on_the_way()

    on_loop(resumed)


def test_the_end_of_a_large_answer_is_sent_although_the_client_ends_its_side_before_it_is_written(on_loop):
    """The end that was read in between closed the socket before the last data."""

    async def ended(service: Service) -> None:
        connection, socket = resumed_with_answer(service)
        assert not connection.eof_received()
        assert [frame.stream for frame in socket.frames() if frame.flags == h2.END_HEADERS | h2.END_STREAM] == [1]

    on_loop(ended)


@pytest.mark.parametrize(("choked", "expected"), [(False, [0.0, 0.25, 0.5]), (True, [0.0, 0.25, 0.25])])
def test_a_call_knows_how_long_its_bytes_waited_for_the_turn(clock, monkeypatch, choked, expected):
    """What runs at once has no queue that could be too long: instead, requests wait in their connections.

    The time in which a client takes no answers is not counted.
    """
    waited: list[float] = []

    def answer(data: bytes) -> bytes:
        caller = CALLER.get()
        assert caller is not None
        waited.append(caller.waited_seconds)
        return data

    async def serve() -> None:
        method = Method("/t.T/Ask", pb.ModelInferRequest, wire_unary=answer)
        service = Service(Requests([method]), Traffic(), MOST_BYTES, DEFAULT_LIMITS, Holding(1 << 30))
        connection, _ = greeted(service)
        clock(1)  # each look at the clock ends a turn
        begun = monotonic()
        now = itertools.count(begun, 0.25)
        monkeypatch.setattr(socket_side, "monotonic", lambda: next(now))
        data = message(bytes(600))
        headers = written(*request_headers_of("Ask"))
        for first in (1, 7):
            connection.data_received(b"".join(
                h2.frame(h2.HEADERS, h2.END_HEADERS, n, headers) + h2.frame(h2.DATA, h2.END_STREAM, n, data)
                for n in range(first, first + 6, 2)
            ))  # fmt: skip
            while len(waited) < (first + 5) // 2:
                await asyncio.sleep(0)
                if choked and len(waited) == (first + 3) // 2 and not connection.choked:
                    connection.pause_writing()
                    connection.resume_writing()
        connection.connection_lost(None)

    asyncio.run(serve())
    assert waited == expected * 2
