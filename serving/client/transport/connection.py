"""The client's end of an HTTP/2 connection (RFC 9113), without a socket: bytes come in, frames go out, calls end.

Whatever a server sends ends the call, or the connection, with a reason: no frame raises anything but ConnectionFault.
"""

from __future__ import annotations

from collections.abc import Iterable

from normfold.serving.client.transport.answers import Fields, Reply, fields, reset
from normfold.serving.client.transport.control import CONTROL, ConnectionFault, expect, ignore
from normfold.serving.client.transport.outgoing import FRAME_BYTES, WINDOW_BYTES, Outgoing
from normfold.serving.client.transport.remote_call import RemoteCall
from normfold.serving.errors import Status
from normfold.serving.wire import http2_frames as h2
from normfold.serving.wire.http2_headers import LIST_BYTES, LIST_HEADERS, HeaderError, HeaderReader

#: A block of headers, in bytes, and in frames.
BLOCK_BYTES, BLOCK_FRAMES = 1 << 20, 256
#: The server gets its window back, of a stream or of the connection, after this many bytes.
_CREDIT_BYTES = 1 << 23
#: Frames that bring no call nearer to its end, since the last that did.
_MOST_FRUITLESS = 10_000
#: The meaning of blocks is kept for this many, of at most _KEPT_BYTES.
_KEPT, _KEPT_BYTES = 1024, 2048
_NUMBER = h2.LARGEST_WINDOW
_HEAD_BYTES = h2.HEAD.size


