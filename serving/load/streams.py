"""The state of one stream of a load generator's connection, and the events that it reports."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field


@dataclass
class Sending:
    """Data of a stream that waits until the peer's windows have room; ``end``: it is the last of the stream."""

    data: memoryview
    end: bool


@dataclass
class Stream:
    """A stream that has not ended: the peer's window for it, bytes received, and data that waits."""

    window: int
    received: int = 0
    waiting: deque[Sending] = field(default_factory=deque)


@dataclass(frozen=True)
class Event:
    """Something that the peer sent on a stream: data, headers (the last headers are the trailers), or its end."""

    stream: int
    data: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    ended: bool = False
    #: The server did not look at the request, because it had too many streams open; it may be sent again.
    refused: bool = False
