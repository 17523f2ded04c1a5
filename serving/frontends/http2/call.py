"""A call, unary or streaming: its method, its deadline, its status and its share of flow control."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Protocol

from normfold.serving.access.access import Access
from normfold.serving.errors import Overloaded, Status
from normfold.serving.frontends.access_log import AccessLog
from normfold.serving.frontends.http2.holding import Holding
from normfold.serving.frontends.http2.joining import Later
from normfold.serving.frontends.http2.limits import WINDOW_BYTES, CallFault
from normfold.serving.frontends.http2.messages import MessageReader
from normfold.serving.frontends.http2.refused_again import RefusedAgain
from normfold.serving.frontends.http2.requests import DONE, STARTED, Asked, Requests, ended
from normfold.serving.frontends.http2.rests import Rests
from normfold.serving.frontends.http2.sending import Sender
from normfold.serving.frontends.http2.turns import Steps, Turns
from normfold.serving.frontends.limits import ClientLimits
from normfold.serving.rpc.caller import TRACE_HEADERS, trace_id_in
from normfold.serving.rpc.methods import Method, status_of
from normfold.serving.rpc.pieces import Answer
from normfold.serving.rpc.traffic import Traffic
from normfold.serving.wire.pushback import NEVER, Trailers, trailers

#: The details of the status of a request that ends too early.
CUT = "the data end within a message"
#: The details of a refusal to make an answer wait.
UNTAKEN = "the client has not taken too many bytes of earlier answers"

#: Time after which a request may come again for which there was no place, in seconds.
RETRY_SECONDS = 1.0


@dataclass(frozen=True)
class Service:
    """The part of a server that all its connections share."""

    requests: Requests
    traffic: Traffic
    max_message_bytes: int
    limits: ClientLimits
    #: The bytes held for all connections.
    holding: Holding
    #: Admits calls by their tokens; None: everybody is admitted.
    access: Access | None = None
    #: Has a line for each call; None: there is no access log.
    log: AccessLog | None = None
    #: The length of each connection's turn.
    turns: Turns = field(default_factory=Turns)
    #: The rests of connections whose requests are refused.
    rests: Rests = field(default_factory=Rests)

    @property
    def open_to_all(self) -> bool:
        """Whether ``enter`` admits everybody."""
        return self.access is None and not self.traffic.closing

    def enter(self, method: Method, credential: bytes) -> Method:
        """Admit a call of ``method`` and count it, from its headers to the last byte of its answer; its own method.

        Raises Unauthenticated, PermissionDenied, or Unavailable once the server ends.
        """
        if self.access is not None:
            method = self.access.admit(method, credential)
        if method.counted:
            self.traffic.enter()
        return method

    def refused(self, asked: Asked, status: Status, peer: str) -> None:
        """Count a call that is refused before its request is read, if it is one of gRPC, and write its line."""
        path = "" if asked.method is None else asked.method.path
        if path or asked.status is not None:
            self.traffic.failed[path, status] += 1
        if self.log is not None:
            self.log.refused(path or asked.path, peer, trace_id_in(trace_headers(asked)), self.token_of(asked), status)

    def token_of(self, asked: Asked) -> str:
        """The name of the token of a call; "" without one that the server knows."""
        return "" if self.access is None else self.access.name(asked.credential)


class CallOwner(Protocol):
    """The connection, as its calls need it."""

    service: Service
    sender: Sender
    holding: Holding
    #: The bytes of unfinished requests, by the number of their stream; only of those that ever had any.
    held: dict[int, int]
    calls: dict[int, ServerCall]
    #: The calls with messages that have come and are not cut out of the data yet, by the number of their stream.
    uncut: dict[int, ServerCall]
    #: What its streams do in their turns.
    steps: Steps
    #: Whether the client does not read what we send.
    choked: bool
    #: Refuses requests like one that was refused; None: none was in this turn, nor would be now.
    again: RefusedAgain | None
    #: How long the bytes that are taken now have waited for this turn.
    waited_seconds: float

    @property
    def peer(self) -> str:
        """The address of the client."""

    def close(self, call: ServerCall) -> None:
        """End ``call``: its whole answer is queued."""

    def grant(self, call: ServerCall, size: int) -> None:
        """Let the client send ``size`` more bytes of the call's data."""

    def release(self, number: int) -> None:
        """Hold nothing more of the request on this stream."""

    def fruitful(self) -> None:
        """A message of an answer is queued: forget the frames that led to nothing."""

    def flush(self) -> None:
        """Write what is queued."""

    def flush_soon(self) -> None:
        """Write what is queued after everything that is ready to run has run."""

    async def drained(self) -> None:
        """Wait until the client has taken some data, or has allowed more."""


