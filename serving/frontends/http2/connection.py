"""One connection: frames to calls (RFC 9113). What breaks the protocol ends it; what floods it, too."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import cast

from normfold.serving.frontends.http2.call import WINDOW_BYTES, Call, Service, StreamCall, UnaryCall
from normfold.serving.frontends.http2.headers import HeaderError, HeaderReader
from normfold.serving.frontends.http2.requests import Asked
from normfold.serving.frontends.http2.sending import FRAME, Sender, Stream, joined
from normfold.serving.wire import http2_frames as h2

#: Calls of one client at a time.
MOST_CALLS = 1024
#: A block of headers, however many frames it comes in.
BLOCK_BYTES = 65_536
#: A frame of the client's.
FRAME_BYTES = 1 << 20
#: Frames that ask for work and bring no call nearer to its end, since the last answer.
MOST_FRUITLESS = 10_000
#: A client has so long to say that it speaks HTTP/2.
HANDSHAKE_SECONDS = 20.0
#: Where the socket holds so much that the client has not read, its frames are not read either.
UNSENT_BYTES = 1 << 20

_GREETING = h2.settings(
    {
        h2.HEADER_TABLE_SIZE: 0,
        h2.MAX_CONCURRENT_STREAMS: MOST_CALLS,
        h2.INITIAL_WINDOW_SIZE: WINDOW_BYTES,
        h2.MAX_FRAME_SIZE: FRAME_BYTES,
        h2.MAX_HEADER_LIST_SIZE: BLOCK_BYTES,
    }
) + h2.frame(h2.WINDOW_UPDATE, 0, 0, (h2.LARGEST_WINDOW - h2.DEFAULT_WINDOW).to_bytes(4, "big"))

_SETTING = struct.Struct(">HI")
_NUMBER = (1 << 31) - 1


class Fault(Exception):
    """What ends the connection: an error code of HTTP/2 and why."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(why)
        self.code = code


