"""The load's own HTTP/2 against grpcio: every call ends once, with the status that grpcio's client would see."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from hpack import Decoder

from normfold.protos import grpc_service as pb
from normfold.serving.client.calls import infer_request
from normfold.serving.load import http2
from normfold.serving.load.calls import StreamCalls, UnaryCalls, _messages, framed, headers, status
from normfold.serving.load.http2 import ClientConnection
from normfold.serving.load.streams import Event
from normfold.serving.wire.http2_frames import (
    ACK,
    DATA,
    DEFAULT_WINDOW,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADER_TABLE_SIZE,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    MAX_FRAME_SIZE,
    PADDED,
    PING,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    WITH_PRIORITY,
    frame,
    settings,
)

X = np.array([[1, 2, 3, 4]], np.float32)


def message(model="m", x=X):
    return infer_request(model, {"x": x}, None, "", "").SerializeToString()


def all_of(calls, numbers):
    """The status of each call, all made at once."""
    for number in numbers:
        calls.send(number)
    ended, until = [], time.monotonic() + 20
    while len(ended) < len(numbers):
        assert time.monotonic() < until, f"{len(ended)} of {len(numbers)} ended"
        ended += calls.wait(1)
    calls.close()
    assert sorted(number for number, _ in ended) == sorted(numbers)
    return {status for _, status in ended}


@pytest.fixture
def stand_in():
    """Starts servers that answer in one way, calls and streams; gives their address."""
    servers = []

    def start(behaviour, **options):
        server = grpc.server(ThreadPoolExecutor(8), options=tuple(options.items()))
        handlers = {
            "ModelInfer": grpc.unary_unary_rpc_method_handler(behaviour),
            "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(behaviour),
        }
        service = grpc.method_handlers_generic_handler("inference.GRPCInferenceService", handlers)
        server.add_generic_rpc_handlers((service,))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return f"127.0.0.1:{port}", server

    yield start
    for server in servers:
        server.stop(None).wait()


@pytest.mark.parametrize("kind", [UnaryCalls, StreamCalls])
@pytest.mark.parametrize("connections", [1, 3])
def test_every_call_is_answered(server, kind, connections):
    calls = kind(server.server.address, [message()], connections=connections)
    assert all_of(calls, range(300)) == {"OK"}


def test_a_mix_is_asked_in_turn(server):
    calls = UnaryCalls(server.server.address, [message(), message("nope")])
    calls.send(0)
    calls.send(1)
    ended = []
    while len(ended) < 2:
        ended += calls.wait(20)
    calls.close()
    assert sorted(ended) == [(0, "OK"), (1, "NOT_FOUND")]


@pytest.mark.parametrize(("model", "x", "status"), [("nope", X, "NOT_FOUND"), ("m", X[:, :2], "INVALID_ARGUMENT")])
def test_a_failure_has_the_status_of_the_call(server, model, x, status):
    assert all_of(UnaryCalls(server.server.address, [message(model, x)]), range(5)) == {status}


def test_a_failure_in_a_stream_is_an_error_without_ending_it(server):
    assert all_of(StreamCalls(server.server.address, [message("nope")]), range(5)) == {"ERROR"}


@pytest.mark.parametrize("size", [1, 16_384, 65_536, 1 << 20, (4 << 20) + 1])
def test_a_message_of_any_size_passes_the_windows_both_ways(stand_in, size):
    received = []

    def behaviour(data, context):
        received.append(len(data))
        return data

    address, _ = stand_in(behaviour, **{"grpc.max_receive_message_length": -1, "grpc.max_send_message_length": -1})
    assert all_of(UnaryCalls(address, [b"x" * size]), range(6)) == {"OK"}
    assert received == [size] * 6


def test_more_calls_than_the_server_lets_be_open_wait_their_turn(stand_in):
    address, _ = stand_in(lambda data, context: data, **{"grpc.max_concurrent_streams": 4})
    assert all_of(UnaryCalls(address, [b"x" * 100]), range(100)) == {"OK"}


def test_a_deadline_of_the_call_is_told_to_the_server(stand_in):
    left = []

    def behaviour(data, context):
        left.append(context.time_remaining())
        return data

    address, _ = stand_in(behaviour)
    all_of(UnaryCalls(address, [b"x"], timeout=7.0), [0])
    assert 5 < left[0] <= 7


def test_calls_on_a_connection_that_is_lost_fail_as_unavailable(stand_in):
    entered, release = threading.Event(), threading.Event()

    def behaviour(data, context):
        entered.set()
        release.wait(20)
        return data

    address, server = stand_in(behaviour)
    calls = UnaryCalls(address, [b"x"])
    calls.send(0)
    calls.wait(0)
    while not entered.wait(0.05):
        calls.wait(0)
    stopped = server.stop(0)
    ended = []
    while not ended:
        ended = calls.wait(20)
    release.set()
    stopped.wait()
    calls.close()
    assert [number for number, _ in ended] == [0]
    assert ended[0][1] in ("UNAVAILABLE", "CANCELLED")


def test_a_server_that_does_not_know_the_method_is_unimplemented(server, monkeypatch):
    monkeypatch.setattr("normfold.serving.load.calls.SERVICE", "/no.such.Service/")
    assert all_of(UnaryCalls(server.server.address, [b""]), [0]) == {"UNIMPLEMENTED"}


def test_nobody_at_the_address_is_a_connection_error():
    with pytest.raises(ConnectionError, match=r"no server answers at 127\.0\.0\.1:9"):
        UnaryCalls("127.0.0.1:9", [b""])
    with pytest.raises(ValueError, match="is not host:port"):
        UnaryCalls("127.0.0.1", [b""])


class Wire:
    """A socket whose other end is the test."""

    def __init__(self, coming=()):
        self.sent, self.coming = bytearray(), list(coming)

    def setblocking(self, flag):
        assert flag is False

    def send(self, data):
        self.sent += data
        return len(data)

    def recv(self, size):
        if not self.coming:
            raise BlockingIOError
        return self.coming.pop(0)


def frames(data):
    found = []
    while data:
        size = int.from_bytes(data[:3], "big")
        found.append((data[3], int.from_bytes(data[5:9], "big"), bytes(data[9 : 9 + size])))
        data = data[9 + size :]
    return found


def test_no_more_is_sent_than_the_window_that_the_peer_gave():
    wire = Wire([frame(SETTINGS, 0, 0)])
    connection = ClientConnection(wire, [(":method", "POST")])
    connection.receive()
    connection.flush()
    wire.sent.clear()
    connection.open(b"x" * 70_000, end=True)
    connection.flush()
    data = [payload for kind, _, payload in frames(bytes(wire.sent)) if kind == DATA]
    assert [len(part) for part in data] == [16_384, 16_384, 16_384, 16_383]
    wire.sent.clear()
    wire.coming = [frame(WINDOW_UPDATE, 0, 0, (5_000).to_bytes(4, "big"))]
    connection.receive()  # the connection's window grows, the stream's does not
    connection.flush()
    assert not wire.sent
    wire.coming = [frame(WINDOW_UPDATE, 0, 1, (5_000).to_bytes(4, "big"))]
    connection.receive()
    connection.flush()
    assert [(kind, len(payload)) for kind, _, payload in frames(bytes(wire.sent))] == [(DATA, 4_465)]


def opened():
    """A connection whose peer has sent its settings, and its socket."""
    wire = Wire([frame(SETTINGS, 0, 0)])
    connection = ClientConnection(wire, [(":method", "POST")])
    connection.receive()
    connection.flush()
    wire.sent.clear()
    return wire, connection


def test_a_window_that_becomes_larger_grows_from_what_is_left_of_it():
    wire, connection = opened()
    connection.open(b"x" * 70_000, end=True)
    connection.flush()
    wire.sent.clear()
    wire.coming = [
        frame(WINDOW_UPDATE, 0, 0, (5_000).to_bytes(4, "big")) + settings({INITIAL_WINDOW_SIZE: DEFAULT_WINDOW + 100})
    ]
    connection.receive()
    connection.flush()
    assert [len(payload) for kind, _, payload in frames(bytes(wire.sent)) if kind == DATA] == [100]


def test_padding_and_priorities_are_no_part_of_an_answer():
    wire, connection = opened()
    stream = connection.open(b"x", end=True)
    wire.coming = [
        frame(HEADERS, END_HEADERS | PADDED | WITH_PRIORITY, stream, b"\x02" + bytes(5) + b"\x88" + bytes(2))
        + frame(DATA, PADDED, stream, b"\x03abc" + bytes(3))
        + frame(DATA, PADDED | END_STREAM, stream, b"\0de")
    ]
    events = connection.receive()
    assert [(event.data, dict(event.headers)) for event in events] == [
        (b"", {":status": "200"}),
        (b"abc", {}),
        (b"de", {}),
    ]


@pytest.mark.parametrize(
    ("code", "name", "refused"), [(2, "UNAVAILABLE", False), (8, "CANCELLED", False), (7, "UNAVAILABLE", True)]
)
def test_a_stream_that_was_reset_ended_as_its_code_says(code, name, refused):
    wire, connection = opened()
    wire.coming = [frame(RST_STREAM, 0, connection.open(b"x", end=True), code.to_bytes(4, "big"))]
    (event,) = connection.receive()
    assert (status(event), event.ended, event.refused) == (name, True, refused)


def test_the_peer_gets_its_windows_back_long_before_they_are_used_up(monkeypatch):
    monkeypatch.setattr(http2, "_REPLENISH", 1000)
    wire, connection = opened()
    stream = connection.open(b"x", end=True)
    connection.flush()
    wire.sent.clear()
    for _ in range(3):
        wire.coming = [frame(DATA, 0, stream, bytes(600))]
        connection.receive()
    connection.flush()
    grown = (1200).to_bytes(4, "big")
    assert frames(bytes(wire.sent)) == [(WINDOW_UPDATE, 0, grown), (WINDOW_UPDATE, stream, grown)]


def test_a_peer_that_gives_its_header_table_up_gets_whole_headers():
    sent = [(":method", "POST"), ("x-own", "1")]
    wire = Wire([frame(SETTINGS, 0, 0)])
    connection = ClientConnection(wire, sent)
    connection.receive()
    for _ in range(3):
        connection.open(b"x", end=True)
    wire.coming = [settings({HEADER_TABLE_SIZE: 0})]
    connection.receive()
    connection.flush()
    wire.sent.clear()
    for _ in range(3):
        connection.open(b"x", end=True)
    connection.flush()
    decoder = Decoder()
    assert [decoder.decode(block) for kind, _, block in frames(bytes(wire.sent)) if kind == HEADERS] == [sent] * 3


def test_a_ping_is_answered():
    wire, connection = opened()
    wire.coming = [frame(PING, 0, 0, b"12345678")]
    connection.receive()
    connection.flush()
    assert bytes(wire.sent) == frame(PING, ACK, 0, b"12345678")


def test_frames_are_as_large_as_the_peer_takes_them():
    wire, connection = opened()
    wire.coming = [settings({MAX_FRAME_SIZE: 20_000})]
    connection.receive()
    connection.flush()
    wire.sent.clear()
    connection.open(bytes(30_000), end=True)
    connection.flush()
    assert [len(payload) for kind, _, payload in frames(bytes(wire.sent)) if kind == DATA] == [20_000, 10_000]


def test_a_connection_that_the_server_is_about_to_close_gets_no_more_calls(stand_in):
    address, _ = stand_in(lambda data, context: data)
    calls = UnaryCalls(address, [b"x"])
    first = calls._pool.at(0)
    first._take(GOAWAY, 0, 0, bytes(8), [])
    assert calls._pool.at(0) is not first
    assert all_of(calls, [0, 1]) == {"OK"}


@pytest.mark.parametrize("cut", range(1, 40))
def test_frames_may_come_in_any_pieces(cut):
    wire = Wire()
    connection = ClientConnection(wire, [(":method", "POST")])
    stream = connection.open(b"", end=True)
    answer = b"".join(
        (
            frame(SETTINGS, 0, 0, b""),
            frame(HEADERS, 4, stream, b"\x88"),  # index 8 of the static table: ":status: 200"
            frame(DATA, 0, stream, b"abc"),
            frame(HEADERS, 5, stream, b"\x00\x0bgrpc-status\x010"),
        )
    )
    wire.coming = [answer[at : at + cut] for at in range(0, len(answer), cut)]
    events = [event for _ in list(wire.coming) for event in connection.receive()]
    assert [event.data for event in events] == [b"", b"abc", b""]
    assert [dict(event.headers) for event in events] == [{":status": "200"}, {}, {"grpc-status": "0"}]
    assert [event.ended for event in events] == [False, False, True]


def test_from_the_second_request_on_headers_are_the_same_few_bytes():
    wire = Wire([frame(SETTINGS, 0, 0)])
    connection = ClientConnection(wire, [(":method", "POST"), (":path", "/a/B"), ("te", "trailers")])
    connection.receive()
    for _ in range(4):
        connection.open(b"", end=True)
    connection.flush()
    blocks = [payload for kind, _, payload in frames(bytes(wire.sent[24:])) if kind == HEADERS]
    assert len(blocks[1]) == 3
    assert blocks[1] == blocks[2] == blocks[3] != blocks[0]


@pytest.mark.parametrize("foreign", ["x", "-1", "9" * 5000, ""])
def test_a_stream_answer_with_an_id_that_is_not_ours_is_dropped(server, foreign):
    calls = StreamCalls(server.server.address, [message()])
    calls.send(0)
    answer = pb.ModelStreamInferResponse(infer_response=pb.ModelInferResponse(id=foreign))
    connection = next(iter(calls._numbers))
    ended = calls._answer(connection, answer.SerializeToString())
    calls.close()
    assert ended == []


def test_a_stream_that_the_server_ends_is_followed_by_another(stand_in):
    def behaviour(requests, context):
        request = pb.ModelInferRequest.FromString(next(requests))
        answer = pb.ModelStreamInferResponse(infer_response=pb.ModelInferResponse(id=request.id))
        yield answer.SerializeToString()
        next(requests)
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "")

    address, _ = stand_in(behaviour)
    calls = StreamCalls(address, [message()])
    found = []
    for number in range(4):
        calls.send(number)
        while len(found) <= number:
            found += calls.wait(20)
    calls.close()
    assert found == [(0, "OK"), (1, "RESOURCE_EXHAUSTED"), (2, "OK"), (3, "RESOURCE_EXHAUSTED")]


@pytest.mark.parametrize("size", [0, 1, 7])
def test_answers_of_a_stream_may_be_cut_anywhere(size):
    both = framed(b"a" * size) + framed(b"b" * 3)
    for cut in range(len(both) + 1):
        so_far = bytearray()
        assert _messages(so_far, both[:cut]) + _messages(so_far, both[cut:]) == [b"a" * size, b"bbb"]
        assert not so_far


@pytest.mark.parametrize(
    ("timeout", "written"), [(60.0, "60000m"), (1e-9, "1m"), (1e6, "1000000S"), (float("inf"), "99999999H")]
)
def test_a_timeout_has_eight_digits_at_most(timeout, written):
    assert dict(headers("127.0.0.1:1", "ModelInfer", timeout))["grpc-timeout"] == written


@pytest.mark.parametrize("http", ["²", "9" * 5000, "teapot"])
def test_an_http_status_that_is_no_number_is_unknown(http):
    assert status(Event(1, headers=((":status", http),))) == "UNKNOWN"


def test_an_answer_that_never_was_asked_is_dropped():
    wire = Wire()
    connection = ClientConnection(wire, [(":method", "POST")])
    wire.coming = [frame(DATA, 1, 9, b"stray")]
    assert connection.receive() == []
