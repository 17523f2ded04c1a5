"""The grpcio frontend where gRPC's own server falls: paths that are not UTF-8, bursts, unix sockets of others."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import grpc
import pytest
from tests.serving.frontends.conftest import Serving, serving
from tests.serving.frontends.raw import Raw, message, request_headers

from normfold.protos import grpc_service as pb
from normfold.serving.access.access import Access
from normfold.serving.access.scopes import NO_MODEL, RIGHTS, Right, Scope
from normfold.serving.access.tokens import Holder, digest
from normfold.serving.frontends import grpcio
from normfold.serving.frontends.grpcio_logged import trace_headers
from normfold.serving.frontends.grpcio_server import DEAF_EXIT_CODE
from normfold.serving.rpc.methods import Method
from normfold.serving.rpc.traffic import Traffic
from normfold.serving.wire import http2_frames as h2


def not_utf8(address: str, ca: Path | None = None) -> Raw:
    """A connection that has asked for a path which is not UTF-8."""
    client = Raw(address, ca=ca)
    headers = [(n.encode(), b"/t.T/\xff\xfe" if n == ":path" else v.encode()) for n, v in request_headers()]
    block = client.encoder.encode(headers)
    client.send(h2.frame(h2.HEADERS, h2.END_HEADERS, 1, block), h2.frame(h2.DATA, h2.END_STREAM, 1, message(b"x")))
    return client


def ended_by(served: Serving, client: Raw) -> None:
    """Wait until the server has told the client of the bad path that it ends."""
    with contextlib.closing(client.socket):
        client.until(h2.GOAWAY)


def echo(address: str, fresh: int, ca: Path | None = None) -> bytes:
    """The answer to a call on a connection of its own; ``fresh`` is another number each time."""
    options = [("number", fresh)]
    with (
        grpc.insecure_channel(address, options)
        if ca is None
        else grpc.secure_channel(address, grpc.ssl_channel_credentials(ca.read_bytes()), options)
    ) as channel:
        answer: bytes = channel.unary_unary("/t.T/Echo")(b"x", timeout=20, wait_for_ready=True)
        return answer


@pytest.mark.parametrize("where", ["127.0.0.1:0", "unix:{}/s.sock"])
def test_a_path_that_is_not_utf8_does_not_end_the_accepting(tmp_path, caplog, capfd, where):
    with serving(where.format(tmp_path), name="grpcio") as served:
        address = served.address
        with grpc.insecure_channel(address) as channel:
            under_way = channel.unary_unary("/t.T/Large").future(b"100000", timeout=20)
            stream = channel.stream_stream("/t.T/Stream")
            sending = threading.Event()

            def requests():
                yield b"first"
                sending.wait(20)
                yield b"last"

            answers = stream(requests(), timeout=20)
            assert next(answers) == b"first"
            for number in range(3):
                ended_by(served, not_utf8(address))
                assert echo(address, number) == b"x"
            assert served.address == address
            sending.set()
            assert list(answers) == [b"last"]  # to its end: else the server might stop while it reads
            assert len(under_way.result()) == 100_000
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 3
    assert all(line.startswith("grpcio stopped accepting calls ('utf-8' codec") for line in lines)
    assert "Traceback" not in capfd.readouterr().err


def test_a_path_that_is_not_utf8_does_not_end_the_accepting_with_tls(caplog, tls, certificate):
    with serving(name="grpcio", tls=tls) as served:
        for number in range(2):
            ended_by(served, not_utf8(served.address, certificate.ca))
            assert echo(served.address, number, certificate.ca) == b"x"
    assert len(caplog.records) == 2


def test_a_path_that_is_not_utf8_ends_the_accepting_of_no_worker(caplog):
    """Each of two workers takes a bad path, and then answers alone on the port that they share."""
    with serving(name="grpcio", reuse_port=True) as one:
        address = one.address
        ended_by(one, not_utf8(address))
        assert echo(address, 1) == b"x"
        with serving(address, name="grpcio", reuse_port=True) as two:
            one.on_loop(one.frontend.stop(0.1))
            ended_by(two, not_utf8(address))
            with serving(address, name="grpcio", reuse_port=True):  # the port is still shared
                assert {echo(address, number) for number in range(8)} == {b"x"}
            assert echo(address, 9) == b"x"
    assert len(caplog.records) == 2


def test_a_stream_that_ends_with_the_server_is_left_to_grpc():
    """Its reading raises an error of gRPC's own, which no client sees; it was logged as an internal one of ours."""
    method = Method("/t.T/Stream", pb.ModelInferRequest, wire_stream=lambda requests: requests)
    traffic, context = Traffic(), Mock()
    stopped = type("Stopped", (grpc.aio.BaseError,), {})("Server already stopped.")

    async def requests():
        yield b"first"
        raise stopped

    async def read() -> None:
        answers = grpcio._bidi_stream(method, traffic)(requests(), context)
        assert await anext(answers) == b"first"
        with pytest.raises(grpc.aio.BaseError):
            await anext(answers)

    asyncio.run(read())
    assert traffic.failed.total() == 0
    context.abort.assert_not_called()


