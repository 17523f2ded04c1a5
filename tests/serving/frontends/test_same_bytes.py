"""The same bytes to both frontends: the same status and data, but for a table of differences with their reasons."""

from __future__ import annotations

import gzip
import zlib

import pytest
from tests.fuzz.differential import DIFFERENCES, compared
from tests.serving.frontends.conftest import serving
from tests.serving.frontends.raw import Raw, message

from normfold.protos import health as pb
from normfold.serving.frontends import FRONTENDS
from normfold.serving.wire import http2_frames as h2

HELLO = message(b"hello")
GZIP = {"grpc_encoding": "gzip"}
ZIPPED = gzip.compress(b"hello" * 10)
NUMBERS = message(pb.HealthCheckRequest(service="3").SerializeToString())

#: Method, data and further headers of a request. Timeouts are long enough for the answer, or zero.
SAME = {
    "one message": ("Echo", HELLO, {}),
    "two messages to a unary method": ("Echo", HELLO + message(b"again"), {}),
    "a message and a part of another": ("Echo", HELLO + HELLO[:7], {}),
    "two messages to a stream": ("Stream", HELLO + HELLO, {}),
    "no message to a stream": ("Stream", b"", {}),
    "two messages to an iterator": ("Iterate", HELLO + HELLO, {}),
    "no message to an iterator": ("Iterate", b"", {}),
    "two requests for a stream of answers": ("Numbers", NUMBERS + NUMBERS, {}),
    "gzip": ("Echo", message(ZIPPED, 1), GZIP),
    "gzip in a stream": ("Stream", message(ZIPPED, 1) + HELLO, GZIP),
    "bytes behind gzip": ("Echo", message(ZIPPED + b"junk", 1), GZIP),
    "two members of gzip": ("Echo", message(ZIPPED + ZIPPED, 1), GZIP),
    "bytes behind deflate": ("Echo", message(zlib.compress(b"x") + b"junk", 1), {"grpc_encoding": "deflate"}),
    "gzip without encoding": ("Echo", message(ZIPPED, 1), {}),
    "gzip that is cut": ("Echo", message(ZIPPED[:-4], 1), GZIP),
    "gzip that is none": ("Echo", message(b"hello", 1), GZIP),
    "an empty message that is said to be gzip": ("Echo", message(b"", 1), GZIP),
    "no method": ("Nothing", HELLO, {}),
    "metadata of 8 KB": ("Echo", HELLO, {"x_a": "b" * 4000, "x_b": "c" * 4000}),
} | {
    f"a timeout of {text!r}": ("Soon", HELLO, {"grpc_timeout": text})
    for text in (
        *("20S", "99999999H", "123456789S", "000000020S", "100000000S", "20 S", "9" * 30 + "H"),
        *("0S", "0n", "00000000m", "", "1", "S", "1s", "-1S", "1.5S"),
    )
}

#: A request, the status of http2, the outcome of grpcio, and the reason for the difference.
DIFFERENT = {
    "no message to a unary method": ("Echo", b"", {}, "13", "nothing", "grpcio lets the client wait for ever"),
    "a message that is cut": ("Echo", HELLO[:7], {}, "13", "nothing", "grpcio lets the client wait for ever"),
    "a stream that is cut": ("Stream", HELLO + HELLO[:7], {}, "13", "0", "grpcio drops the last bytes in silence"),
    "an unknown encoding": ("Echo", HELLO, {"grpc_encoding": "x"}, "12", "13", "gRPC demands UNIMPLEMENTED"),
    "te that is not trailers": ("Echo", HELLO, {"te": "gzip"}, "reset 1", "13", "RFC 9113, 8.2.2: malformed"),
    "a space before a value": ("Echo", HELLO, {"x_a": " b"}, "reset 1", "0", "RFC 9113, 8.2.1: malformed"),
    "a wrong length": ("Echo", HELLO, {"content_length": "4"}, "reset 1", "0", "RFC 9113, 8.1.1: malformed"),
    "another content type": ("Echo", HELLO, {"content_type": "text/html"}, "http 415", "0", "gRPC demands 415"),
}


@pytest.fixture(scope="module")
def both():
    with serving(name=FRONTENDS[0]) as first, serving(name=FRONTENDS[1]) as second:
        yield {FRONTENDS[0]: first.address, FRONTENDS[1]: second.address}


def outcome(
    address: str, method: str, data: bytes, headers: dict[str, str], seconds: float = 10.0
) -> tuple[str, bytes]:
    """The status of a call, or the way in which it ends without one, and its data."""
    client = Raw(address)
    client.socket.settimeout(seconds)
    client.ask(1, data, method, **headers)
    got, found = b"", {}
    try:
        while (frame := client.frame()) is not None:
            if frame.stream != 1:
                continue
            if frame.kind == h2.RST_STREAM:
                return f"reset {int.from_bytes(frame.payload, 'big')}", got
            if frame.kind == h2.DATA:
                got += frame.payload
            elif frame.kind == h2.HEADERS:
                found |= dict(client.decoder.decode(frame.payload))
                if frame.flags & h2.END_STREAM:
                    return found.get("grpc-status", f"http {found[':status']}"), got
    except TimeoutError:
        return "nothing", got
    finally:
        client.socket.close()
    return "closed", got


@pytest.mark.parametrize("name", SAME)
def test_the_same_bytes_have_the_same_outcome(both, name):
    first, second = (outcome(both[frontend], *SAME[name]) for frontend in FRONTENDS)
    assert first == second
    assert first[0].isdecimal()


def test_drawn_bytes_have_the_same_outcome_but_for_the_differences_of_the_table(both):
    known, faults = compared(both["http2"], both["grpcio"], 200, seed=0)
    assert faults == []
    assert known
    assert all(reason for *_, reason in DIFFERENCES)


@pytest.mark.parametrize("name", DIFFERENT)
def test_a_difference_is_there_and_has_a_reason(both, name):
    *request, ours, grpcios, reason = DIFFERENT[name]
    assert outcome(both["http2"], *request)[0] == ours
    assert outcome(both["grpcio"], *request, seconds=1.0 if grpcios == "nothing" else 10.0)[0] == grpcios
    assert reason
