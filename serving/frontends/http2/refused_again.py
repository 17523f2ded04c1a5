"""Requests like one that was just refused are refused again without being read.

In one turn of a connection no call that waits ends, so a server that was full for one request is full for the next ones
like it. A server at ten times its capacity refuses nine requests for each that it answers; what that takes, its
models miss.
"""

from __future__ import annotations

from collections import Counter

from normfold.serving.errors import Overloaded, Status
from normfold.serving.frontends.http2.requests import STARTED, Asked, ended
from normfold.serving.rpc.methods import Method, note_refusals
from normfold.serving.wire.pushback import trailers


class RefusedAgain:
    """The requests of one turn of a connection that are like one that was refused."""

    def __init__(self, method: Method, asked: Asked, head: bytes, size: int, error: Overloaded) -> None:
        """``error`` has refused a request of ``size`` bytes, of which ``head`` decide, with the headers ``asked``."""
        self._method, self._error, self._details = method, error.with_traceback(None), str(error)
        self._asked, self._size, self._head = asked, size, head
        #: The number of the first bytes of a request that decide.
        self.alike = len(head)
        self._count = 0

    def like(self, method: Method, asked: Asked, size: int, head: bytes) -> bool:
        """Whether a request of ``size`` bytes, first ``head``, asks the same model and need not be answered later."""
        return (
            size == self._size
            and head == self._head
            and method is self._method
            and (asked is self._asked or _no_later(asked.timeout, self._asked.timeout))
        )

    def refusal(self) -> bytes:
        """The headers that refuse one more; when it may be tried again is chosen anew."""
        self._count += 1
        error = self._error
        return STARTED + ended(error.status, self._details, trailers(error, error.status, self._details))

    def settle(self, failed: Counter[tuple[str, Status]]) -> None:
        """Count what was refused in ``failed``, with the model, and for the log: the turn is over."""
        if self._count:
            failed[self._method.path, self._error.status] += self._count
            note_refusals(self._method.path, self._error.status, self._details, self._count)
            if self._error.again is not None:
                self._error.again(self._count)
            self._count = 0


def _no_later(timeout: float | None, than: float | None) -> bool:
    return than is None or (timeout is not None and timeout <= than)
