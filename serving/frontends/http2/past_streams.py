"""What is kept of the streams of a connection that are over."""

from __future__ import annotations

from collections import deque

from normfold.serving.frontends.http2.limits import MOST_RESET


class PastStreams:
    """The streams that the client has passed over, and those that we have reset; only the last of each."""

    def __init__(self) -> None:
        #: Numbers that the client has passed over: it may not open these streams any more.
        self.passed_over: deque[range] = deque(maxlen=64)
        #: Streams that we have reset, in their order.
        self.reset: dict[int, None] = {}

    def remember(self, number: int) -> None:
        """Stream ``number`` is reset."""
        self.reset[number] = None
        if len(self.reset) > MOST_RESET:
            del self.reset[next(iter(self.reset))]
