"""What is kept of the streams of a connection that are over: two kilobytes at most, so that it need not be counted."""

from __future__ import annotations

from collections import deque

from normfold.serving.frontends.http2.limits import RECENT_STREAMS, Fault
from normfold.serving.wire import http2_frames as h2

_MASK = (1 << RECENT_STREAMS) - 1


class PastStreams:
    """The streams that the client has passed over, and those that we have reset; only the last of each."""

    def __init__(self) -> None:
        #: Numbers that the client has passed over: it may not open these streams any more.
        self.passed_over: deque[range] = deque(maxlen=64)
        #: The last stream that we have reset, and a bit for it and each one before: whether that was reset, too.
        self._last, self._bits = 1, 0

    def was_reset(self, number: int) -> bool:
        """Whether we have reset stream ``number``; False also where that was long ago."""
        before = (self._last - number) // 2
        return before >= 0 and bool(self._bits >> before & 1)

    def check_reset(self, number: int) -> None:
        """Raise Fault unless we have reset stream ``number``, which is over."""
        if not self.was_reset(number):
            passed = any(number in numbers for numbers in self.passed_over)
            code = h2.PROTOCOL_ERROR if passed else h2.STREAM_CLOSED
            raise Fault(code, f"stream {number} cannot be opened any more")

    def remember(self, number: int) -> None:
        """Stream ``number`` is reset."""
        if (after := (number - self._last) // 2) > 0:
            self._bits = self._bits << after & _MASK if after < RECENT_STREAMS else 0
            self._last = number
        if (before := (self._last - number) // 2) < RECENT_STREAMS:
            self._bits |= 1 << before
