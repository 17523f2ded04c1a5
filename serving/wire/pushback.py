"""The trailers of a refusal that say when to try again.

    grpc-retry-pushback-ms     gRPC's own retries wait this long; "-1": they do not try again (gRFC A6)
    grpc-status-details-bin    google.rpc.Status with google.rpc.RetryInfo, which other clients read (AIP-194)

The delay is rounded up and varied, so that the refused do not all come back in the same moment.
"""

from __future__ import annotations

import math
import random
from functools import lru_cache

from normfold.serving.errors import ServingError, Status
from normfold.serving.wire.varint import varint

#: Delays are multiples of this many milliseconds, and at most LONGEST_MS.
STEP_MS, LONGEST_MS = 10, 10_000
#: A delay is varied up to this factor.
SPREAD = 1.5
#: The number of delays that one is varied to.
DELAYS = 16

PUSHBACK, DETAILS = "grpc-retry-pushback-ms", "grpc-status-details-bin"
_RETRY_INFO = b"type.googleapis.com/google.rpc.RetryInfo"

Trailers = tuple[tuple[str, str | bytes], ...]

#: The trailers of a refusal that another try would get, too.
NEVER: Trailers = ((PUSHBACK, "-1"),)


def trailers(error: Exception, status: Status, details: str) -> Trailers:
    """The trailers that ``error`` adds to its ``status`` and ``details``; none if it says nothing of another try."""
    seconds = error.retry_seconds if isinstance(error, ServingError) else None
    if seconds is None:
        return ()
    if seconds < 0:
        return NEVER
    return after(random.choice(delays_ms(seconds)), status, details)


def delays_ms(seconds: float) -> tuple[int, ...]:
    """The delays for ``seconds``, of which each refused caller gets one by chance; in milliseconds."""
    return _delays_ms(min(math.ceil(seconds * 1000 / STEP_MS), LONGEST_MS // STEP_MS))


@lru_cache(1024)
def _delays_ms(steps: int) -> tuple[int, ...]:
    """Some DELAYS at most: the answers with them are kept."""
    least, most = max(1, steps), min(max(1, math.ceil(steps * SPREAD)), LONGEST_MS // STEP_MS)
    return tuple([step * STEP_MS for step in range(least, most + 1, -(-(most - least + 1) // DELAYS))])


@lru_cache(4096)
def after(milliseconds: int, status: Status, details: str) -> Trailers:
    """The trailers that ask for another try after a time."""
    return (PUSHBACK, str(milliseconds)), (DETAILS, _status(status, details, milliseconds))


def _status(status: Status, details: str, milliseconds: int) -> bytes:
    """A google.rpc.Status: code = 1, message = 2, details = 3 (Any: type_url = 1, value = 2).

    The Any has a RetryInfo: retry_delay = 1 (Duration: seconds = 1, nanos = 2).
    """
    seconds, rest = divmod(milliseconds, 1000)
    duration = _number(1, seconds) + _number(2, rest * 1_000_000)
    packed = _field(1, _RETRY_INFO) + _field(2, _field(1, duration))
    return _number(1, status) + _field(2, details.encode()) + _field(3, packed)


def _field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2]) + varint(len(content)) + content


def _number(number: int, value: int) -> bytes:
    return bytes([number << 3]) + varint(value) if value else b""
