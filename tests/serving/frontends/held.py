"""Requests that do not come whole, and what a server holds of them: for the tests of what clients may hold."""

from __future__ import annotations

import asyncio

from tests.serving.frontends.raw import Raw, message
from tests.waiting import wait_until

from normfold.serving.wire import http2_frames as h2

HELLO = message(b"hello")
PART = 16_384


def upload(client: Raw, stream: int, data: bytes, method: str = "Echo", **headers: str) -> None:
    """Begin a request and send this part of its data."""
    client.ask(stream, None, method, **headers)
    client.send(*(h2.frame(h2.DATA, 0, stream, data[at : at + PART]) for at in range(0, len(data), PART)))


def connections(served) -> list:
    """The connections of a server on another thread: they are copied in one step, an iteration would take several."""
    return list(served.frontend._connections._taken.copy())


def held(served) -> int:
    return served.frontend._service.holding.bytes


def begun(size: int, kind: int = h2.HEADERS, flags: int = 0, whole: int = 1 << 20, stream: int = 1) -> bytes:
    """A frame of ``whole`` bytes of which ``size`` have come."""
    return (whole << 8 | kind).to_bytes(4, "big") + bytes([flags]) + stream.to_bytes(4, "big") + bytes(size)


def goaway(client: Raw) -> tuple[int, str]:
    """The code and the reason with which the server ends the connection."""
    payload = client.until(h2.GOAWAY).payload
    return int.from_bytes(payload[4:8], "big"), payload[8:].decode()


#: A header block that waits for CONTINUATION, one whose CONTINUATION is not complete either, a frame of HEADERS, and
#: one of data, which is taken only whole where it is padded: each of about 600 kB.
UNFINISHED = {
    "block": h2.frame(h2.HEADERS, 0, 1, bytes(600_000)),
    "block and frame": h2.frame(h2.HEADERS, 0, 1, bytes(300_000)) + begun(300_000, h2.CONTINUATION),
    "headers": begun(600_000),
    "padded data": begun(600_000, h2.DATA, h2.PADDED),
}


def unread(served, answer_bytes: int = 500_000) -> Raw:
    """A client of the newest connection, which has whole answers in its socket and reads none of them."""
    client = Raw(served.address, {h2.INITIAL_WINDOW_SIZE: 1 << 30})
    client.send(h2.frame(h2.WINDOW_UPDATE, 0, 0, b"\x3f\0\0\0"))
    assert client.until(h2.SETTINGS)
    connection, stream = connections(served)[-1], 1
    while not connection.unsent():
        before = served.methods.large_answers
        client.ask(stream, message(b"%d" % answer_bytes), "Large")
        stream += 2
        wait_until(lambda: served.methods.large_answers > before and not connection.calls)  # noqa: B023
        served.on_loop(asyncio.sleep(0.01))  # the event loop may write at its next turn only
    assert not connection.choked
    return client
