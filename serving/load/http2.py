"""The part of HTTP/2 that a load generator of gRPC calls needs (RFC 9113), on one non-blocking socket.

A client that takes as much time as the server would measure itself. So a request is two frames whose bytes are nearly
all prepared (`header_blocks`), answers are not parsed beyond their frames, and all requests that are due leave in one
write.
"""

from __future__ import annotations

import socket
import ssl
from collections import deque

from normfold.serving.load.header_blocks import HeaderBlocks
from normfold.serving.load.streams import Event, Sending, Stream
from normfold.serving.wire.http2_frames import (
    ACK,
    CONTINUATION,
    DATA,
    DEFAULT_FRAME,
    DEFAULT_WINDOW,
    ENABLE_PUSH,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADER_TABLE_SIZE,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    LARGEST_WINDOW,
    MAX_CONCURRENT_STREAMS,
    MAX_FRAME_SIZE,
    PADDED,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    WITH_PRIORITY,
    frame,
    settings,
)

#: The largest frame that the peer may send.
_OUR_FRAME = 1 << 20
#: After this many received bytes the peer gets its window back.
_REPLENISH = 1 << 24


#: The size of a peer's header table unless its settings give another; our headers fit.
DEFAULT_TABLE = 4096


#: Raised by a socket that has nothing to read, or takes nothing now.
WAIT = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
READ_BYTES = 1 << 18


class Disconnected(ConnectionError):
    """The peer closed the connection, or broke the protocol."""


