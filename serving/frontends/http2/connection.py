"""One connection: from its frames to calls (RFC 9113). A client that breaks the protocol or floods us is cut off."""

from __future__ import annotations

import asyncio
import socket
from typing import cast

from normfold.serving.frontends.http2.call import ServerCall, Service
from normfold.serving.frontends.http2.control import CONTROL, ignore
from normfold.serving.frontends.http2.frame_reader import FrameReader
from normfold.serving.frontends.http2.headers import HeaderError, HeaderReader
from normfold.serving.frontends.http2.limits import (
    GREETING,
    HANDSHAKE_SECONDS,
    MOST_CALLS,
    MOST_FRUITLESS,
    UNSENT_BYTES,
    Fault,
)
from normfold.serving.frontends.http2.requests import Asked
from normfold.serving.frontends.http2.sending import AnswerStream, Sender, joined
from normfold.serving.frontends.http2.stream_call import StreamCall
from normfold.serving.frontends.http2.unary_call import UnaryCall
from normfold.serving.wire import http2_frames as h2


class ServerConnection(asyncio.Protocol):
    """The server's end of one connection."""

    def __init__(self, service: Service, connections: set[ServerConnection]) -> None:
        self.service, self._all = service, connections
        self.frames, self.sender = FrameReader(), Sender()
        #: The calls under way, by the number of their stream.
        self.calls: dict[int, ServerCall] = {}
        #: Whether the client does not read what we send.
        self.choked = False
        self._headers = HeaderReader()
        self._transport: asyncio.Transport | None = None
        self._handshake: asyncio.TimerHandle | None = None
        self._leaving = self._flushing = False
        #: The last stream that was opened, the data that the client may still send, and the fruitless frames so far.
        self._last, self._credit, self._fruitless = 0, h2.LARGEST_WINDOW, 0
        #: Calls with a deadline whose clock has not started yet.
        self._opened: list[ServerCall] = []
        self._draining: asyncio.Future[None] | None = None

    # called by asyncio

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
        transport.write(GREETING)

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
        """Stop reading from a client that does not read."""
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
        """Take all whole frames, then write all answers to them together."""
        self._flushing = True
        try:
            self.frames.feed(data, self)
        except (Fault, HeaderError) as error:
            self._break(error)
            return
        for call in self._opened:
            if call.number in self.calls:
                call.hurry()
        self._opened.clear()
        self.flush()

    # called by calls and by the frontend

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
        """Write what is queued after everything that is ready to run has run."""
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self.flush)

    def close(self, call: ServerCall) -> None:
        """End ``call``: its whole answer is queued."""
        self._fruitless = 0
        if not self.sender.waits(call):
            self._closed(call)
        self.flush_soon()

    def grant(self, call: ServerCall, size: int) -> None:
        """Let the client send ``size`` more bytes of the call's data."""
        call.credit += size
        self.sender.out.append(h2.frame(h2.WINDOW_UPDATE, 0, call.number, size.to_bytes(4, "big")))
        self.flush_soon()

    async def drained(self) -> None:
        """Wait until the client has taken some data, or has allowed more."""
        if self._draining is None:
            self._draining = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._draining)

    def leave(self) -> None:
        """Accept no more calls; close the connection when the calls under way have ended."""
        if not self._leaving:
            self._leaving = True
            self.sender.out.append(h2.frame(h2.GOAWAY, 0, 0, self._last.to_bytes(4, "big") + bytes(4)))
        self.flush()

    def abort(self) -> None:
        """Close the connection now."""
        if self._transport is not None:
            self._transport.abort()

    # called by the reader of frames

    def data(self, data: bytes, begin: int, end: int, flags: int, number: int) -> None:
        """Pass data on to their call."""
        size = end - begin
        self._credit -= size
        if self._credit < h2.LARGEST_WINDOW // 2:
            by = h2.LARGEST_WINDOW - self._credit
            self._credit += by
            self.sender.out.append(h2.frame(h2.WINDOW_UPDATE, 0, 0, by.to_bytes(4, "big")))
        call = self.calls.get(number)
        if call is None:
            self.check_opened(number)
            return
        call.credit -= size
        if call.credit < 0 or call.request_ended:
            self.reset(call, h2.STREAM_CLOSED if call.request_ended else h2.FLOW_CONTROL_ERROR)
            return
        if flags & h2.PADDED:
            if not size or data[begin] >= size:
                raise Fault(h2.PROTOCOL_ERROR, "more padding than data")
            begin, end = begin + 1, end - data[begin]
        if flags & h2.END_STREAM:
            call.request_ended = True
        elif begin == end:
            self.fruitless()
        call.received(data, begin, end)

    def headers(self, number: int, flags: int, block: bytes) -> None:
        """Open the call that a block of headers asks for, or refuse it."""
        if number <= self._last:  # trailers, which mean nothing here, of a call that may have been answered already
            self._headers.read(block)
            if (call := self.calls.get(number)) is not None:
                if not flags & h2.END_STREAM or call.request_ended:
                    self.reset(call, h2.PROTOCOL_ERROR)
                else:
                    call.request_ended = True
                    call.received(b"", 0, 0)
            return
        asked = self.service.requests.read(block, self._headers)
        if self._leaving:
            return
        self._last = number
        if len(self.calls) >= MOST_CALLS:
            self.fruitless()
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

    def control(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        """Do what a frame of any other kind asks for."""
        CONTROL.get(kind, ignore)(self, flags, number, payload)

    def fruitless(self) -> None:
        """Count a frame that brings no call nearer to its end. Raises Fault when there were too many."""
        self._fruitless += 1
        if self._fruitless > MOST_FRUITLESS:
            raise Fault(h2.ENHANCE_YOUR_CALM, f"more than {MOST_FRUITLESS} frames that lead to nothing")

    def settle(self) -> None:
        """The client has sent its first SETTINGS: it speaks HTTP/2."""
        self.frames.settled = True
        if self._handshake is not None:
            self._handshake.cancel()

    def check_opened(self, number: int) -> None:
        """Raise Fault if the client has never opened stream ``number``."""
        if (number > self._last and not self._leaving) or number % 2 == 0:
            raise Fault(h2.PROTOCOL_ERROR, f"stream {number} was never opened")

    # the ends of calls and of the connection

    def finish(self, streams: list[AnswerStream]) -> None:
        """Forget calls of which the last byte is queued now, and wake those that wait for the client's windows."""
        for stream in streams:
            self._closed(stream)
        self._wake()

    def reset(self, call: ServerCall, code: int) -> None:
        """End a call with an error code of HTTP/2."""
        self.drop(call)
        self._rst(call.number, code)

    def drop(self, call: ServerCall) -> None:
        """Forget a call: nobody waits for its answer any more."""
        self.calls.pop(call.number, None)
        self.sender.forget(call)
        call.cancel()

    def _closed(self, stream: AnswerStream) -> None:
        call = self.calls.pop(stream.number, None)
        if call is not None and not call.request_ended:
            self._rst(call.number, h2.NO_ERROR)  # the answer is complete: the client may stop sending

    def _refuse(self, number: int, flags: int, asked: Asked) -> None:
        self.fruitless()
        if asked.refusal is None:
            self._rst(number, h2.PROTOCOL_ERROR)
            return
        self.sender.out.append(h2.frame(h2.HEADERS, h2.END_HEADERS | h2.END_STREAM, number, asked.refusal))
        if not flags & h2.END_STREAM:
            self._rst(number, h2.NO_ERROR)

    def _rst(self, number: int, code: int) -> None:
        self.sender.out.append(h2.frame(h2.RST_STREAM, 0, number, code.to_bytes(4, "big")))

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
            self.drop(call)
        self.flush()
