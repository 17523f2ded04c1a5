"""RFC 9113 and RFC 7541 section by section: the bytes of a client, and the error that the server must answer them with.

The cases follow those of h2spec, written as frames. An error of a stream may be answered with an error of the
connection; where the RFC leaves the choice, both codes are in the row.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import NamedTuple

import pytest
from tests.serving.frontends.raw import Raw, message, request_headers

from normfold.serving.frontends.http2.limits import FRAME_BYTES
from normfold.serving.wire import http2_frames as h2

HELLO = message(b"hello")
PING = h2.frame(h2.PING, 0, 0, bytes(8))
ENDED = h2.END_HEADERS | h2.END_STREAM
PROTOCOL, CLOSED, SIZE, FLOW = h2.PROTOCOL_ERROR, h2.STREAM_CLOSED, h2.FRAME_SIZE_ERROR, h2.FLOW_CONTROL_ERROR


class Case(NamedTuple):
    section: str
    what: str
    #: The frames, given the client (for its header table).
    frames: Callable[[Raw], bytes]
    #: The errors that are right; empty: the server must go on answering.
    errors: tuple[int, ...] = ()


def fields(*without: str, **changed: str) -> list[tuple[str, str]]:
    """The headers of a good request without some, or with others; "_" is "-", a leading "p_" is ":"."""
    found = dict(request_headers())
    for name in without:
        del found[name]
    for name, value in changed.items():
        found[":" + name[2:] if name.startswith("p_") else name.replace("_", "-")] = value
    return sorted(found.items(), key=lambda header: header[0][0] != ":")


def head(flags: int = h2.END_HEADERS, stream: int = 1, headers: list[tuple[str, str]] | None = None):
    """A HEADERS frame."""
    return lambda raw: h2.frame(h2.HEADERS, flags, stream, raw.encoder.encode(headers or fields()))


def sent(*frames: bytes | Callable[[Raw], bytes]) -> Callable[[Raw], bytes]:
    """These frames, one after the other."""
    return lambda raw: b"".join(frame if isinstance(frame, bytes) else frame(raw) for frame in frames)


def data(payload: bytes = HELLO, flags: int = h2.END_STREAM, stream: int = 1) -> bytes:
    return h2.frame(h2.DATA, flags, stream, payload)


def reset(stream: int = 1, size: int = 4) -> bytes:
    return h2.frame(h2.RST_STREAM, 0, stream, bytes(size))


def window(by: int, stream: int = 0, size: int = 4) -> bytes:
    return h2.frame(h2.WINDOW_UPDATE, 0, stream, by.to_bytes(4, "big")[:size])


def setting(key: int, value: int) -> bytes:
    return h2.settings({key: value})


def malformed(section: str, what: str, headers: list[tuple[str, str]]) -> Case:
    return Case(section, what, head(ENDED, headers=headers), (PROTOCOL,))


OPEN = head()
#: A request whose stream is half-closed and not answered yet.
ASKED = sent(head(headers=fields(p_path="/t.T/Wait")), data())
DONE = sent(OPEN, data())
ONE_BYTE = head(headers=fields(content_length="1"))
#: It leaves no room in the window of stream 1.
FULL = window((1 << 31) - 65_536, 1)

CASES = (
    Case("4.1", "a frame of an unknown kind", sent(h2.frame(0x16, 0, 0, b"?" * 8))),
    Case("4.1", "flags that are not defined", sent(h2.frame(h2.PING, 0x16, 0, bytes(8)))),
    Case("4.1", "the reserved bit", sent(h2.frame(h2.PING, 0, 1 << 31, bytes(8)))),
    Case("4.2", "a DATA frame of 2^14 bytes", sent(OPEN, data(message(bytes(16_379))))),
    Case("4.2", "a DATA frame that is too large", sent(OPEN, data(bytes(FRAME_BYTES + 1))), (SIZE,)),
    Case("4.2", "a HEADERS frame that is too large", sent(h2.frame(1, 5, 1, bytes(FRAME_BYTES + 1))), (SIZE,)),
    Case("4.3", "a header block that cannot be read", sent(h2.frame(1, 5, 1, b"\x40")), (h2.COMPRESSION_ERROR,)),
    Case("4.3", "PRIORITY within a header block", sent(head(0), h2.frame(h2.PRIORITY, 0, 1, bytes(5))), (PROTOCOL,)),
    Case("4.3", "another HEADERS within a header block", sent(head(0), head(stream=3)), (PROTOCOL,)),
    Case("5.1", "idle: DATA", sent(data()), (PROTOCOL,)),
    Case("5.1", "idle: RST_STREAM", sent(reset()), (PROTOCOL,)),
    Case("5.1", "idle: WINDOW_UPDATE", sent(window(100, 1)), (PROTOCOL,)),
    Case("5.1", "idle: CONTINUATION", sent(h2.frame(h2.CONTINUATION, 4, 1, b"\x82")), (PROTOCOL,)),
    Case("5.1", "half-closed: DATA", sent(ASKED, data()), (CLOSED,)),
    Case("5.1", "half-closed: HEADERS", sent(ASKED, head(ENDED)), (CLOSED,)),
    Case("5.1", "half-closed: CONTINUATION", sent(ASKED, h2.frame(9, 4, 1, b"\x82")), (CLOSED, PROTOCOL)),
    Case("5.1", "half-closed: WINDOW_UPDATE", sent(ASKED, window(100, 1))),
    Case("5.1", "half-closed: PRIORITY", sent(ASKED, h2.frame(h2.PRIORITY, 0, 1, bytes(5)))),
    Case("5.1", "closed by a reset: DATA", sent(OPEN, reset(), data()), (CLOSED,)),
    Case("5.1", "closed by a reset: HEADERS", sent(OPEN, reset(), head(ENDED)), (CLOSED,)),
    Case("5.1", "closed by a reset: CONTINUATION", sent(OPEN, reset(), h2.frame(9, 4, 1)), (CLOSED, PROTOCOL)),
    Case("5.1", "closed: DATA", sent(DONE, data()), (CLOSED,)),
    Case("5.1", "closed: HEADERS", sent(DONE, head(ENDED)), (CLOSED,)),
    Case("5.1", "closed: CONTINUATION", sent(DONE, h2.frame(9, 4, 1)), (CLOSED, PROTOCOL)),
    Case("5.1", "closed: RST_STREAM", sent(DONE, reset())),
    Case("5.1", "closed: WINDOW_UPDATE", sent(DONE, window(100, 1))),
    Case("5.1", "closed: PRIORITY", sent(DONE, h2.frame(h2.PRIORITY, 0, 1, bytes(5)))),
    Case("5.1.1", "an even stream", sent(head(ENDED, 2)), (PROTOCOL,)),
    Case("5.1.1", "a smaller stream", sent(head(ENDED, 5), head(ENDED, 3)), (PROTOCOL,)),
    Case(
        "5.3.1",
        "HEADERS that depend on their own stream",
        sent(lambda raw: h2.frame(1, 0x25, 1, b"\0\0\0\1\xff" + raw.encoder.encode(fields()))),
    ),
    Case("5.5", "an unknown frame within a header block", sent(head(0), h2.frame(0x16, 0, 0, bytes(8))), (PROTOCOL,)),
    Case("6.1", "DATA on stream 0", sent(data(stream=0)), (PROTOCOL,)),
    Case("6.1", "DATA with padding", sent(OPEN, data(b"\x06" + HELLO + bytes(6), 9))),
    Case("6.1", "DATA with too much padding", sent(OPEN, data(b"\x06" + bytes(5), 9)), (PROTOCOL,)),
    Case("6.2", "HEADERS without an end, and then DATA", sent(head(0), data()), (PROTOCOL,)),
    Case("6.2", "HEADERS on stream 0", sent(head(ENDED, 0)), (PROTOCOL,)),
    Case("6.2", "HEADERS with too much padding", sent(h2.frame(1, 0xD, 1, b"\x09\x82\x86")), (PROTOCOL,)),
    Case("6.2", "HEADERS too short for a priority", sent(h2.frame(1, 0x25, 1, bytes(4))), (SIZE,)),
    Case("6.3", "PRIORITY on stream 0", sent(h2.frame(h2.PRIORITY, 0, 0, bytes(5))), (PROTOCOL,)),
    Case("6.3", "PRIORITY of 4 bytes", sent(OPEN, h2.frame(h2.PRIORITY, 0, 1, bytes(4))), (SIZE,)),
    Case("6.4", "RST_STREAM on stream 0", sent(reset(0)), (PROTOCOL,)),
    Case("6.4", "RST_STREAM of 3 bytes", sent(OPEN, reset(1, 3)), (SIZE,)),
    Case("6.5", "SETTINGS with ACK and a payload", sent(h2.frame(h2.SETTINGS, 1, 0, bytes(6))), (SIZE,)),
    Case("6.5", "SETTINGS on a stream", sent(h2.frame(h2.SETTINGS, 0, 1, b"")), (PROTOCOL,)),
    Case("6.5", "SETTINGS of 3 bytes", sent(h2.frame(h2.SETTINGS, 0, 0, bytes(3))), (SIZE,)),
    Case("6.5.2", "ENABLE_PUSH 2", sent(setting(h2.ENABLE_PUSH, 2)), (PROTOCOL,)),
    Case("6.5.2", "INITIAL_WINDOW_SIZE 2^31", sent(setting(h2.INITIAL_WINDOW_SIZE, 1 << 31)), (FLOW,)),
    Case("6.5.2", "MAX_FRAME_SIZE 2^14 - 1", sent(setting(h2.MAX_FRAME_SIZE, 16_383)), (PROTOCOL,)),
    Case("6.5.2", "MAX_FRAME_SIZE 2^24", sent(setting(h2.MAX_FRAME_SIZE, 1 << 24)), (PROTOCOL,)),
    Case("6.5.2", "an unknown setting", sent(setting(0xFF, 1))),
    Case("6.7", "PING with ACK", sent(h2.frame(h2.PING, 1, 0, bytes(8)))),
    Case("6.7", "PING on a stream", sent(h2.frame(h2.PING, 0, 1, bytes(8))), (PROTOCOL,)),
    Case("6.7", "PING of 6 bytes", sent(h2.frame(h2.PING, 0, 0, bytes(6))), (SIZE,)),
    Case("6.8", "GOAWAY on a stream", sent(h2.frame(h2.GOAWAY, 0, 1, bytes(8))), (PROTOCOL,)),
    Case("6.8", "GOAWAY of 7 bytes", sent(h2.frame(h2.GOAWAY, 0, 0, bytes(7))), (SIZE,)),
    Case("6.9", "WINDOW_UPDATE of 0", sent(window(0)), (PROTOCOL,)),
    Case("6.9", "WINDOW_UPDATE of 0 on a stream", sent(OPEN, window(0, 1)), (PROTOCOL,)),
    Case("6.9", "WINDOW_UPDATE of 3 bytes", sent(window(1, 0, 3)), (SIZE,)),
    Case("6.9.1", "a window of the connection beyond 2^31 - 1", sent(window((1 << 31) - 1) * 2), (FLOW,)),
    Case("6.9.1", "a window of a stream beyond 2^31 - 1", sent(OPEN, window((1 << 31) - 1, 1) * 2), (FLOW,)),
    Case(
        "6.9.2",
        "a setting that makes windows too large",
        sent(OPEN, window((1 << 31) - 65_536, 1), setting(4, 65_536)),
        (FLOW,),
    ),
    Case("6.10", "several CONTINUATION frames", lambda raw: continued(raw, 1, 1)),
    Case("6.10", "CONTINUATION on stream 0", sent(head(0), h2.frame(9, 4, 0, b"\x82")), (PROTOCOL,)),
    Case("6.10", "CONTINUATION behind a whole header block", sent(OPEN, h2.frame(9, 4, 1, b"\x82")), (PROTOCOL,)),
    Case("6.10", "CONTINUATION behind DATA", sent(OPEN, data(flags=0), h2.frame(9, 4, 1, b"\x82")), (PROTOCOL,)),
    Case("8.1", "a second HEADERS without END_STREAM", sent(OPEN, data(flags=0), h2.frame(1, 4, 1)), (PROTOCOL,)),
    Case("8.1", "trailers with a pseudo-header", sent(OPEN, data(flags=0), head(ENDED)), (PROTOCOL,)),
    Case(
        "8.1.1",
        "a content-length that is not that of one DATA frame",
        sent(head(headers=fields(content_length="1")), data()),
        (PROTOCOL,),
    ),
    Case(
        "8.1.1",
        "a content-length that is not that of two DATA frames",
        sent(head(headers=fields(content_length="1")), data(HELLO[:5], 0), data(HELLO[5:])),
        (PROTOCOL,),
    ),
    Case("8.1.1", "a content-length without data", sent(head(ENDED, headers=fields(content_length="1"))), (PROTOCOL,)),
    malformed("8.2.1", "a name in capitals", [*fields(), ("X-TEST", "ok")]),
    malformed("8.2.1", "a space behind a value", fields(x_test="ok ")),
    malformed("8.2.1", "a space before a value", fields(x_test=" ok")),
    malformed("8.2.1", "a line break in a value", fields(x_test="o\nk")),
    malformed("8.2.1", "a colon in a name", [*fields(), ("x:y", "ok")]),
    malformed("8.2.2", "a connection header", fields(connection="keep-alive")),
    malformed("8.2.2", "te other than trailers", fields(te="trailers, deflate")),
    malformed(
        "8.2.2", "te twice, the first time other than trailers", [*fields("te"), ("te", "gzip"), ("te", "trailers")]
    ),
    Case(
        "8.2.2",
        "te other than trailers behind the data",
        sent(OPEN, data(flags=0), head(ENDED, headers=[("te", "gzip")])),
        (PROTOCOL,),
    ),
    malformed("8.3", "an unknown pseudo-header", fields(p_test="ok")),
    malformed("8.3", "a pseudo-header of answers", fields(p_status="200")),
    malformed("8.3", "a pseudo-header behind a header", [*fields(":path"), (":path", "/t.T/Echo")]),
    malformed("8.3.1", "an empty :path", fields(p_path="")),
    malformed("8.3.1", "an empty :scheme", fields(p_scheme="")),
    malformed("8.3.1", "a user in :authority", fields(p_authority="user@localhost")),
    malformed("8.3.1", "no :method", fields(":method")),
    malformed("8.3.1", "no :scheme", fields(":scheme")),
    malformed("8.3.1", "no :path", fields(":path")),
    malformed("8.3.1", "two :method", [(":method", "POST"), *fields()]),
    malformed("8.3.1", "two :scheme", [(":scheme", "http"), *fields()]),
    malformed("8.3.1", "two :path", [(":path", "/t.T/Echo"), *fields()]),
    Case("8.4", "PUSH_PROMISE", sent(OPEN, h2.frame(h2.PUSH_PROMISE, 4, 1, bytes(4))), (PROTOCOL,)),
    *(
        Case(f"RFC 7541 {section}", what, sent(h2.frame(1, ENDED, 1, block)), (h2.COMPRESSION_ERROR,))
        for section, what, block in (
            ("2.3.3", "an index that is not in the tables", b"\xc6"),
            ("2.3.3", "a name that is not in the tables", b"\x7f\x07\x01a"),
            ("4.2", "a new size of the table behind headers", b"\x82\x20"),
            ("5.1", "an integer without end", b"\xff\xff\xff\xff\xff\xff\xff\xff"),
            ("5.2", "padding of Huffman code longer than 7 bits", b"\x00\x85\xf2\xb2\x4a\x84\xff\x84\x49\x50\x9f\xff"),
            ("5.2", "padding of Huffman code that is not ones", b"\x00\x85\xf2\xb2\x4a\x84\xff\x83\x49\x50\x90"),
            (
                "5.2",
                "the end of a string within Huffman code",
                b"\x00\x85\xf2\xb2\x4a\x87\xff\xff\xff\xff\xfa\x90\x4f",
            ),
            ("6.1", "index 0", b"\x80"),
            ("6.3", "a table larger than allowed", b"\x3f\xe2\x1f"),
        )
    ),
)


def prioritized(raw: Raw, priority: bytes) -> bytes:
    """A HEADERS frame with a priority."""
    return h2.frame(h2.HEADERS, ENDED | h2.WITH_PRIORITY, 1, priority + raw.encoder.encode(fields(p_path="/t.T/Wait")))


def continued(raw: Raw, *cuts: int) -> bytes:
    """A request whose header block is in as many frames."""
    block = raw.encoder.encode(fields())
    parts = [block[:9], *(block[9 + at : 10 + at] for at in range(len(cuts))), block[9 + len(cuts) :]]
    frames = [h2.frame(h2.HEADERS if at == 0 else h2.CONTINUATION, 0, 1, part) for at, part in enumerate(parts)]
    frames[-1] = h2.frame(h2.CONTINUATION, h2.END_HEADERS, 1, parts[-1])
    return b"".join(frames) + data()


def errors_of(raw: Raw) -> list[int]:
    """The codes of RST_STREAM and GOAWAY until the server answers a ping or closes."""
    found = []
    while (frame := raw.frame()) is not None:
        if frame.kind == h2.RST_STREAM:
            found.append(int.from_bytes(frame.payload, "big"))
        elif frame.kind == h2.GOAWAY:
            found.append(int.from_bytes(frame.payload[4:8], "big"))
        elif frame.kind == h2.PING and frame.payload == b"the last":
            break
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.section}: {case.what}")
def test_a_case_of_the_rfc(served, case):
    raw = Raw(served.address)
    raw.send(case.frames(raw))
    with contextlib.suppress(ConnectionError):
        raw.send(h2.frame(h2.PING, 0, 0, b"the last"))
    found = errors_of(raw)
    if case.errors:
        assert found
        assert found[-1] in case.errors
        assert Raw(served.address).still_answers()
    else:
        assert found == []
        assert raw.still_answers()


def test_data_larger_than_the_windows_wait_whatever_their_size(served):
    """6.9.1 and 6.9.2: no DATA frame is larger than the window, also one of a single byte."""
    raw = Raw(served.address, {h2.INITIAL_WINDOW_SIZE: 1})
    raw.ask(1, HELLO)
    for at in range(len(HELLO)):
        assert raw.until(h2.DATA).payload == HELLO[at : at + 1]
        raw.send(window(1, 1))


def test_the_preface_is_the_first_that_a_client_sends(served):
    """3.4: anything else ends the connection."""
    raw = Raw(served.address, greet=False)
    raw.send(b"INVALID CONNECTION PREFACE\r\n\r\n")
    assert raw.ended_with() == PROTOCOL


def test_settings_are_acknowledged_and_pings_answered(served):
    """6.5.3 and 6.7."""
    raw = Raw(served.address)
    assert raw.until(h2.SETTINGS).flags == 0
    assert raw.until(h2.SETTINGS).flags == h2.ACK
    raw.send(PING)
    assert raw.until(h2.PING).flags == h2.ACK
