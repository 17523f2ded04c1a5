"""The gRPC metadata of calls: the headers that a caller adds, such as ``traceparent``, and the token.

Source: gRPC over HTTP/2 (grpc/doc/PROTOCOL-HTTP2.md, "Custom-Metadata"); RFC 9113, section 8.2, for HTTP's own.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from typing import Any

from normfold.serving.client.connection import token_header
from normfold.serving.client.transport.opening import Pairs

#: Text, or bytes where the name ends in -bin.
Metadata = Mapping[str, str | bytes]

_NAME = re.compile(r"[0-9a-z_.-]+")
_TEXT = re.compile(r"[ -~]+")
#: The headers that HTTP/2 and gRPC need for themselves, with all whose names begin with grpc-.
_RESERVED = frozenset(
    (
        *("te", "content-type", "content-length", "user-agent", "host"),
        *("connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"),
    )
)


class CallMetadata:
    """The metadata of every call of one client."""

    def __init__(self, metadata: Metadata | None, token: str | None, one_stream: bool = False) -> None:
        """``one_stream``: all inferences are sent over one stream. Raises ValueError for what cannot be sent."""
        self._one_stream = one_stream
        self._token = token_header(token)
        self._given = self._checked(metadata)
        self.pairs: Pairs = (*self._token, *self._given.items())

    def of_call(self, metadata: Metadata | None) -> Pairs | None:
        """All that one call sends, which may have ``metadata`` of its own. Raises ValueError."""
        if metadata is None:
            return None
        return (*self._token, *{**self._given, **self._checked(metadata)}.items())

    def of_inference(self, metadata: Metadata | None) -> Pairs | None:
        """The same for an inference."""
        if metadata is not None and self._one_stream:
            raise ValueError(
                "metadata is sent once for a whole stream, and stream=True sends all inferences over one: give it to "
                "AsyncClient(metadata=…), or leave out stream=True"
            )
        return self.of_call(metadata)

    def _checked(self, metadata: Metadata | None) -> dict[str, str | bytes]:
        if metadata is None:
            return {}
        if not isinstance(metadata, Mapping):
            raise ValueError(
                f"metadata is a {type(metadata).__name__}, not a dict of names and values: give a dict, such as "
                "{'traceparent': '00-…'}"
            )
        for name, value in metadata.items():
            _check_name(name)
            if name == "authorization" and self._token:
                raise ValueError("metadata: 'authorization' carries the token of this client; give one of the two only")
            _check_value(name, value)
        return dict(metadata)


def _check_name(name: Any) -> None:
    """Raise ValueError where ``name`` is no name of metadata, or is not the caller's to give."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        lower = name.lower() if isinstance(name, str) else ""
        instead = f"write {lower!r}" if _NAME.fullmatch(lower) else "such as 'traceparent'"
        raise ValueError(
            f"metadata: {reprlib.repr(name)} is not a name of lower-case ASCII letters, digits, '-', '_' and '.': "
            f"{instead}"
        )
    if name in _RESERVED or name.startswith("grpc-"):
        raise ValueError(f"metadata: {name!r} is reserved for gRPC and HTTP/2 themselves; give another name")


def _check_value(name: str, value: Any) -> None:
    """Raise ValueError, without the value itself: it may be a secret."""
    if name.endswith("-bin"):
        if not isinstance(value, bytes):
            raise ValueError(
                f"metadata: {name!r} ends in -bin, so its value must be bytes, not {_instead(name, value)}"
            )
        return
    if not isinstance(value, str):
        raise ValueError(f"metadata: the value of {name!r} is not a text, but {_instead(name, value)}")
    if not _TEXT.fullmatch(value):
        why = "is empty: leave it out" if not value else "holds a newline, or what is not printable ASCII"
        other = "" if not value else f"; send that as bytes: {f'{name}-bin'!r}: value.encode()"
        raise ValueError(f"metadata: the value of {name!r} {why}{other}")
    if value != value.strip():
        raise ValueError(
            f"metadata: the value of {name!r} begins or ends with a space, which is lost on the way: give value.strip()"
        )


def _instead(name: str, value: Any) -> str:
    """The type of ``value``, which does not belong to ``name``, and what to give in its place."""
    if value is None:
        instead = "leave it out"
    elif name.endswith("-bin"):
        instead = "give value.encode()" if isinstance(value, str) else "give bytes"
    elif isinstance(value, bytes):
        instead = f"decode it, or name it '{name}-bin'"
    else:
        instead = "give str(value)" if isinstance(value, (int, float)) else "give one text"
    return f"{type(value).__name__}: {instead}"
