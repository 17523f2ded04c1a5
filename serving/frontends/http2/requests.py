"""From a block of headers to a request: its method, deadline and compression; or the answer that refuses it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from normfold.serving.access.access import HEADER, credential
from normfold.serving.errors import Status
from normfold.serving.frontends.http2.inflation import ENCODINGS
from normfold.serving.rpc.caller import kept_trace
from normfold.serving.rpc.methods import Method
from normfold.serving.wire.http2_headers import (
    LIST_BYTES,
    LIST_HEADERS,
    Header,
    HeaderReader,
    metadata_header,
    written,
)
from normfold.serving.wire.pushback import Trailers

#: The largest number of blocks whose meaning is kept; the cache is cleared when it would exceed that.
KEPT = 1024
#: Longer blocks are not kept.
KEPT_BYTES = 2048

#: The longest encoded status message, in bytes; clients limit the headers of an answer to 8 KiB.
MESSAGE_BYTES = 6000

_HEADER = HEADER.encode()
_TYPE = (b"content-type", b"application/grpc")
#: The headers before the first message of an answer, and those after the last.
STARTED = written((b":status", b"200"), _TYPE)
DONE = written((b"grpc-status", b"0"))

#: The details of a refusal of too many headers.
TOO_LARGE = f"received metadata is larger than {LIST_BYTES} bytes or {LIST_HEADERS} headers"

_SECONDS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
#: gRPC allows eight digits and no spaces; grpcio takes more of both, and clients rely on it.
_TIMEOUT = re.compile(rb"(\d+) *([HMSmun])")
#: A deadline that is further away is none, in seconds.
_FAR = 1e9
_CONTENT = re.compile(rb"application/grpc(\+proto)?(;.*)?", re.DOTALL)
#: A name by RFC 9113, section 8.2.1: a token in lower case.
_NAME = re.compile(rb":?[0-9a-z!#$%&'*+.^_`|~-]+")
_LENGTH = re.compile(rb"\d{1,18}")
#: A value by section 8.2.1: without NUL and line breaks, and neither first nor last a space or a tab.
_VALUE = re.compile(rb"(?:[^\x00\r\n\t ](?:[^\x00\r\n]*[^\x00\r\n\t ])?)?")
_PSEUDO = frozenset((b":method", b":scheme", b":path", b":authority"))
#: Headers about a connection of HTTP/1.1; HTTP/2 forbids them.
_CONNECTION = frozenset((b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"))


@dataclass(frozen=True)
class Asked:
    """The meaning of the headers of one request."""

    #: None: the request is refused or malformed.
    method: Method | None = None
    #: The time that the caller waits from now on, in seconds; None: no limit.
    timeout: float | None = None
    encoding: bytes = b"identity"
    #: The bytes of data that content-length announces; None: it is not there.
    length: int | None = None
    #: The whole answer to a refused request; None with a method, and if the stream must be reset.
    refusal: bytes | None = None
    #: The status of a refused request; None where it has none of gRPC's.
    status: Status | None = None
    #: The digest of the token, as ``access.credential`` gives it; only of a server that has tokens.
    credential: bytes = b""
    #: The values of TRACE_HEADERS; empty: it has none.
    trace: tuple[bytes, bytes] = (b"", b"")
    #: The path, of a request without a method only.
    path: str = ""

    @property
    def seen(self) -> Status:
        """The status that a client of gRPC makes of the refusal: its own, or by that of HTTP."""
        if self.status is not None:
            return self.status
        return Status.INTERNAL if self.refusal is None else Status.UNKNOWN


class Requests:
    """Reads blocks of headers, equal ones only once."""

    def __init__(self, methods: Iterable[Method], tokens: bool = False) -> None:
        """``tokens``: whether the server has tokens."""
        self._methods: Mapping[bytes, Method] = {method.path.encode(): method for method in methods}
        self._tokens = tokens
        #: The meaning of blocks of connections without a header table, and of those with one. They are kept apart: a
        #: block may add a header to a table, and then a connection with a table must read it each time.
        self._kept: tuple[dict[bytes, Asked], dict[bytes, Asked]] = ({}, {})

    def read(self, block: bytes, reader: HeaderReader) -> Asked:
        """The request in ``block``. Raises HeaderError."""
        kept = self._kept[reader.has_table]
        asked = kept.get(block)
        if asked is None:
            headers = reader.read(block)
            asked = self._asked(headers, reader.too_large)
            if asked.method is None:
                path = next((value for name, value in headers if name == b":path"), b"")
                asked = replace(asked, path=path.decode(errors="replace"))
            if reader.constant and len(block) <= KEPT_BYTES:
                if len(kept) >= KEPT:
                    kept.clear()
                kept[block] = asked
        return asked

    def _asked(self, headers: list[Header], too_large: bool) -> Asked:
        if too_large:
            return _refusal(Status.RESOURCE_EXHAUSTED, TOO_LARGE)
        if not well_formed(headers):
            return Asked()
        found = dict(headers)
        if found[b":method"] != b"POST":
            return Asked(refusal=written((b":status", b"405"), (b"allow", b"POST")))
        if not _CONTENT.fullmatch(found.get(b"content-type", b"")):
            return Asked(refusal=written((b":status", b"415")))
        if (method := self._methods.get(found[b":path"])) is None:
            return _refusal(Status.UNIMPLEMENTED, "Method not found!")
        encoding = found.get(b"grpc-encoding", b"identity")
        if encoding not in ENCODINGS:
            accepted = (b"grpc-accept-encoding", b",".join(ENCODINGS))
            words = f"Compression algorithm {encoding.decode(errors='replace')!r} is not supported"
            return _refusal(Status.UNIMPLEMENTED, words, accepted)
        timeout = None
        if (limit := found.get(b"grpc-timeout")) is not None:
            if (match := _TIMEOUT.fullmatch(limit)) is None:
                return _refusal(Status.INTERNAL, f"grpc-timeout is {limit.decode(errors='replace')!r}")
            timeout = float(match[1]) * _SECONDS[match[2]]
            if not timeout:
                return _refusal(Status.DEADLINE_EXCEEDED, "Deadline Exceeded")
            if timeout > _FAR:
                timeout = None
        length = found.get(b"content-length")
        token = credential([value for name, value in headers if name == _HEADER]) if self._tokens else b""
        size = None if length is None else int(length)
        trace = kept_trace(found.get(b"traceparent", b""), found.get(b"tracestate", b""))
        return Asked(method, timeout, encoding, size, credential=token, trace=trace)


def well_formed(headers: list[Header]) -> bool:
    """Whether these are the headers of a request (RFC 9113, sections 8.1.1, 8.2 and 8.3.1)."""
    pseudo = [name for name, _ in headers if name[:1] == b":"]
    found = dict(headers)
    return (
        len(set(pseudo)) == len(pseudo)
        and _PSEUDO.issuperset(pseudo)
        and {b":method", b":scheme", b":path"}.issubset(pseudo)
        and found[b":path"] != b"" != found[b":scheme"]
        and b"@" not in found.get(b":authority", b"")
        and len({value for name, value in headers if name == b"content-length"}) <= 1
        and _LENGTH.fullmatch(found.get(b"content-length", b"0")) is not None
        and all(name[:1] == b":" for name, _ in headers[: len(pseudo)])
        and _fields_well_formed(headers)
    )


def trailers_well_formed(headers: list[Header]) -> bool:
    """Whether these may follow the data of a request (RFC 9113, section 8.1)."""
    return not any(name[:1] == b":" for name, _ in headers) and _fields_well_formed(headers)


def _fields_well_formed(headers: list[Header]) -> bool:
    return all(
        _NAME.fullmatch(n) and n not in _CONNECTION and _VALUE.fullmatch(v) and (n != b"te" or v == b"trailers")
        for n, v in headers
    )


def _refusal(status: Status, details: str, *more: Header) -> Asked:
    return Asked(refusal=refused(status, details, *more), status=status)


def refused(status: Status, details: str, *more: Header) -> bytes:
    """The headers of an answer without messages."""
    return STARTED + ended(status, details) + written(*more)


@lru_cache(256)
def ended(status: Status, details: str = "", more: Trailers = ()) -> bytes:
    """The headers at the end of an answer; ``more`` follow the status and its details."""
    headers = [(b"grpc-status", b"%d" % status)]
    if details:
        headers.append((b"grpc-message", percent_encoded(details)))
    return written(*headers, *(metadata_header(name, value) for name, value in more))


def percent_encoded(text: str) -> bytes:
    """``text`` encoded for grpc-message; a text that is too long is cut between two characters."""
    if text.isascii() and text.isprintable() and "%" not in text:
        return text[:MESSAGE_BYTES].encode()
    encoded = b""
    for character in text:
        code = b"".join(bytes([c]) if 0x20 <= c <= 0x7E and c != 0x25 else b"%%%02X" % c for c in character.encode())
        if len(encoded) + len(code) > MESSAGE_BYTES:
            break
        encoded += code
    return encoded
