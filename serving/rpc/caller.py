"""Who makes the call that is being answered: its connection, for fairness, and its deadline."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Protocol

#: The headers by which a caller says what trace its call belongs to (https://www.w3.org/TR/trace-context/).
TRACE_HEADERS = ("traceparent", "tracestate")
#: The longest value of each that is kept, in bytes. W3C Trace Context asks for 512 of tracestate.
TRACE_BYTES = 512


class Caller(Protocol):
    """One call, as those that answer it see it."""

    @property
    def connection(self) -> object:
        """The connection that the call came on; equal for all its calls."""
        ...

    def left_seconds(self) -> float | None:
        """The time until the caller gives up, in seconds; None: no limit."""
        ...

    @property
    def waited_seconds(self) -> float:
        """How long the request waited on its connection since we read its bytes; 0: not at all, or not known."""
        ...

    def trace_headers(self) -> dict[str, str]:
        """The headers ``traceparent`` and ``tracestate`` (W3C Trace Context) of the call, as far as it has them."""
        ...


#: The call that the running code answers; frontends set it, and tasks inherit it. None: nobody's.
CALLER: ContextVar[Caller | None] = ContextVar("caller", default=None)


def connection() -> object:
    """The connection of the call that is being answered; None without one."""
    caller = CALLER.get()
    return None if caller is None else caller.connection


def trace_id() -> str:
    """The trace id in the W3C traceparent of the call that is being answered; "" without one."""
    caller = CALLER.get()
    return "" if caller is None else trace_id_in(caller.trace_headers())


def trace_id_in(headers: Mapping[str, str]) -> str:
    """The trace id in the W3C traceparent among ``headers``; "" without one."""
    parts = headers.get("traceparent", "").split("-")
    return parts[1] if len(parts) >= 4 else ""


def kept_trace(parent: bytes, state: bytes) -> tuple[bytes, bytes]:
    """The values of TRACE_HEADERS as they are kept: none where ``traceparent`` is missing, or too long.

    Of ``tracestate`` as many whole list members as TRACE_BYTES hold, the first ones (W3C Trace Context, 3.3.1.5).

    >>> _, state = kept_trace(b"00-1-2-01", b"a=" + 505 * b"1" + b",b=2,c=3")
    >>> state[500:]
    b'1111111,b=2'
    """
    if not 0 < len(parent) <= TRACE_BYTES:
        return b"", b""
    return parent, state if len(state) <= TRACE_BYTES else state[: TRACE_BYTES + 1].rpartition(b",")[0]
