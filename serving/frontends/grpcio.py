"""The frontend on grpcio (``grpc.aio``): it passes bytes to the methods of a server and back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
import grpc.aio

from normfold.serving.access.access import Access
from normfold.serving.access.tls import Tls, TlsIdentity
from normfold.serving.errors import PermissionDenied, ServingError, Unauthenticated, Unavailable, Unimplemented
from normfold.serving.frontends.access_log import AccessLog
from normfold.serving.frontends.grpcio_logged import credential_in, logged, trace_headers
from normfold.serving.frontends.grpcio_options import options
from normfold.serving.frontends.grpcio_server import GrpcServer
from normfold.serving.frontends.limits import DEFAULT_LIMITS, ClientLimits
from normfold.serving.rpc.caller import CALLER
from normfold.serving.rpc.grpc_status import CODES
from normfold.serving.rpc.methods import Method, status_of
from normfold.serving.rpc.pieces import Pieces
from normfold.serving.rpc.traffic import EXITING, Traffic
from normfold.serving.wire.pushback import trailers


class GrpcioFrontend:
    """A server of ``methods``; ``traffic`` counts the calls of those that are ``counted``.

    Of ``limits`` only the times of connections are kept. ``access`` admits calls by their tokens; None: everybody.
    ``tls``: the TLS of its port; None: plain text. ``log`` has a line for each call that reaches Python; None: there is
    no access log.
    """

    def __init__(
        self,
        methods: Iterable[Method],
        traffic: Traffic,
        max_message_bytes: int,
        limits: ClientLimits = DEFAULT_LIMITS,
        access: Access | None = None,
        tls: Tls | None = None,
        log: AccessLog | None = None,
    ) -> None:
        self._handlers = _Handlers(methods, traffic, access, log)
        self._max_message_bytes, self._limits, self._tls = max_message_bytes, limits, tls
        self._server = GrpcServer(self._make, self._bind)

    @property
    def address(self) -> str:
        """The address that the server listens on; empty until it does."""
        return self._server.address

    @property
    def freed_bytes(self) -> int:
        """Nothing: gRPC itself holds what waits for clients."""
        return 0

    async def start(self, address: str, reuse_port: bool = False) -> None:
        """Listen on ``address``: "host:port", port 0 for any free one, or "unix:/path".

        With ``reuse_port`` other processes that set it, too, may listen on the same port; without, none may. Raises
        StartError.
        """
        await self._server.start(address, reuse_port)

    def _make(self, reuse_port: bool) -> grpc.aio.Server:
        """A server that listens on nothing yet."""
        server = grpc.aio.server(options=options(self._max_message_bytes, reuse_port, self._limits))
        server.add_generic_rpc_handlers([self._handlers])
        for service, handlers in self._handlers.first.items():
            server.add_registered_method_handlers(service, handlers)
        return server

    def _bind(self, server: grpc.aio.Server, address: str) -> int:
        """The port of ``address``; 0 when it cannot be bound. Raises RuntimeError then, too."""
        if self._tls is None:
            bound: int = server.add_insecure_port(address)
            return bound
        tls, used = self._tls, self._tls.identity

        def changed() -> Any:  # asked before each handshake, on a thread of gRPC's own
            nonlocal used
            if tls.identity is used:
                return None
            used = tls.identity
            return _certificates(used)

        mutual = used.client_ca is not None
        credentials = grpc.dynamic_ssl_server_credentials(_certificates(used), changed, mutual)
        secure: int = server.add_secure_port(address, credentials)
        return secure

    async def drain(self, most_seconds: float) -> None:
        """Do nothing: gRPC's core cannot ask clients to leave and still answer, it cancels the calls that come then."""

    async def stop(self, grace_seconds: float) -> bool:
        """Close the port and every connection; whether all calls under way ended within ``grace_seconds``.

        A call is under way from its headers to the last byte of its answer.
        """
        return await self._server.stop(grace_seconds)


