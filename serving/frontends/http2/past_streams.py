"""What is kept of the streams of a connection that are over."""

from __future__ import annotations

from collections import deque

from normfold.serving.frontends.http2.limits import MOST_RESET, Fault
from normfold.serving.wire import http2_frames as h2


class PastStreams:
    """The streams that the client has passed over, and those that we have reset; only the last of each."""

    def __init__(self) -> None:
        #: Numbers that the client has passed over: it may not open these streams any more.
        self.passed_over: deque[range] = deque(maxlen=64)
        #: Streams that we have reset, in their order.
        self.reset: dict[int, None] = {}

    def check_reset(self, number: int) -> None:
        """Raise Fault unless we have reset stream ``number``, which is over."""
        if number not in self.reset:
            passed = any(number in numbers for numbers in self.passed_over)
            code = h2.PROTOCOL_ERROR if passed else h2.STREAM_CLOSED
            raise Fault(code, f"stream {number} cannot be opened any more")

    def remember(self, number: int) -> None:
        """Stream ``number`` is reset."""
        self.reset[number] = None
        if len(self.reset) > MOST_RESET:
            del self.reset[next(iter(self.reset))]
