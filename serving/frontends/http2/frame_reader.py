"""From a client's bytes to frames: cut into whole frames, with data passed on as they come and header blocks joined."""

from __future__ import annotations

from time import monotonic
from typing import Protocol

from normfold.serving.frontends.http2.holding import Holding
from normfold.serving.frontends.http2.limits import BLOCK_BYTES, FRAME_BYTES, UNFINISHED_BYTES, Fault, expect
from normfold.serving.frontends.http2.messages import PART_BYTES
from normfold.serving.frontends.http2.requests import KEPT_BYTES
from normfold.serving.frontends.http2.sending import FRAME
from normfold.serving.wire import http2_frames as h2
from normfold.serving.wire.long_blocks import LongBlock

_HEAD_BYTES = 9
#: The clock is looked at after the frames that begin in this many bytes, and after those that take long.
_LOOK_BYTES = 512
#: The bits of a stream's number; the first bit of its four bytes is reserved.
_NUMBER = (1 << 31) - 1
#: The flags of a block of headers in one frame, without padding; with or without END_STREAM.
_WHOLE = h2.END_HEADERS | h2.END_STREAM


class Receiver(Protocol):
    """The connection, as the reader of its frames needs it. Each method may raise Fault."""

    def data(self, data: bytes, begin: int, end: int, flags: int, number: int) -> None:
        """``data[begin:end]`` came on stream ``number``: a whole DATA frame, or a part of one."""

    def headers(self, number: int, flags: int, block: bytes) -> None:
        """A whole block of headers came, with the flags of its HEADERS frame; or the beginning of one too large."""

    def more_headers(self, part: bytes) -> None:
        """More of a block that is too large came: it matters only for what it adds to the header table."""

    def control(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        """A frame of any other kind came."""

    def fruitless(self, frames: int = 1) -> None:
        """Frames came that bring no call nearer to its end."""


class FrameReader:
    """The bytes of one connection that are not a whole frame yet, and the header block that is not complete yet."""

    def __init__(self, holding: Holding) -> None:
        #: The bytes held for the connection, and ours of them.
        self._holding, self._held = holding, 0
        #: Changes with each frame that does not come whole.
        self._begun = 0
        #: Whether the client has sent its first SETTINGS; the connection sets it.
        self.settled = False
        self._greeted = False
        self._parts: list[bytes] = []
        #: The bytes in them, and those with which it goes on; 0: it goes on without any.
        self._have, self._need = 0, len(h2.PREFACE)
        #: Stream, flags and missing bytes of a DATA frame of which only a part has come.
        self._rest: tuple[int, int, int] | None = None
        #: Stream, flags and bytes of a block of headers that CONTINUATION frames still add to.
        self._block: tuple[int, int, bytearray] | None = None
        #: Stream, flags and a long block of headers that has come whole and is read in steps.
        self._long: tuple[int, int, LongBlock] | None = None

    def feed(self, data: bytes, receiver: Receiver, seconds: float) -> bool:
        """Pass the frames that end in ``data`` to ``receiver``, for at most about ``seconds``.

        Whether frames were left: then call this again, with b"" if nothing more has come. Raises Fault, and whatever
        ``receiver`` raises.
        """
        if data:
            self._have += len(data)
            self._parts.append(data)
        if self._have < self._need:
            if data:
                self._begun += len(self._parts) == 1
                self._hold()
            return False
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts = []
        if self._held:  # what ends now must not count beside the request that it is a part of
            self._holding.add_beside(-self._held)
            self._held = 0
        at = self._take(data, receiver, seconds)
        self._have = len(data) - at
        if self._have:
            self._parts.append(data[at:])
            self._begun += 1
        left = self._have >= self._need
        if self._block is not None or (self._have and not left):
            self._hold()
        return left

    def mark(self) -> tuple[int, ...] | None:
        """A value that stays while the client owes the rest of one frame, or of one block of headers; None: of neither.

        The bytes of a request are not meant: its call takes them as they come.
        """
        if self._block is not None:
            return (self._block[0],)
        return (0, self._begun) if 0 < self._have < self._need else None

    def forget(self) -> None:
        """Hold nothing more: the connection ends."""
        self._holding.add_beside(-self._held)
        self._held = self._have = 0
        self._parts, self._block, self._long = [], None, None

    def _hold(self) -> None:
        """Count what is not complete among the bytes held. Raises Fault if there is no room for it."""
        size = len(self._block[2]) if self._block is not None else len(self._long[2]) if self._long is not None else 0
        if self._have < self._need:
            size += self._have + PART_BYTES * len(self._parts)
        if size > UNFINISHED_BYTES and not self._holding.has_room(size - self._held):
            raise Fault(h2.ENHANCE_YOUR_CALM, f"no room for {size} bytes of frames or headers that have not come whole")
        self._holding.add_beside(size - self._held)
        self._held = size

    def _take(self, data: bytes, receiver: Receiver, seconds: float) -> int:
        """Pass on the whole frames of ``data`` while the turn lasts; the place where the rest begins."""
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
            receiver.data(data, 0, at, flags if at == left else 0, number)
        self._need = 1 if self._rest is not None else _HEAD_BYTES
        stop = min(at + _LOOK_BYTES, end) if self._long is None else at
        until = monotonic() + seconds if stop < end else 0.0
        while True:
            while stop - at >= _HEAD_BYTES:
                word, flags, number = FRAME.unpack_from(data, at)
                size, kind = word >> 8, word & 0xFF
                if size > FRAME_BYTES:
                    raise Fault(h2.FRAME_SIZE_ERROR, f"a frame of {size} bytes")
                begin = at + _HEAD_BYTES
                if end - begin < size:
                    if kind == h2.DATA and begin < end and self._block is None and not flags & h2.PADDED:
                        self._rest = number & _NUMBER, flags, size - (end - begin)
                        self._need = 1
                        receiver.data(data, begin, end, 0, number & _NUMBER)
                        return end
                    self._need = _HEAD_BYTES + size
                    return at
                at = begin + size
                if kind == h2.DATA and self._block is None:
                    receiver.data(data, begin, at, flags, number & _NUMBER)
                elif (
                    kind == h2.HEADERS
                    and self._block is None
                    and flags | h2.END_STREAM == _WHOLE
                    and size <= KEPT_BYTES
                    and number & 1
                    and self.settled
                ):
                    receiver.headers(number & _NUMBER, flags, data[begin:at])
                else:
                    self._frame(kind, flags, number & _NUMBER, data[begin:at], receiver)
                    if kind == h2.SETTINGS or self._long is not None:
                        stop = at
            if stop == end and self._long is None:
                return at
            until = until or monotonic() + seconds
            if self._long is not None:
                self._read_long(*self._long, receiver, until)
            if self._long is not None:
                self._need = 0
                self._hold()
                return at
            if monotonic() >= until:
                return at
            stop = (at if at > stop else stop) + _LOOK_BYTES
            if stop > end:
                stop = end

    def _frame(self, kind: int, flags: int, number: int, payload: bytes, receiver: Receiver) -> None:
        if not self.settled and kind != h2.SETTINGS:
            raise Fault(h2.PROTOCOL_ERROR, "the first frame is not SETTINGS")
        if self._block is not None and kind != h2.CONTINUATION:
            raise Fault(h2.PROTOCOL_ERROR, "a header block is interrupted")
        if kind == h2.HEADERS:
            self._part(number, flags, _without_padding(flags, number, payload), receiver)
        elif kind == h2.CONTINUATION:
            if self._block is None or self._block[0] != number:
                raise Fault(h2.PROTOCOL_ERROR, "CONTINUATION without HEADERS")
            _, first, block = self._block
            block += payload
            self._part(number, first | flags & h2.END_HEADERS, block, receiver)
        else:
            receiver.control(kind, flags, number, payload)

    def _part(self, number: int, flags: int, block: bytes | bytearray, receiver: Receiver) -> None:
        """Take a block of headers as far as it has come; pass it on once it is complete."""
        if len(block) > BLOCK_BYTES:
            raise Fault(h2.ENHANCE_YOUR_CALM, f"more than {BLOCK_BYTES} bytes of headers")
        if flags & h2.END_HEADERS:
            self._block = None
            if len(block) > KEPT_BYTES:
                self._long = (number, flags, LongBlock(bytes(block)))
            else:
                receiver.headers(number, flags, bytes(block))
        else:
            receiver.fruitless()
            self._block = (number, flags, block if isinstance(block, bytearray) else bytearray(block))

    def _read_long(self, number: int, flags: int, block: LongBlock, receiver: Receiver, until: float) -> None:
        """Read a long block while the turn lasts, at least for one step; pass on what is plain."""
        while (part := block.step()) is not None:
            if part and block.at_start:
                receiver.headers(number, flags, part)
            elif part:
                receiver.more_headers(part)
            if monotonic() >= until:
                return
        self._long = None


def _without_padding(flags: int, number: int, payload: bytes) -> bytes:
    """The header block in the payload of a HEADERS frame, without padding and priority. Raises Fault."""
    begin, end = 0, len(payload)
    if flags & h2.PADDED:
        if not payload or payload[0] >= end:
            raise Fault(h2.PROTOCOL_ERROR, "more padding than headers")
        begin, end = 1, end - payload[0]
    if flags & h2.WITH_PRIORITY:
        begin += 5
    expect(number % 2 == 1, begin <= end)
    return payload[begin:end] if begin or end < len(payload) else payload
