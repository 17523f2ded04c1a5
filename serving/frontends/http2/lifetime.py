"""How long a connection lasts: its age, its idle time and its silence are bounded, and no call is lost when it ends.

A connection ends as gRPC servers end it: a GOAWAY that names the largest stream there can be, a PING, and once the
client has answered the PING, a GOAWAY that names the last stream that was opened. Until then calls are answered. A call
that the client sends later, it sends again on its next connection. The limits are those of gRFC A8 and A9.
"""

from __future__ import annotations

import math
import random
from typing import Protocol

from normfold.serving.frontends.http2.limits import FAREWELL_SECONDS, JITTER
from normfold.serving.frontends.http2.sending import Sender
from normfold.serving.frontends.limits import ClientLimits
from normfold.serving.wire import http2_frames as h2

#: The PING between the two GOAWAYs, and the one that asks a silent client whether it is there; 8 bytes each.
FAREWELL, HELLO = b"farewell", b"anybody?"


class Lived(Protocol):
    """The connection, as its lifetime needs it."""

    sender: Sender
    choked: bool
    #: Whether the client sends nothing more, and waits for answers.
    silent: bool
    #: How often something was read from the client, and the last stream that it opened.
    reads: int
    last: int
    #: Whether no call is accepted any more.
    leaving: bool

    def busy(self) -> bool:
        """Whether calls are under way."""

    def leave(self) -> None:
        """Accept no more calls; close the connection when the calls under way have ended."""

    def flush(self) -> None:
        """Write what is queued."""

    def abort(self) -> None:
        """Close the connection now."""


class Lifetime:
    """The times of one connection, on the event loop's clock; they are looked at again and again."""

    def __init__(self, limits: ClientLimits, now: float) -> None:
        self._limits = limits
        age = limits.max_age_seconds * random.uniform(1 - JITTER, 1 + JITTER)
        #: When the client is asked to leave, when it must have left, and when the second GOAWAY is sent in any case.
        self._old_at, self._cut_at, self._parted_at = now + age if age else math.inf, math.inf, math.inf
        #: The last reads and stream that were seen, and when each was seen first.
        self._reads, self._heard_at = 0, now
        self._last, self._called_at = 0, now
        #: When the client was asked whether it is there; infinity: it was not.
        self._asked_at = math.inf

    def look(self, connection: Lived, now: float) -> None:
        """Do what the time asks for: the first or second GOAWAY, a PING, or the end."""
        if connection.busy() or connection.last != self._last:
            self._last, self._called_at = connection.last, now
        if connection.choked or connection.silent or connection.reads != self._reads:
            self._reads, self._heard_at, self._asked_at = connection.reads, now, math.inf
        limits = self._limits
        if now >= self._cut_at or now >= self._asked_at + limits.keepalive_timeout_seconds:
            connection.abort()
        elif now >= self._parted_at and not connection.leaving:
            connection.leave()
        elif now >= self._old_at:
            self._cut_at = now + limits.age_grace_seconds
            self.part(connection, now)
        elif limits.max_idle_seconds and now >= self._called_at + limits.max_idle_seconds:
            self.part(connection, now)
        elif (
            limits.keepalive_seconds and now >= self._heard_at + limits.keepalive_seconds and self._asked_at == math.inf
        ):
            self._asked_at = now
            self._ask(connection, HELLO)

    def part(self, connection: Lived, now: float) -> None:
        """Ask the client to go elsewhere with its next calls; those that still come are answered."""
        if self._parted_at == math.inf:
            self._old_at, self._parted_at = math.inf, now + FAREWELL_SECONDS
            connection.sender.out.append(h2.goaway(h2.LARGEST_WINDOW))
            self._ask(connection, FAREWELL)

    def answered(self, connection: Lived, payload: bytes) -> None:
        """The client has answered a PING with ``payload``."""
        if payload == FAREWELL and self._parted_at < math.inf:
            connection.leave()

    def _ask(self, connection: Lived, payload: bytes) -> None:
        connection.sender.out.append(h2.frame(h2.PING, 0, 0, payload))
        connection.flush()
