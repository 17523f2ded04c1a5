"""A server of grpc.aio on one address, and its return after a request that ends its accepting.

grpc.aio decodes the path of each call as UTF-8 before any handler or interceptor sees the call. A request with another
path ends the task that accepts calls: the port closes for good, while calls under way go on (grpcio 1.85). Nothing in
Python comes before that. So another server takes the place on the same address at once, and if it cannot, the process
ends: a server that lives without a port helps nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio

from normfold.serving.errors import StartError
from normfold.serving.process import unix_socket, writer_thread
from normfold.serving.process.address import UNIX, host_and_port

log = logging.getLogger(__name__)

#: The exit code of a server whose port could not be opened again.
DEAF_EXIT_CODE = 4
#: Time for opening the port again, and between two tries; the old port closes a moment after its server was stopped.
AGAIN_SECONDS, TRY_SECONDS = 5.0, 0.005
#: Time between two looks at a server whose end nothing has announced.
LOOK_SECONDS = 1.0
#: Time for the calls of a server that accepts no more: as long as they take.
ANY_SECONDS = 1e6
#: Time for clients to answer gRPC's last ping, which comes after all answers; gRPC itself would wait 20 s.
LAST_SECONDS = 1.0
#: A server that refuses calls because it stops closes its connections when none has come for this long, ...
QUIET_SECONDS = 0.05
#: ... but at most this long: a client that tries again without a pause must find the next server.
REFUSING_SECONDS = 0.25


class GrpcServer:
    """Accepts calls for as long as it is not stopped; ``make`` makes a server that listens on nothing yet."""

    def __init__(self, make: Callable[[bool], grpc.aio.Server], bind: Callable[[grpc.aio.Server, str], int]) -> None:
        """``bind`` gives a server an address, and returns its port or 0, or raises RuntimeError."""
        self._make, self._bind = make, bind
        self._server: grpc.aio.Server | None = None
        self._reuse_port = False
        #: Servers whose accepting has ended, and the tasks that wait for their calls.
        self._ended: list[grpc.aio.Server] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        #: The file of the unix socket.
        self._file: tuple[int, int] | None = None
        #: Set when grpcio's task that accepts calls has ended, and what handles exceptions of other tasks.
        self._ends = asyncio.Event()
        self._handle_others: Callable[[asyncio.AbstractEventLoop, dict[str, Any]], object]
        #: The address that the server listens on; empty until it does.
        self.address = ""

    async def start(self, address: str, reuse_port: bool = False) -> None:
        """Listen on ``address``: "host:port", port 0 for any free one, or "unix:/path". Raises StartError."""
        self._reuse_port = reuse_port
        try:
            self.address = await self._listen(address)
        except OSError as error:
            why = error.strerror or str(error)
            raise StartError(f"cannot listen on {address}: {why}; choose another with --listen host:port") from None
        loop = asyncio.get_running_loop()
        self._handle_others = loop.get_exception_handler() or type(loop).default_exception_handler
        loop.set_exception_handler(self._on_exception)
        self._keep(asyncio.create_task(self._stay()))

    async def stop(self, grace_seconds: float) -> bool:
        """Close the port, and cut the calls that have not ended within ``grace_seconds``; whether there were none.

        Only then do gRPC's own goodbyes begin. Before the last answer, they would end its connection too soon: what the
        client has still to read would be lost. Calls that still come are refused for a while before: gRPC would cancel
        them, and clients do not try a cancelled call again.
        """
        for task in self._tasks:
            task.cancel()
        if self._server is None:
            return True
        calls, cut = calls_under_way(), set[asyncio.Task[Any]]()
        if calls:
            _, cut = await asyncio.wait(calls, timeout=grace_seconds)
        await _quiet(min(REFUSING_SECONDS, grace_seconds))
        if self.address.startswith(UNIX):
            unix_socket.remove_own(self.address.removeprefix(UNIX), self._file)
        last = 0.0 if cut else min(LAST_SECONDS, grace_seconds)
        await asyncio.gather(*(server.stop(last) for server in (self._server, *self._ended)))
        return not cut

    async def _listen(self, address: str) -> str:
        """Make a server that listens on ``address``; the address in use. Raises OSError."""
        server = self._make(self._reuse_port)
        if address.startswith(UNIX):
            path = address.removeprefix(UNIX)
            self._file = unix_socket.take(path, self._file, lambda beside: self._try(server, UNIX + beside) != 0)
            used = address
        else:
            port = self._try(server, address)
            if not port:
                raise _why(address)
            used = f"{address.rpartition(':')[0]}:{port}"
        await server.start()
        self._server = server
        return used

    def _try(self, server: grpc.aio.Server, address: str) -> int:
        try:
            return self._bind(server, address)
        except RuntimeError:
            return 0

    async def _stay(self) -> None:
        """Whenever the accepting of the server ends by itself, go on with another."""
        while True:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._ends.wait(), LOOK_SECONDS)
            self._ends.clear()
            assert self._server is not None
            try:
                await self._server.wait_for_termination(0.001)  # grpc.aio raises here what ended its accepting
            except asyncio.CancelledError:
                raise
            except Exception as error:
                log.error("grpcio stopped accepting calls (%s); it listens again on %s", error, self.address)
                self._ended.append(self._server)
                self._keep(asyncio.create_task(self._server.stop(ANY_SECONDS)))
                await self._return()

    async def _return(self) -> None:
        """Listen on the same address again, or end the process."""
        until = time.monotonic() + AGAIN_SECONDS
        while True:
            try:
                await self._listen(self.address)
                return
            except Exception as error:  # whatever it is, nobody else would try again
                if time.monotonic() > until:
                    why = getattr(error, "strerror", None) or error
                    log.error("cannot listen on %s again: %s; the server ends", self.address, why)
                    writer_thread.finish()
                    os._exit(DEAF_EXIT_CODE)
            await asyncio.sleep(TRY_SECONDS)

    def _on_exception(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if _of_grpcio(context.get("exception")):
            self._ends.set()
        else:
            self._handle_others(loop, context)

    def _keep(self, task: asyncio.Task[Any]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def calls_under_way() -> set[asyncio.Task[Any]]:
    """The calls of this event loop's servers, each as the task that ends when the last byte of its answer has left.

    Nothing else in grpc.aio tells of a call before its message is whole.
    """
    return {task for task in asyncio.all_tasks() if getattr(task.get_coro(), "__name__", "") == "_schedule_rpc_coro"}


async def _quiet(most_seconds: float) -> None:
    """Wait until no call has come for ``QUIET_SECONDS``, but at most ``most_seconds``."""
    last = time.monotonic()
    end = last + most_seconds
    while time.monotonic() < min(end, last + QUIET_SECONDS):
        await asyncio.sleep(QUIET_SECONDS / 10)
        if calls_under_way():
            last = time.monotonic()


def _of_grpcio(error: object) -> bool:
    """Whether ``error`` was raised by grpcio for a path that is not UTF-8."""
    trace = error.__traceback__ if isinstance(error, UnicodeDecodeError) else None
    while trace is not None:
        if trace.tb_frame.f_code.co_filename.endswith("server.pyx.pxi"):
            return True
        trace = trace.tb_next
    return False


def _worth_a_line(record: logging.LogRecord) -> bool:
    return not isinstance(record.msg, UnicodeDecodeError)


# grpcio logs the error itself, with a traceback; our own line takes its place.
logging.getLogger("grpc._cython.cygrpc").addFilter(_worth_a_line)


def _why(address: str) -> OSError:
    """The system's reason why "host:port" cannot be bound; gRPC does not report it, so bind it once more here."""
    try:
        found = socket.getaddrinfo(*host_and_port(address), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, where in found:
            with socket.socket(family, kind, protocol) as probe:
                probe.bind(where)
    except OSError as error:
        return error
    except ValueError as error:
        return OSError(str(error))
    return OSError("the address cannot be bound")
