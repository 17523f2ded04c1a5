"""Calls are opened by their first data or at the end of a turn: frames mean the same, together or each in its turn."""

from __future__ import annotations

import asyncio
import gc
import random
import weakref
from collections import Counter
from unittest import mock

import hpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.serving.frontends.raw import NoSocket, message, request_headers

from normfold.protos import grpc_service as pb
from normfold.serving.access.access import Access
from normfold.serving.errors import Overloaded, Status, Unauthenticated
from normfold.serving.frontends.access_log import AccessLog
from normfold.serving.frontends.http2 import frame_reader, opening, patience
from normfold.serving.frontends.http2.call import Service
from normfold.serving.frontends.http2.connection import ServerConnection
from normfold.serving.frontends.http2.connection_places import ConnectionPlaces, is_idle
from normfold.serving.frontends.http2.frontend import Http2Frontend
from normfold.serving.frontends.http2.holding import Holding
from normfold.serving.frontends.http2.lifetime import FAREWELL
from normfold.serving.frontends.http2.limits import ENDED_CALLS, MOST_CALLS, OPENED_CALLS
from normfold.serving.frontends.http2.requests import Requests
from normfold.serving.frontends.limits import DEFAULT_LIMITS
from normfold.serving.rpc.methods import Method
from normfold.serving.rpc.traffic import Traffic
from normfold.serving.wire import http2_frames as h2
from normfold.serving.wire.http2_headers import written

FULL, FREE = b"full", b"free"


class Answers:
    """A method that gives FREE requests back, and refuses FULL ones by their first bytes while it is ``full``."""

    def __init__(self, full: bool = True, looks: bool = False) -> None:
        """``looks``: it can say without a request whether it still refuses."""
        self.asked: list[bytes] = []
        self.again = 0
        self.full = full
        #: The connections for which it said so.
        self.looked: list[object] = []
        self._looks = looks

    def answer(self, data: bytes) -> bytes:
        self.asked.append(data)
        if data.startswith(FREE) or not self.full:
            return data
        raise self._error()

    def _error(self) -> Overloaded:
        error = Overloaded("full", 1.0)
        error.alike, error.again = len(FULL), self._count
        error.still = self._still if self._looks else None
        return error

    def _still(self, connection: object) -> Overloaded | None:
        self.looked.append(connection)
        return self._error() if self.full else None

    def _count(self, more: int) -> None:
        self.again += more


def headers(stream: int, flags: int = 0, **more: str) -> bytes:
    block = written(*[(name.encode(), value.encode()) for name, value in request_headers("Infer", **more)])
    return h2.frame(h2.HEADERS, h2.END_HEADERS | flags, stream, block)


def body(stream: int, data: bytes) -> bytes:
    return h2.frame(h2.DATA, h2.END_STREAM, stream, message(data))


def connect(
    answers: Answers, access: Access | None = None, log: AccessLog | None = None
) -> tuple[ServerConnection, NoSocket]:
    method = Method("/t.T/Infer", pb.ModelInferRequest, wire_unary=answers.answer)
    requests = Requests([method], tokens=access is not None)
    service = Service(requests, Traffic(), 1 << 20, DEFAULT_LIMITS, Holding(1 << 30), access=access, log=log)
    connection, socket = ServerConnection(service, ConnectionPlaces(1)), NoSocket()
    connection.connection_made(socket)
    connection.data_received(h2.PREFACE + h2.settings({}))
    return connection, socket


Ends = dict[int, list[tuple[str, str]]]


def converse(turns: list[bytes]) -> tuple[Ends, Counter[tuple[str, Status]], Answers]:
    """How each stream ended, the failures that were counted, and what was asked."""

    async def serve() -> tuple[Ends, Counter[tuple[str, Status]], Answers]:
        answers = Answers()
        connection, socket = connect(answers)
        for turn in turns:
            connection.data_received(turn)
        assert connection.service.traffic.in_flight == len(connection.calls)
        ends: Ends = {}
        decoder = hpack.Decoder()
        for frame in socket.frames():
            if frame.kind == h2.HEADERS and frame.flags & h2.END_STREAM:
                found = dict(decoder.decode(frame.payload))
                ends.setdefault(frame.stream, []).append((found["grpc-status"], found.get("grpc-message", "")))
            elif frame.kind == h2.RST_STREAM:
                ends.setdefault(frame.stream, []).append(("reset", str(int.from_bytes(frame.payload, "big"))))
            elif frame.kind == h2.GOAWAY:
                ends.setdefault(0, []).append(("closed", str(int.from_bytes(frame.payload[4:8], "big"))))
        for number in connection.calls:
            ends.setdefault(number, []).append(("open", ""))
        return ends, connection.service.traffic.failed, answers

    with mock.patch.object(frame_reader, "monotonic", return_value=0.0):  # a turn takes all that it is given
        return asyncio.run(serve())


