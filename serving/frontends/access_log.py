"""The access log: one line for each call, when it ends.

Nothing here runs while the access log is off: the frontends then use their ordinary calls and handlers.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from functools import lru_cache

from google.protobuf.descriptor import Descriptor

from normfold.serving.errors import Status
from normfold.serving.process.log_lines import ACCESS, ERRORS, OFF
from normfold.serving.rpc.methods import Method
from normfold.serving.rpc.pieces import Answer, Pieces
from normfold.serving.wire.outer_fields import text_field
from normfold.serving.wording import LIMIT

#: The number of the field model_version in ModelInferResponse.
_ANSWERED_VERSION = 2

#: Texts that need no quotes on a line of ``key=value``.
_PLAIN = re.compile(r"[A-Za-z0-9_.:/\[\]-]+")


class AccessLog:
    """Writes a line for each call; ``errors_only``: for those alone that do not end with OK."""

    def __init__(self, errors_only: bool) -> None:
        self._errors_only = errors_only

    @classmethod
    def of(cls, calls: str) -> AccessLog | None:
        """The access log of ``calls``, one of ``log_lines.ACCESS_LOGS``; None for OFF."""
        return None if calls == OFF else cls(errors_only=calls == ERRORS)

    def begin(self, path: str, peer: str, trace_id: str, token: str, method: Method | None = None) -> LoggedCall:
        """A call of ``path`` that begins now; ``method`` is None where there is none of this path.

        ``token``: the name of the token in the file of tokens; "" without one that the server knows.
        """
        return LoggedCall(self, path, peer, trace_id, token, method)

    def refused(self, path: str, peer: str, trace_id: str, token: str, status: Status) -> None:
        """Write the line of a call that was refused before its request was read."""
        self.begin(path, peer, trace_id, token).end(status)

    def wants(self, status: Status) -> bool:
        """Whether a call that ended with ``status`` has a line."""
        return status is not Status.OK or not self._errors_only

    def write(self, fields: dict[str, object]) -> None:
        """Write a line of ``fields``."""
        ACCESS.info("access %s", _Text(fields), extra={"fields": fields})


def left_early(left_seconds: float | None) -> Status:
    """The status of a call that nobody waits for any more, when its caller would have waited for ``left_seconds``."""
    return Status.CANCELLED if left_seconds is None or left_seconds > 0 else Status.DEADLINE_EXCEEDED


class LoggedCall:
    """A call whose line is not written yet."""

    __slots__ = (
        "_answered",
        "_begun",
        "_bytes",
        "_fields",
        "_first",
        "_last",
        "_log",
        "_messages",
        "_method",
        "_named",
    )

    def __init__(self, log: AccessLog, path: str, peer: str, trace_id: str, token: str, method: Method | None) -> None:
        self._log, self._method = log, method
        self._begun: float | None = time.perf_counter()
        self._fields: dict[str, object] = {"method": path[:LIMIT]}
        if trace_id:
            self._fields["trace_id"] = trace_id[:LIMIT]
        self._fields["peer"] = peer
        if token:
            self._fields["token"] = token
        self._messages = self._bytes = self._answered = 0
        #: The first message of the client and the last to it, or the first of its pieces, which has what a line shows.
        #: They are read when the line is written, if it is.
        self._first = self._last = b""
        #: The fields that the first message of a stream names, such as its model.
        self._named: dict[str, object] | None = None

    def request(self, data: bytes) -> None:
        """Note a message of the client; the first one names the model."""
        if not self._messages:
            self._first = data
            if self._method is not None and not self._method.is_unary:  # it would be held as long as the stream lasts
                self._named, self._first = self._texts(), b""
        self._messages += 1
        self._bytes += len(data)

    def named(self, head: bytes) -> None:
        """Note the fields that a message begins with and that name the model, where no whole one has come."""
        if not self._messages:
            self._first = head

    def response(self, data: Answer) -> None:
        """Note a message to the client."""
        self._answered += len(data)
        if self._method is None or not self._method.is_unary:
            return
        self._last = bytes(data.parts[0]) if isinstance(data, Pieces) else data

    def end(self, status: Status) -> None:
        """Write the line, unless it is written already."""
        if self._begun is None:
            return
        milliseconds = round((time.perf_counter() - self._begun) * 1e3, 3)
        self._begun = None
        if not self._log.wants(status):
            return
        fields = {"method": self._fields.pop("method"), "status": status.name, "duration_ms": milliseconds}
        fields |= self._fields
        if self._method is not None:
            fields |= self._texts() if self._named is None else self._named
            if self._method.name == "ModelInfer" and (version := _text(self._last, _ANSWERED_VERSION)):
                fields["version"] = version
            if not self._method.is_unary:
                fields["messages"] = self._messages
            fields |= {"request_bytes": self._bytes, "response_bytes": self._answered}
        self._log.write(fields)

    def _texts(self) -> dict[str, object]:
        """The fields that the first message names, such as its model; the message is read now."""
        assert self._method is not None
        numbers = _named(self._method.request.DESCRIPTOR)
        return {key: text for key, number in numbers if (text := _text(self._first, number))}


class _Text:
    """The fields as ``key=value``, made only for the form of the log that shows them; odd texts are in quotes."""

    def __init__(self, fields: dict[str, object]) -> None:
        self._fields = fields

    def __str__(self) -> str:
        return " ".join([f"{key}={_shown(value)}" for key, value in self._fields.items()])


def _shown(value: object) -> str:
    if isinstance(value, str) and not _PLAIN.fullmatch(value):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return str(value)


def _text(data: bytes, number: int) -> str:
    """The string field ``number`` of ``data``, cut; "" where the bytes are no message."""
    try:
        return text_field(data, number)[:LIMIT]
    except ValueError:
        return ""


@lru_cache
def _named(request: Descriptor) -> Sequence[tuple[str, int]]:
    """The keys of a line that requests of this type have, and the numbers of their fields."""
    numbers = {field.name: field.number for field in request.fields}
    names = {"model": "model_name", "version": "model_version", "id": "id"}
    if "model_name" not in numbers and request.name.startswith("Model"):
        names = {"model": "name", "version": "version"}
    return [(key, numbers[name]) for key, name in names.items() if name in numbers]
