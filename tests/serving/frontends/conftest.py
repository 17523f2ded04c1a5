"""The http2 frontend over a few methods of its own; the tests call it frame by frame and with grpcio."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from tests.certificates import Certificate
from tests.serving.frontends.raw import Raw

from normfold.protos import health as pb
from normfold.serving.access.access import Access
from normfold.serving.access.tls import Tls, TlsFiles
from normfold.serving.errors import InvalidRequest
from normfold.serving.frontends import frontend
from normfold.serving.frontends.access_log import AccessLog
from normfold.serving.frontends.limits import DEFAULT_LIMITS, ClientLimits
from normfold.serving.process import loops
from normfold.serving.rpc.methods import Method
from normfold.serving.rpc.pieces import Pieces
from normfold.serving.rpc.traffic import Traffic

MOST_BYTES = 1 << 22


@dataclass
class Methods:
    """The methods, and counts of what has happened in them."""

    #: Calls of ``wait`` under way, and those that were cancelled.
    waiting: int = 0
    cancelled: int = 0
    #: Messages that ``slow`` has read.
    read: int = 0
    #: Calls of ``busy_echo``.
    busy: int = 0
    #: Answers of ``large``.
    large_answers: int = 0
    #: Messages that ``later`` has begun to answer.
    begun: int = 0
    #: Lets ``slow`` go on reading, and ``gate`` answer.
    go_on: threading.Event = field(default_factory=threading.Event)

    def echo(self, data: bytes) -> bytes:
        return data

    def busy_echo(self, data: bytes) -> bytes:
        self.busy += 1
        time.sleep(0.001)
        return data

    def fail(self, data: bytes) -> bytes:
        raise InvalidRequest(data.decode())

    async def wait(self, data: bytes) -> bytes:
        self.waiting += 1
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.waiting -= 1
        return data

    async def soon(self, data: bytes) -> bytes:
        await asyncio.sleep(0.01)
        return data

    def each(self, data: bytes) -> bytes | Awaitable[bytes]:
        """The data: at once where they are empty, after the seconds that they name, or never ("wait"); or an error."""
        if data == b"wait":
            return self.wait(data)
        if data == b"fail":
            raise InvalidRequest("no")
        return self.later(data) if data else data

    async def later(self, data: bytes) -> bytes:
        self.begun += 1
        if data == b"fail later":
            raise InvalidRequest("not now")
        await asyncio.sleep(float(data))
        return data

    async def large(self, data: bytes) -> bytes:
        await asyncio.sleep(0.05)
        self.large_answers += 1
        return bytes(int(data))

    async def gate(self, data: bytes) -> bytes:
        while not self.go_on.is_set():
            await asyncio.sleep(0.005)
        return data

    def each_large(self, data: bytes) -> Awaitable[bytes]:
        other = {b"wait": self.wait, b"gate": self.gate}.get(data)
        return self.large(data) if other is None else other(data)

    async def pieces(self, data: bytes) -> Pieces:
        await asyncio.sleep(0)
        third = len(data) // 3
        return Pieces((data[:third], memoryview(data)[third:-third], data[len(data) - third :]))

    async def stream(self, requests: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for data in requests:
            yield data

    async def slow(self, requests: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for _ in requests:
            self.read += 1
            while not self.go_on.is_set():
                await asyncio.sleep(0.005)
        yield b"all"

    async def numbers(self, request: pb.HealthCheckRequest) -> AsyncIterator[pb.HealthCheckRequest]:
        for number in range(int(request.service)):
            yield pb.HealthCheckRequest(service=str(number))

    def table(self) -> list[Method]:
        kind = pb.HealthCheckRequest
        unary = {"Echo": self.echo, "Fail": self.fail, "Wait": self.wait, "Soon": self.soon}
        unary |= {"Busy": self.busy_echo, "Large": self.large, "Pieces": self.pieces}
        methods = [Method(f"/t.T/{name}", kind, wire_unary=function) for name, function in unary.items()]
        methods += [Method("/t.T/First", kind, wire_unary=self.echo, counted=False)]
        methods += [Method("/t.T/Stream", kind, wire_each=self.echo)]
        methods += [Method("/t.T/Each", kind, wire_each=self.each)]
        methods += [Method("/t.T/EachLarge", kind, wire_each=self.each_large)]
        methods += [Method("/t.T/EachWait", kind, wire_each=self.wait)]
        methods += [Method("/t.T/EachPieces", kind, wire_each=self.pieces)]
        methods += [Method("/t.T/Iterate", kind, wire_stream=self.stream)]
        methods += [Method("/t.T/Slow", kind, wire_stream=self.slow)]
        return [*methods, Method("/t.T/Numbers", kind, server_stream=self.numbers)]


@dataclass
class Serving:
    """A running frontend."""

    frontend: Any
    methods: Methods
    traffic: Traffic
    loop: asyncio.AbstractEventLoop

    @property
    def address(self) -> str:
        return self.frontend.address

    def on_loop(self, coroutine: Awaitable[object]) -> object:
        async def awaited() -> object:
            return await coroutine

        return asyncio.run_coroutine_threadsafe(awaited(), self.loop).result(30)


@contextlib.contextmanager
def serving(
    address: str = "127.0.0.1:0",
    name: str = "http2",
    limits: ClientLimits = DEFAULT_LIMITS,
    reuse_port: bool = False,
    access: Access | None = None,
    log: AccessLog | None = None,
    tls: Tls | None = None,
) -> Iterator[Serving]:
    loop = (loops.factory() or asyncio.new_event_loop)()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    methods = Methods()

    async def start() -> tuple[Any, Traffic]:
        traffic = Traffic()
        made = frontend(name)(methods.table(), traffic, MOST_BYTES, limits, access, tls, log)
        await made.start(address, reuse_port)
        return made, traffic

    made, traffic = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    try:
        yield Serving(made, methods, traffic, loop)
    finally:
        asyncio.run_coroutine_threadsafe(made.stop(0.1), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


@pytest.fixture
def start():
    """``serving``, for tests that bind addresses of their own."""
    return serving


@pytest.fixture
def tls(certificate: Certificate) -> Tls:
    """The TLS of a server on this host."""
    return Tls(TlsFiles(certificate.cert, certificate.key).read())


@pytest.fixture
def served() -> Iterator[Serving]:
    """A frontend for one test."""
    with serving() as one:
        yield one


@pytest.fixture
def raw(served: Serving) -> Iterator[Raw]:
    """A greeted connection to ``served``."""
    client = Raw(served.address)
    yield client
    client.socket.close()
