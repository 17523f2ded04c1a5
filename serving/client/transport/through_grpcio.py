"""The same calls by channels of grpcio: ``transport="grpcio"``."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from normfold.serving.client.transport import failures
from normfold.serving.client.transport.answers import NO_MESSAGE, Reply, pushback_ms
from normfold.serving.client.transport.closing import cancelled_here, closed_within
from normfold.serving.client.transport.opening import Pairs
from normfold.serving.client.transport.retries import ATTEMPTS, FACTOR, FIRST_SECONDS, RETRYABLE, Retries
from normfold.serving.errors import Status
from normfold.serving.wire.pushback import PUSHBACK

if TYPE_CHECKING:
    from normfold.serving.client.connection import ClientTls

_SERVICE = "inference.GRPCInferenceService"
#: gRPC's own retries. It obeys a pushback, but counts it as an attempt; we go on then, see ``_again``.
_RETRY = {
    "methodConfig": [
        {"name": [{"service": _SERVICE, "method": "ModelStreamInfer"}]},  # multiplex.py repeats it
        {
            "name": [{"service": _SERVICE}],
            "retryPolicy": {
                "maxAttempts": ATTEMPTS,
                "initialBackoff": f"{FIRST_SECONDS}s",
                "maxBackoff": "1s",
                "backoffMultiplier": FACTOR,
                "retryableStatusCodes": sorted(status.name for status in RETRYABLE),
            },
        },
    ]
}
OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.per_rpc_retry_buffer_size", (1 << 31) - 1),
    ("grpc.service_config", json.dumps(_RETRY)),
    # else a server that comes back after minutes would be asked two minutes later
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)
#: In what gRPC says of a connection that failed: because of TLS, or because the server speaks something else.
_OF_TLS = ("handshake", "verification", "ssl_error", "certificate")
_NOT_HTTP2 = ("failed parsing http/2", "http1")
#: The variables that name a proxy for grpcio; the first one that is set counts.
_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")


def opener(
    kind: Any, address: str, tls: ClientTls | None, keepalive: float = 0.0, compression: str | None = None
) -> Callable[[], Any]:
    """Opens channels to ``address``; ``kind`` is grpc or grpc.aio. Raises ValueError for files that cannot be used."""
    options: list[tuple[str, Any]] = list(OPTIONS)
    if keepalive:
        options.append(("grpc.keepalive_time_ms", int(keepalive * 1000)))
    given = {"compression": grpc.Compression.Gzip} if compression == "gzip" else {}
    if tls is None:
        return functools.partial(kind.insecure_channel, address, options=options, **given)
    options += tls.options()
    return functools.partial(kind.secure_channel, address, tls.credentials(), options=options, **given)


class GrpcioCalls:
    """Calls that block, of any thread."""

    def __init__(self, opened: Any, address: str, metadata: Pairs) -> None:
        """``opened``: a channel of ``grpc``. ``metadata``: of calls that have none of their own."""
        self._channel, self._address, self._metadata = opened, address, metadata
        self._over = threading.Event()

    def call(self, path: str, data: bytes, seconds: float, metadata: Pairs | None = None) -> Reply:
        """The reply to a call of ``path`` with the serialized request ``data``, within ``seconds``."""
        retries, deadline = Retries(), time.monotonic() + seconds
        metadata = self._metadata if metadata is None else metadata
        while True:
            try:
                rpc = self._channel.unary_unary(path)
                return _answered(rpc(data, timeout=seconds, metadata=metadata))
            except grpc.RpcError as error:
                reply = _reply(error, self._address)
            except ValueError as error:  # grpcio's, for a closed channel
                reply = Reply(Status.CANCELLED, str(error))
            if self._over.is_set() and reply.status is Status.CANCELLED:
                return failures.CLOSED
            seconds = deadline - time.monotonic()
            if (pause := _again(retries, path, reply, seconds)) is None:
                return reply
            if self._over.wait(pause):
                return failures.CLOSED
            seconds -= pause

    def close(self) -> None:
        """Close the channel; calls without an answer end as CANCELLED."""
        self._over.set()
        self._channel.close()


class GrpcioLoopCalls:
    """Calls of one event loop: grpcio ties a channel to its loop."""

    def __init__(self, opened: Any, address: str, metadata: Pairs) -> None:
        """``opened``: a channel of ``grpc.aio``. ``metadata``: of calls that have none of their own."""
        self._channel, self._address, self._metadata = opened, address, metadata
        self._loop = asyncio.get_running_loop()
        #: The reply to every call once the client is closed, or is used on another event loop.
        self._end: Reply | None = None
        self._over = asyncio.Event()
        self._methods: dict[str, Any] = {}

    async def call(self, path: str, data: bytes, seconds: float, metadata: Pairs | None = None) -> Reply:
        """The reply to a call of ``path`` with the serialized request ``data``, within ``seconds``."""
        if self._end is not None:
            return self._end
        retries, deadline = Retries(), time.monotonic() + seconds
        metadata = self._metadata if metadata is None else metadata
        while True:
            try:
                rpc = self._methods.get(path)
                if rpc is None:
                    rpc = self._methods[path] = self._channel.unary_unary(path)
                return _answered(await rpc(data, timeout=seconds, metadata=metadata))
            except (Exception, asyncio.CancelledError) as error:
                if (end := self._ended(error)) is not None:
                    return end
                if not isinstance(error, grpc.RpcError):
                    raise
                reply = _reply(error, self._address)
            seconds = deadline - time.monotonic()
            if (pause := _again(retries, path, reply, seconds)) is None:
                return reply
            if await closed_within(self._over, pause) and self._end is not None:
                return self._end
            seconds -= pause

    async def stream(self, path: str, messages: AsyncIterator[bytes]) -> AsyncGenerator[bytes | Reply, None]:
        """Send ``messages``; gives those of the server, and at last the reply with which the stream ended."""
        if self._end is not None:
            yield self._end
            return
        call = self._channel.stream_stream(path)(metadata=self._metadata)
        sending = asyncio.create_task(_send(call, messages))
        try:
            async for message in call:
                yield message
            yield self._end or Reply(Status.OK, begun=True)
        except (Exception, asyncio.CancelledError) as error:
            if (end := self._ended(error)) is not None:
                yield end
            elif isinstance(error, grpc.RpcError):
                yield _reply(error, self._address)
            else:
                raise
        finally:
            sending.cancel()
            call.cancel()

    async def close(self) -> None:
        """Close the channel; calls without an answer end as CANCELLED."""
        await self._close(failures.CLOSED)

    def leave(self, reply: Reply) -> None:
        """Close the channel from another event loop. The channel of a closed loop needs no closing."""
        self._end = reply
        if self._loop.is_running():
            asyncio.run_coroutine_threadsafe(self._close(reply), self._loop)

    def forget(self) -> None:
        """Nothing: grpcio knows itself that its process was forked."""

    async def _close(self, reply: Reply) -> None:
        self._end = reply
        self._over.set()
        await self._channel.close()

    def _ended(self, error: BaseException) -> Reply | None:
        """The reply of a closed client if ``error`` means that; grpcio has many such, CancelledError among them."""
        if isinstance(error, grpc.RpcError):
            return self._end if error.code() is grpc.StatusCode.CANCELLED else None
        return None if isinstance(error, asyncio.CancelledError) and cancelled_here() else self._end


async def _send(call: Any, messages: AsyncIterator[bytes]) -> None:
    """Send ``messages``. grpc.aio itself would wait for the next one for ever, once the stream is over."""
    with contextlib.suppress(grpc.RpcError, asyncio.InvalidStateError):  # the answers say how the stream ended
        async for message in messages:
            await call.write(message)
        await call.done_writing()


def _again(retries: Retries, path: str, reply: Reply, seconds_left: float) -> float | None:
    """When to call again after gRPC has given up: only where the server said when."""
    if reply.pushback_ms is None:
        return None
    return retries.pause(path, reply, seconds_left)


def _answered(message: bytes | None) -> Reply:
    """The end of a call without an error; grpcio gives None where no message came."""
    return NO_MESSAGE if message is None else Reply(Status.OK, "", message)


def _reply(error: Any, address: str) -> Reply:
    """The end of a call that failed."""
    status, details = Status[error.code().name], error.details() or ""
    pushback = next((str(value) for key, value in error.trailing_metadata() or () if key == PUSHBACK), None)
    if status is Status.UNAVAILABLE:
        why = details + _about_proxy(address)
        if any(word in details.lower() for word in _OF_TLS):
            return failures.no_tls(address, details)
        if any(word in details.lower() for word in _NOT_HTTP2):
            return failures.not_http2(address, why)
        if "connect" in details.lower() and "Socket closed" in details:
            return failures.wants_tls(address, why)
        if "connect" in details.lower() or not details:
            return failures.refused(address, why)
        if "resolving" in details or "lookup" in details:
            return failures.unknown_host(address, why)
    return Reply(status, details, pushback_ms=None if pushback is None else pushback_ms(pushback.encode()))


def _about_proxy(address: str) -> str:
    """That grpcio may have asked a proxy, for an error; "" where it asks none."""
    variable = next((name for name in _PROXIES if os.environ.get(name)), None)
    if variable is None or address.startswith("unix"):
        return ""
    return f"; {variable} is set, and grpcio asks through that proxy unless no_proxy has the host"