#: Calls that are refused by their first data, if one like them was: what comes behind is not looked at.
EARLY = ("parts", "trailers", "cut")


def one_call(chance: random.Random, number: int) -> tuple[str, list[bytes]]:
    """The kind and the frames of a call, mostly a good one that is refused."""
    data = message(chance.choice([FULL, FULL, FULL, FREE]) + b"m" * chance.choice([10, 10, 10, 11]))
    more: dict[str, str] = {}
    if chance.random() < 0.3:
        more["grpc_timeout"] = chance.choice(["20S", "30S"])
    if chance.random() < 0.3:
        more["content_length"] = str(len(data) + chance.choice([0, 0, 1]))
    head = headers(number, **more)
    kind = chance.choice(
        ["whole"] * 6 + ["parts", "padded", "reset", "cut", "trailers", "window", "nothing", "late", "empty"]
    )
    at = chance.randrange(len(data))
    whole = h2.frame(h2.DATA, h2.END_STREAM, number, data)
    rest = {
        "parts": [h2.frame(h2.DATA, 0, number, data[:at]), h2.frame(h2.DATA, h2.END_STREAM, number, data[at:])],
        "padded": [h2.frame(h2.DATA, h2.END_STREAM | h2.PADDED, number, b"\3" + data + bytes(3))],
        "trailers": [
            h2.frame(h2.DATA, 0, number, data),
            h2.frame(h2.HEADERS, h2.END_HEADERS | h2.END_STREAM, number, b""),
        ],
        "reset": [h2.frame(h2.RST_STREAM, 0, number, bytes(4))],
        "cut": [h2.frame(h2.DATA, h2.END_STREAM, number, data[:-1])],
        "window": [h2.frame(h2.WINDOW_UPDATE, 0, number, bytes([0, 0, 0, 9])), whole],
        "nothing": [],
        "empty": [h2.frame(h2.HEADERS, h2.END_HEADERS | h2.END_STREAM, number, b"")],
        "late": [whole, h2.frame(h2.DATA, h2.END_STREAM, number, b"x")],
    }
    return kind, [head, *rest.get(kind, [whole])]


@given(st.integers(min_value=0))
@settings(max_examples=150, deadline=None)
def test_frames_mean_the_same_in_one_turn_and_in_many(seed):
    chance = random.Random(seed)
    numbers = range(1, 2 * chance.randint(2, 9), 2)
    kinds, calls = map(list, zip(*[one_call(chance, number) for number in numbers], strict=True))
    frames: list[bytes] = []
    waiting: list[list[bytes]] = []
    while calls or waiting:  # headers in the order of their streams; the rest in any order
        if calls and (not waiting or chance.random() < 0.7):
            first, *rest = calls.pop(0)
            frames.append(first)
            waiting.append(rest)
        else:
            rest = chance.choice(waiting)
            if rest:
                frames.append(rest.pop(0))
            else:
                waiting.remove(rest)
    together, failed, answers = converse([b"".join(frames)])
    apart, failed_apart, answers_apart = converse(frames)
    for number, kind in zip([0, *numbers], ["", *kinds], strict=True):
        ends, others = together.get(number), apart.get(number)
        early = ends is not None and ends[0] == ("8", "full") and kind in EARLY
        assert ends == others or early, (number, kind)
        assert not early or others is not None
    if together == apart:
        assert failed == failed_apart
        assert len(answers.asked) + answers.again == len(answers_apart.asked)


def test_requests_that_are_refused_together_get_no_calls(monkeypatch):
    opened: list[int] = []
    monkeypatch.setattr(
        opening.CallOpening,
        "open",
        lambda s, c, n, *a, open=opening.CallOpening.open: (opened.append(n), open(s, c, n, *a))[1],
    )
    streams = range(1, 201, 2)
    length = str(len(message(FULL)))
    block = b"".join(headers(n, content_length=length) for n in streams)
    ends, _, answers = converse([block + b"".join(body(n, FULL) for n in streams)])
    assert (opened, answers.asked, answers.again) == ([1], [FULL], len(streams) - 1)
    assert ends == {n: [("8", "full")] for n in streams}


