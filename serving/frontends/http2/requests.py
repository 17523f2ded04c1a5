"""What a block of headers asks for: the method, the deadline, the compression; or how it is refused."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from normfold.serving.errors import Status
from normfold.serving.frontends.http2.headers import Header, HeaderReader, written
from normfold.serving.frontends.http2.messages import ENCODINGS
from normfold.serving.rpc.methods import Method

#: Blocks whose meaning is kept; one more, and all are forgotten. A longer block is not kept.
KEPT = 1024
KEPT_BYTES = 2048

#: A status message as it travels, at most; clients bound the headers of an answer to 8 KiB.
MESSAGE_BYTES = 6000

_TYPE = (b"content-type", b"application/grpc")
#: The headers before the first message of an answer, and those after the last.
STARTED = written((b":status", b"200"), _TYPE)
DONE = written((b"grpc-status", b"0"))

_SECONDS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_TIMEOUT = re.compile(rb"(\d{1,8})([HMSmun])")
_CONTENT = re.compile(rb"application/grpc(\+proto)?(;.*)?", re.DOTALL)
#: A name as RFC 9113, section 8.2.1 has it: a token in lower case.
_NAME = re.compile(rb":?[0-9a-z!#$%&'*+.^_`|~-]+")
_PSEUDO = frozenset((b":method", b":scheme", b":path", b":authority"))
#: Headers of HTTP/1.1's connections, which have no meaning here and are therefore wrong.
_CONNECTION = frozenset((b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"))


@dataclass(frozen=True)
class Asked:
    """What the headers of one request ask for."""

    #: None: it is refused or malformed.
    method: Method | None = None
    #: How long the caller waits from now on, in seconds; None: for ever.
    timeout: float | None = None
    encoding: bytes = b"identity"
    #: The answer, all of it, to a request that is refused; None with a method, and where the stream is to be reset.
    refusal: bytes | None = None


class Requests:
    """Reads blocks of headers, each kind once."""

    def __init__(self, methods: Iterable[Method]) -> None:
        self._methods: Mapping[bytes, Method] = {method.path.encode(): method for method in methods}
        self._kept: dict[bytes, Asked] = {}

    def read(self, block: bytes, reader: HeaderReader) -> Asked:
        """What ``block`` asks for. Raises HeaderError."""
        asked = self._kept.get(block)
        if asked is None:
            asked = self._asked(reader.read(block))
            if reader.constant and len(block) <= KEPT_BYTES:
                if len(self._kept) >= KEPT:
                    self._kept.clear()
                self._kept[block] = asked
        return asked

    def _asked(self, headers: list[Header]) -> Asked:
        if not well_formed(headers):
            return Asked()
        found = dict(headers)
        if found[b":method"] != b"POST":
            return Asked(refusal=written((b":status", b"405"), (b"allow", b"POST")))
        if not _CONTENT.fullmatch(found.get(b"content-type", b"")):
            return Asked(refusal=written((b":status", b"415")))
        if (method := self._methods.get(found[b":path"])) is None:
            return Asked(refusal=refused(Status.UNIMPLEMENTED, "Method not found!"))
        encoding = found.get(b"grpc-encoding", b"identity")
        if encoding not in ENCODINGS:
            accepted = (b"grpc-accept-encoding", b",".join(ENCODINGS))
            words = f"Compression algorithm {encoding.decode(errors='replace')!r} is not supported"
            return Asked(refusal=refused(Status.UNIMPLEMENTED, words, accepted))
        timeout = None
        if (limit := found.get(b"grpc-timeout")) is not None:
            if (match := _TIMEOUT.fullmatch(limit)) is None:
                return Asked(refusal=refused(Status.INTERNAL, f"grpc-timeout is {limit.decode(errors='replace')!r}"))
            timeout = int(match[1]) * _SECONDS[match[2]]
        return Asked(method, timeout, encoding)


def well_formed(headers: list[Header]) -> bool:
    """Whether these are the headers of a request (RFC 9113, section 8.2 and 8.3.1)."""
    pseudo = [name for name, _ in headers if name[:1] == b":"]
    return (
        len(set(pseudo)) == len(pseudo)
        and _PSEUDO.issuperset(pseudo)
        and {b":method", b":scheme", b":path"}.issubset(pseudo)
        and all(name[:1] == b":" for name, _ in headers[: len(pseudo)])
        and all(_NAME.fullmatch(name) and name not in _CONNECTION for name, _ in headers)
        and not any(b"\x00" in value or b"\r" in value or b"\n" in value for _, value in headers)
    )


def refused(status: Status, details: str, *more: Header) -> bytes:
    """The headers of an answer without messages."""
    return STARTED + ended(status, details) + written(*more)


@lru_cache(256)
def ended(status: Status, details: str = "") -> bytes:
    """The headers at the end of an answer."""
    headers = [(b"grpc-status", b"%d" % status)]
    return written(*headers, (b"grpc-message", percent_encoded(details))) if details else written(*headers)


def percent_encoded(text: str) -> bytes:
    """``text`` as grpc-message has it, cut at a character where it would be too long."""
    if text.isascii() and text.isprintable() and "%" not in text:
        return text[:MESSAGE_BYTES].encode()
    encoded = b""
    for character in text:
        code = b"".join(bytes([c]) if 0x20 <= c <= 0x7E and c != 0x25 else b"%%%02X" % c for c in character.encode())
        if len(encoded) + len(code) > MESSAGE_BYTES:
            break
        encoded += code
    return encoded
