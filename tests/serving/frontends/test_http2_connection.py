"""HTTP/2 frame by frame: frames that the server must take, and frames that end a stream or the connection."""

from __future__ import annotations

import asyncio
import socket
import time

import hpack
import pytest
from tests.serving.frontends.raw import NoSocket, Raw, message, request_headers
from tests.waiting import wait_until

from normfold.serving.frontends.http2 import frame_reader, patience
from normfold.serving.frontends.http2.connection import ServerConnection
from normfold.serving.frontends.http2.connection_places import ConnectionPlaces, is_idle
from normfold.serving.frontends.http2.frame_reader import FrameReader
from normfold.serving.frontends.http2.holding import Holding
from normfold.serving.frontends.http2.limits import (
    BLOCK_BYTES,
    FORGOTTEN_EACH_SECOND,
    FRAME_BYTES,
    FULL_READ_BYTES,
    MOST_CALLS,
    MOST_FRUITLESS,
    MOST_SETTINGS,
    ROUND_SECONDS,
    ROUND_TURNS,
    SHORTEST_TURN_SECONDS,
    TURN_SECONDS,
    WINDOW_BYTES,
)
from normfold.serving.frontends.http2.turns import Turns
from normfold.serving.wire import http2_frames as h2
from normfold.serving.wire.http2_headers import written

OK = {":status": "200", "content-type": "application/grpc", "grpc-status": "0"}
HELLO = message(b"hello")


def test_an_answer_is_headers_message_and_trailers(raw):
    raw.ask(1, HELLO)
    assert raw.answer(1) == (HELLO, OK)


def test_frames_may_come_byte_by_byte(served):
    client = Raw(served.address, greet=False)
    block = client.encoder.encode(request_headers())
    everything = h2.PREFACE + h2.settings({}) + h2.frame(h2.HEADERS, h2.END_HEADERS, 1, block)
    everything += h2.frame(h2.DATA, h2.END_STREAM, 1, HELLO)
    client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for at in range(len(everything)):
        client.send(everything[at : at + 1])
    assert client.answer(1) == (HELLO, OK)


@pytest.mark.parametrize("cuts", [(1,), (4,), (5,), (6,), (1, 2, 3, 4, 5, 6, 7)])
def test_a_message_may_be_cut_anywhere(raw, cuts):
    raw.ask(1, None)
    begin = 0
    for cut in cuts:
        raw.send(h2.frame(h2.DATA, 0, 1, HELLO[begin:cut]))
        begin = cut
    raw.send(h2.frame(h2.DATA, 0, 1, HELLO[begin:]), h2.frame(h2.DATA, h2.END_STREAM, 1))
    assert raw.answer(1) == (HELLO, OK)


@pytest.mark.parametrize("method", ["Stream", "Iterate"])
def test_messages_of_a_stream_may_share_a_frame(raw, method):
    raw.ask(1, message(b"a") + message(b"") + message(b"ccc"), method)
    assert raw.answer(1)[0] == message(b"a") + message(b"") + message(b"ccc")


def test_headers_may_be_padded_have_a_priority_and_be_continued(raw):
    block = raw.encoder.encode(request_headers())
    flags = h2.PADDED | h2.WITH_PRIORITY
    raw.send(h2.frame(h2.HEADERS, flags, 1, b"\x03" + b"\0\0\0\0\x10" + block[:5] + bytes(3)))
    raw.send(h2.frame(h2.CONTINUATION, 0, 1, block[5:9]), h2.frame(h2.CONTINUATION, h2.END_HEADERS, 1, block[9:]))
    raw.send(h2.frame(h2.DATA, h2.END_STREAM | h2.PADDED, 1, b"\x02" + HELLO + bytes(2)))
    assert raw.answer(1) == (HELLO, OK)


def test_a_client_may_use_a_header_table_until_it_is_asked_not_to(raw):
    for stream in (1, 3, 5):
        raw.ask(stream, HELLO, x_trace=str(stream))
        assert raw.answer(stream) == (HELLO, OK)
    raw.encoder.header_table_size = 0
    for stream in (7, 9, 11):
        raw.ask(stream, HELLO, x_trace="7")
        assert raw.answer(stream) == (HELLO, OK)


def test_trailers_of_the_client_end_its_request(raw):
    raw.ask(1, None)
    raw.send(h2.frame(h2.DATA, 0, 1, HELLO))
    block = raw.encoder.encode([("x-checksum", "1")])
    raw.send(h2.frame(h2.HEADERS, h2.END_HEADERS | h2.END_STREAM, 1, block))
    assert raw.answer(1) == (HELLO, OK)