def test_another_token_is_asked_for_itself(tmp_path):
    """Whoever may not ask is told so, although the server is full for the one before."""

    class Tokens:
        def admit(self, method: Method, credential: bytes) -> Method:
            if credential != credentials[0]:
                raise PermissionError
            return method

    credentials: list[bytes] = []

    async def serve() -> list[bytes]:
        answers = Answers()
        connection, _ = connect(answers, Tokens())  # type: ignore[arg-type]
        read = connection.service.requests.read
        asked = [
            read(written(*[(n.encode(), v.encode()) for n, v in request_headers("Infer", authorization=token)]), reader)
            for token, reader in (("Bearer a", connection._headers), ("Bearer b", connection._headers))
        ]
        credentials.append(asked[0].credential)
        connection.data_received(headers(1, authorization="Bearer a") + body(1, FULL))
        with pytest.raises(PermissionError):
            connection.data_received(
                headers(3, authorization="Bearer a")
                + body(3, FULL)
                + headers(5, authorization="Bearer b")
                + body(5, FULL)
            )
        return answers.asked

    assert asyncio.run(serve()) == [FULL, FULL]


def test_headers_whose_calls_are_not_opened_yet_have_places():
    streams = range(1, 2 * MOST_CALLS + 5, 2)
    ends, _, _ = converse([b"".join(map(headers, streams)) + body(1, FREE)])
    assert [n for n, end in ends.items() if end == [("reset", str(h2.REFUSED_STREAM))]] == list(streams[MOST_CALLS:])


def test_a_full_server_is_looked_at_once_a_turn():
    async def serve() -> tuple[Answers, ServerConnection, list[int]]:
        answers = Answers(looks=True)
        connection, socket = connect(answers)
        for number in range(1, 13, 4):
            connection.data_received(b"".join(headers(n) + body(n, FULL) for n in (number, number + 2)))
        answers.full = False
        connection.data_received(headers(13) + body(13, FULL))
        answers.full = True
        connection.data_received(headers(15) + body(15, FULL))
        connection.service.traffic.closing = True
        connection.data_received(headers(17) + body(17, FULL))
        ends = [frame for frame in socket.frames() if frame.kind == h2.HEADERS and frame.flags & h2.END_STREAM]
        assert [frame.stream for frame in ends] == list(range(1, 19, 2))
        decoder = hpack.Decoder()
        statuses = [int(dict(decoder.decode(frame.payload))["grpc-status"]) for frame in ends]
        return answers, connection, statuses

    answers, connection, statuses = asyncio.run(serve())
    assert statuses == [8, 8, 8, 8, 8, 8, 0, 8, 14]
    assert len(answers.asked) == 3  # the first, the one that is answered, and the next one
    assert answers.looked == [connection] * 3
    assert answers.again == 5
    assert connection.service.traffic.failed == {
        ("/t.T/Infer", Status.RESOURCE_EXHAUSTED): 7,
        ("/t.T/Infer", Status.UNAVAILABLE): 1,
    }
    assert connection.service.traffic.in_flight == 0


def test_calls_of_headers_before_a_fault_are_counted_and_logged(caplog):
    """As if each frame came in a turn of its own: whoever ends a connection in the same turn leaves its lines, too."""

    class Tokens:
        def admit(self, method: Method, credential: bytes) -> Method:
            if not credential:
                raise Unauthenticated("no token")
            return method

        def name(self, credential: bytes) -> str:
            return ""

    fault = h2.frame(h2.DATA, 0, 99, b"x")  # a stream that was never opened

    async def serve(*turns: bytes) -> tuple[list[str], Counter[tuple[str, Status]], int]:
        caplog.clear()
        connection, _ = connect(Answers(), Tokens(), AccessLog(errors_only=False))  # type: ignore[arg-type]
        for turn in turns:
            connection.data_received(turn)
        statuses = [record.fields["status"] for record in caplog.records if hasattr(record, "fields")]
        assert not connection.calls
        return statuses, connection.service.traffic.failed, connection.service.traffic.in_flight

    caplog.set_level("INFO", "normfold")
    frames = headers(1), headers(3, authorization="Bearer a"), fault
    apart = asyncio.run(serve(*frames))
    assert asyncio.run(serve(b"".join(frames))) == apart
    assert apart == (["UNAUTHENTICATED", "CANCELLED"], {("/t.T/Infer", Status.UNAUTHENTICATED): 1}, 0)