class ClientConnection:
    """The client's end of a connection. ``open`` and ``send`` only queue; ``flush`` writes and ``receive`` reads."""

    def __init__(self, sock: socket.socket, headers: list[tuple[str, str]]) -> None:
        """``headers`` are those of every request on this connection."""
        sock.setblocking(False)
        self.socket = sock
        self.going_away = False
        self._blocks = HeaderBlocks(headers)
        self._streams: dict[int, Stream] = {}
        self._next, self._limit = 1, 0  # no stream may be open before the peer's settings
        self._held: deque[int] = deque()  # streams beyond the number that the peer lets us open
        self._window, self._initial, self._largest = DEFAULT_WINDOW, DEFAULT_WINDOW, DEFAULT_FRAME
        self._received = 0
        self._in, self._out = bytearray(), bytearray(PREFACE)
        self._partial: tuple[int, int, bytearray] | None = None
        self._out += settings(
            {HEADER_TABLE_SIZE: 0, ENABLE_PUSH: 0, INITIAL_WINDOW_SIZE: LARGEST_WINDOW, MAX_FRAME_SIZE: _OUR_FRAME}
        )
        self._out += frame(WINDOW_UPDATE, 0, 0, (LARGEST_WINDOW - DEFAULT_WINDOW).to_bytes(4, "big"))

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()

    @property
    def blocked(self) -> bool:
        """Whether bytes wait to be written."""
        return bool(self._out)

    @property
    def streams(self) -> list[int]:
        """The streams that have not ended."""
        return list(self._streams)

    def open(self, data: bytes, *, end: bool) -> int:
        """Queue a request that begins with ``data``, and ends with it if ``end``; the number of its stream."""
        stream, self._next = self._next, self._next + 2
        self._streams[stream] = Stream(self._initial)
        if len(self._streams) > self._limit:
            self._held.append(stream)
        else:
            self._out += frame(HEADERS, END_HEADERS, stream, self._blocks.request())
        self.send(stream, data, end=end)
        return stream

    def send(self, stream: int, data: bytes, *, end: bool = False) -> None:
        """Queue more data of a stream."""
        state = self._streams[stream]
        size = len(data)
        if size <= min(self._largest, self._window, state.window) and not state.waiting and not self._held:
            self._window -= size
            state.window -= size
            self._out += frame(DATA, END_STREAM if end else 0, stream, data)
        else:
            state.waiting.append(Sending(memoryview(data), end))
            self._release(stream)

    def flush(self) -> None:
        """Write as much as the socket takes. Raises Disconnected."""
        try:
            while self._out:
                sent = self.socket.send(self._out)
                del self._out[:sent]
        except WAIT:
            pass
        except OSError as error:
            raise Disconnected(str(error)) from None

    def receive(self) -> list[Event]:
        """The events that the bytes in the socket make. Raises Disconnected."""
        try:
            data = self.socket.recv(READ_BYTES)
            if data and isinstance(self.socket, ssl.SSLSocket):  # what TLS has read already wakes nobody up any more
                parts = [data]
                while self.socket.pending():
                    parts.append(self.socket.recv(READ_BYTES))
                data = b"".join(parts)
        except WAIT:
            return []
        except OSError as error:
            raise Disconnected(str(error)) from None
        if not data:
            raise Disconnected("the server closed the connection")
        if self._in:
            self._in += data
            data = bytes(self._in) if _complete(self._in) else b""
        events: list[Event] = []
        at, end = 0, len(data)
        while end - at >= 9:
            size = int.from_bytes(data[at : at + 3], "big")
            if end - at < 9 + size:
                break
            kind, flags = data[at + 3], data[at + 4]
            stream = int.from_bytes(data[at + 5 : at + 9], "big") & LARGEST_WINDOW
            self._take(kind, flags, stream, data[at + 9 : at + 9 + size], events)
            at += 9 + size
        if data:
            self._in = bytearray(data[at:])
        return events

    def _take(self, kind: int, flags: int, stream: int, payload: bytes, events: list[Event]) -> None:
        if kind == DATA:
            self._credit(stream, len(payload))
            if flags & PADDED:
                payload = payload[1 : len(payload) - payload[0]]
            self._event(Event(stream, data=payload, ended=bool(flags & END_STREAM)), events)
        elif kind == HEADERS:
            if flags & PADDED:
                payload = payload[1 : len(payload) - payload[0]]
            if flags & WITH_PRIORITY:
                payload = payload[5:]
            self._header_part(stream, flags, flags & END_STREAM, payload, events)
        elif kind == CONTINUATION and self._partial:
            first, ended, so_far = self._partial
            self._header_part(first, flags, ended, bytes(so_far) + payload, events)
        elif kind == RST_STREAM:
            code = int.from_bytes(payload, "big")
            headers = (("grpc-status", "1" if code == 8 else "14"), ("grpc-message", f"stream reset, code {code}"))
            self._event(Event(stream, headers=headers, ended=True, refused=code == 7), events)
        elif kind == SETTINGS and not flags & ACK:
            self._settings(payload)
        elif kind == PING and not flags & ACK:
            self._out += frame(PING, ACK, 0, payload)
        elif kind == WINDOW_UPDATE:
            self._widen(stream, int.from_bytes(payload, "big") & LARGEST_WINDOW)
        elif kind == GOAWAY:
            self.going_away = True

    def _event(self, event: Event, events: list[Event]) -> None:
        if event.stream not in self._streams:
            return
        events.append(event)
        if event.ended:
            del self._streams[event.stream]
            self._open_held()

    def _open_held(self) -> None:
        while self._held and len(self._streams) - len(self._held) < self._limit:
            stream = self._held.popleft()
            self._out += frame(HEADERS, END_HEADERS, stream, self._blocks.request())
            self._release(stream)

    def _header_part(self, stream: int, flags: int, ended: int, block: bytes, events: list[Event]) -> None:
        if not flags & END_HEADERS:
            self._partial = (stream, ended, bytearray(block))
            return
        self._partial = None
        self._event(Event(stream, headers=self._blocks.decode(block), ended=bool(ended)), events)

    def _credit(self, stream: int, size: int) -> None:
        """Count ``size`` received bytes; give the peer its windows back after every _REPLENISH bytes."""
        self._received += size
        if self._received > _REPLENISH:
            self._out += frame(WINDOW_UPDATE, 0, 0, self._received.to_bytes(4, "big"))
            self._received = 0
        if state := self._streams.get(stream):
            state.received += size
            if state.received > _REPLENISH:
                self._out += frame(WINDOW_UPDATE, 0, stream, state.received.to_bytes(4, "big"))
                state.received = 0

    def _settings(self, payload: bytes) -> None:
        self._limit = self._limit or LARGEST_WINDOW
        for at in range(0, len(payload) - 5, 6):
            key, value = int.from_bytes(payload[at : at + 2], "big"), int.from_bytes(payload[at + 2 : at + 6], "big")
            if key == HEADER_TABLE_SIZE and value < DEFAULT_TABLE:
                self._blocks.use_no_table()
            elif key == MAX_CONCURRENT_STREAMS:
                self._limit = max(value, 1)
            elif key == INITIAL_WINDOW_SIZE:
                for state in self._streams.values():
                    state.window += value - self._initial
                self._initial = value
            elif key == MAX_FRAME_SIZE:
                self._largest = value
        self._out += frame(SETTINGS, ACK, 0)
        self._open_held()
        self._release_all()

    def _widen(self, stream: int, by: int) -> None:
        if stream == 0:
            self._window += by
            self._release_all()
        elif state := self._streams.get(stream):
            state.window += by
            self._release(stream)

    def _release_all(self) -> None:
        for stream, state in self._streams.items():
            if state.waiting:
                self._release(stream)
            if self._window <= 0:
                return

    def _release(self, stream: int) -> None:
        """Queue as much of the waiting data of a stream as the peer's windows have room for."""
        state = self._streams[stream]
        if stream in self._held:
            return
        while state.waiting:
            first = state.waiting[0]
            size = min(len(first.data), self._largest, self._window, state.window)
            if size <= 0 and len(first.data):
                return
            last = size == len(first.data)
            self._window -= size
            state.window -= size
            self._out += frame(DATA, END_STREAM if last and first.end else 0, stream, first.data[:size])
            first.data = first.data[size:]
            if last:
                state.waiting.popleft()


def _complete(data: bytearray) -> bool:
    """Whether ``data`` begins with a whole frame."""
    return len(data) >= 9 and len(data) >= 9 + int.from_bytes(data[:3], "big")
