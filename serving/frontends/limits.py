"""The limits of all clients together, and of one connection; grpcio can keep only those of its time."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ClientLimits:
    """The limits of the resources that clients may hold at one time."""

    #: Connections; a new one takes the place of the oldest without a call and without unsent bytes, or else is closed.
    max_connections: int = 4096
    #: Bytes of requests that are not complete and of answers that the client has not taken, for one connection ...
    max_connection_bytes: int = 256 << 20
    #: ... and for all.
    max_held_bytes: int = 1 << 30
    #: Time without progress after which an unfinished request, or an answer that is not taken, is given up.
    stall_seconds: float = 60.0
    #: Age of a connection, 10 % more or less, at which its client is asked to make another; 0: any. ...
    max_age_seconds: float = 0.0
    #: ... Time for its calls from then on.
    age_grace_seconds: float = 30.0
    #: Time without a call after which the client is asked to leave; 0: never.
    max_idle_seconds: float = 0.0
    #: Time in which nothing comes from the client until it is asked whether it is there; 0: never. ...
    keepalive_seconds: float = 60.0
    #: ... Time for its answer.
    keepalive_timeout_seconds: float = 20.0

    @property
    def shortest_seconds(self) -> float:
        """The shortest time that is bounded, in seconds; connections are looked at four times as often."""
        times = (self.max_age_seconds, self.age_grace_seconds, self.max_idle_seconds, self.keepalive_seconds)
        return min(each for each in (*times, self.keepalive_timeout_seconds, self.stall_seconds) if each)


DEFAULT_LIMITS = ClientLimits()