class ClientEnd(Outgoing):
    """The calls of one connection. Whoever owns the socket writes and clears ``out``, and passes on what it reads."""

    def __init__(self) -> None:
        super().__init__()
        #: Whether the server's first SETTINGS have come.
        self.settled = False
        self._received = 0
        self._fruitless = 0
        self._reader = HeaderReader()
        self._known: dict[bytes, Fields | None] = {}
        self._parts: list[bytes] = []
        self._have, self._need = 0, _HEAD_BYTES
        #: Stream, flags and missing bytes of a DATA frame of which only a part has come.
        self._rest: tuple[int, int, int] | None = None
        #: Stream, flags, bytes and frames of a block of headers that CONTINUATION frames still add to.
        self._block: tuple[int, int, bytearray, int] | None = None

    def expect_like(self, others: Iterable[ClientEnd]) -> None:
        """Take it that the server takes as many calls here as on ``others``, until its SETTINGS say so."""
        for other in others:
            if other.settled:
                self.most_calls = other.most_calls

    def lost(self, why: str, status: Status = Status.UNAVAILABLE) -> None:
        """The connection has ended: every call on it fails, with the reason ``why``."""
        self.going_away = True
        for call in list(self.calls.values()):  # they are forgotten last: what an exception cuts short is done again
            call.finish(Reply(status, why, begun=call.head is not None))
        self.calls.clear()

    def refuse_from(self, number: int) -> None:
        """The server goes away, and has not looked at streams from ``number`` on: those calls fail as unseen."""
        self.going_away = True
        for call in [call for call in self.calls.values() if call.number >= number]:
            del self.calls[call.number]
            call.finish(Reply(Status.UNAVAILABLE, "the server goes away (GOAWAY)", unseen=True))

    @property
    def reads_much(self) -> bool:
        """Whether a large frame of data is being read."""
        return self._rest is not None

    def receive(self, data: bytes) -> None:
        """Take bytes from the server. Raises ConnectionFault for a server that breaks the protocol."""
        self.heard += 1
        self._have += len(data)
        self._parts.append(data)
        if self._have < self._need:
            return
        if len(self._parts) > 1:
            data = b"".join(self._parts)
        self._parts = []
        at = self._take(data)
        if at < len(data):
            self._parts.append(data[at:])
        self._have = len(data) - at

    def _take(self, data: bytes) -> int:
        """Take the whole frames of ``data``; the place where the rest begins."""
        at, end = 0, len(data)
        if self._rest is not None:
            number, flags, left = self._rest
            at = min(left, end)
            self._rest = (number, flags, left - at) if at < left else None
            self._data(data, 0, at, flags if at == left else 0, number)
        self._need = 1 if self._rest is not None else _HEAD_BYTES
        while end - at >= _HEAD_BYTES:
            word, flags, number = h2.HEAD.unpack_from(data, at)
            size, kind = word >> 8, word & 0xFF
            number &= _NUMBER
            begin = at + _HEAD_BYTES
            if size > FRAME_BYTES:
                raise ConnectionFault(h2.FRAME_SIZE_ERROR, f"a frame of {size} bytes")
            if end - begin < size:
                if kind == h2.DATA and begin < end and self._block is None and not flags & h2.PADDED:
                    self._rest, self._need = (number, flags, size - (end - begin)), 1
                    self._data(data, begin, end, 0, number)
                    return end
                self._need = _HEAD_BYTES + size
                return at
            at = begin + size
            if self._block is not None or not self.settled:
                self._out_of_turn(kind, flags, number)
            if kind == h2.DATA:
                self._data(data, begin, at, flags, number)
            elif kind == h2.HEADERS:
                self._headers(number, flags, data[begin:at])
            elif kind == h2.CONTINUATION:
                self._continuation(number, flags, data[begin:at])
            else:
                CONTROL.get(kind, ignore)(self, flags, number, data[begin:at])
        return at

    def fruitless(self) -> None:
        """Count a frame that brings no call nearer to its end. Raises ConnectionFault when there were too many."""
        self._fruitless += 1
        if self._fruitless > _MOST_FRUITLESS:
            raise ConnectionFault(h2.ENHANCE_YOUR_CALM, "a flood of frames that lead to nothing")

    def check_opened(self, number: int) -> None:
        """Raise ConnectionFault unless stream ``number`` is one that we have opened."""
        expect(0 < number < self._next and number % 2 == 1)

    def _out_of_turn(self, kind: int, flags: int, number: int) -> None:
        if self._block is not None and (kind != h2.CONTINUATION or number != self._block[0]):
            raise ConnectionFault(h2.PROTOCOL_ERROR, "a block of headers is interrupted")
        if not self.settled and (kind != h2.SETTINGS or flags & h2.ACK):
            raise ConnectionFault(h2.PROTOCOL_ERROR, "the first frame is not SETTINGS")

    def _data(self, data: bytes, begin: int, end: int, flags: int, number: int) -> None:
        size = end - begin
        call = self.calls.get(number)
        if call is None:
            self.check_opened(number)
        self._received += size
        if self._received >= _CREDIT_BYTES:
            self.out.append(h2.frame(h2.WINDOW_UPDATE, 0, 0, self._received.to_bytes(4, "big")))
            self._received = 0
        if flags & h2.PADDED:
            expect(size > 0 and data[begin] < size)
            begin, end = begin + 1, end - data[begin]
        last = flags & h2.END_STREAM != 0
        if end == begin and not last:
            self.fruitless()
        else:
            self._fruitless = self.pings = 0
        if call is None:
            return
        call.received += size
        if call.received > WINDOW_BYTES:
            self._spoilt(call, h2.FLOW_CONTROL_ERROR, "more data than its window has room for")
            return
        if not call.data(data, begin, end, last):
            self._spoilt(call, h2.PROTOCOL_ERROR, "data before its headers")
        elif last or call.reply is not None:
            self._over(call, last)
        elif call.received >= _CREDIT_BYTES:
            self.out.append(h2.frame(h2.WINDOW_UPDATE, 0, number, call.received.to_bytes(4, "big")))
            call.received = 0

    def _headers(self, number: int, flags: int, payload: bytes) -> None:
        self.check_opened(number)
        self.pings = 0
        begin, end = 0, len(payload)
        if flags & h2.PADDED:
            expect(end > 0 and payload[0] < end)
            begin, end = 1, end - payload[0]
        if flags & h2.WITH_PRIORITY:
            begin += 5
        expect(begin <= end)
        block = payload[begin:end] if begin or end < len(payload) else payload
        if flags & h2.END_HEADERS:
            self._whole_block(number, flags, block)
        else:
            self._block = (number, flags, bytearray(block), 1)

    def _continuation(self, number: int, flags: int, payload: bytes) -> None:
        if self._block is None:
            raise ConnectionFault(h2.PROTOCOL_ERROR, "CONTINUATION without HEADERS")
        _, first, block, frames = self._block
        block += payload
        if len(block) > BLOCK_BYTES or frames >= BLOCK_FRAMES:
            raise ConnectionFault(h2.ENHANCE_YOUR_CALM, "a block of headers without end")
        self._block = None if flags & h2.END_HEADERS else (number, first, block, frames + 1)
        if self._block is None:
            self._whole_block(number, first, bytes(block))

    def _whole_block(self, number: int, flags: int, block: bytes) -> None:
        try:
            meaning = self._known[block]
        except KeyError:
            meaning = self._read(block)
        call = self.calls.get(number)
        if call is None:
            self.fruitless()
            return
        self._fruitless = 0
        last = flags & h2.END_STREAM != 0
        if meaning is None:
            most = f"more than {LIST_BYTES} bytes or {LIST_HEADERS} headers"
            self._spoilt(call, h2.PROTOCOL_ERROR, f"headers that are malformed, or have {most}")
        elif not call.headers(meaning, last):
            self._spoilt(call, h2.PROTOCOL_ERROR, "headers where none may be")
        elif last:
            self._over(call, last)

    def _read(self, block: bytes) -> Fields | None:
        reader = self._reader
        try:
            headers = reader.read(block)
        except HeaderError as error:
            raise ConnectionFault(h2.COMPRESSION_ERROR, str(error)) from None
        meaning = None if reader.too_large else fields(headers)
        if reader.constant and len(block) <= _KEPT_BYTES and len(self._known) < _KEPT:
            self._known[block] = meaning
        return meaning

    def _over(self, call: RemoteCall, last: bool) -> None:
        """The answer has ended; a server that has not taken the whole request needs to know that no more comes."""
        if call.asked and last:
            del self.calls[call.number]
        else:
            self.cancel(call, h2.NO_ERROR if last else h2.CANCEL)

    def _spoilt(self, call: RemoteCall, code: int, why: str) -> None:
        """The server has sent on one stream what may not be there: that call ends, the others do not."""
        self.cancel(call, code)
        begun = call.head is not None
        call.finish(Reply(Status.INTERNAL, f"the server sent {why}", begun=begun))

    def was_reset(self, number: int, code: int) -> None:
        """The server has reset stream ``number``."""
        self.check_opened(number)
        if (call := self.calls.pop(number, None)) is not None:
            found = reset(code)
            begun = call.head is not None
            call.finish(Reply(found.status, found.details, unseen=found.unseen and not begun, begun=begun))
