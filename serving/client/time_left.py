"""One timeout for everything that a client sends for one inference."""

from __future__ import annotations

from time import monotonic

from normfold.serving.client.errors import ClientError
from normfold.serving.client.transport import failures


class TimeLeft:
    """The time that an inference may still take, with the questions about its model.

    An ``AsyncClient`` does not count the time in which an inference waits for its turn.
    """

    __slots__ = ("_seconds",)

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def seconds(self) -> float:
        """The seconds for what is sent next. Raises ClientError if none are left."""
        if self._seconds <= 0:
            raise ClientError(failures.EXPIRED.status, failures.EXPIRED.details)
        return self._seconds

    def passed_since(self, begin: float) -> None:
        """Take off the time since ``begin``, of ``time.monotonic``."""
        self._seconds -= monotonic() - begin
