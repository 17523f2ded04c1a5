"""From headers to calls: a call is opened by its first data, or at the end of the turn in which its headers came.

So requests that are refused together need no calls. A client that sends many sends their headers first. Of many calls
without data a few are opened in each turn, and the rest in later turns.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from itertools import islice
from typing import Protocol

from normfold.serving.errors import ServingError, Unavailable
from normfold.serving.frontends.http2.call import CallOwner, ServerCall
from normfold.serving.frontends.http2.kinds import Kind
from normfold.serving.frontends.http2.limits import OPENED_CALLS, Fault
from normfold.serving.frontends.http2.requests import Asked, refused
from normfold.serving.rpc.methods import Method


class Opener(CallOwner, Protocol):
    """The connection, as the opening of its calls needs it."""

    #: The data that may still come on streams with a content-length, in bytes.
    promised: dict[int, int]

    def fruitless(self, frames: int = 1) -> None:
        """Count frames that bring no call nearer to its end. Raises Fault when there were too many."""

    def answer_headers(self, number: int, flags: int, block: bytes) -> None:
        """Answer a request with nothing but headers."""

    def drop(self, call: ServerCall) -> None:
        """Forget a call: nobody waits for its answer any more."""


class CallOpening:
    """The headers whose calls are not opened yet, and the calls whose clocks do not run yet."""

    def __init__(self, kind_of: Callable[[Method], Kind]) -> None:
        self._kind_of = kind_of
        #: By the number of their stream; each has a method.
        self.begun: dict[int, Asked] = {}
        self._timed: list[ServerCall] = []

    def open(self, connection: Opener, number: int, flags: int, asked: Asked) -> ServerCall | None:
        """Open a call if its caller may ask; else refuse it."""
        service = connection.service
        assert asked.method is not None
        try:
            method = service.enter(asked.method, asked.credential)
        except ServingError as error:
            service.refused(asked, error.status, connection.peer)
            if not isinstance(error, Unavailable):
                connection.fruitless()
            connection.answer_headers(number, flags, refused(error.status, str(error)))
            return None
        call = connection.calls[number] = self._kind_of(method)(connection, number, asked, method)
        if asked.timeout is not None:
            self._timed.append(call)
        if asked.length is not None:
            connection.promised[number] = asked.length
        return call

    def open_one(self, connection: Opener, number: int) -> None:
        """Open the call of a stream if only its headers have come. Raises Fault."""
        if (asked := self.begun.pop(number, None)) is not None:
            self.open(connection, number, 0, asked)

    def open_some(self, connection: Opener) -> bool:
        """Open a few calls of which only the headers have come; whether some are left. Raises Fault."""
        for number in list(islice(self.begun, OPENED_CALLS)):
            self.open_one(connection, number)
        return bool(self.begun)

    def drop(self, connection: Opener, number: int, asked: Asked) -> None:
        """Open a call although its connection has ended, and forget it: it is counted and logged like any other."""
        with contextlib.suppress(Fault):
            if (call := self.open(connection, number, 0, asked)) is not None:
                connection.drop(call)
                self._timed.clear()  # nobody starts their clocks, and they would keep the connection

    def start_clocks(self, calls: dict[int, ServerCall]) -> None:
        """Let the deadlines of the turn's calls run that are still under way."""
        for call in self._timed:
            if call.number in calls:
                call.hurry()
        self._timed.clear()
