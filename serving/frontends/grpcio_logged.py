"""Handlers of grpcio with a line in the access log for each call."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Any
from urllib.parse import unquote

import grpc
import grpc.aio

from normfold.serving.access.access import HEADER, Access, credential
from normfold.serving.errors import Status
from normfold.serving.frontends.access_log import AccessLog, LoggedCall, left_early
from normfold.serving.rpc.caller import TRACE_HEADERS, kept_trace, trace_id_in
from normfold.serving.rpc.methods import Method

#: Makes the line of a call from gRPC's context of it.
Begin = Callable[[Any], LoggedCall]


def logged(handler: Any, path: str, method: Method | None, log: AccessLog | None, access: Access | None = None) -> Any:
    """``handler`` of ``path`` with a line for each call; without ``log``, the handler itself.

    ``access`` knows the names of the tokens; None: the server has none.
    """
    if log is None:
        return handler
    begin = partial(_begun, path, method, log, access)
    if handler.unary_unary is not None:
        return grpc.unary_unary_rpc_method_handler(_unary(handler.unary_unary, begin))
    if handler.unary_stream is not None:
        return grpc.unary_stream_rpc_method_handler(_server_stream(handler.unary_stream, begin))
    return grpc.stream_stream_rpc_method_handler(_bidi_stream(handler.stream_stream, begin))


def credential_in(metadata: Any) -> bytes:
    """The digest of the token in the headers of a call, as ``access.credential`` gives it."""
    values = [value for name, value in metadata or () if name == HEADER]
    return credential([value.encode() if isinstance(value, str) else value for value in values])


def trace_headers(context: Any) -> dict[str, str]:
    """The headers ``traceparent`` and ``tracestate`` of a call, as far as it has them."""
    pairs = context.invocation_metadata() or ()
    found = {name: value for name, value in pairs if name in TRACE_HEADERS and isinstance(value, str)}
    values = kept_trace(*(found.get(name, "").encode() for name in TRACE_HEADERS))
    return {name: value.decode() for name, value in zip(TRACE_HEADERS, values, strict=True) if value}


def _unary(handle: Any, begin: Begin) -> Any:
    async def answer(data: bytes, context: Any) -> bytes:
        with _line(begin, context) as line:
            line.request(data)
            response: bytes = await handle(data, context)
            line.response(response)
            return response

    return answer


def _server_stream(handle: Any, begin: Begin) -> Any:
    async def answer(data: bytes, context: Any) -> AsyncIterator[bytes]:
        with _line(begin, context) as line:
            line.request(data)
            async for response in handle(data, context):
                line.response(response)
                yield response

    return answer


def _bidi_stream(handle: Any, begin: Begin) -> Any:
    async def answer(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        with _line(begin, context) as line:

            async def noted() -> AsyncIterator[bytes]:
                async for data in requests:
                    line.request(data)
                    yield data

            async for response in handle(noted(), context):
                line.response(response)
                yield response

    return answer


def _begun(path: str, method: Method | None, log: AccessLog, access: Access | None, context: Any) -> LoggedCall:
    token = "" if access is None else access.name(credential_in(context.invocation_metadata()))
    return log.begin(path, _peer(context.peer()), trace_id_in(trace_headers(context)), token, method)


@contextlib.contextmanager
def _line(begin: Begin, context: Any) -> Iterator[LoggedCall]:
    """The line of one call, which is written when the call ends."""
    line = begin(context)
    try:
        yield line
    except BaseException as error:
        line.end(_status(error, context))
        raise
    line.end(Status.OK)


def _status(error: BaseException, context: Any) -> Status:
    """The status of a call that has ended with ``error``."""
    if isinstance(error, (asyncio.CancelledError, GeneratorExit)):
        return left_early(context.time_remaining())
    code = context.code()  # of an error that has not aborted the call, it is not set
    return Status[code.name] if isinstance(code, grpc.StatusCode) else Status.INTERNAL


def _peer(peer: str) -> str:
    """What gRPC says about the client's end, as the other frontend writes it.

    >>> _peer("ipv4:127.0.0.1:5"), _peer("ipv6:%5B::1%5D:5"), _peer("unix:")
    ('127.0.0.1:5', '[::1]:5', 'unix:')
    """
    kind, _, where = peer.partition(":")
    return unquote(where) if kind in ("ipv4", "ipv6") else "unix:"