class ServerCall:
    """The common part of unary calls and streams; each has its own ``received``."""

    __slots__ = (
        "_reader",
        "_started",
        "_task",
        "_timer",
        "_until",
        "asked",
        "connection",
        "credit",
        "method",
        "number",
        "request_ended",
        "service",
        "window",
    )

    def __init__(self, connection: CallOwner, number: int, asked: Asked, method: Method) -> None:
        self.connection, self.number, self.asked, self.method = connection, number, asked, method
        self.service = connection.service
        #: Data that the client still takes, and data that it may still send, in bytes.
        self.window, self.credit = connection.sender.initial, WINDOW_BYTES
        self.request_ended = False
        self._reader: MessageReader | None = None
        self._task: asyncio.Future[Answer] | asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._until: float | None = None
        self._started = False

    def received(self, data: bytes, begin: int, end: int) -> None:
        """Take ``data[begin:end]``; with ``request_ended`` they are the last data of the request."""
        raise NotImplementedError

    def left_seconds(self) -> float | None:
        """The time until the caller gives up, in seconds; None: no limit."""
        return self.asked.timeout if self._until is None else self._until - asyncio.get_running_loop().time()

    @property
    def waited_seconds(self) -> float:
        """How long the bytes that are taken now have waited for this turn of their connection."""
        return self.connection.waited_seconds

    def trace_headers(self) -> dict[str, str]:
        """The headers ``traceparent`` and ``tracestate`` of the call, as far as it has them."""
        return trace_headers(self.asked)

    def hurry(self) -> None:
        """Start the clock of the deadline."""
        if self.asked.timeout is not None and self._timer is None:
            loop = asyncio.get_running_loop()
            self._until = loop.time() + self.asked.timeout
            self._timer = loop.call_later(self.asked.timeout, self._expire)

    def cancel(self) -> None:
        """Stop the deadline and the method: nobody waits for the answer any more."""
        # both have a context, which has the call: they would keep each other, and what they hold
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._task is not None:
            self._task.cancel()
            self._task = None
        self.connection.release(self.number)

    def abandon(self) -> None:
        """End the call without an answer: its connection has forgotten it."""
        if self.method.counted:
            self.service.traffic.leave()
        self.connection.sender.forget(self)
        self.cancel()

    def hold(self, size: int) -> bool:
        """Note that ``size`` bytes of the request wait here; False: that is too much, which ends the call."""
        connection = self.connection
        own = connection.held.get(self.number, 0)
        if size > own and not connection.holding.fits(size - own, own):
            self.fail(Overloaded("too many bytes of unfinished requests and answers that nobody takes", RETRY_SECONDS))
            return False
        self._count(size)
        return True

    def _count(self, size: int) -> None:
        """Count ``size`` bytes that wait here, whether or not they fit."""
        connection = self.connection
        connection.holding.add(size - connection.held.get(self.number, 0))
        connection.held[self.number] = size

    def body_mark(self) -> tuple[int, ...] | None:
        """A value that changes when more of the request comes; None: the client need not send more now."""
        if self.request_ended or self.credit <= 0 or not (self.method.is_unary or self.within):
            return None
        return self.credit, self._reader.missing if self._reader is not None else 0

    @property
    def within(self) -> bool:
        """Whether a message of the request has begun and not ended."""
        return self._reader is not None and self._reader.within

    def fail(self, error: Exception) -> None:
        """End the call with the status of ``error``."""
        status, details = status_of(error, self.method.path)
        self.end(status, details, trailers(error, status, details))

    def end(self, status: Status, details: str = "", more: Trailers = ()) -> None:
        """End the call with a status; ``more`` trailers follow it."""
        if status is not Status.OK:
            self.service.traffic.failed[self.method.path, status] += 1
        if status is Status.RESOURCE_EXHAUSTED and not more:
            more = NEVER
        block = ended(status, details, more) if details else DONE if status is Status.OK else ended(status)
        self.cancel()
        self.connection.sender.end(self, block if self._started else STARTED + block)
        self.connection.close(self)

    def messages(self, data: bytes, begin: int, end: int) -> list[bytes | Later] | None:
        """The messages that end in ``data[begin:end]``; None where the data are wrong, which ends the call."""
        reader = self._reader
        if reader is None:
            reader = self._reader = MessageReader(self.asked.encoding, self.service.max_message_bytes)
        try:
            found = reader.feed(data[begin:end])
        except CallFault as error:
            self.end(error.status, str(error))
            return None
        return found

    def grant(self, unread_bytes: int) -> None:
        """Let the client send more: the rest of the message that has begun, or a window less ``unread_bytes``."""
        missing = self._reader.missing if self._reader is not None else 0
        wanted = max(WINDOW_BYTES - unread_bytes, missing if unread_bytes < WINDOW_BYTES else 0)
        behind = wanted - self.credit
        if not self.request_ended and (behind > WINDOW_BYTES // 2 or (behind > 0 and self.credit < missing)):
            self.connection.grant(self, behind)

    def _expire(self) -> None:
        self.end(Status.DEADLINE_EXCEEDED, "Deadline Exceeded")


def trace_headers(asked: Asked) -> dict[str, str]:
    """The headers ``traceparent`` and ``tracestate`` of a call, as far as it has them."""
    pairs = zip(TRACE_HEADERS, asked.trace, strict=True)
    return {name: value.decode("latin-1") for name, value in pairs if value}
