"""The frames of one client that bring no call nearer to its end: it may send some, but not ever more of them."""

from __future__ import annotations

from time import monotonic

from normfold.serving.frontends.http2.limits import FORGOTTEN_EACH_SECOND, MOST_FRUITLESS, Fault
from normfold.serving.wire import http2_frames as h2


class Patience:
    """Counts fruitless frames. An answer makes up for all of them, time for some."""

    def __init__(self) -> None:
        self._spent = 0
        #: When frames were last forgotten.
        self._forgotten = monotonic()

    def spend(self, frames: int) -> None:
        """Count fruitless frames. Raises Fault when there were too many."""
        self._spent += frames
        if self._spent > MOST_FRUITLESS:
            now = monotonic()
            self._spent -= min(self._spent, int((now - self._forgotten) * FORGOTTEN_EACH_SECOND))
            self._forgotten = now
        if self._spent > MOST_FRUITLESS:
            raise Fault(h2.ENHANCE_YOUR_CALM, f"more than {MOST_FRUITLESS} frames that lead to nothing")

    def renew(self) -> None:
        """Forget the frames so far: a message of an answer is queued."""
        self._spent = 0