class Connection(asyncio.Protocol):
    """The server's end of one connection."""

    def __init__(self, service: Service, connections: set[Connection]) -> None:
        self.service, self._all = service, connections
        self.sender = Sender()
        self.calls: dict[int, Call] = {}
        self._reader = HeaderReader()
        self._transport: asyncio.Transport | None = None
        self._handshake: asyncio.TimerHandle | None = None
        self._parts: list[bytes] = []
        self._have, self._need = 0, len(h2.PREFACE)
        self._greeted = self._settled = self._leaving = False
        #: Stream, flags and bytes still to come of a frame of data that is handed on as it comes.
        self._rest: tuple[int, int, int] | None = None
        self._block: tuple[int, int, bytearray] | None = None
        self._last, self._credit, self._fruitless = 0, h2.LARGEST_WINDOW, 0
        self._opened: list[Call] = []
        self._flushing = False
        #: Whether the client does not read what it is sent.
        self.choked = False
        self._draining: asyncio.Future[None] | None = None

    # what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet the client."""
        transport = cast(asyncio.Transport, transport)
        self._transport = transport
        self._all.add(self)
        transport.set_write_buffer_limits(UNSENT_BYTES)
        sock: socket.socket | None = transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._handshake = asyncio.get_running_loop().call_later(HANDSHAKE_SECONDS, transport.abort)
        transport.write(_GREETING)

    def connection_lost(self, error: Exception | None) -> None:
        """Cancel every call."""
        self._all.discard(self)
        self._leaving = True
        if self._handshake is not None:
            self._handshake.cancel()
        calls, self.calls = self.calls, {}
        for call in calls.values():
            call.cancel()
        self._wake()

    def pause_writing(self) -> None:
        """Read no more from a client that does not read."""
        self.choked = True
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """Read again."""
        self.choked = False
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()
        self._wake()

    def data_received(self, data: bytes) -> None:
        """Take all whole frames, then write all that they led to."""
        self._have += len(data)
        self._parts.append(data)
        if self._have < self._need:
            return
        if len(self._parts) > 1:
            data = b"".join(self._parts)
        self._parts = []
        self._flushing = True
        try:
            at = self._take(data)
        except (Fault, HeaderError) as error:
            self._break(error)
            return
        if at < len(data):
            self._parts.append(data[at:])
        self._have = len(data) - at
        for call in self._opened:
            if call.number in self.calls:
                call.hurry()
        self._opened.clear()
        self.flush()

    # what calls need

    def flush(self) -> None:
        """Write what is queued."""
        self._flushing = False
        if self.sender.out and self._transport is not None:
            for data in joined(self.sender.out):
                self._transport.write(data)
            self.sender.out.clear()
        if self._leaving and not self.calls and self._transport is not None:
            self._transport.close()

    def flush_soon(self) -> None:
        """Write what is queued once all that is ready has been run."""
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self.flush)

    def close(self, call: Call) -> None:
        """The answer of a call is queued to its end."""
        self._fruitless = 0
        if not self.sender.waits(call):
            self._closed(call)
        self.flush_soon()

    def grant(self, call: Call, size: int) -> None:
        """Let the client send so much more of a call's data."""
        call.credit += size
        self.sender.out.append(h2.frame(h2.WINDOW_UPDATE, 0, call.number, size.to_bytes(4, "big")))
        self.flush_soon()

    async def drained(self) -> None:
        """Wait until the client has taken something, or may have."""
        if self._draining is None:
            self._draining = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._draining)

    def leave(self) -> None:
        """Take no more calls; close when those that there are have ended."""
        if not self._leaving:
            self._leaving = True
            self.sender.out.append(h2.frame(h2.GOAWAY, 0, 0, self._last.to_bytes(4, "big") + bytes(4)))
        self.flush()

    def abort(self) -> None:
        """Close now."""
        if self._transport is not None:
            self._transport.abort()

    # frames

    def _take(self, data: bytes) -> int:
        """Take the whole frames of ``data``; where the rest begins."""
        at, end = 0, len(data)
        if not self._greeted:
            if not data.startswith(h2.PREFACE):
                raise Fault(h2.PROTOCOL_ERROR, "this port speaks gRPC over HTTP/2 only")
            self._greeted = True
            at = len(h2.PREFACE)
        if self._rest is not None:
            number, flags, left = self._rest
            at = min(left, end)
            self._rest = (number, flags, left - at) if at < left else None
            self._data(data, 0, at, flags if at == left else 0, number)
        self._need = 1 if self._rest is not None else 9
        while end - at >= 9:
            word, flags, number = FRAME.unpack_from(data, at)
            size, kind = word >> 8, word & 0xFF
            if size > FRAME_BYTES:
                raise Fault(h2.FRAME_SIZE_ERROR, f"a frame of {size} bytes")
            begin = at + 9
            if end - begin < size:
                if kind == h2.DATA and begin < end and self._block is None and not flags & h2.PADDED:
                    self._rest = number & _NUMBER, flags, size - (end - begin)
                    self._need, at = 1, end
                    self._data(data, begin, end, 0, number & _NUMBER)
                else:
                    self._need = 9 + size
                break
            at = begin + size
            if kind == h2.DATA and self._block is None:
                self._data(data, begin, at, flags, number & _NUMBER)
            else:
                self._frame(kind, flags, number & _NUMBER, data[begin:at])
        return at

    def _data(self, data: bytes, begin: int, end: int, flags: int, number: int) -> None:
        size = end - begin
        self._credit -= size
        if self._credit < h2.LARGEST_WINDOW // 2:
            by = h2.LARGEST_WINDOW - self._credit
            self._credit += by
            self.sender.out.append(h2.frame(h2.WINDOW_UPDATE, 0, 0, by.to_bytes(4, "big")))
        call = self.calls.get(number)
        if call is None:
            self._known(number)
            return
        call.credit -= size
        if call.credit < 0 or call.request_ended:
            self._reset(call, h2.STREAM_CLOSED if call.request_ended else h2.FLOW_CONTROL_ERROR)
            return
        if flags & h2.PADDED:
            if not size or data[begin] >= size:
                raise Fault(h2.PROTOCOL_ERROR, "more padding than data")
            begin, end = begin + 1, end - data[begin]
        if flags & h2.END_STREAM:
            call.request_ended = True
        elif begin == end:
            self._count_fruitless()
        call.received(data, begin, end)

    def _frame(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if not self._settled and kind != h2.SETTINGS:
            raise Fault(h2.PROTOCOL_ERROR, "the first frame is not SETTINGS")
        if self._block is not None and kind != h2.CONTINUATION:
            raise Fault(h2.PROTOCOL_ERROR, "a header block is interrupted")
        if kind == h2.HEADERS:
            self._headers(flags, number, payload)
        elif kind == h2.CONTINUATION:
            if self._block is None or self._block[0] != number:
                raise Fault(h2.PROTOCOL_ERROR, "CONTINUATION without HEADERS")
            _, first, block = self._block
            self._part(number, first | flags & h2.END_HEADERS, block + payload)
        elif kind == h2.WINDOW_UPDATE:
            self._window(number, payload)
        elif kind == h2.PUSH_PROMISE:
            raise Fault(h2.PROTOCOL_ERROR, "clients do not push")
        elif kind == h2.GOAWAY:
            _expect(number == 0, len(payload) >= 8)
        else:
            self._count_fruitless()
            if kind == h2.SETTINGS:
                self._settings(flags, number, payload)
            elif kind == h2.PING:
                _expect(number == 0, len(payload) == 8)
                if not flags & h2.ACK:
                    self.sender.out.append(h2.frame(h2.PING, h2.ACK, 0, payload))
            elif kind == h2.RST_STREAM:
                _expect(number != 0, len(payload) == 4)
                self._known(number)
                if (call := self.calls.get(number)) is not None:
                    self._drop(call)
            elif kind == h2.PRIORITY:
                _expect(number != 0, len(payload) == 5)

    def _headers(self, flags: int, number: int, payload: bytes) -> None:
        begin, end = 0, len(payload)
        if flags & h2.PADDED:
            if not payload or payload[0] >= end:
                raise Fault(h2.PROTOCOL_ERROR, "more padding than headers")
            begin, end = 1, end - payload[0]
        if flags & h2.WITH_PRIORITY:
            begin += 5
        _expect(number % 2 == 1, begin <= end)
        self._part(number, flags, payload[begin:end] if begin or end < len(payload) else payload)

    def _part(self, number: int, flags: int, block: bytes | bytearray) -> None:
        if len(block) > BLOCK_BYTES:
            raise Fault(h2.ENHANCE_YOUR_CALM, f"more than {BLOCK_BYTES} bytes of headers")
        if flags & h2.END_HEADERS:
            self._block = None
            self._request(number, flags, bytes(block))
        else:
            self._count_fruitless()
            self._block = (number, flags, bytearray(block))

    def _request(self, number: int, flags: int, block: bytes) -> None:
        if number <= self._last:  # trailers, which mean nothing here, of a call that may have been answered already
            self._reader.read(block)
            if (call := self.calls.get(number)) is not None:
                if not flags & h2.END_STREAM or call.request_ended:
                    self._reset(call, h2.PROTOCOL_ERROR)
                else:
                    call.request_ended = True
                    call.received(b"", 0, 0)
            return
        asked = self.service.requests.read(block, self._reader)
        if self._leaving:
            return
        self._last = number
        if len(self.calls) >= MOST_CALLS:
            self._count_fruitless()
            self._rst(number, h2.REFUSED_STREAM)
        elif asked.method is None:
            self._refuse(number, flags, asked)
        else:
            call = (UnaryCall if asked.method.is_unary else StreamCall)(self, number, asked, asked.method)
            self.calls[number] = call
            if asked.timeout is not None:
                self._opened.append(call)
            if flags & h2.END_STREAM:
                call.request_ended = True
                call.received(b"", 0, 0)

    def _refuse(self, number: int, flags: int, asked: Asked) -> None:
        self._count_fruitless()
        if asked.refusal is None:
            self._rst(number, h2.PROTOCOL_ERROR)
            return
        self.sender.out.append(h2.frame(h2.HEADERS, h2.END_HEADERS | h2.END_STREAM, number, asked.refusal))
        if not flags & h2.END_STREAM:
            self._rst(number, h2.NO_ERROR)

    def _settings(self, flags: int, number: int, payload: bytes) -> None:
        ack = flags & h2.ACK
        _expect(number == 0 and (self._settled or not ack), len(payload) % 6 == 0 and not (ack and payload))
        if ack:
            return
        self._settled = True
        if self._handshake is not None:
            self._handshake.cancel()
        sender = self.sender
        for key, value in _SETTING.iter_unpack(payload):
            if key == h2.INITIAL_WINDOW_SIZE:
                wider = value - sender.initial
                if value > h2.LARGEST_WINDOW or any(c.window + wider > h2.LARGEST_WINDOW for c in self.calls.values()):
                    raise Fault(h2.FLOW_CONTROL_ERROR, f"windows of {value} bytes")
                sender.initial = value
                for call in self.calls.values():
                    call.window += wider
            elif key == h2.MAX_FRAME_SIZE:
                _expect(h2.DEFAULT_FRAME <= value <= h2.LARGEST_FRAME)
                sender.largest = value
            elif key == h2.ENABLE_PUSH:
                _expect(value <= 1)
        sender.out.append(h2.frame(h2.SETTINGS, h2.ACK, 0))
        self._ended(sender.release())

    def _window(self, number: int, payload: bytes) -> None:
        _expect(True, len(payload) == 4)
        by = int.from_bytes(payload, "big") & _NUMBER
        call = self.calls.get(number)
        if number and call is None:
            self._known(number)
            return
        if (self.sender.window if call is None else call.window) + by > h2.LARGEST_WINDOW or not by:
            code = h2.FLOW_CONTROL_ERROR if by else h2.PROTOCOL_ERROR
            if call is None:
                raise Fault(code, f"a window is widened by {by}")
            self._reset(call, code)
            return
        self._ended(self.sender.widen(by, call))

    # the ends of calls and of the connection

    def _ended(self, streams: list[Stream]) -> None:
        for stream in streams:
            self._closed(stream)
        self._wake()

    def _closed(self, stream: Stream) -> None:
        call = self.calls.pop(stream.number, None)
        if call is not None and not call.request_ended:
            self._rst(call.number, h2.NO_ERROR)  # the answer is complete: the client may stop sending

    def _reset(self, call: Call, code: int) -> None:
        self._drop(call)
        self._rst(call.number, code)

    def _drop(self, call: Call) -> None:
        self.calls.pop(call.number, None)
        self.sender.forget(call)
        call.cancel()

    def _rst(self, number: int, code: int) -> None:
        self.sender.out.append(h2.frame(h2.RST_STREAM, 0, number, code.to_bytes(4, "big")))

    def _known(self, number: int) -> None:
        if (number > self._last and not self._leaving) or number % 2 == 0:
            raise Fault(h2.PROTOCOL_ERROR, f"stream {number} was never opened")

    def _count_fruitless(self) -> None:
        self._fruitless += 1
        if self._fruitless > MOST_FRUITLESS:
            raise Fault(h2.ENHANCE_YOUR_CALM, f"more than {MOST_FRUITLESS} frames that lead to nothing")

    def _wake(self) -> None:
        if self._draining is not None:
            self._draining.set_result(None)
            self._draining = None

    def _break(self, error: Fault | HeaderError) -> None:
        code = error.code if isinstance(error, Fault) else h2.COMPRESSION_ERROR
        last = self._last.to_bytes(4, "big")
        self.sender.out.append(h2.frame(h2.GOAWAY, 0, 0, last + code.to_bytes(4, "big") + str(error).encode()))
        self._leaving = True
        for call in list(self.calls.values()):
            self._drop(call)
        self.flush()


def _expect(sound: bool, size: bool = True) -> None:
    """Raise Fault for a frame where it must not be, or of a wrong size."""
    if not size:
        raise Fault(h2.FRAME_SIZE_ERROR, "a frame of a wrong size")
    if not sound:
        raise Fault(h2.PROTOCOL_ERROR, "a frame on a stream, or with a value, that is not allowed")
