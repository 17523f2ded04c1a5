"""Calls with a line in the access log: the ordinary ones, which note what passes through them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable

from normfold.serving.errors import Overloaded, Status
from normfold.serving.frontends.access_log import left_early
from normfold.serving.frontends.http2.call import CallOwner, ServerCall
from normfold.serving.frontends.http2.each_call import EachCall
from normfold.serving.frontends.http2.joining import Later
from normfold.serving.frontends.http2.requests import Asked
from normfold.serving.frontends.http2.stream_call import StreamCall
from normfold.serving.frontends.http2.unary_call import UnaryCall
from normfold.serving.rpc.caller import trace_id_in
from normfold.serving.rpc.methods import Method
from normfold.serving.rpc.pieces import Answer
from normfold.serving.wire.pushback import Trailers


class _Logged(ServerCall):
    """The common part. A call ends once: with a status, with its whole answer, or because nobody waits any more."""

    def __init__(self, connection: CallOwner, number: int, asked: Asked, method: Method) -> None:
        super().__init__(connection, number, asked, method)
        log = self.service.log
        assert log is not None
        token = self.service.token_of(asked)
        self.line = log.begin(method.path, connection.peer, trace_id_in(self.trace_headers()), token, method)

    def end(self, status: Status, details: str = "", more: Trailers = ()) -> None:
        """End the call with a status."""
        self.line.end(status)
        super().end(status, details, more)

    def cancel(self) -> None:
        """Stop the call; if it has not ended before, nobody waits for it any more."""
        self.line.end(left_early(self.left_seconds()))
        super().cancel()


class LoggedUnaryCall(_Logged, UnaryCall):
    """A unary call with a line."""

    def _ask(self, data: bytes) -> None:
        self.line.request(data)
        super()._ask(data)

    def _refuse(self, head: bytes, size: int, error: Overloaded) -> None:
        self.line.named(head[: max(error.alike - 1, 0)])
        super()._refuse(head, size, error)

    def _answer(self, data: Answer) -> None:
        self.line.response(data)
        super()._answer(data)
        self.line.end(Status.OK)


class LoggedEachCall(_Logged, EachCall):
    """A stream of ``wire_each`` with a line."""

    def _answer(self, message: bytes | Later, data: bytes) -> bytes | Awaitable[Answer]:
        self.line.request(data)
        return super()._answer(message, data)

    def _send(self, data: Answer) -> None:
        self.line.response(data)
        super()._send(data)


class LoggedStreamCall(_Logged, StreamCall):
    """Any other stream with a line."""

    async def __anext__(self) -> bytes:
        data = await super().__anext__()
        self.line.request(data)
        return data

    async def _send(self, answers: AsyncIterator[bytes]) -> None:
        async def noted() -> AsyncIterator[bytes]:
            async for data in answers:
                self.line.response(data)
                yield data

        await super()._send(noted())
