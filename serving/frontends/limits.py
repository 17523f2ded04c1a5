"""The limits of all clients together, and of one connection; only the http2 frontend can keep them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ClientLimits:
    """What clients may hold of the server at one time."""

    #: Connections; a new one takes the place of the oldest without a call, or else is closed.
    max_connections: int = 4096
    #: Bytes of requests that are not complete and of answers that the client has not taken, for one connection ...
    max_connection_bytes: int = 256 << 20
    #: ... and for all.
    max_held_bytes: int = 1 << 30
    #: Time without progress after which an unfinished request, or an answer that is not taken, is given up.
    stall_seconds: float = 60.0
