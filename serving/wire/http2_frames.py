"""Frames of HTTP/2 (RFC 9113, sections 4 and 6): their kinds, flags and error codes, and a frame's bytes."""

from __future__ import annotations

import struct

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)

#: Flags.
END_STREAM, ACK, END_HEADERS, PADDED, WITH_PRIORITY = 1, 1, 4, 8, 32

#: Keys of SETTINGS.
HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = (
    1,
    2,
    3,
    4,
    5,
    6,
)

#: Error codes.
NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR, STREAM_CLOSED = 0, 1, 2, 3, 5
FRAME_SIZE_ERROR, REFUSED_STREAM, CANCEL, COMPRESSION_ERROR, ENHANCE_YOUR_CALM, INADEQUATE_SECURITY = 6, 7, 8, 9, 11, 12

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
#: The window of the connection and of each stream, until SETTINGS or WINDOW_UPDATE change it.
DEFAULT_WINDOW = 65_535
LARGEST_WINDOW = (1 << 31) - 1
DEFAULT_FRAME = 16_384
LARGEST_FRAME = (1 << 24) - 1

#: The nine bytes before each payload: length << 8 | kind, flags, stream.
HEAD = struct.Struct(">IBI")


def frame(kind: int, flags: int, stream: int, payload: bytes | memoryview = b"") -> bytes:
    """The bytes of one frame."""
    return b"".join((HEAD.pack(len(payload) << 8 | kind, flags, stream), payload))


def goaway(last: int, code: int = NO_ERROR, why: str = "") -> bytes:
    """The bytes of a GOAWAY frame: no stream after ``last`` is answered."""
    return frame(GOAWAY, 0, 0, last.to_bytes(4, "big") + code.to_bytes(4, "big") + why.encode())


def settings(values: dict[int, int]) -> bytes:
    """The bytes of a SETTINGS frame with ``values``."""
    payload = b"".join(key.to_bytes(2, "big") + value.to_bytes(4, "big") for key, value in values.items())
    return frame(SETTINGS, 0, 0, payload)
