"""One call on a stream of HTTP/2: the part of the answer that has come, and how the call ended."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from normfold.serving.client.transport.answers import NO_MESSAGE, Fields, Reply
from normfold.serving.client.transport.opening import PREFIX, PREFIX_BYTES, inflated
from normfold.serving.errors import Status

if TYPE_CHECKING:
    from _thread import LockType


class RemoteCall:
    """A call with one message as its answer. The connection that it is on fills it."""

    __slots__ = (
        "_parts",
        "_size",
        "asked",
        "closed",
        "end_waits",
        "ended",
        "head",
        "heard",
        "number",
        "received",
        "reply",
        "waiter",
        "waiting",
        "window",
    )

    def __init__(self, ended: Callable[[RemoteCall], object] | None = None) -> None:
        """``ended`` is called with this object once ``reply`` is there."""
        self.ended = ended
        self.reply: Reply | None = None
        #: The number of its stream; 0 before it has one.
        self.number = 0
        #: The ``heard`` of its connection when the call, or the last message of its stream, was sent.
        self.heard = 0
        #: Bytes that the server still takes on this stream; negative after it has made its windows smaller.
        self.window = 0
        #: Data that wait for a larger window, and whether the request ends behind them.
        self.waiting: deque[memoryview] | None = None
        self.end_waits = False
        #: Whether the request has ended.
        self.asked = False
        #: Bytes that have come since the server last got its window back.
        self.received = 0
        #: The headers before the answer.
        self.head: Fields | None = None
        #: For the thread that waits for the reply, if one does.
        self.waiter: LockType | None = None
        self._parts: list[bytes] = []
        self._size = 0

    def headers(self, fields: Fields, last: bool) -> bool:
        """Take a block of headers; ``last``: the answer ends here. Whether these headers may come here."""
        if self.head is None and not last:
            if fields.http >= 200 or not fields.http:
                self.head = fields
            return fields.http != 0
        if self.head is None:
            if fields.status is Status.OK:
                self.complete(fields.encoding)
            else:
                self.finish(fields.reply())
        elif not last or fields.http:
            return False
        elif self.head.http != 200 or not self.head.grpc:
            self.finish(self.head.reply())
        elif fields.status is not Status.OK:
            self.finish(fields.reply(begun=True))
        else:
            self.complete(self.head.encoding)
        return True

    def data(self, data: bytes, begin: int, end: int, last: bool) -> bool:
        """Take ``data[begin:end]``; ``last``: the answer ends here. Whether data may come here."""
        head = self.head
        if head is None:
            return False
        if head.http == 200 and head.grpc:
            self.take(data, begin, end)
        if last and self.reply is None:
            self.finish(head.reply(begun=head.http == 200 and head.grpc))
        return True

    def take(self, data: bytes, begin: int, end: int) -> None:
        """Keep a part of the answer."""
        self._parts.append(data[begin:end])
        self._size += end - begin

    def complete(self, encoding: bytes) -> None:
        """The answer ended with OK: it must be one message."""
        parts, self._parts = self._parts, []
        if self._size < PREFIX_BYTES:
            self.finish(NO_MESSAGE)
            return
        if len(parts) > 1 and len(parts[0]) < PREFIX_BYTES:
            parts = [b"".join(parts)]
        packed, size = PREFIX.unpack_from(parts[0])
        if size != self._size - PREFIX_BYTES or packed > 1:
            said = (
                f"the server's answer is not one message: its size is {self._size - PREFIX_BYTES}, announced as {size}"
            )
            self.finish(Reply(Status.INTERNAL, said, begun=True))
            return
        parts[0] = parts[0][PREFIX_BYTES:]
        message = parts[0] if len(parts) == 1 else b"".join(parts)
        if packed:
            try:
                message = inflated(message, encoding)
            except ValueError as error:
                self.finish(Reply(Status.INTERNAL, f"the server's answer cannot be read: {error}", begun=True))
                return
        self.finish(Reply(Status.OK, "", message))

    def finish(self, reply: Reply) -> None:
        """The call has ended with ``reply``."""
        if self.reply is None:
            self.reply = reply
            self.waiting = None
            if self.ended is not None:
                self.ended(self)


class StreamedCall(RemoteCall):
    """A call with a stream of messages each way. It never ends well: whoever opened it reads until it ends."""

    __slots__ = ("_came", "_held")

    def __init__(self, came: Callable[[bytes], object], ended: Callable[[RemoteCall], object]) -> None:
        """``came`` is called with each message."""
        super().__init__(ended)
        self._came, self._held = came, bytearray()

    def take(self, data: bytes, begin: int, end: int) -> None:
        """Pass on the messages that end in a part of the answer."""
        held = self._held
        held += memoryview(data)[begin:end]
        at = 0
        while len(held) - at >= PREFIX_BYTES:
            packed, size = PREFIX.unpack_from(held, at)
            first = at + PREFIX_BYTES
            if len(held) - first < size:
                break
            message = bytes(held[first : first + size])
            at = first + size
            if packed:
                try:
                    message = inflated(message, self.head.encoding if self.head is not None else b"")
                except ValueError as error:
                    self.finish(Reply(Status.INTERNAL, f"a message of the stream cannot be read: {error}", begun=True))
                    return
            self._came(message)
        if at:
            del held[:at]

    def complete(self, encoding: bytes) -> None:
        """The server ended the stream with OK."""
        self.finish(Reply(Status.OK, begun=True))
