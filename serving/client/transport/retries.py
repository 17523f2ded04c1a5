"""Whether a failed call is sent again, and when.

| what failed | sent again |
|---|---|
| the server has certainly not looked at the request (GOAWAY, REFUSED_STREAM) | at once, MOST_UNSEEN times |
| the server says when it wants the call again (``grpc-retry-pushback-ms``) | then, until the deadline of the call |
| UNAVAILABLE, CANCELLED or RESOURCE_EXHAUSTED before an answer began | ATTEMPTS times in all, after 0.1 and 0.3 s |
| anything else, or a pushback below 0 | no |

A server that refuses a call often is asked more and more slowly, at last once in LONGEST_SECONDS, whatever smaller
pushback it gives: a call with a deadline of a minute is sent about 70 times at most.
"""

from __future__ import annotations

import random

from normfold.serving.client.transport.answers import Reply
from normfold.serving.errors import Status

#: How often a call is sent whose failures say nothing of another try.
ATTEMPTS = 3
#: The pause after the first failure, in seconds, and the factor for each further one.
FIRST_SECONDS, FACTOR = 0.1, 3.0
#: How often a call is sent again that the server has not looked at.
MOST_UNSEEN = 10
#: The longest pause that this module chooses itself, in seconds.
LONGEST_SECONDS = 1.0
#: The pause after each further refusal with a pushback is at least this many times longer, from the ATTEMPTS-th on.
_SLOWER = 1.5

RETRYABLE = frozenset((Status.UNAVAILABLE, Status.CANCELLED, Status.RESOURCE_EXHAUSTED))
#: Only calls of this service are sent again; the others have no retries in our gRPC service config either.
RETRIED = "/inference.GRPCInferenceService/"


class Retries:
    """The failures of one call so far."""

    __slots__ = ("_failed", "_refused", "_unseen")

    def __init__(self) -> None:
        self._failed = self._refused = self._unseen = 0

    def pause(self, path: str, reply: Reply, seconds_left: float) -> float | None:
        """The seconds after which a call of ``path`` that ended with ``reply`` is sent again; None: it is not.

        A pause that the deadline would end is not begun.
        """
        seconds = self._pause(path, reply)
        return None if seconds is None or seconds >= seconds_left else seconds

    def _pause(self, path: str, reply: Reply) -> float | None:
        if reply.unseen:
            self._unseen += 1
            return None if self._unseen > MOST_UNSEEN else 0.0 if self._unseen == 1 else FIRST_SECONDS
        if reply.begun or reply.status not in RETRYABLE or not path.startswith(RETRIED):
            return None
        if reply.pushback_ms is not None:
            if reply.pushback_ms < 0:
                return None
            return max(reply.pushback_ms / 1000, self.floor())
        self._failed += 1
        if self._failed >= ATTEMPTS:
            return None
        return FIRST_SECONDS * FACTOR ** (self._failed - 1) * random.uniform(0.8, 1.2)

    def floor(self) -> float:
        """The shortest pause after one more refusal with a pushback, in seconds; it grows."""
        self._refused += 1
        if self._refused < ATTEMPTS:
            return 0.0
        return min(FIRST_SECONDS * _SLOWER ** (self._refused - ATTEMPTS), LONGEST_SECONDS)