DEAF = """
import asyncio, sys
from tests.serving.frontends.conftest import Methods
from normfold.serving.frontends.grpcio import GrpcioFrontend
from normfold.serving.frontends import grpcio_server
from normfold.serving.process.logs import LogSettings
from normfold.serving.rpc.traffic import Traffic

grpcio_server.AGAIN_SECONDS = 0.2

async def main():
    LogSettings().install(sys.stderr)
    served = GrpcioFrontend(Methods().table(), Traffic(), 1 << 20)
    await served.start("127.0.0.1:0")
    def fail(reuse_port):
        raise ValueError("no more servers")
    FAULT
    print(served.address, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("fault", "words"),
    [("_bind = lambda server, address: 0", "the address cannot be bound"), ("_make = fail", "no more servers")],
)
def test_a_server_that_cannot_open_its_port_again_ends_with_its_own_exit_code(fault, words):
    with subprocess.Popen(
        [sys.executable, "-c", DEAF.replace("FAULT", f"served._server.{fault}")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    ) as process:
        assert process.stdout is not None
        not_utf8(process.stdout.readline().strip())
        _, said = process.communicate(timeout=60)
    assert process.returncode == DEAF_EXIT_CODE
    assert said.strip().endswith(f"{words}; the server ends")
    assert "Traceback" not in said


def test_an_exception_of_another_task_is_still_handled():
    with serving(name="grpcio") as served:
        handled: list[dict[str, object]] = []
        server = served.frontend._server
        server._handle_others = lambda loop, context: handled.append(context)
        served.loop.call_soon_threadsafe(served.loop.call_exception_handler, {"exception": ValueError("mine")})
        assert echo(served.address, 0) == b"x"
    assert [str(each["exception"]) for each in handled] == ["mine"]


@contextlib.contextmanager
def held(served: Serving) -> Iterator[None]:
    """The server's event loop stands still, so that calls pile up in gRPC's core."""
    go_on = threading.Event()
    served.loop.call_soon_threadsafe(go_on.wait, 60)
    try:
        yield
    finally:
        go_on.set()


#: The calls on each connection: more than may be under way on it, or so few that all wait in gRPC's core at once.
BURSTS = {"few connections": [2000, 1000, 1000, 1000], "many connections": [125] * 40}


@pytest.mark.parametrize("name", BURSTS)
def test_a_burst_of_5000_calls_is_answered_and_none_cancelled(name):
    options = [("grpc.use_local_subchannel_pool", 1)]
    with serving(name="grpcio") as served, contextlib.ExitStack() as stack:
        channels = [stack.enter_context(grpc.insecure_channel(served.address, options)) for _ in BURSTS[name]]
        methods = [channel.unary_unary("/t.T/Echo") for channel in channels]
        for method in methods:
            method(b"x", timeout=20)
        with held(served):
            bursts = zip(methods, BURSTS[name], strict=True)
            calls = [method.future(b"x", timeout=120) for method, count in bursts for _ in range(count)]
        assert collections.Counter(call.code() for call in calls) == {grpc.StatusCode.OK: 5000}


TOKEN = "open sesame"


@pytest.fixture
def access(monkeypatch) -> Access:
    """Whoever has the token may call every method of the test."""
    for name in ("Echo", "First"):
        monkeypatch.setitem(RIGHTS, f"/t.T/{name}", Right(Scope.READ, NO_MODEL))
    return Access({digest(TOKEN): Holder("operator", frozenset({Scope.READ}), None)})


class Burst:
    """100 calls and, on another connection behind them, one that is not counted, as health is not."""

    def __init__(self, served: Serving, stack: contextlib.ExitStack, metadata: list[tuple[str, str]]) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        many, one = (stack.enter_context(grpc.insecure_channel(served.address, options)) for _ in range(2))
        self._metadata = metadata
        self._echo, self._first = many.unary_unary("/t.T/Echo"), one.unary_unary("/t.T/First")
        self._first(b"x", timeout=20, metadata=metadata)
        self._ended = queue.SimpleQueue[grpc.Future]()

    def send_many(self) -> None:
        self._calls = [self._echo.future(b"x", timeout=120, metadata=self._metadata) for _ in range(100)]

    def send_last(self) -> None:
        self._last = self._first.future(b"x", timeout=120, metadata=self._metadata)
        for call in (*self._calls, self._last):  # in the order of their ends, whenever this thread comes round to look
            call.add_done_callback(self._ended.put)

    def answered_before_the_last(self) -> int:
        assert {call.code() for call in (*self._calls, self._last)} == {grpc.StatusCode.OK}
        return [self._ended.get(timeout=60) for _ in range(101)].index(self._last)


def test_calls_that_are_not_counted_do_not_wait_for_the_others_unless_tokens_are_used(access):
    """With tokens the metadata must be seen first, which gRPC's core does not do: the call is answered in its turn."""
    with contextlib.ExitStack() as stack:
        plain = stack.enter_context(serving(name="grpcio"))
        guarded = stack.enter_context(serving(name="grpcio", access=access))
        bursts = [Burst(plain, stack, []), Burst(guarded, stack, [("authorization", f"Bearer {TOKEN}")])]
        with held(plain), held(guarded):
            for burst in bursts:
                burst.send_many()
            time.sleep(1)  # all of them reach gRPC's core, also on a busy machine
            for burst in bursts:
                burst.send_last()
            time.sleep(1)
        open_to_all, with_tokens = (burst.answered_before_the_last() for burst in bursts)
    assert open_to_all < 50 < with_tokens


