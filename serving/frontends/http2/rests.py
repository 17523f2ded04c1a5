"""Connections whose requests are refused are read more rarely while there are many of them.

To read a connection takes as long as five refusals, however few requests come with it. Of 128 connections that ask for
ten times what the server can do, each brings two or three requests to a read; the reads take a third of a processor
then, which the models miss. After a rest a connection brings more requests to each read.
"""

from __future__ import annotations

from time import monotonic
from typing import Protocol

#: One connection after the other is read in steps of this time, in seconds, ...
EACH_SECONDS = 0.001
#: ... but none rests for longer, ...
MOST_SECONDS = 0.1
#: ... and none for less: a few connections bring enough requests to each read.
LEAST_SECONDS = 0.02


class Resting(Protocol):
    """The connection, as its rests need it."""

    #: When its step ends. Until then it is read whenever something comes.
    step_until: float


class Rests:
    """How long each connection rests after a turn in which its requests were refused.

    A connection has one step at a time, so a few connections never rest, however often their requests are refused.
    Nobody who is refused should come back before a rest ends: the refusal asks the client to wait for LEAST_SECONDS or
    longer, mostly for longer than MOST_SECONDS (``scheduling/admission.py``).
    """

    def __init__(self) -> None:
        #: When the last step ends.
        self._last = 0.0

    def seconds(self, connection: Resting) -> float:
        """The time for which ``connection``, which was refused now, is not read, in seconds; 0: it is read on."""
        now = monotonic()
        if now < connection.step_until:
            return 0.0
        wait = max(self._last - now, 0.0)
        self._last = now + min(wait + EACH_SECONDS, MOST_SECONDS)
        if wait >= LEAST_SECONDS:
            return wait
        connection.step_until = self._last
        return 0.0
