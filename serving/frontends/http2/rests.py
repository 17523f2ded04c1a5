"""Connections whose requests are refused are read more rarely while there are many of them.

To read a connection takes as long as five refusals, however few requests come with it. Of 128 connections that ask for
ten times what the server can do, each brings two or three requests to a read; the reads take a third of a processor
then, which the models miss. After a rest a connection brings more requests to each read.
"""

from __future__ import annotations

from time import monotonic

#: One connection after the other is read in steps of this time, in seconds, ...
EACH_SECONDS = 0.001
#: ... but none rests for longer, ...
MOST_SECONDS = 0.1
#: ... and none for less: a few connections bring enough requests to each read.
LEAST_SECONDS = 0.02


class Rests:
    """How long each connection rests after a turn in which its requests were refused.

    Its client was told to come back after at least as long as the shortest rest, and mostly later than after the
    longest one (``scheduling/admission.py``).
    """

    def __init__(self) -> None:
        #: When the next connection may be read.
        self._next = 0.0

    def seconds(self) -> float:
        """The time for which a connection is not read that was refused now, in seconds; 0: it is read on."""
        now = monotonic()
        wait = max(self._next - now, 0.0)
        self._next = now + min(wait + EACH_SECONDS, MOST_SECONDS)
        return wait if wait >= LEAST_SECONDS else 0.0
