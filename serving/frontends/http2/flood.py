"""Counts the frames of one client that lead to nothing, and ends a connection that sends too many of them."""

from __future__ import annotations

from time import monotonic

from normfold.serving.frontends.http2.limits import FORGOTTEN_EACH_SECOND, MOST_FRUITLESS, Fault
from normfold.serving.wire import http2_frames as h2


class Flood:
    """The fruitless frames of one connection; whoever queues a message of an answer sets ``frames`` to 0."""

    def __init__(self) -> None:
        self.frames = 0
        #: When frames were last forgotten.
        self._forgotten = monotonic()

    def count(self) -> None:
        """Count a frame that brings no call nearer to its end. Raises Fault when there were too many."""
        self.frames += 1
        if self.frames > MOST_FRUITLESS:
            now = monotonic()
            self.frames -= min(self.frames, int((now - self._forgotten) * FORGOTTEN_EACH_SECOND))
            self._forgotten = now
        if self.frames > MOST_FRUITLESS:
            raise Fault(h2.ENHANCE_YOUR_CALM, f"more than {MOST_FRUITLESS} frames that lead to nothing")
