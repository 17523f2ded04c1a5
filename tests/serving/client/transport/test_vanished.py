"""A peer that is gone without a word: the system ends the connection, also where the caller gave no option."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
import sys
import threading
from collections.abc import AsyncIterator
from time import monotonic

import pytest

from normfold.serving.client.async_client import AsyncClient
from normfold.serving.client.client import Client, ClientError
from normfold.serving.client.connection import ClientTls
from normfold.serving.client.transport import dialling, failures, pooling
from normfold.serving.client.transport.answers import Reply
from normfold.serving.errors import Status
from normfold.serving.wire import http2_frames as h2

from .peer import Peer, serving, silent

linux = pytest.mark.skipif(sys.platform != "linux", reason="the option is Linux's")


def right(peer: Peer) -> None:
    peer.greet()
    while True:
        peer.answer(peer.request())


def options(sock: socket.socket) -> dict[str, int]:
    tcp = socket.IPPROTO_TCP
    return {
        "unacknowledged_ms": sock.getsockopt(tcp, socket.TCP_USER_TIMEOUT),
        "probes": sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
        "idle": sock.getsockopt(tcp, socket.TCP_KEEPIDLE),
        "interval": sock.getsockopt(tcp, socket.TCP_KEEPINTVL),
        "count": sock.getsockopt(tcp, socket.TCP_KEEPCNT),
    }


def options_in_use(kind: str, address: str, tls: ClientTls | None) -> list[dict[str, int]]:
    """The options of the sockets over which a client of this kind has just made a call."""
    if kind == "blocking":
        with Client(address, tls=tls) as client:
            assert client.is_live(30)
            return [options(one._sock) for one in client._calls._connections]  # type: ignore[attr-defined]

    async def run() -> list[dict[str, int]]:
        async with AsyncClient(address, tls=tls) as client:
            assert await client.is_live(30)
            return [options(one._sock) for one in client._loops.here().calls._connections]  # type: ignore[attr-defined]

    if kind == "loop":
        return asyncio.run(run())
    import uvloop

    return uvloop.run(run())


@linux
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("kind", ["blocking", "loop", "uvloop"])
def test_every_socket_notices_within_30_s_that_its_peer_is_gone(kind, tls, certificate):
    def served(peer: Peer) -> None:
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate.cert, certificate.key)
            context.set_alpn_protocols(["h2"])
            peer.sock = context.wrap_socket(peer.sock, server_side=True)
        right(peer)

    wanted = {"unacknowledged_ms": 30_000, "probes": 1, "idle": 15, "interval": 5, "count": 3}
    with serving(served) as address:
        assert options_in_use(kind, address, ClientTls(ca=certificate.ca) if tls else None) == [wanted]


@linux
def test_a_system_without_the_option_connects_all_the_same(monkeypatch):
    class Older(socket.socket):
        def setsockopt(self, level: int, option: int, value: int) -> None:  # type: ignore[override]
            if (level, option) == (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT):
                raise OSError(errno.ENOPROTOOPT, "Protocol not available")
            super().setsockopt(level, option, value)

    with serving(right) as address, monkeypatch.context() as patch:
        patch.setattr(dialling.socket, "socket", Older)
        found = options_in_use("blocking", address, None)
    assert [(one["probes"], one["idle"]) for one in found] == [(1, 15)]


@linux
def test_a_call_whose_bytes_are_never_taken_is_sent_again_on_another_connection(ask, monkeypatch):
    made = dialling.tcp_socket

    def impatient(family: int) -> socket.socket:
        sock = made(family)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 300)
        return sock

    for module in ("dialling", "reaching"):
        monkeypatch.setattr(f"normfold.serving.client.transport.{module}.tcp_socket", impatient)
    connections, over = [], threading.Event()

    def deaf(peer: Peer) -> None:
        connections.append(deaf)
        over.wait(60)

    def hearing(peer: Peer) -> None:
        connections.append(hearing)
        peer.greet()
        peer.answer(peer.until(h2.DATA)[2])
        peer.wait_for_end()

    with serving(deaf, hearing) as address:
        assert ask(address, token="t" * (12 << 20), timeout=60)
    over.set()
    assert connections == [deaf, hearing]


@pytest.mark.parametrize("settled", [True, False])
@pytest.mark.parametrize("code", [errno.ETIMEDOUT, errno.EHOSTUNREACH])
def test_the_reason_says_that_the_server_is_out_of_reach_and_not_that_it_closed(code, settled):
    said = failures.ended("h:1", code, settled=settled, tls=True)
    assert said.status is Status.UNAVAILABLE
    assert said.details.startswith("the server at h:1 can no longer be reached (")
    closed = Reply(Status.UNAVAILABLE, "the server at h:1 closed the connection")
    assert failures.ended("h:1", errno.ECONNRESET, settled=True, tls=True) == closed


def end_of_a_stream(address: str) -> Reply:
    """How a stream ends that has no deadline."""

    async def messages() -> AsyncIterator[bytes]:
        yield b"request"
        await asyncio.Event().wait()

    async def run() -> Reply:
        async with AsyncClient(address) as client:
            stream = client._loops.here().calls.stream("/inference.GRPCInferenceService/ModelStreamInfer", messages())
            return [item async for item in stream][-1]  # type: ignore[return-value]

    return asyncio.run(asyncio.wait_for(run(), 60))


def test_a_stream_that_gets_no_connection_ends_with_the_reason_and_not_as_if_it_had_a_deadline(monkeypatch):
    monkeypatch.setattr(pooling, "_CONNECT_SECONDS", 0.2)
    monkeypatch.setattr(pooling, "_STREAM_SECONDS", 30.0)
    with silent() as hole:
        ended = end_of_a_stream(hole)
    assert ended.status is Status.UNAVAILABLE
    assert "no connection within 0 s" in ended.details


def test_a_stream_that_no_connection_has_room_for_ends_as_unavailable(monkeypatch):
    monkeypatch.setattr(pooling, "_STREAM_SECONDS", 0.3)
    monkeypatch.setattr(pooling, "MOST_CONNECTIONS", 0)  # as if all were in use
    ended = end_of_a_stream("127.0.0.1:1")
    assert ended == Reply(Status.UNAVAILABLE, "the server at 127.0.0.1:1 has not taken one more call for 0 s")


def test_grpcio_connects_again_soon_after_a_server_was_away():
    """Its own pauses of 1 s, 1.6 s and so on, up to two minutes, would take 9 s to the fifth connection."""
    came: list[Peer] = []
    with serving(came.append) as address, Client(address, transport="grpcio") as client:
        until = monotonic() + 6
        while len(came) < 5 and monotonic() < until:
            with pytest.raises(ClientError):
                client.is_live(5)
    assert len(came) >= 5
