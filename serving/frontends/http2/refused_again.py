"""Requests like one that was refused are refused again without being read.

In one turn of a connection no call that waits ends, so a server that was full for one request is full for the next ones
like it. A server at ten times its capacity refuses nine requests for each that it answers; what that takes, its
models miss. So most of them get no call: ``takes`` refuses them by their headers and first data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import cycle
from typing import Protocol

from normfold.serving.errors import Overloaded, Status
from normfold.serving.frontends.http2.requests import STARTED, Asked, ended
from normfold.serving.frontends.http2.rests import Resting, Rests
from normfold.serving.rpc.methods import Method, note_refusals
from normfold.serving.rpc.traffic import Traffic
from normfold.serving.wire import http2_frames as h2
from normfold.serving.wire.pushback import after, delays_ms

_END = h2.END_STREAM


class Answering(Protocol):
    """The connection, as refusals need it."""

    def answer_headers(self, number: int, flags: int, block: bytes) -> None:
        """Answer a request with nothing but headers; ``flags`` are those of its last frame so far."""


class RefusedAgain:
    """The requests of one turn of a connection that are like one that was refused."""

    def __init__(self, method: Method, asked: Asked, begin: bytes, error: Overloaded, now: bool = True) -> None:
        """``error`` has refused a request with the headers ``asked``; ``now``: in this turn.

        ``begin`` are its data as far as they decide: that it is not compressed, its size, its first bytes.
        """
        self._method, self._error, self._details = method, error.with_traceback(None), str(error)
        self._asked, self._begin = asked, begin
        self._count, self._refused = 0, now
        self._refusals: Iterator[bytes] = iter(())

    def renewed(self, connection: object) -> RefusedAgain | None:
        """The same for the next turn of ``connection``, if its requests are still refused; None: they must be asked."""
        still = self._error.still
        error = None if still is None else still(connection)
        return None if error is None else RefusedAgain(self._method, self._asked, self._begin, error, now=False)

    def is_like(self, asked: Asked, data: bytes, begin: int, end: int) -> bool:
        """Whether a request asks the same model and need not be answered later.

        ``asked`` are its headers, and ``data[begin:end]`` its first data.
        """
        return data.startswith(self._begin, begin, end) and (
            asked is self._asked
            or (
                asked.method is self._asked.method
                and asked.credential == self._asked.credential
                and _no_later(asked.timeout, self._asked.timeout)
            )
        )

    def refusal(self) -> bytes:
        """The headers that refuse one more; the next ones may be tried again at another time."""
        if not self._count:
            error = self._error
            self._refusals = _refusals(error.status, self._details, delays_ms(error.retry_seconds))
        self._count += 1
        return next(self._refusals)

    def takes(
        self, connection: Answering, number: int, flags: int, asked: Asked, data: bytes, begin: int, end: int
    ) -> bool:
        """Refuse a request that has no call yet by its first data, if it is like the other; whether it is."""
        size, length = end - begin, asked.length
        if flags == _END:
            fits = length is None or length == size
        else:
            fits = not flags and (length is None or length > size)
        if not fits or not self.is_like(asked, data, begin, end):
            return False
        connection.answer_headers(number, flags, self.refusal())
        return True

    def settle(self, traffic: Traffic, fruitful: Callable[[], None]) -> None:
        """Count what was refused as calls, also with the model and for the log.

        A call that is refused is an arrival, and is answered: ``fruitful`` is called, too.
        """
        if self._count:
            traffic.arrived()
            traffic.failed[self._method.path, self._error.status] += self._count
            note_refusals(self._method.path, self._error.status, self._details, self._count)
            if self._error.again is not None:
                self._error.again(self._count)
            fruitful()
            self._count, self._refused = 0, True

    def rest_seconds(self, rests: Rests, connection: Resting) -> float:
        """The time for which ``connection`` is not read after this turn, in seconds; ``settle`` was called before.

        It is read on if nothing was refused in this turn, or if that says nothing about the requests of the next one.
        """
        return rests.seconds(connection) if self._refused and self._error.still is not None else 0.0


def _no_later(timeout: float | None, than: float | None) -> bool:
    return than is None or (timeout is not None and timeout <= than)


@lru_cache(256)
def _refusals(status: Status, details: str, delays: tuple[int, ...]) -> Iterator[bytes]:
    """Without end the headers that refuse a request, with one delay after the other.

    All connections take from the same one, so that those that are refused together come back at different times.
    """
    return cycle([STARTED + ended(status, details, after(each, status, details)) for each in delays])
