"""Calls count with their memory among what is held: a stream may be open for hours and say nothing."""

from __future__ import annotations

from normfold.serving.frontends.http2.holding import Holding
from normfold.serving.frontends.http2.limits import CALL_BYTES, FEW_CALLS, MOST_CALLS, ORDINARY_CALLS


class CallPlaces:
    """The calls that one connection may have under way now, beside the first few counted a block at a time.

    So an ordinary call costs one comparison: blocks are counted when they are needed, and given back at the next look.
    """

    def __init__(self, holding: Holding) -> None:
        self._holding = holding
        #: Calls for which there is a place.
        self.most = FEW_CALLS

    def more(self) -> bool:
        """Make places for a block of calls; False: there are too many calls already, or too much is held."""
        if self.most >= MOST_CALLS:
            return False
        if self.most >= ORDINARY_CALLS and not self._holding.has_room(FEW_CALLS * CALL_BYTES):
            return False
        self._holding.add_beside(FEW_CALLS * CALL_BYTES)
        self.most += FEW_CALLS
        return True

    def keep(self, calls: int) -> None:
        """Give back the blocks that ``calls`` do not need."""
        spare = (self.most - max(calls, FEW_CALLS)) // FEW_CALLS
        if spare:
            self._holding.add_beside(-spare * FEW_CALLS * CALL_BYTES)
            self.most -= spare * FEW_CALLS
