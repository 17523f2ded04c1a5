"""The methods of a server without a transport: their paths, request types and functions, and the status of an error."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message

from normfold.serving.errors import InvalidRequest, ServingError, Status
from normfold.serving.rpc.in_order import in_order
from normfold.serving.rpc.pieces import Answer
from normfold.serving.wire.bounded import check_fields
from normfold.serving.wording import printable

log = logging.getLogger(__name__)

#: Longest status details, in characters: they travel as a header, and clients limit the size of headers.
MAX_DETAILS = 3000

#: The event loop parses messages of at most this many bytes: that takes 5 ms at most, for the shortest strings.
LOOP_BYTES = 64 << 10

#: This many of the first bytes of a request hold the name and version of its model, if it can have a plan.
DOOR_BYTES = 260

#: Refusals of an overloaded server are counted, and reported at most once in this time, in seconds.
REFUSALS_SECONDS = 10.0

Request = TypeVar("Request", bound=Message)
Unary = Callable[[Any], Awaitable[Message]]
ServerStream = Callable[[Any], AsyncIterator[Message]]
BidiStream = Callable[[AsyncIterator[Any]], AsyncIterator[Message]]
WireUnary = Callable[[bytes], bytes | Awaitable[Answer]]
WireStream = Callable[[AsyncIterator[bytes]], AsyncIterator[bytes]]

#: Messages of one stream that are answered at the same time; the answers keep the order of the messages.
EACH_IN_FLIGHT = 64


@dataclass(frozen=True)
class Method:
    """One remote procedure. Exactly one of the functions is set; each may raise ServingError."""

    #: "/package.Service/Method".
    path: str
    request: type[Message]
    unary: Unary | None = None
    server_stream: ServerStream | None = None
    bidi_stream: BidiStream | None = None
    #: Like ``unary`` and ``bidi_stream``, but from serialized to serialized messages: they spare making the messages.
    wire_unary: WireUnary | None = None
    wire_stream: WireStream | None = None
    #: The answer to each message of a stream, where there is exactly one: it spares a frontend the iterators.
    wire_each: WireUnary | None = None
    #: Gets the first DOOR_BYTES of a request and the size of all of it, in bytes. It raises Overloaded if the server
    #: would refuse the request now: then nobody need wait for the rest.
    door: Callable[[bytes, int], None] | None = None
    #: Whether ``Traffic`` counts its calls: a server that stops answers those first, and refuses new ones at the end.
    counted: bool = True
    #: Whether a request may have more than LOOP_BYTES; those of most methods have a few names and settings.
    large: bool = False

    @cached_property
    def service(self) -> str:
        """The full name of the service."""
        return self.path.split("/")[1]

    @property
    def name(self) -> str:
        """The method's name without its service."""
        return self.path.split("/")[2]

    @property
    def is_unary(self) -> bool:
        """Whether a call has one request and one answer."""
        return self.unary is not None or self.wire_unary is not None

    def answer(self, data: bytes) -> bytes | Awaitable[Answer]:
        """The serialized answer to a serialized request, either now or as an awaitable; for unary methods.

        Only what is awaited may come in pieces.
        """
        return self.wire_unary(data) if self.wire_unary is not None else self._answer(data)

    async def _answer(self, data: bytes) -> bytes:
        assert self.unary is not None
        return (await self.unary(await self.read(data))).SerializeToString()

    async def read(self, data: bytes) -> Any:
        """The request in ``data``; a large one is parsed on another thread. Raises InvalidRequest."""
        if len(data) <= LOOP_BYTES:
            return parse(self.request, data)
        if not self.large:
            raise InvalidRequest(f"a request of {self.name} has at most {LOOP_BYTES} bytes, this one has {len(data)}")
        return await asyncio.to_thread(parse, self.request, data)

    async def answers(self, requests: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The serialized answers to serialized requests; for streams. ``server_stream`` gets the first request only."""
        stream = self.wire_stream
        if self.wire_each is not None:
            stream = partial(in_order, answer=self.wire_each, in_flight=EACH_IN_FLIGHT)
        if stream is not None:
            async for data in stream(requests):
                yield data
            return
        if self.server_stream is not None:
            responses = self.server_stream(await self.read(await anext(requests)))
        else:
            assert self.bidi_stream is not None
            responses = self.bidi_stream(await self.read(data) async for data in requests)
        async for response in responses:
            yield response.SerializeToString()


def parse(message: type[Request], data: bytes) -> Request:
    """The message of a client in ``data``; not on the event loop if that is large. Raises InvalidRequest."""
    try:
        if len(data) > LOOP_BYTES:
            check_fields(data, message.DESCRIPTOR)
        return message.FromString(data)
    except (DecodeError, ValueError):
        raise no_message(message, len(data)) from None


def no_message(message: type[Message], size: int) -> InvalidRequest:
    """The error for ``size`` bytes that a client sent and that are not such a message."""
    return InvalidRequest(f"{size} bytes that are not a {message.DESCRIPTOR.full_name} message")


def status_alone(error: BaseException) -> Status:
    """The status that the caller gets for ``error``."""
    if isinstance(error, ServingError):
        return error.status
    if isinstance(error, asyncio.CancelledError):
        return Status.CANCELLED
    return Status.RESOURCE_EXHAUSTED if isinstance(error, MemoryError) else Status.INTERNAL


def status_of(error: Exception, where: str) -> tuple[Status, str]:
    """The status and details that the caller gets for ``error``; the log gets the rest.

    A caller's mistake is logged as one line; anything unexpected with its traceback, and the caller gets only an id.
    """
    status = status_alone(error)
    if isinstance(error, ServingError):
        details = str(error)[:MAX_DETAILS]
        if error.retry_seconds is None:
            log.info("%s: %s: %s", where, status.name, printable(details))
        else:
            _REFUSALS.note(where, status, details)
        return status, details
    if isinstance(error, MemoryError):
        log.error("%s: out of memory", where)
        return status, "the server has not enough memory for this request"
    identifier = secrets.token_hex(6)
    log.error("%s: internal error, id %s", where, identifier, exc_info=error)
    return status, f"internal error, id {identifier}"


class _Refusals:
    """Reports refusals: a line for each would take the time that an overloaded server does not have."""

    def __init__(self) -> None:
        self._count, self._next = 0, 0.0

    def note(self, where: str, status: Status, details: str, count: int = 1) -> None:
        """Count refusals; report one with the number of those that were only counted, if a report is due."""
        self._count += count
        if (now := time.monotonic()) >= self._next:
            more = f"; {self._count - 1} more refusals since the last such line" if self._count > 1 else ""
            log.warning("%s: %s: %s%s", where, status.name, printable(details), more)
            self._count, self._next = 0, now + REFUSALS_SECONDS


_REFUSALS = _Refusals()
note_refusals = _REFUSALS.note