def test_pings_are_answered_settings_acknowledged_and_unknown_frames_ignored(raw):
    assert raw.until(h2.SETTINGS).flags == 0
    assert raw.until(h2.SETTINGS).flags == h2.ACK
    raw.send(h2.frame(0xBE, 0xFF, 1, b"?"), h2.frame(h2.PRIORITY, 0, 5, bytes(5)), h2.frame(h2.PING, 0, 0, b"12345678"))
    assert raw.until(h2.PING) == (h2.PING, h2.ACK, 0, b"12345678")
    assert raw.still_answers()


def block_of(*headers: tuple[str, str], on: int = 1):
    return lambda raw: h2.frame(h2.HEADERS, h2.END_HEADERS, on, raw.encoder.encode(headers))


def opened(*frames: bytes):
    """Begin a request, do not end it, and send these frames."""
    return lambda raw: h2.frame(h2.HEADERS, h2.END_HEADERS, 1, raw.encoder.encode(request_headers())) + b"".join(frames)


FAULTS = {
    "data on a stream that was never opened": (lambda _: h2.frame(h2.DATA, 0, 1, b"x"), h2.PROTOCOL_ERROR),
    "data on the connection": (lambda _: h2.frame(h2.DATA, 0, 0, b"x"), h2.PROTOCOL_ERROR),
    "a stream of the server's": (lambda _: h2.frame(h2.HEADERS, h2.END_HEADERS, 2, b"\x82"), h2.PROTOCOL_ERROR),
    "reset of a stream that was never opened": (lambda _: h2.frame(h2.RST_STREAM, 0, 1, bytes(4)), h2.PROTOCOL_ERROR),
    "reset of a wrong size": (opened(h2.frame(h2.RST_STREAM, 0, 1, bytes(3))), h2.FRAME_SIZE_ERROR),
    "reset of the connection": (lambda _: h2.frame(h2.RST_STREAM, 0, 0, bytes(4)), h2.PROTOCOL_ERROR),
    "ping of a wrong size": (lambda _: h2.frame(h2.PING, 0, 0, bytes(7)), h2.FRAME_SIZE_ERROR),
    "ping on a stream": (lambda _: h2.frame(h2.PING, 0, 1, bytes(8)), h2.PROTOCOL_ERROR),
    "priority of a wrong size": (lambda _: h2.frame(h2.PRIORITY, 0, 1, bytes(4)), h2.FRAME_SIZE_ERROR),
    "settings of a wrong size": (lambda _: h2.frame(h2.SETTINGS, 0, 0, bytes(5)), h2.FRAME_SIZE_ERROR),
    "settings on a stream": (lambda _: h2.frame(h2.SETTINGS, 0, 1, bytes(6)), h2.PROTOCOL_ERROR),
    "acknowledgement with settings": (lambda _: h2.frame(h2.SETTINGS, h2.ACK, 0, bytes(6)), h2.FRAME_SIZE_ERROR),
    "push that is neither on nor off": (lambda _: h2.settings({h2.ENABLE_PUSH: 2}), h2.PROTOCOL_ERROR),
    "a window that is too large": (lambda _: h2.settings({h2.INITIAL_WINDOW_SIZE: 1 << 31}), h2.FLOW_CONTROL_ERROR),
    "frames that are too small": (lambda _: h2.settings({h2.MAX_FRAME_SIZE: 16_383}), h2.PROTOCOL_ERROR),
    "the connection's window widened by 0": (lambda _: h2.frame(h2.WINDOW_UPDATE, 0, 0, bytes(4)), h2.PROTOCOL_ERROR),
    "the connection's window overflows": (
        lambda _: h2.frame(h2.WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff"),
        h2.FLOW_CONTROL_ERROR,
    ),
    "window update of a wrong size": (lambda _: h2.frame(h2.WINDOW_UPDATE, 0, 0, bytes(3)), h2.FRAME_SIZE_ERROR),
    "push promise": (lambda _: h2.frame(h2.PUSH_PROMISE, 0, 1, bytes(4)), h2.PROTOCOL_ERROR),
    "continuation of nothing": (lambda _: h2.frame(h2.CONTINUATION, 0, 1, b"\x82"), h2.PROTOCOL_ERROR),
    "a header block that is interrupted": (
        lambda _: h2.frame(h2.HEADERS, 0, 1, b"\x82") + h2.frame(h2.PING, 0, 0, bytes(8)),
        h2.PROTOCOL_ERROR,
    ),
    "a header block interrupted by data": (
        lambda _: h2.frame(h2.HEADERS, 0, 1, b"\x82") + h2.frame(h2.DATA, 0, 1, b"x"),
        h2.PROTOCOL_ERROR,
    ),
    "a header block continued on another stream": (
        lambda _: h2.frame(h2.HEADERS, 0, 1, b"\x82") + h2.frame(h2.CONTINUATION, 4, 3, b"\x82"),
        h2.PROTOCOL_ERROR,
    ),
    "more padding than data": (opened(h2.frame(h2.DATA, h2.PADDED, 1, b"\x05abc")), h2.PROTOCOL_ERROR),
    "padding without data": (opened(h2.frame(h2.DATA, h2.PADDED, 1)), h2.PROTOCOL_ERROR),
    "more padding than headers": (
        lambda _: h2.frame(h2.HEADERS, h2.END_HEADERS | h2.PADDED, 1, b"\x09\x82"),
        h2.PROTOCOL_ERROR,
    ),
    "no header of that number": (lambda _: h2.frame(h2.HEADERS, h2.END_HEADERS, 1, b"\xfe"), h2.COMPRESSION_ERROR),
    "headers that are cut": (lambda _: h2.frame(h2.HEADERS, h2.END_HEADERS, 1, b"\x40\x0axy"), h2.COMPRESSION_ERROR),
    "a stream that was passed over": (
        lambda raw: block_of(*request_headers(), on=5)(raw) + block_of(*request_headers(), on=3)(raw),
        h2.PROTOCOL_ERROR,
    ),
    "a stream that was answered": (
        lambda raw: opened(h2.frame(h2.DATA, h2.END_STREAM, 1, HELLO))(raw) + block_of(*request_headers())(raw),
        h2.STREAM_CLOSED,
    ),
    "too many settings in one frame": (
        lambda _: h2.frame(h2.SETTINGS, 0, 0, (b"\0\x04" + bytes(4)) * (MOST_SETTINGS + 1)),
        h2.ENHANCE_YOUR_CALM,
    ),
    "windows that are too large for a moment": (
        lambda _: h2.frame(h2.SETTINGS, 0, 0, b"\0\x04\x80" + bytes(3) + b"\0\x04" + bytes(4)),
        h2.FLOW_CONTROL_ERROR,
    ),
    "a frame larger than allowed": (
        lambda _: (FRAME_BYTES + 1).to_bytes(3, "big") + bytes((h2.DATA, 0)) + bytes(4),
        h2.FRAME_SIZE_ERROR,
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_breaks_the_protocol_ends_the_connection(raw, name):
    build, code = FAULTS[name]
    raw.send(build(raw))
    assert raw.ended_with() == code


def test_a_connection_begins_with_the_preface_and_settings(served):
    client = Raw(served.address, greet=False)
    client.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert client.ended_with() == h2.PROTOCOL_ERROR
    client = Raw(served.address, greet=False)
    client.send(h2.PREFACE, h2.frame(h2.PING, 0, 0, bytes(8)))
    assert client.ended_with() == h2.PROTOCOL_ERROR
    assert Raw(served.address).still_answers()


MALFORMED = {
    "no path": [h for h in request_headers() if h[0] != ":path"],
    "no scheme": [h for h in request_headers() if h[0] != ":scheme"],
    "two paths": [*request_headers()[:4], (":path", "/t.T/Echo"), *request_headers()[4:]],
    "a status": [(":status", "200"), *request_headers()],
    "the path behind others": [*request_headers()[:2], ("x", "y"), *request_headers()[2:]],
    "a name in capitals": [*request_headers(), ("X-A", "b")],
    "an empty name": [*request_headers(), ("", "b")],
    "a name with a space": [*request_headers(), ("a b", "b")],
    "a header of HTTP/1.1": [*request_headers(), ("transfer-encoding", "chunked")],
    "an empty path": [(n, "" if n == ":path" else v) for n, v in request_headers()],
    "te that is not trailers": [*request_headers()[:4], ("te", "gzip"), *request_headers()[5:]],
    "a space before a value": [*request_headers(), ("x", " a")],
    "a tab behind a value": [*request_headers(), ("x", "a\t")],
    "a length that is no number": [*request_headers(), ("content-length", "x")],
    "two lengths": [*request_headers(), ("content-length", "10"), ("content-length", "11")],
    "a value of two lines": [*request_headers(), ("x", "a\r\nb")],
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_request_resets_its_stream_only(raw, name):
    raw.send(block_of(*MALFORMED[name])(raw))
    reset = raw.until(h2.RST_STREAM)
    assert (reset.stream, int.from_bytes(reset.payload, "big")) == (1, h2.PROTOCOL_ERROR)
    assert raw.still_answers()


RESETS = {
    "data after the end": (
        h2.frame(h2.DATA, h2.END_STREAM, 1, HELLO) + h2.frame(h2.DATA, 0, 1, b"x"),
        h2.STREAM_CLOSED,
    ),
    "a window widened by 0": (h2.frame(h2.WINDOW_UPDATE, 0, 1, bytes(4)), h2.PROTOCOL_ERROR),
    "a window that overflows": (h2.frame(h2.WINDOW_UPDATE, 0, 1, b"\x7f\xff\xff\xff"), h2.FLOW_CONTROL_ERROR),
    "trailers with a path": (h2.frame(h2.HEADERS, 5, 1, written((b":path", b"/t.T/Echo"))), h2.PROTOCOL_ERROR),
    "trailers with a bad name": (h2.frame(h2.HEADERS, 5, 1, written((b"X", b"y"))), h2.PROTOCOL_ERROR),
    "trailers after the end": (
        h2.frame(h2.DATA, h2.END_STREAM, 1, HELLO) + h2.frame(h2.HEADERS, 5, 1, b""),
        h2.STREAM_CLOSED,
    ),
    "headers that are no trailers": (h2.frame(h2.HEADERS, h2.END_HEADERS, 1, b"\x82"), h2.PROTOCOL_ERROR),
}


@pytest.mark.parametrize("name", RESETS)
def test_what_breaks_one_stream_cancels_it_and_leaves_the_others(raw, served, name):
    frames, code = RESETS[name]
    raw.ask(1, None, "Wait")
    raw.send(frames)
    reset = raw.until(h2.RST_STREAM)
    assert (reset.stream, int.from_bytes(reset.payload, "big")) == (1, code)
    wait_until(lambda: not served.methods.waiting and not served.traffic.in_flight)
    assert raw.still_answers()


#: Frames on a stream whose content-length is 10, the size of HELLO.
LENGTHS = {
    "too little": [h2.frame(h2.DATA, h2.END_STREAM, 1, HELLO[:9])],
    "too much": [h2.frame(h2.DATA, 0, 1, HELLO), h2.frame(h2.DATA, 0, 1, b"x")],
    "nothing but trailers": [h2.frame(h2.HEADERS, 5, 1, b"")],
}


@pytest.mark.parametrize("name", LENGTHS)
def test_data_of_another_length_than_announced_reset_the_stream(raw, served, name):
    raw.ask(1, None, content_length="10")
    raw.send(*LENGTHS[name])
    reset = raw.until(h2.RST_STREAM)
    assert (reset.stream, int.from_bytes(reset.payload, "big")) == (1, h2.PROTOCOL_ERROR)
    assert not served.traffic.in_flight
    assert raw.still_answers()


def test_a_request_of_the_announced_length_is_answered(raw):
    for stream, flags, more in ((1, h2.PADDED, (b"\x03", bytes(3))), (3, 0, (b"", b""))):
        raw.ask(stream, None, content_length="10")
        raw.send(h2.frame(h2.DATA, h2.END_STREAM | flags, stream, more[0] + HELLO + more[1]))
        assert raw.answer(stream) == (HELLO, OK)


def test_data_on_a_stream_that_was_answered_reset_it(raw):
    raw.ask(1, HELLO)
    assert raw.answer(1) == (HELLO, OK)
    raw.send(h2.frame(h2.DATA, 0, 1, b"x"))
    reset = raw.until(h2.RST_STREAM)
    assert (reset.stream, int.from_bytes(reset.payload, "big")) == (1, h2.STREAM_CLOSED)
    assert raw.still_answers()


@pytest.mark.parametrize("last", [h2.frame(h2.DATA, h2.END_STREAM, 1, b"x"), h2.frame(h2.HEADERS, 5, 1, b"")])
def test_the_end_of_a_request_that_was_answered_early_is_ignored(raw, last):
    raw.ask(1, None)
    raw.send(h2.frame(h2.DATA, 0, 1, message(b"?", 1)))
    assert raw.answer(1)[1]["grpc-status"] == "13"
    raw.until(h2.RST_STREAM)
    raw.send(last, h2.frame(h2.PING, 0, 0, bytes(8)))
    assert raw.frame() == (h2.PING, h2.ACK, 0, bytes(8))


def test_clients_with_a_header_table_are_understood_whatever_others_have_sent(served):
    others = Raw(served.address)
    others.encoder.header_table_size = 0
    for stream in (1, 3):  # the block of the first has the new size of the table
        others.ask(stream, HELLO, x_trace="a")
        assert others.answer(stream) == (HELLO, OK)
    block = hpack.Encoder().encode(request_headers(x_trace="a"))
    others.send(h2.frame(h2.HEADERS, h2.END_HEADERS, 5, block), h2.frame(h2.DATA, h2.END_STREAM, 5, HELLO))
    assert others.answer(5) == (HELLO, OK)  # a client without a table may send this block, too
    client = Raw(served.address)
    for stream in (1, 3, 5):
        client.ask(stream, HELLO, x_trace="a")
        assert client.answer(stream) == (HELLO, OK)


@pytest.mark.parametrize("huffman", [True, False])
@pytest.mark.parametrize(("values", "size"), [(1, 90_000), (40, 2250), (1900, 47), (20_000, 5), (400, 600)])
def test_a_call_with_too_many_headers_is_refused_alone(raw, served, values, size, huffman):
    raw.ask(1, HELLO, "Wait")
    wait_until(lambda: served.methods.waiting == 1)
    sent = [(f"x-{at}", "v" * size) for at in range(values)]
    block = raw.encoder.encode([*request_headers(), *sent], huffman)
    parts = [block[at : at + 16_384] for at in range(0, len(block), 16_384)]
    raw.send(h2.frame(h2.HEADERS, 0, 3, parts[0]))
    raw.send(*(h2.frame(h2.CONTINUATION, 0, 3, part) for part in parts[1:]), h2.frame(h2.CONTINUATION, 4, 3))
    raw.send(h2.frame(h2.DATA, h2.END_STREAM, 3, HELLO))
    _, headers = raw.answer(3)
    assert (headers["grpc-status"], headers["grpc-message"]) == (
        "8",
        "received metadata is larger than 65536 bytes or 512 headers",
    )
    for stream in (5, 7):
        raw.ask(stream, HELLO, **{f"x_{values - 1}": "v" * size})  # as it is in the table now
        assert raw.answer(stream)[1]["grpc-status"] == ("8" if values == 1 else "0")
    assert served.methods.waiting == 1


def test_more_data_than_the_window_resets_the_stream(raw):
    raw.ask(1, None, "Slow")
    for _ in range(5):
        raw.send(h2.frame(h2.DATA, 0, 1, message(bytes((1 << 19) - 5))))
    reset = raw.until(h2.RST_STREAM)
    assert int.from_bytes(reset.payload, "big") == h2.FLOW_CONTROL_ERROR
    assert raw.still_answers()


def test_more_calls_than_allowed_are_refused_for_another_try(raw):
    for stream in range(1, 2 * MOST_CALLS, 2):
        raw.ask(stream, None, "Wait")
    raw.ask(2 * MOST_CALLS + 1, HELLO)
    reset = raw.until(h2.RST_STREAM)
    assert (reset.stream, int.from_bytes(reset.payload, "big")) == (2 * MOST_CALLS + 1, h2.REFUSED_STREAM)


def test_an_answer_waits_for_the_windows_of_the_client(served):
    client = Raw(served.address, {h2.INITIAL_WINDOW_SIZE: 10})
    data = message(bytes(range(100)))
    client.ask(1, data)
    assert client.until(h2.HEADERS).flags == h2.END_HEADERS
    first = client.until(h2.DATA)
    assert first.payload == data[:10]
    client.send(h2.frame(h2.WINDOW_UPDATE, 0, 1, (5).to_bytes(4, "big")))
    second = client.until(h2.DATA)
    assert second.payload == data[10:15]
    client.send(h2.settings({h2.INITIAL_WINDOW_SIZE: 1000}))
    assert client.answer(1)[0] == data[15:]


def test_a_window_may_become_negative(served):
    client = Raw(served.address, {h2.INITIAL_WINDOW_SIZE: 50})
    data = message(bytes(100))
    client.ask(1, data)
    assert len(client.until(h2.DATA).payload) == 50
    client.send(h2.settings({h2.INITIAL_WINDOW_SIZE: 0}))
    client.send(h2.frame(h2.WINDOW_UPDATE, 0, 1, (50).to_bytes(4, "big")), h2.frame(h2.PING, 0, 0, bytes(8)))
    assert client.until(h2.PING).payload == bytes(8)
    client.send(h2.frame(h2.WINDOW_UPDATE, 0, 1, (7).to_bytes(4, "big")))
    assert len(client.until(h2.DATA).payload) == 7


def test_the_window_of_the_connection_bounds_all_streams_together(served):
    client = Raw(served.address, {h2.INITIAL_WINDOW_SIZE: 1 << 20})
    data = message(bytes(50_000))
    got = {1: 0, 3: 0}
    for stream in got:
        client.ask(stream, data)
    client.send(h2.frame(h2.PING, 0, 0, bytes(8)))
    while (found := client.frame()).kind != h2.PING:
        if found.kind == h2.DATA:
            got[found.stream] += len(found.payload)
    assert got == {1: len(data), 3: h2.DEFAULT_WINDOW - len(data)}
    client.send(h2.frame(h2.WINDOW_UPDATE, 0, 0, (1 << 20).to_bytes(4, "big")))
    assert len(client.answer(3)[0]) == len(data) - got[3]


def test_data_come_in_frames_no_larger_than_the_client_takes(served):
    client = Raw(served.address, {h2.INITIAL_WINDOW_SIZE: 1 << 20})
    client.ask(1, message(bytes(40_000)))
    sizes = []
    while (found := client.frame()).flags != h2.END_STREAM | h2.END_HEADERS:
        sizes += [len(found.payload)] if found.kind == h2.DATA else []
    assert sum(sizes) == 40_005
    assert max(sizes) == h2.DEFAULT_FRAME


def test_a_client_that_leaves_cancels_its_calls(raw, served):
    for stream in (1, 3):
        raw.ask(stream, HELLO, "Wait")
    wait_until(lambda: served.methods.waiting == 2)
    raw.send(h2.frame(h2.RST_STREAM, 0, 1, h2.CANCEL.to_bytes(4, "big")))
    wait_until(lambda: served.methods.cancelled == 1)
    raw.socket.close()
    wait_until(lambda: served.methods.cancelled == 2)
    wait_until(lambda: not served.traffic.in_flight)


FLOODS = {
    "pings": h2.frame(h2.PING, 0, 0, bytes(8)),
    "settings": h2.settings({}),
    "priorities": h2.frame(h2.PRIORITY, 0, 3, bytes(5)),
    "empty data": h2.frame(h2.DATA, 0, 1),
    "empty data of a stream that was answered": h2.frame(h2.DATA, 0, 3),
    "windows of the connection": h2.frame(h2.WINDOW_UPDATE, 0, 0, b"\0\0\0\x01"),
    "windows of a stream": h2.frame(h2.WINDOW_UPDATE, 0, 1, b"\0\0\0\x01"),
    "windows of a stream that was answered": h2.frame(h2.WINDOW_UPDATE, 0, 3, b"\0\0\0\x01"),
    "goodbyes": h2.frame(h2.GOAWAY, 0, 0, bytes(8)),
    "larger windows for all streams": h2.settings({h2.INITIAL_WINDOW_SIZE: 1}),
}
#: The contents of a PING behind a flood.
LAST_PING = b"the last"


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_ends_the_connection(raw, served, name):
    raw.ask(1, None, "Stream")
    raw.ask(3, HELLO)
    assert raw.answer(3) == (HELLO, OK)
    raw.socket.settimeout(None)
    try:
        for _ in range(0, 5 * MOST_FRUITLESS, 100):  # some are forgotten each second, and a machine may be slow
            raw.send(FLOODS[name] * 100)
        raw.send(h2.frame(h2.PING, 0, 0, LAST_PING))
    except ConnectionError:
        pass
    ended = h2.ENHANCE_YOUR_CALM  # also where the reset came before we read the GOAWAY
    while (found := raw.frame()) is not None:
        assert found.payload != LAST_PING  # the flood was taken whole: silence would end the connection, too
        if found.kind == h2.GOAWAY:
            ended = int.from_bytes(found.payload[4:8], "big")
    assert ended == h2.ENHANCE_YOUR_CALM
    assert Raw(served.address).still_answers()


@pytest.mark.parametrize("method", ["Stream", "Iterate"])
def test_pings_between_the_answers_of_a_stream_are_no_flood(raw, method):
    raw.ask(1, None, method)
    ping = h2.frame(h2.PING, 0, 0, bytes(8))
    for _ in range(3):
        raw.send(ping * (MOST_FRUITLESS // 2), h2.frame(h2.DATA, 0, 1, HELLO))
        raw.until(h2.DATA)
    raw.send(h2.frame(h2.DATA, h2.END_STREAM, 1))
    assert raw.answer(1)[1]["grpc-status"] == "0"


def test_pings_of_a_long_time_are_no_flood(raw, monkeypatch):
    raw.ask(1, None, "Stream")
    ping = h2.frame(h2.PING, 0, 0, bytes(8))
    later = 0.0
    monkeypatch.setattr(patience, "monotonic", lambda: time.monotonic() + later)
    for _ in range(3):
        for _ in range(MOST_FRUITLESS // 2):
            raw.send(ping)
        for _ in range(MOST_FRUITLESS // 2):
            raw.until(h2.PING)
        later += MOST_FRUITLESS / FORGOTTEN_EACH_SECOND / 2
    assert raw.still_answers()


def test_windows_that_let_data_go_are_no_flood(served):
    client = Raw(served.address, {h2.INITIAL_WINDOW_SIZE: 0})
    client.send(h2.frame(h2.WINDOW_UPDATE, 0, 0, (1 << 30).to_bytes(4, "big")))
    size = 3 << 20
    client.ask(1, None)
    client.send(*(h2.frame(h2.DATA, 0, 1, message(bytes(size))[at : at + 65_536]) for at in range(0, size, 65_536)))
    client.send(h2.frame(h2.DATA, h2.END_STREAM, 1, bytes(5)))
    client.until(h2.HEADERS)
    both = h2.frame(h2.WINDOW_UPDATE, 0, 1, b"\0\0\x04\0"), h2.frame(h2.WINDOW_UPDATE, 0, 0, b"\0\0\x04\0")
    for _ in range(size // 1024 + 1):
        client.send(*both)
        client.until(h2.DATA)
    assert client.answer(1)[1]["grpc-status"] == "0"


def test_a_connection_with_much_to_do_lets_others_have_their_turn(raw, served):
    block = raw.encoder.encode(request_headers("Busy"))
    calls = ((h2.frame(h2.HEADERS, 4, n, block), h2.frame(h2.DATA, 1, n, HELLO)) for n in range(1, 401, 2))
    raw.encoder.header_table_size = 0
    other = Raw(served.address)
    other.until(h2.SETTINGS)
    raw.send(*(frame for call in calls for frame in call))
    raw.until(h2.DATA)
    assert other.still_answers()
    assert served.methods.busy < 200
    raw.answer(399)
    assert served.methods.busy == 200


@pytest.mark.parametrize(("kind", "most"), [(h2.SETTINGS, 8 + 1), (h2.PRIORITY, 8 + 512 // 14)])
def test_a_turn_ends_in_time_and_the_next_goes_on_where_it_ended(monkeypatch, kind, most):
    class Receiver:
        """Each frame takes an eighth of a turn."""

        def __init__(self):
            self.taken = []

        def control(self, kind, flags, number, payload):
            self.taken.append(number)

    receiver, reader = Receiver(), FrameReader(Holding(1 << 20))
    monkeypatch.setattr(frame_reader, "monotonic", lambda: len(receiver.taken) / 8)
    reader.settled = True
    frames = [h2.frame(kind, 0, number, bytes(5)) for number in range(1, 101)]
    left = reader.feed(h2.PREFACE + b"".join(frames) + frames[0][:3], receiver, 1.0)
    assert left
    turns = 0
    before = 0
    while left:
        assert len(receiver.taken) - before <= most
        before, turns = len(receiver.taken), turns + 1
        left = reader.feed(b"", receiver, 1.0)
    assert receiver.taken == list(range(1, 101))
    assert turns >= 100 // most
    reader.feed(frames[0][3:], receiver, 1.0)
    assert len(receiver.taken) == 101


def test_a_read_that_fills_the_buffer_ends_the_turn(served):
    # uvloop reads up to 32 buffers from one connection before it looks at another
    async def reads() -> None:
        connection, transport = ServerConnection(served.frontend._service, ConnectionPlaces(1)), NoSocket()
        block = hpack.Encoder().encode(request_headers())
        begun = h2.PREFACE + h2.settings({}) + h2.frame(h2.HEADERS, h2.END_HEADERS, 1, block)
        connection.connection_made(transport)
        connection.data_received(begun)
        assert transport.is_read
        data = h2.frame(h2.DATA, 0, 1, message(bytes(FULL_READ_BYTES * 4))[:FULL_READ_BYTES])
        connection.data_received(data)
        assert not transport.is_read
        assert connection in connection.service.turns._behind
        await asyncio.sleep(0.01)
        assert transport.is_read
        assert connection not in connection.service.turns._behind
        assert connection.calls[1].credit == WINDOW_BYTES - FULL_READ_BYTES
        connection.connection_lost(None)

    asyncio.run(reads())


def test_the_greeting_that_waits_for_the_handshake_of_tls_keeps_no_place(served):
    async def places() -> None:
        connection = ServerConnection(served.frontend._service, ConnectionPlaces(1))
        connection.connection_made(NoSocket())
        assert is_idle(connection)
        connection.data_received(h2.PREFACE + h2.settings({}))
        assert not is_idle(connection)  # now what is unsent may be an answer
        connection.connection_lost(None)

    asyncio.run(places())


def test_the_more_connections_have_frames_left_the_shorter_are_their_turns():
    turns, behind = Turns(), [object() for _ in range(400)]
    assert turns.seconds == TURN_SECONDS
    for number, connection in enumerate(behind, 1):
        turns.end(connection, True)
        turns.end(connection, True)
        assert turns.round_seconds <= ROUND_SECONDS / min(number, ROUND_TURNS)
        assert turns.seconds <= max(ROUND_SECONDS / number, SHORTEST_TURN_SECONDS)
    assert turns.round_seconds == ROUND_SECONDS / ROUND_TURNS
    assert turns.seconds == SHORTEST_TURN_SECONDS
    for connection in behind:
        turns.end(connection, False)
        turns.end(connection, False)
    assert turns.seconds == turns.round_seconds == TURN_SECONDS


def test_a_connection_that_has_gone_takes_no_turn(raw, served):
    turns = served.frontend._service.turns
    block = raw.encoder.encode(request_headers("Busy"))
    calls = ((h2.frame(h2.HEADERS, 4, n, block), h2.frame(h2.DATA, 1, n, HELLO)) for n in range(1, 401, 2))
    raw.send(*(frame for call in calls for frame in call))
    raw.until(h2.DATA)
    raw.socket.close()
    wait_until(lambda: not turns._behind)


def test_calls_that_are_opened_and_reset_at_once_end_the_connection(raw, served):
    raw.ask(1, HELLO, "Wait")
    block = raw.encoder.encode(request_headers("Wait"))
    try:
        for stream in range(3, 3 * MOST_FRUITLESS, 2):
            reset = h2.frame(h2.RST_STREAM, 0, stream, h2.CANCEL.to_bytes(4, "big"))
            raw.send(h2.frame(h2.HEADERS, h2.END_HEADERS, stream, block), h2.frame(h2.DATA, 1, stream, HELLO), reset)
    except ConnectionError:
        pass
    assert raw.ended_with() in (h2.ENHANCE_YOUR_CALM, -1)
    wait_until(lambda: not served.traffic.in_flight)
    assert Raw(served.address).still_answers()


def test_headers_without_end_end_the_connection(raw):
    raw.send(h2.frame(h2.HEADERS, 0, 1, bytes(16_000)))
    try:
        for _ in range(BLOCK_BYTES // 16_000 + 100):
            raw.send(h2.frame(h2.CONTINUATION, 0, 1, bytes(16_000)))
    except ConnectionError:
        pass
    assert raw.ended_with() in (h2.ENHANCE_YOUR_CALM, -1)


def test_a_client_that_does_not_read_is_not_read_either(served):
    client = Raw(served.address, {h2.INITIAL_WINDOW_SIZE: (1 << 31) - 1})
    client.send(h2.frame(h2.WINDOW_UPDATE, 0, 0, (1 << 30).to_bytes(4, "big")))
    client.socket.settimeout(1)
    sent = 0
    try:
        for stream in range(1, 2 * MOST_CALLS, 2):
            client.ask(stream, message(bytes(100_000)))
            sent += 1
    except TimeoutError:
        pass
    assert 0 < sent < MOST_CALLS
    assert Raw(served.address).still_answers()
