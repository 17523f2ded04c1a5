"""A call with a stream of messages from the client: those that its method has not taken yet wait here."""

from __future__ import annotations

from collections import deque

from normfold.serving.errors import Status
from normfold.serving.frontends.http2.call import CUT, CallOwner, ServerCall
from normfold.serving.frontends.http2.joining import Later
from normfold.serving.frontends.http2.messages import PART_BYTES
from normfold.serving.frontends.http2.requests import Asked
from normfold.serving.rpc.methods import Method
from normfold.serving.wire.pushback import Trailers


class QueuedCall(ServerCall):
    """The common part of streams."""

    __slots__ = ("_inflated", "_over", "_queue", "_unread", "_untaken")

    def __init__(self, connection: CallOwner, number: int, asked: Asked, method: Method) -> None:
        super().__init__(connection, number, asked, method)
        self._queue: deque[bytes | Later] = deque()
        self._unread = 0
        #: The bytes so far of the message that is being inflated; a stream has one at a time.
        self._inflated = 0
        #: The bytes of answers that cannot be sent yet, as far as they wait with the call.
        self._untaken = 0
        #: Whether the call has ended; the last of its answers may still wait for the client.
        self._over = False

    def end(self, status: Status, details: str = "", more: Trailers = ()) -> None:
        """End the call with a status, unless it has ended."""
        if not self._over:
            super().end(status, details, more)

    def cancel(self) -> None:
        """Stop the call, and forget what waits with it: what still comes is ignored."""
        self._over, self._reader = True, None
        self._queue.clear()
        self._unread = self._untaken = 0
        super().cancel()

    def _put(self, data: bytes, begin: int, end: int) -> list[bytes | Later] | None:
        """Queue the messages that end in the data; None: the call has ended."""
        if self._over:
            return None
        found = self.messages(data, begin, end)
        if found is None:
            return None
        if self.request_ended and self.within:
            self.end(Status.INTERNAL, CUT)
            return None
        if self._more:
            self.connection.uncut[self.number] = self
        self._queue += found
        self._unread += sum([len(message) + PART_BYTES for message in found])
        return found if self._hold() else None

    def grant(self, unread_bytes: int) -> None:
        """Let the client send more, once all messages that have come are cut out of the data."""
        if not self._more:
            super().grant(unread_bytes)

    @property
    def _more(self) -> bool:
        """Whether messages have come that are not cut out of the data yet."""
        return self._reader is not None and self._reader.more

    @property
    def _all_there(self) -> bool:
        """Whether every message of the request was queued."""
        return self.request_ended and not self._more

    def _take(self, message: bytes | Later) -> None:
        """The method has taken ``message``: it is not held any more."""
        self._unread -= len(message) + PART_BYTES
        self._hold()

    async def _whole(self, message: Later) -> bytes:
        """The bytes of a message that is compressed or in parts. Raises CallFault."""
        data = message.start()
        return await self._rest(message) if data is None else data

    async def _rest(self, message: Later) -> bytes:
        """The same, once ``start`` has not given all of it; what is inflated counts. Raises CallFault."""

        def grown(_: int) -> bool:
            self._inflated = message.size
            return self._hold()

        grown(message.size)
        try:
            return await message.rest(grown)
        finally:
            self._inflated = 0

    @property
    def _bytes(self) -> int:
        """The bytes that wait with the call now."""
        begun = self._reader.held if self._reader is not None else 0
        return self._unread + self._inflated + self._untaken + begun

    def _hold(self) -> bool:
        if self._over:
            return False
        return self.hold(self._bytes)
