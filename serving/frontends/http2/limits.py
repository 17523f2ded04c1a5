"""The limits of one client, the greeting that announces them, and the fault that ends a connection."""

from __future__ import annotations

from normfold.serving.wire import http2_frames as h2

#: Calls under way on one connection.
MOST_CALLS = 1024
#: Data that the client may send on one stream before we have read them, in bytes.
WINDOW_BYTES = 1 << 20
#: A whole block of headers, in one frame or several, in bytes.
BLOCK_BYTES = 65_536
#: One frame from the client, in bytes.
FRAME_BYTES = 1 << 20
#: Frames since the last answer that cost work without bringing any call nearer to its end.
MOST_FRUITLESS = 10_000
#: Time for a new client to send the preface and its SETTINGS.
HANDSHAKE_SECONDS = 20.0
#: Once the socket holds this much that the client has not read, we do not read from the client either.
UNSENT_BYTES = 1 << 20

#: The first frames of the server.
GREETING = h2.settings(
    {
        h2.HEADER_TABLE_SIZE: 0,
        h2.MAX_CONCURRENT_STREAMS: MOST_CALLS,
        h2.INITIAL_WINDOW_SIZE: WINDOW_BYTES,
        h2.MAX_FRAME_SIZE: FRAME_BYTES,
        h2.MAX_HEADER_LIST_SIZE: BLOCK_BYTES,
    }
) + h2.frame(h2.WINDOW_UPDATE, 0, 0, (h2.LARGEST_WINDOW - h2.DEFAULT_WINDOW).to_bytes(4, "big"))


class Fault(Exception):
    """A mistake of the client that ends the connection: an error code of HTTP/2 and the reason."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(why)
        self.code = code


def expect(sound: bool, size: bool = True) -> None:
    """Raise Fault unless the frame has a right size (``size``) and may be sent here (``sound``)."""
    if not size:
        raise Fault(h2.FRAME_SIZE_ERROR, "a frame of a wrong size")
    if not sound:
        raise Fault(h2.PROTOCOL_ERROR, "a frame on a stream, or with a value, that is not allowed")