def test_a_flood_of_refused_headers_ends_the_connection_and_opens_no_call_twice(monkeypatch):
    """The fault comes while calls are opened: those before it are ended once."""
    monkeypatch.setattr(patience, "MOST_FRUITLESS", 4)

    class Tokens:
        def admit(self, method: Method, credential: bytes) -> Method:
            if not credential:
                raise Unauthenticated("no token")
            return method

    async def serve() -> tuple[int, int]:
        connection, socket = connect(Answers(), Tokens())  # type: ignore[arg-type]
        connection.data_received(headers(1, authorization="Bearer a") + b"".join(map(headers, range(3, 31, 2))))
        while connection._behind:
            await asyncio.sleep(0)
        assert [frame.kind for frame in socket.frames()][-1] == h2.GOAWAY
        return connection.service.traffic.in_flight, len(connection.calls)

    assert asyncio.run(serve()) == (0, 0)


MANY = range(1, 2 * MOST_CALLS, 2)


@pytest.mark.parametrize("ended", ["", "lost", "fault"])
def test_calls_of_many_headers_are_opened_a_few_a_turn_also_where_their_connection_ends(ended, monkeypatch):
    """20 connections that each sent 1,000 headers in one moment held the event loop for 150 ms."""
    opened: list[int] = []
    monkeypatch.setattr(frame_reader, "monotonic", lambda: 0.0)  # a turn takes all frames that it is given
    monkeypatch.setattr(
        opening.CallOpening,
        "open",
        lambda s, c, n, *a, open=opening.CallOpening.open: (opened.append(n), open(s, c, n, *a))[1],
    )

    async def serve() -> int:
        connection, _ = connect(Answers())
        connection.data_received(b"".join(map(headers, MANY)))
        assert len(opened) == OPENED_CALLS
        assert connection.busy()
        assert not is_idle(connection)
        if ended == "fault":
            connection.data_received(h2.frame(h2.PING, 0, 1, bytes(8)))
        elif ended:
            connection.connection_lost(None)
        else:
            connection.data_received(body(MANY[-1], FREE))
            assert opened[OPENED_CALLS] == MANY[-1]  # by its data
        while connection.service.turns.going_on:
            before = len(opened)
            await asyncio.sleep(0)
            assert len(opened) <= before + ENDED_CALLS
        assert sorted(opened) == list(MANY)
        assert not connection.opening.begun
        assert connection.service.traffic.in_flight == len(connection.calls)
        return len(connection.calls)

    assert asyncio.run(serve()) == (0 if ended else len(MANY) - 1)


def test_the_line_of_a_call_that_is_opened_when_its_client_has_gone_names_the_client(caplog):
    async def serve() -> list[str]:
        connection, _ = connect(Answers(), log=AccessLog(errors_only=False))
        connection.peer = "192.0.2.1:5"
        connection.data_received(b"".join(map(headers, MANY[:10])))
        connection.connection_lost(None)
        return [record.fields["peer"] for record in caplog.records if hasattr(record, "fields")]

    caplog.set_level("INFO", "normfold")
    assert asyncio.run(serve()) == ["192.0.2.1:5"] * 10


def test_a_server_that_drains_waits_until_the_calls_that_came_before_are_opened():
    """The next step of its end refuses new calls: those whose headers had come were refused, too."""

    async def drained() -> tuple[bool, int]:
        traffic = Traffic()
        method = Method("/t.T/Infer", pb.ModelInferRequest, wire_unary=Answers().answer)
        server = Http2Frontend([method], traffic, 1 << 20)
        connection = server._accept()
        connection.connection_made(NoSocket())
        connection.data_received(h2.PREFACE + h2.settings({}))
        draining = asyncio.ensure_future(server.drain(60))
        await asyncio.sleep(0)
        connection.pause_writing()  # calls are not opened while the client takes nothing
        connection.data_received(b"".join(map(headers, MANY[:20])) + h2.frame(h2.PING, h2.ACK, 0, FAREWELL))
        await asyncio.sleep(0.05)
        before = draining.done()
        connection.resume_writing()
        await draining
        return before, traffic.in_flight

    assert asyncio.run(drained()) == (False, 20)


def test_a_connection_that_was_lost_while_calls_waited_to_be_opened_is_not_kept_by_them():
    async def lost() -> bool:
        connection, _ = connect(Answers())
        connection.data_received(b"".join(headers(number, grpc_timeout="9S") for number in MANY[: 2 * ENDED_CALLS]))
        connection.connection_lost(None)
        turns, kept = connection.service.turns, weakref.ref(connection)
        del connection
        while turns.going_on:
            await asyncio.sleep(0)
        return kept() is not None

    gc.disable()
    try:
        assert not asyncio.run(lost())
    finally:
        gc.enable()
