"""What makes no progress is given up: requests, headers, answers. A client cannot hold the server's memory for ever."""

from __future__ import annotations

from typing import Protocol

from normfold.serving.errors import Status
from normfold.serving.frontends.http2.call import ServerCall
from normfold.serving.frontends.http2.frame_reader import FrameReader
from normfold.serving.frontends.http2.holding import Holding
from normfold.serving.frontends.http2.limits import CROWDED_SECONDS, Fault
from normfold.serving.frontends.http2.sending import Sender
from normfold.serving.wire import http2_frames as h2

#: The numbers that change when a call or a connection makes progress.
Mark = tuple[int, ...]


class Progressing(Protocol):
    """The connection, as its progress is seen."""

    calls: dict[int, ServerCall]
    frames: FrameReader
    sender: Sender
    holding: Holding
    choked: bool
    #: How often it was seen that the client took bytes that waited in the socket.
    taken: int

    def count_unsent(self) -> int:
        """Count the bytes that wait in the socket among those that are held for the client; their number."""

    def reset(self, call: ServerCall, code: int) -> None:
        """End a call with an error code of HTTP/2."""

    def give_up(self, error: Fault) -> None:
        """End the connection with its reason; nothing more of it is read."""

    def abort(self) -> None:
        """Close the connection now."""

    def flush(self) -> None:
        """Write what is queued."""


class Progress:
    """The marks of one connection at the last look, and since when each has been the same."""

    def __init__(self, longest_seconds: float) -> None:
        self._longest = longest_seconds
        self._whole: tuple[Mark, float] | None = None
        self._frame: tuple[Mark, float] | None = None
        self._calls: dict[int, tuple[Mark, float]] = {}

    def look(self, connection: Progressing, now: float) -> None:
        """Give up what has made no progress for too long: a request, an answer, or the whole connection.

        A request makes progress with every byte. A block of headers, and a frame that is taken only whole, make it
        with their end alone: they are small, and a byte now and then would hold them for ever. What waits in the socket
        makes it when the client takes some. It counts but is never refused: it has less time while too much is held.
        """
        sender = connection.sender
        mark: Mark | None = None
        longest = self._longest
        if connection.count_unsent():
            mark = (connection.taken,)
            if connection.holding.crowded:
                longest = min(longest, CROWDED_SECONDS)
        elif sender.waiting and sender.window <= 0:
            mark = sender.window, sender.withheld
        self._whole = None if mark is None else _since(self._whole, mark, now)
        if self._whole is not None and now - self._whole[1] > longest:
            connection.abort()
            return
        owed = None if connection.choked else connection.frames.mark()
        self._frame = None if owed is None else _since(self._frame, owed, now)
        if self._frame is not None and now - self._frame[1] > self._longest:
            why = f"a frame or a block of headers did not come whole within {self._longest:g} s"
            connection.give_up(Fault(h2.ENHANCE_YOUR_CALM, why))
        before, self._calls = self._calls, {}
        for number, call in list(connection.calls.items()):
            untaken = call.window <= 0 and sender.waits(call)
            found = (call.window, sender.left(call)) if untaken else None if connection.choked else call.body_mark()
            if found is None:
                continue
            since = _since(before.get(number), found, now)
            if now - since[1] <= self._longest:
                self._calls[number] = since
            elif untaken:
                connection.reset(call, h2.ENHANCE_YOUR_CALM)
            else:
                call.end(Status.DEADLINE_EXCEEDED, f"nothing of the request came for {self._longest:g} s")
        connection.flush()


def _since(before: tuple[Mark, float] | None, mark: Mark, now: float) -> tuple[Mark, float]:
    return before if before is not None and before[0] == mark else (mark, now)
