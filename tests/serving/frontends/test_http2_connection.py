"""HTTP/2 frame by frame: frames that the server must take, and frames that end a stream or the connection."""

from __future__ import annotations

import socket
import time

import pytest
from tests.serving.frontends.raw import Raw, message, request_headers

from normfold.serving.frontends.http2.limits import BLOCK_BYTES, FRAME_BYTES, MOST_CALLS, MOST_FRUITLESS
from normfold.serving.wire import http2_frames as h2

OK = {":status": "200", "content-type": "application/grpc", "grpc-status": "0"}
HELLO = message(b"hello")


def until(condition) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


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


def test_messages_of_a_stream_may_share_a_frame(raw):
    raw.ask(1, message(b"a") + message(b"") + message(b"ccc"), "Stream")
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


def block_of(*headers: tuple[str, str]):
    return lambda raw: h2.frame(h2.HEADERS, h2.END_HEADERS, 1, raw.encoder.encode(headers))


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
    "headers that are no trailers": (h2.frame(h2.HEADERS, h2.END_HEADERS, 1, b"\x82"), h2.PROTOCOL_ERROR),
}


@pytest.mark.parametrize("name", RESETS)
def test_what_breaks_one_stream_cancels_it_and_leaves_the_others(raw, served, name):
    frames, code = RESETS[name]
    raw.ask(1, None, "Wait")
    raw.send(frames)
    reset = raw.until(h2.RST_STREAM)
    assert (reset.stream, int.from_bytes(reset.payload, "big")) == (1, code)
    until(lambda: not served.methods.waiting and not served.traffic.in_flight)
    assert raw.still_answers()


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
    until(lambda: served.methods.waiting == 2)
    raw.send(h2.frame(h2.RST_STREAM, 0, 1, h2.CANCEL.to_bytes(4, "big")))
    until(lambda: served.methods.cancelled == 1)
    raw.socket.close()
    until(lambda: served.methods.cancelled == 2)
    until(lambda: not served.traffic.in_flight)


FLOODS = {
    "pings": h2.frame(h2.PING, 0, 0, bytes(8)),
    "settings": h2.settings({}),
    "priorities": h2.frame(h2.PRIORITY, 0, 3, bytes(5)),
    "empty data": h2.frame(h2.DATA, 0, 1),
}


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_ends_the_connection(raw, served, name):
    raw.ask(1, None, "Stream")
    raw.socket.settimeout(None)
    try:
        for _ in range(0, MOST_FRUITLESS + 1000, 100):
            raw.send(FLOODS[name] * 100)
    except ConnectionError:
        pass
    assert raw.ended_with() in (h2.ENHANCE_YOUR_CALM, -1)  # -1: the reset came before we read the GOAWAY
    assert Raw(served.address).still_answers()


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
    until(lambda: not served.traffic.in_flight)
    assert Raw(served.address).still_answers()


def test_headers_without_end_end_the_connection(raw):
    raw.send(h2.frame(h2.HEADERS, 0, 1, bytes(16_000)))
    try:
        for _ in range(BLOCK_BYTES // 16_000 + 1):
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