class _Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Finds the handler of a call by its path, before the request is read.

    Without the right token, and once the server ends, it is one that refuses.
    """

    def __init__(
        self, methods: Iterable[Method], traffic: Traffic, access: Access | None, log: AccessLog | None
    ) -> None:
        self._methods = {method.path: method for method in methods}
        self._traffic, self._access, self._log = traffic, access, log
        self._made = {path: self._logged(method) for path, method in self._methods.items()}
        #: Handlers by service and method of health, which gRPC's core keeps apart from the queue of all other calls.
        self.first: dict[str, dict[str, Any]] = {}
        for method in self._methods.values():
            if access is None and not method.counted:
                self.first.setdefault(method.service, {})[method.name] = self._made[method.path]

    def service(self, details: Any) -> Any:
        """The handler; None for a path that there is not."""
        path = details.method
        method = self._methods.get(path)
        if method is None:
            return None if self._log is None else self._refusal(path, Unimplemented("Method not found!"))
        admitted = method
        if self._access is not None:
            try:
                admitted = self._access.admit(method, credential_in(details.invocation_metadata))
            except (Unauthenticated, PermissionDenied) as error:
                return self._refusal(path, error)
        if self._traffic.closing and method.counted:
            self._traffic.failed[path, Unavailable.status] += 1
            return self._refusal(path, Unavailable(EXITING))
        return self._made[path] if admitted is method else self._logged(admitted)

    def _logged(self, method: Method) -> Any:
        return logged(_handler(method, self._traffic), method.path, method, self._log, self._access)

    def _refusal(self, path: str, error: ServingError) -> Any:
        return logged(grpc.stream_stream_rpc_method_handler(_refusal(error)), path, None, self._log, self._access)


def _refusal(error: ServingError) -> Any:
    async def refuse(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        await context.abort(CODES[error.status], str(error))
        yield b""  # never reached; it makes this a stream

    return refuse


def _certificates(identity: TlsIdentity) -> Any:
    pair = [(identity.key, identity.cert)]
    return grpc.ssl_server_certificate_configuration(pair, root_certificates=identity.client_ca)


def _handler(method: Method, traffic: Traffic) -> Any:
    counting = traffic if method.counted else None
    if method.is_unary:
        return grpc.unary_unary_rpc_method_handler(_unary(method, counting))
    if method.server_stream is not None:
        return grpc.unary_stream_rpc_method_handler(_server_stream(method, counting))
    return grpc.stream_stream_rpc_method_handler(_bidi_stream(method, counting))


def _unary(method: Method, traffic: Traffic | None) -> Any:
    answer = method.answer if method.wire_unary is None else method.wire_unary
    enter = _uncounted if traffic is None else traffic.enter
    leave = _uncounted if traffic is None else traffic.leave

    async def handle(data: bytes, context: Any) -> bytes:  # the path of every call: a context manager would cost time
        CALLER.set(_Caller(context))
        try:
            enter(admitted=True)
            try:
                answered = answer(data)
                response = answered if isinstance(answered, bytes) else await answered
                if isinstance(response, Pieces):
                    response = await response.joined()
                return response
            finally:
                leave()
        except Exception as error:
            data = b""  # gRPC keeps the frame of this call until the garbage collector comes
            await _abort(error, method, context, traffic)
            raise

    return handle


def _uncounted(admitted: bool = True) -> None:
    pass


class _Caller:
    """A call as ``rpc.caller`` describes it; gRPC is asked only for what somebody wants to know."""

    __slots__ = ("_context",)

    def __init__(self, context: Any) -> None:
        self._context = context

    @property
    def connection(self) -> str:
        """The address of the client's end; the same for all connections of a unix socket."""
        peer: str = self._context.peer()
        return peer

    def left_seconds(self) -> float | None:
        """The time until the caller gives up, in seconds; None: no limit."""
        left: float | None = self._context.time_remaining()
        return left

    @property
    def waited_seconds(self) -> float:
        """Not known: gRPC reads ahead."""
        return 0.0

    def trace_headers(self) -> dict[str, str]:
        """The headers ``traceparent`` and ``tracestate`` of the call, as far as it has them."""
        return trace_headers(self._context)


def _server_stream(method: Method, traffic: Traffic | None) -> Any:
    handle_stream = _bidi_stream(method, traffic)

    async def handle(data: bytes, context: Any) -> AsyncIterator[bytes]:
        async def only() -> AsyncIterator[bytes]:
            yield data

        async for response in handle_stream(only(), context):
            yield response

    return handle


def _bidi_stream(method: Method, traffic: Traffic | None) -> Any:
    async def handle(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        CALLER.set(_Caller(context))
        try:
            if traffic is None:
                async for response in method.answers(requests):
                    yield response
                return
            with traffic.call(admitted=True):
                async for response in method.answers(traffic.requests(requests)):
                    yield response
        except Exception as error:
            await _abort(error, method, context, traffic)

    return handle


async def _abort(error: Exception, method: Method, context: Any, traffic: Traffic | None) -> None:
    """End the call with the status of ``error``; not if gRPC has ended it, as it does when the server stops."""
    if isinstance(error, (asyncio.CancelledError, grpc.aio.BaseError)):
        raise error
    status, details = status_of(error, method.path)
    if traffic is not None:
        traffic.failed[method.path, status] += 1
    # gRPC's own exception names this one, and has a cycle: what the frames hold would stay until a garbage collection
    seen: BaseException | None = error
    while seen is not None:
        seen.__traceback__, seen = None, seen.__cause__ or seen.__context__
    await context.abort(CODES[status], details, trailers(error, status, details))
