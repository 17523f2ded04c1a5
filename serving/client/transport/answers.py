"""Reads the headers of an answer; finds gRPC's status where a server or a proxy gives none.

Sources: gRPC over HTTP/2 (grpc/doc/PROTOCOL-HTTP2.md, http-grpc-status-mapping.md) and gRFC A6 for
``grpc-retry-pushback-ms``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from normfold.serving.errors import Status
from normfold.serving.wire import http2_frames as h2
from normfold.serving.wire.http2_headers import Header
from normfold.serving.wire.pushback import PUSHBACK

_PUSHBACK = PUSHBACK.encode()
_TYPE = b"application/grpc"
#: A byte of grpc-message that is not written as itself.
_ENCODED = re.compile(rb"%([0-9A-Fa-f]{2})")

#: The status of a call that HTTP answers with this status, and gRPC with none; any other is UNKNOWN.
HTTP_STATUSES: Mapping[int, Status] = {
    400: Status.INTERNAL,
    401: Status.UNAUTHENTICATED,
    403: Status.PERMISSION_DENIED,
    404: Status.UNIMPLEMENTED,
    429: Status.UNAVAILABLE,
    502: Status.UNAVAILABLE,
    503: Status.UNAVAILABLE,
    504: Status.UNAVAILABLE,
}
#: The status of a call whose stream is reset with this error code; any other is INTERNAL.
RESET_STATUSES: Mapping[int, Status] = {
    h2.REFUSED_STREAM: Status.UNAVAILABLE,
    h2.CANCEL: Status.CANCELLED,
    h2.ENHANCE_YOUR_CALM: Status.RESOURCE_EXHAUSTED,
    h2.INADEQUATE_SECURITY: Status.PERMISSION_DENIED,
}


@dataclass(frozen=True, slots=True)
class Reply:
    """The end of a call, whether it went well or not."""

    status: Status
    details: str = ""
    #: The serialized answer, with OK.
    message: bytes = b""
    #: When the server wants the call again, in milliseconds from now; negative: not at all. None: it says nothing.
    pushback_ms: int | None = None
    #: Whether it is certain that the server has not looked at the request.
    unseen: bool = False
    #: Whether an answer had begun; then the call is not sent again (gRFC A6).
    begun: bool = False


#: The end of a call with OK and nothing else, where one message belongs.
NO_MESSAGE = Reply(Status.INTERNAL, "the server's answer has the status OK and no message", begun=True)


@dataclass(frozen=True, slots=True)
class Fields:
    """The meaning of one block of an answer's headers."""

    #: HTTP's status; 0 in trailers.
    http: int
    #: Whether the answer is gRPC's.
    grpc: bool
    #: How messages are compressed.
    encoding: bytes
    #: gRPC's status; None where the block has none.
    status: Status | None
    details: str
    pushback_ms: int | None

    def reply(self, begun: bool = False) -> Reply:
        """The end of a call that ends with this block, and not well."""
        if self.status is not None:
            return Reply(self.status, self.details, pushback_ms=self.pushback_ms, begun=begun)
        if self.http not in (0, 200):
            status = HTTP_STATUSES.get(self.http, Status.UNKNOWN)
            return Reply(status, f"HTTP status {self.http} instead of an answer by gRPC: is a proxy in between?")
        if not self.grpc and not begun:
            return Reply(Status.UNKNOWN, "the answer is not gRPC's (content-type)")
        return Reply(Status.UNKNOWN, "the server ended the call without a grpc-status", begun=begun)


def fields(headers: list[Header]) -> Fields | None:
    """The meaning of ``headers``; None where they are malformed."""
    found = dict(headers)
    http = found.get(b":status", b"0")
    if not http.isdigit() or len(http) > 3 or any(n[:1] == b":" and n != b":status" for n, _ in headers):
        return None
    number = found.get(b"grpc-status")
    known = number is not None and number.isdigit() and len(number) <= 2 and int(number) in _STATUSES
    return Fields(
        int(http),
        found.get(b"content-type", b"").startswith(_TYPE),
        found.get(b"grpc-encoding", b"identity"),
        None if number is None else Status(int(number)) if known else Status.UNKNOWN,
        _ENCODED.sub(_byte, found.get(b"grpc-message", b"")).decode(errors="replace"),
        None if (wait := found.get(_PUSHBACK)) is None else pushback_ms(wait),
    )


def reset(code: int) -> Reply:
    """The end of a call whose stream the server resets with the error code ``code``."""
    status = RESET_STATUSES.get(code, Status.INTERNAL)
    return Reply(status, f"the server reset the call (HTTP/2 error {code})", unseen=code == h2.REFUSED_STREAM)


_STATUSES = frozenset(Status)


def _byte(match: re.Match[bytes]) -> bytes:
    return bytes([int(match[1], 16)])


def pushback_ms(value: bytes) -> int:
    """gRFC A6: a value that is not a number means that the call must not be sent again, which is -1."""
    return int(value) if value.isdigit() and len(value) < 10 else -1