def test_with_tokens_a_call_that_is_not_counted_needs_one_too(access):
    with serving(name="grpcio", access=access) as served, grpc.insecure_channel(served.address) as channel:
        first = channel.unary_unary("/t.T/First")
        for metadata in ([], [("authorization", "Bearer guess")]):
            with pytest.raises(grpc.RpcError) as caught:
                first(b"x", timeout=20, metadata=metadata)
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_a_server_that_stops_leaves_the_socket_of_another(tmp_path):
    path = tmp_path / "s.sock"
    with serving(f"unix:{path}", name="grpcio") as first:
        path.unlink()
        with serving(f"unix:{path}", name="grpcio") as second:
            first.on_loop(first.frontend.stop(0.1))
            assert echo(second.address, 1) == b"x"
        assert not path.exists()
    assert list(tmp_path.iterdir()) == []


def test_the_name_of_a_socket_that_another_server_took_meanwhile_is_refused(tmp_path, monkeypatch):
    from normfold.serving.process import unix_socket

    path = tmp_path / "s.sock"

    def bind(beside: str) -> bool:
        for name in (beside, path):
            with socket.socket(socket.AF_UNIX) as other:
                other.bind(str(name))
        return True

    with pytest.raises(OSError, match="Address already in use"):
        unix_socket.take(str(path), None, bind)
    assert [each.name for each in tmp_path.iterdir()] == ["s.sock"]


def test_calls_that_come_while_the_server_stops_are_refused_and_not_cancelled(monkeypatch):
    from normfold.serving.frontends import grpcio_server

    monkeypatch.setattr(grpcio_server, "REFUSING_SECONDS", 10.0)
    monkeypatch.setattr(grpcio_server, "QUIET_SECONDS", 1.0)
    with serving(name="grpcio") as served, grpc.insecure_channel(served.address) as channel:
        call = channel.unary_unary("/t.T/Echo")
        assert call(b"x", timeout=20) == b"x"
        assert served.on_loop(served.traffic.close(1.0))
        stopped: list[object] = []
        thread = threading.Thread(target=lambda: stopped.append(served.on_loop(served.frontend.stop(20.0))))
        thread.start()
        for _ in range(5):
            time.sleep(0.02)
            with pytest.raises(grpc.RpcError) as caught:
                call(b"x", timeout=20)
            assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.UNAVAILABLE, "Server exiting")
        thread.join(20)
        assert stopped == [True]


def test_a_socket_with_a_name_that_no_client_can_connect_to_is_refused(tmp_path):
    from normfold.serving.process import unix_socket

    path = str(tmp_path / ("s" * 108))
    with pytest.raises(OSError, match="path too long"):
        unix_socket.take(path, None, lambda beside: True)
    assert list(tmp_path.iterdir()) == []


def test_long_trace_headers_are_cut_as_by_the_other_frontend():
    def kept(**headers):
        return trace_headers(SimpleNamespace(invocation_metadata=lambda: tuple(headers.items())))

    long = "a=" + "1" * 505 + ",b=2,c=3"
    assert kept(traceparent="00-1", tracestate=long) == {"traceparent": "00-1", "tracestate": long[:511]}
    assert kept(traceparent="00-1", tracestate="s" * 513) == {"traceparent": "00-1"}
    assert kept(traceparent="0" * 513, tracestate="s") == kept(tracestate="s") == {}
