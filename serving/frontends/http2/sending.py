"""The frames that we send: written together at the end of a wake-up; data only as the client's windows allow."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

from normfold.serving.frontends.http2.holding import Holding
from normfold.serving.frontends.http2.limits import FRUITFUL_BYTES, PORTION_BYTES, TURN_STREAMS
from normfold.serving.frontends.http2.requests import DONE, STARTED
from normfold.serving.rpc.pieces import Answer, Pieces
from normfold.serving.wire import http2_frames as h2

FRAME = h2.HEAD
#: The same, and the prefix of a message: whether it is compressed, its size.
_MESSAGE_FRAME = struct.Struct(">IBIBI")
_MESSAGE = struct.Struct(">BI")

_HEADERS = len(STARTED) << 8 | h2.HEADERS
_TRAILERS = len(DONE) << 8 | h2.HEADERS
#: The flags of headers that end a stream.
LAST = h2.END_HEADERS | h2.END_STREAM

#: From this size on (in bytes) the prefix of a message gets its own frame: cheaper than a copy of the message.
_WORTH_A_FRAME = 1 << 14
#: From this size on (in bytes) a part is written by itself, which also spares a copy.
_WORTH_A_WRITE = 1 << 16


class AnswerStream(Protocol):
    """A call, as the sender needs it."""

    number: int
    #: Data that the client still takes on this stream, in bytes; negative after it has made its windows smaller.
    window: int


@dataclass
class _Waiting:
    """Data of a stream that wait for a larger window, and the headers that end the stream."""

    stream: AnswerStream
    data: deque[memoryview] = field(default_factory=deque)
    #: The bytes counted for each of ``data``: also those that were sent, because the memory is freed only as a whole.
    counted: deque[int] = field(default_factory=deque)
    trailers: bytes | None = None


class Sender:
    """The frames to be written, and the client's windows."""

    def __init__(self, holding: Holding) -> None:
        #: Frames and parts of frames, in their order; the connection writes and clears them.
        self.out: list[bytes | memoryview] = []
        #: Whether a part of ``out`` is worth a write of its own.
        self.large = False
        #: The window of the connection as far as it may be used now, which is a portion, and that of each new stream.
        self.window, self.initial = h2.DEFAULT_WINDOW, h2.DEFAULT_WINDOW
        #: The rest of the window of the connection; all of it while the socket takes nothing.
        self.withheld = 0
        self.largest = h2.DEFAULT_FRAME
        self._waiting: dict[int, _Waiting] = {}
        #: Those of them that do not wait for a larger window of their own: they wait for that of the connection.
        self._ready: dict[int, _Waiting] = {}
        #: Whether the client has made windows larger, and the data that wait for them are not queued yet.
        self.widened = False
        #: Frames that made a window larger and are not counted yet, and the bytes that went for them.
        self._wider, self._went = 0, 0
        self._holding = holding
        self._choked = False

    def choke(self) -> None:
        """Make all data wait: the socket takes nothing more."""
        self._choked = True
        self.withheld, self.window = self.withheld + self.window, 0

    def unchoke(self) -> list[AnswerStream]:
        """Queue data again as the windows allow; the streams whose last data this queued."""
        self._choked = False
        return self.refill()

    @property
    def spent(self) -> bool:
        """Whether most of a portion is used, and there is another."""
        return self.withheld > 0 and self.window < PORTION_BYTES // 2 and not self._choked

    def refill(self) -> list[AnswerStream]:
        """Allow another portion, after the socket has taken one; the streams whose last data this queued."""
        return self._release(len(self._ready))

    @property
    def waiting(self) -> bool:
        """Whether data of any stream wait for the client."""
        return bool(self._waiting)

    def fits(self, stream: AnswerStream, size: int) -> bool:
        """Whether a message of ``size`` bytes can be sent now, or may wait."""
        return size + 5 <= min(self.window, stream.window) or self._holding.fits(size)

    def left(self, stream: AnswerStream) -> int:
        """The bytes of the stream that wait for the client."""
        waiting = self._waiting.get(stream.number)
        return sum(map(len, waiting.data)) if waiting is not None else 0

    def waits(self, stream: AnswerStream) -> bool:
        """Whether data of the stream wait for the client."""
        return stream.number in self._waiting

    def answer(self, stream: AnswerStream, data: Answer) -> bool:
        """Queue a whole answer of one message; False: it would have to wait, and too much waits already."""
        size = len(data)
        framed = size + 5
        number = stream.number
        if framed > self.largest or framed > self.window or framed > stream.window or isinstance(data, Pieces):
            if not self.fits(stream, size):
                return False
            self.start(stream)
            self.message(stream, data)
            self.end(stream, DONE)
            return True
        self.window -= framed
        if size >= _WORTH_A_WRITE:
            self.large = True
        self.out += (
            FRAME.pack(_HEADERS, h2.END_HEADERS, number),
            STARTED,
            _MESSAGE_FRAME.pack(framed << 8, 0, number, 0, size),
            data,
            FRAME.pack(_TRAILERS, LAST, number),
            DONE,
        )
        return True

    def start(self, stream: AnswerStream) -> None:
        """Queue the headers before the messages."""
        self.out += (FRAME.pack(_HEADERS, h2.END_HEADERS, stream.number), STARTED)

    def message(self, stream: AnswerStream, data: Answer) -> None:
        """Queue one message."""
        prefix = _MESSAGE.pack(0, len(data))
        if isinstance(data, Pieces):
            first, *rest = data.parts
            self._data(stream, memoryview(prefix + bytes(first)))
            for part in rest:
                self._data(stream, memoryview(part))
        elif len(data) < _WORTH_A_FRAME:
            self._data(stream, memoryview(prefix + data))
        else:
            self._data(stream, memoryview(prefix))
            self._data(stream, memoryview(data))

    def end(self, stream: AnswerStream, block: bytes) -> None:
        """Queue the headers that end the stream, behind its data."""
        if (waiting := self._waiting.get(stream.number)) is not None:
            waiting.trailers = block
        else:
            self.out.append(h2.frame(h2.HEADERS, LAST, stream.number, block))

    def forget(self, stream: AnswerStream) -> None:
        """Drop the waiting data of a stream that was reset."""
        if (waiting := self._waiting.pop(stream.number, None)) is not None:
            self._ready.pop(stream.number, None)
            self._holding.add(-sum(waiting.counted))

    def widen(self, by: int, stream: AnswerStream | None) -> None:
        """Widen the window of a stream, or (None) of the connection. Data go at the end of the turn, by ``release``."""
        self.widened = True
        self._wider += 1
        if stream is None:
            self.withheld += by
            return
        stream.window += by
        if (waiting := self._waiting.get(stream.number)) is not None:
            self._ready[stream.number] = waiting

    def widen_all(self, by: int, streams: Iterable[AnswerStream]) -> None:
        """Widen the windows of ``streams``, which are all there are, and of those to come; ``by`` may be negative."""
        self.initial += by
        for stream in streams:
            stream.window += by
        if by > 0:
            self.widened = True
            self._ready.update(self._waiting)

    def release(self) -> list[AnswerStream]:
        """Queue data of a few streams as larger windows allow; the streams whose last data this queued.

        Once a turn, however often windows were changed in it; ``widened`` stays until no stream is left.
        """
        ended: list[AnswerStream] = []
        if not self._choked:
            before = self.window + self.withheld
            ended = self._release(TURN_STREAMS)
            self._went += before - self.window - self.withheld
        self.widened = bool(self._ready) and self.window > 0
        return ended

    def fruitless(self) -> int:
        """The frames since the last time that made a window larger in vain: less went than FRUITFUL_BYTES for each."""
        wider, went = self._wider, self._went
        self._wider = self._went = 0
        return max(wider - went // FRUITFUL_BYTES, 0)

    def _data(self, stream: AnswerStream, data: memoryview) -> None:
        waiting = self._waiting.get(stream.number)
        size = len(data)
        if waiting is None:
            data = self._send(stream, data)
            if not data:
                return
            waiting = self._waiting[stream.number] = _Waiting(stream)
            if stream.window > 0:
                self._ready[stream.number] = waiting
        waiting.data.append(data)
        waiting.counted.append(size)
        self._holding.add(size)

    def _release(self, most: int) -> list[AnswerStream]:
        """Allow another portion and queue data of at most ``most`` streams; those whose last data this queued."""
        more = min(PORTION_BYTES - self.window, self.withheld)
        if more > 0:
            self.window, self.withheld = self.window + more, self.withheld - more
        ended: list[AnswerStream] = []
        for waiting in list(islice(self._ready.values(), most)):
            if self.window <= 0:
                break
            if self._go_on(waiting):
                ended.append(waiting.stream)
        return ended

    def _go_on(self, waiting: _Waiting) -> bool:
        """Queue the data of one stream that the windows allow; whether that was its end."""
        stream = waiting.stream
        while waiting.data:
            left = self._send(stream, waiting.data[0])
            if left:
                waiting.data[0] = left
                self._ready.pop(stream.number, None)
                if stream.window > 0:  # the connection has no room for more: the other streams have their turns first
                    self._ready[stream.number] = waiting
                return False
            waiting.data.popleft()
            self._holding.add(-waiting.counted.popleft())
        del self._waiting[stream.number]
        self._ready.pop(stream.number, None)
        if waiting.trailers is None:
            return False
        self.out.append(h2.frame(h2.HEADERS, LAST, stream.number, waiting.trailers))
        return True

    def _send(self, stream: AnswerStream, data: memoryview) -> memoryview:
        """Queue as much of ``data`` as the windows allow; the rest."""
        while data and (size := min(len(data), self.largest, self.window, stream.window)) > 0:
            self.window -= size
            stream.window -= size
            if size >= _WORTH_A_WRITE:
                self.large = True
            self.out += (FRAME.pack(size << 8 | h2.DATA, 0, stream.number), data[:size])
            data = data[size:]
        return data


def joined(parts: list[bytes | memoryview]) -> Iterator[bytes | memoryview]:
    """``parts`` joined to few pieces; large parts are not copied."""
    begin = 0
    for at, part in enumerate(parts):
        if len(part) >= _WORTH_A_WRITE:
            if begin < at:
                yield b"".join(parts[begin:at])
            yield part
            begin = at + 1
    if begin < len(parts):
        yield b"".join(parts[begin:])
