"""Servers and proxies that behave badly: each ends a call, or a connection, with a status and a reason."""

from __future__ import annotations

import asyncio
import gzip
import re
import socket
import threading
import zlib
from http import HTTPStatus

import pytest

from normfold.serving.client.async_client import AsyncClient
from normfold.serving.client.client import Client, ClientError
from normfold.serving.client.transport.choice import TRANSPORTS
from normfold.serving.metrics.port import HttpAnswer, HttpPort
from normfold.serving.wire import http2_frames as h2

from .peer import LIVE, OK, Peer, framed, serving

LAST = h2.END_HEADERS | h2.END_STREAM


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    """No pauses between two tries that would only make these tests slow."""
    monkeypatch.setattr("normfold.serving.client.transport.retries.FIRST_SECONDS", 0.002)


def greeted(act):
    """A connection whose first request is given to ``act(peer, number)``; it stays open until the client leaves."""

    def handle(peer: Peer) -> None:
        peer.greet()
        act(peer, peer.request())
        peer.wait_for_end()

    return handle


def right(peer: Peer) -> None:
    """Answer everything."""
    peer.greet()
    while True:
        peer.answer(peer.request())


def failed(ask, *connections, timeout=30, **options):
    with serving(*connections) as address, pytest.raises(ClientError) as caught:
        ask(address, timeout=timeout, **options)
    return caught.value


@pytest.mark.parametrize(
    ("act", "status", "words"),
    [
        (lambda p, n: p.end(n, *OK, ("grpc-status", "5"), ("grpc-message", "no%20%C3%A9")), "NOT_FOUND", "^no é$"),
        (lambda p, n: p.end(n, *OK, ("grpc-status", "99")), "UNKNOWN", "^$"),
        (lambda p, n: p.end(n, *OK), "UNKNOWN", "without a grpc-status"),
        (lambda p, n: (p.headers(n, OK), p.data(n, framed(LIVE), h2.END_STREAM)), "UNKNOWN", "without a grpc-status"),
        (lambda p, n: (p.headers(n, OK), p.end(n, ("grpc-status", "0"))), "INTERNAL", "OK and no message"),
        (lambda p, n: p.end(n, *OK, ("grpc-status", "0")), "INTERNAL", "OK and no message"),
        (lambda p, n: p.end(n, (":status", "404")), "UNIMPLEMENTED", "HTTP status 404 instead of an answer by gRPC"),
        (lambda p, n: p.end(n, (":status", "401")), "UNAUTHENTICATED", "HTTP status 401"),
        (lambda p, n: p.end(n, (":status", "418")), "UNKNOWN", "HTTP status 418"),
        (
            lambda p, n: (p.headers(n, [(":status", "500")]), p.data(n, b"<html>oh</html>", h2.END_STREAM)),
            "UNKNOWN",
            "HTTP status 500",
        ),
        (
            lambda p, n: (p.headers(n, [(":status", "200"), ("content-type", "text/html")]), p.data(n, b"x", 1)),
            "UNKNOWN",
            "content-type",
        ),
        (
            lambda p, n: (p.headers(n, OK), p.data(n, framed(LIVE) * 2), p.end(n, ("grpc-status", "0"))),
            "INTERNAL",
            "not one message",
        ),
        (
            lambda p, n: (p.headers(n, OK), p.data(n, framed(LIVE, 1)), p.end(n, ("grpc-status", "0"))),
            "INTERNAL",
            "it is compressed, and grpc-encoding is 'identity'",
        ),
        (lambda p, n: (p.headers(n, OK), p.data(n, b"\0"), p.end(n, ("grpc-status", "0"))), "INTERNAL", "no message"),
        (lambda p, n: p.answer(n, b"\xff\xff"), "INTERNAL", "the server's answer is not a message of the protocol"),
        (lambda p, n: p.data(n, b"x"), "INTERNAL", "data before its headers"),
        (lambda p, n: (p.headers(n, OK), p.headers(n, OK)), "INTERNAL", "headers where none may be"),
        (lambda p, n: p.headers(n, [("x", "1")]), "INTERNAL", "headers where none may be"),
        (lambda p, n: p.headers(n, [(":path", "/"), *OK]), "INTERNAL", "headers that are malformed"),
        (lambda p, n: p.headers(n, [*OK, ("x", "y" * 70_000)]), "INTERNAL", "more than 65536 bytes"),
        (
            lambda p, n: p.send(h2.frame(h2.RST_STREAM, 0, n, h2.INTERNAL_ERROR.to_bytes(4, "big"))),
            "INTERNAL",
            r"reset the call \(HTTP/2 error 2\)",
        ),
    ],
)
def test_an_answer_that_is_none_ends_its_call_and_not_the_connection(ask, act, status, words):
    error = failed(ask, greeted(act))
    assert error.code.name == status
    assert re.search(words, error.details), error.details


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("packed", [None, 2], ids=["nothing", "a message of no kind"])
def test_an_answer_with_ok_and_no_message_is_an_error_by_either_transport(ask, transport, packed):
    def act(peer: Peer, number: int) -> None:
        peer.headers(number, OK)
        if packed is not None:
            peer.data(number, framed(LIVE, packed))
        peer.end(number, ("grpc-status", "0"))

    assert failed(ask, greeted(act), transport=transport).code.name == "INTERNAL"


def test_a_spoilt_call_is_reset_and_leaves_the_connection_to_the_next():
    resets = []

    def spoil(peer: Peer) -> None:
        peer.greet()
        peer.data(peer.request(), framed(LIVE))  # data before their headers
        resets.append(peer.until(h2.RST_STREAM)[2:])
        peer.answer(peer.request())
        peer.wait_for_end()

    async def loop(address: str) -> bool:
        async with AsyncClient(address) as client:
            with pytest.raises(ClientError, match="data before its headers"):
                await client.is_live(20)
            return await client.is_live(20)

    with serving(spoil) as address:
        with Client(address) as client:
            with pytest.raises(ClientError, match="data before its headers"):
                client.is_live(20)
            assert client.is_live(20)
        assert asyncio.run(loop(address))
    assert resets == [(1, h2.PROTOCOL_ERROR.to_bytes(4, "big"))] * 2


@pytest.mark.parametrize("status", ["502", "503", "504", "429"])
def test_a_proxy_that_says_not_now_is_asked_again(ask, status):
    def overloaded(peer: Peer) -> None:
        peer.greet()
        number = peer.request()
        peer.headers(number, [(":status", status), ("content-type", "text/html")])
        peer.data(number, b"<html>", h2.END_STREAM)
        peer.answer(peer.request())

    with serving(overloaded) as address:
        assert ask(address)


@pytest.mark.parametrize(
    ("bytes_", "words"),
    [
        (h2.frame(h2.DATA, 0, 9, b"x"), "not allowed"),
        (h2.frame(h2.HEADERS, h2.END_HEADERS, 9, b"\x88"), "not allowed"),
        (h2.frame(h2.HEADERS, h2.END_HEADERS, 1, b"\xff\xff\xff\xff\xff"), "an integer of more than four bytes"),
        (h2.frame(h2.HEADERS, h2.END_HEADERS | h2.PADDED, 1, b"\x09\x88"), "not allowed"),
        (h2.frame(h2.CONTINUATION, 0, 1, b""), "CONTINUATION without HEADERS"),
        (h2.frame(h2.HEADERS, 0, 1, b"\x88") + h2.frame(h2.PING, 0, 0, bytes(8)), "interrupted"),
        (h2.frame(h2.PUSH_PROMISE, h2.END_HEADERS, 1, bytes(5)), "PUSH_PROMISE"),
        (h2.frame(h2.SETTINGS, 0, 0, b"12345"), "wrong size"),
        (h2.settings({h2.INITIAL_WINDOW_SIZE: 1 << 31}), "windows of 2147483648 bytes"),
        (h2.settings({h2.MAX_FRAME_SIZE: 1}), "not allowed"),
        (h2.settings({h2.ENABLE_PUSH: 1}), "not allowed"),
        (h2.frame(h2.WINDOW_UPDATE, 0, 0, bytes(4)), "not allowed"),
        (h2.frame(h2.WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff"), "a window of"),
        (h2.frame(h2.WINDOW_UPDATE, 0, 1, b"\x7f\xff\xff\xff"), "a window of"),
        (h2.frame(h2.PING, 0, 0, b"short"), "wrong size"),
        (h2.frame(h2.RST_STREAM, 0, 0, bytes(4)), "not allowed"),
        (h2.frame(h2.GOAWAY, 0, 1, bytes(8)), "not allowed"),
        (h2.frame(h2.PRIORITY, 0, 0, bytes(5)), "not allowed"),
        ((1 << 23).to_bytes(3, "big") + bytes(6), "a frame of 8388608 bytes"),
        (h2.frame(h2.SETTINGS, 0, 0) * 10_001, "a flood"),
        (h2.frame(h2.HEADERS, h2.END_HEADERS, 1, b"\x88") + h2.frame(h2.DATA, 0, 1) * 10_001, "a flood"),
        (h2.frame(h2.HEADERS, 0, 1, b"") + h2.frame(h2.CONTINUATION, 0, 1, b"") * 300, "headers without end"),
        (
            h2.frame(h2.HEADERS, 0, 1, b"") + h2.frame(h2.CONTINUATION, 0, 1, bytes(1 << 19)) * 3,
            "headers without end",
        ),
        (b"garbage" * 9, "a frame of"),
    ],
)
def test_a_server_that_breaks_the_protocol_loses_the_connection(ask, bytes_, words):
    said = []

    def act(peer: Peer, number: int) -> None:
        peer.send(bytes_)
        said.append(peer.until(h2.GOAWAY))

    error = failed(ask, greeted(act))
    assert error.code.name == "UNAVAILABLE"
    assert words in error.details


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (
            b"HTTP/1.1 400 Bad Request\r\n\r\n",
            "'HTTP/1.1 400 Bad': that is HTTP/1, as of a proxy",
        ),
        (b"<!DOCTYPE HTML>\n<html>\n</html>\n", "'<!DOCTYPE HTML>': that is HTTP/1, as of a proxy"),
        (b"SSH-2.0-OpenSSH_9\r\n", "it answers 'SSH-2.0-OpenSSH_', which is not HTTP/2"),
        (b"\0" * 40, "the first frame is not SETTINGS"),
    ],
)
def test_what_is_no_grpc_server_is_said(ask, data, said):
    def handle(peer: Peer) -> None:
        peer.send(data)
        peer.wait_for_end()

    error = failed(ask, handle)
    assert error.code.name == "UNAVAILABLE"
    assert "no gRPC server answers at" in error.details
    assert said in error.details


@pytest.mark.parametrize("transport", ["http2", "grpcio"])
def test_the_port_for_metrics_is_told_from_that_for_grpc(transport):
    metrics = HttpPort("127.0.0.1:0", lambda path: HttpAnswer(HTTPStatus.OK, b""))
    try:
        with Client(metrics.address, transport=transport) as client, pytest.raises(ClientError) as caught:
            client.is_live(timeout=30)
    finally:
        metrics.close()
    assert f"no gRPC server answers at {metrics.address}" in caught.value.details
    assert "or a port for metrics; gRPC is on the port of normfold serve --listen, by default" in caught.value.details


@pytest.mark.parametrize("variable", ["grpc_proxy", "https_proxy", "http_proxy"])
def test_an_error_of_grpcio_names_the_variable_of_the_proxy_that_it_asked(ask, monkeypatch, variable):
    for name in ("grpc_proxy", "https_proxy", "http_proxy", "no_grpc_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)

    def turned_away(peer: Peer) -> None:
        peer.sock.sendall(b"HTTP/1.1 403 Forbidden\r\n\r\n")
        peer.wait_for_end()

    with serving(turned_away) as proxy:
        monkeypatch.setenv(variable, f"http://{proxy}")
        with pytest.raises(ClientError, match=f"proxy returned .* 403; {variable} is set, and grpcio asks through"):
            ask("127.0.0.1:1", transport="grpcio")
    with pytest.raises(ClientError) as caught:
        ask("unix:/nothing/listens/here", transport="grpcio")
    assert "proxy" not in caught.value.details


def test_a_server_that_closes_at_once_may_want_tls(ask):
    error = failed(ask, lambda peer: peer.exactly(24))
    assert error.code.name == "UNAVAILABLE"
    assert "in plain text" in error.details


def test_a_server_that_is_killed_in_the_midst_of_an_answer_is_not_asked_again(ask):
    asked = []

    def dies(peer: Peer, number: int) -> None:
        asked.append(number)
        peer.headers(number, OK)
        peer.data(number, framed(LIVE)[:3])
        peer.sock.close()

    error = failed(ask, greeted(dies))
    assert (error.code.name, asked) == ("UNAVAILABLE", [1])
    assert "closed the connection" in error.details


def test_a_server_that_is_killed_before_its_answer_is_asked_again(ask):
    def dies(peer: Peer, number: int) -> None:
        peer.sock.close()

    with serving(greeted(dies), right) as address:
        assert ask(address)


@pytest.mark.parametrize("how", ["GOAWAY below", "GOAWAY, and it closes", "REFUSED_STREAM"])
def test_a_call_that_the_server_has_not_looked_at_is_sent_again_at_once(ask, how, monkeypatch):
    monkeypatch.setattr("normfold.serving.client.transport.retries.FIRST_SECONDS", 100.0)  # no pause could pass

    def leaves(peer: Peer) -> None:
        peer.greet()
        number = peer.request()
        if how == "REFUSED_STREAM":
            peer.send(h2.frame(h2.RST_STREAM, 0, number, h2.REFUSED_STREAM.to_bytes(4, "big")))
            peer.answer(peer.request())
        else:
            peer.goaway(number - 1)
        if how == "GOAWAY below":
            peer.wait_for_end()

    with serving(leaves, right) as address:
        assert ask(address)


def test_calls_below_the_last_of_a_goaway_are_answered_and_the_next_take_another_connection(ask):
    second = []

    def leaves(peer: Peer) -> None:
        peer.greet()
        number = peer.request()
        peer.goaway(h2.LARGEST_WINDOW)
        peer.goaway(number)
        peer.answer(number)
        peer.wait_for_end()

    def takes_over(peer: Peer) -> None:
        second.append(peer)
        right(peer)

    with serving(leaves, takes_over) as address:
        assert ask(address, times=3)
    assert [len(peer.headers_of) for peer in second] == [2]  # the server may have worked on the last one: it comes once


def test_a_deadline_in_the_midst_of_an_answer_resets_the_call(ask):
    reset = []

    def stalls(peer: Peer, number: int) -> None:
        peer.headers(number, OK)
        peer.data(number, framed(LIVE)[:4])
        reset.append(peer.until(h2.RST_STREAM))

    error = failed(ask, greeted(stalls), timeout=0.3)
    assert (error.code.name, error.details) == ("DEADLINE_EXCEEDED", "Deadline Exceeded")
    assert reset in ([], [(h2.RST_STREAM, 0, 1, h2.CANCEL.to_bytes(4, "big"))])


def test_a_server_that_never_answers_the_greeting_meets_the_deadline(ask):
    error = failed(ask, lambda peer: peer.wait_for_end(), timeout=0.3)
    assert error.code.name == "DEADLINE_EXCEEDED"


def test_a_refusal_with_a_time_is_obeyed_until_the_deadline_and_minus_one_never(ask):
    asked = []

    def full(peer: Peer) -> None:
        peer.greet()
        for _ in range(6):
            asked.append(peer.request())
            peer.refuse(asked[-1], 8, ("grpc-retry-pushback-ms", "10"))
        peer.answer(peer.request())

    with serving(full) as address:
        assert ask(address)
    assert len(asked) == 6

    def never(peer: Peer) -> None:
        peer.greet()
        asked.append(peer.request())
        peer.refuse(asked[-1], 8, ("grpc-retry-pushback-ms", "-1"))
        peer.answer(peer.request())

    assert failed(ask, never).code.name == "RESOURCE_EXHAUSTED"
    assert len(asked) == 7


def test_a_refusal_whose_time_is_behind_the_deadline_comes_at_once(ask):
    error = failed(ask, greeted(lambda p, n: p.refuse(n, 8, ("grpc-retry-pushback-ms", "60000"))), timeout=20)
    assert error.code.name == "RESOURCE_EXHAUSTED"


def test_a_call_fails_after_three_tries_without_a_time(ask):
    asked = []

    def never(peer: Peer) -> None:
        peer.greet()
        while True:
            asked.append(peer.request())
            peer.refuse(asked[-1], 14, ("grpc-message", "not today"))

    error = failed(ask, never)
    assert (error.code.name, error.details, asked) == ("UNAVAILABLE", "not today", [1, 3, 5])


@pytest.mark.parametrize(
    ("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress), ("identity", None)]
)
def test_a_compressed_answer_in_pieces_of_a_byte_with_padding_is_read(ask, encoding, pack):
    def bytewise(peer: Peer, number: int) -> None:
        peer.headers(number, [(":status", "100")])
        peer.headers(number, [*OK, ("grpc-encoding", encoding)])
        for byte in framed(pack(LIVE) if pack else LIVE, int(pack is not None)):
            peer.data(number, bytes([2, byte, 0, 0]), h2.PADDED)
        peer.end(number, ("grpc-status", "0"))

    with serving(greeted(bytewise)) as address:
        assert ask(address)


def test_requests_wait_for_the_servers_windows(ask):
    bodies = []

    def narrow(peer: Peer) -> None:
        peer.greet(INITIAL_WINDOW_SIZE=1, MAX_FRAME_SIZE=16384)
        peer.until(h2.HEADERS)
        got = b""
        while True:
            kind, flags, number, payload = peer.frame()
            if kind != h2.DATA:
                continue
            got += payload
            if flags & h2.END_STREAM:
                break
            peer.send(h2.frame(h2.WINDOW_UPDATE, 0, number, (2).to_bytes(4, "big")))
        bodies.append(got)
        peer.answer(number)

    with serving(narrow) as address:
        assert ask(address)
    assert bodies[0] == framed(b"")


def test_the_headers_of_a_request_are_those_of_grpc(ask):
    headers = []

    def handle(peer: Peer, number: int) -> None:
        headers.append(peer.headers_of[number])
        peer.answer(number)

    with serving(greeted(handle)) as address:
        assert ask(address, timeout=12.5, token="secret", compression="gzip")
    assert headers[0] == {
        ":method": "POST",
        ":scheme": "http",
        ":authority": address,
        ":path": "/inference.GRPCInferenceService/ServerLive",
        "te": "trailers",
        "content-type": "application/grpc",
        "user-agent": "normfold",
        "grpc-accept-encoding": "identity,deflate,gzip",
        "grpc-encoding": "gzip",
        "authorization": "Bearer secret",
        "grpc-timeout": "12500m",
    }


def test_a_long_header_is_sent_in_several_frames(ask):
    tokens = []

    def handle(peer: Peer) -> None:
        peer.greet()
        _, flags, number, block = peer.until(h2.HEADERS)
        while not flags & h2.END_HEADERS:
            kind, flags, same, part = peer.frame()
            assert (kind, same) == (h2.CONTINUATION, number)
            block += part
        tokens.append(dict(peer.decoder.decode(block))["authorization"])
        peer.answer(number)
        peer.wait_for_end()

    with serving(handle) as address:
        assert ask(address, token="t" * 40_000)
    assert tokens == ["Bearer " + "t" * 40_000]


def test_a_silent_server_is_pinged_and_left(ask, monkeypatch):
    for module in ("blocking", "looping"):
        monkeypatch.setattr(f"normfold.serving.client.transport.{module}.PING_SECONDS", 0.2)
    pinged = threading.Event()

    def dead(peer: Peer) -> None:
        peer.greet()
        while (one := peer.frame())[0] != h2.PING:
            pass
        assert one[3] == b"normfold"
        pinged.set()
        peer.wait_for_end()

    with serving(dead, right) as address:
        assert ask(address, keepalive=0.2)
    assert pinged.is_set()


def test_a_slow_server_that_answers_pings_is_waited_for(ask, monkeypatch):
    for module in ("blocking", "looping"):
        monkeypatch.setattr(f"normfold.serving.client.transport.{module}.PING_SECONDS", 5.0)

    def slow(peer: Peer, number: int) -> None:
        for _ in range(3):
            _, _, _, payload = peer.until(h2.PING)
            peer.send(h2.frame(h2.PING, h2.ACK, 0, payload))
        peer.answer(number)

    with serving(greeted(slow)) as address:
        assert ask(address, keepalive=0.1)


def test_an_address_of_ipv6_and_a_name_are_dialled(ask):
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    try:
        with serving(right, family=socket.AF_INET6) as address:
            assert ask(address)
            assert ask(f"ipv6:{address}")
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")


def test_the_places_of_an_address_are_tried_in_turn(ask):
    with serving(right) as address:
        port = address.rpartition(":")[2]
        assert ask(f"ipv4:127.0.0.1:1,{address}")
        assert ask(f"dns:///localhost:{port}")


@pytest.mark.parametrize("address", ["127.0.0.1:1", "unix:/nowhere/socket", "unix-abstract:nowhere-normfold"])
def test_where_nothing_listens_the_error_says_how_to_start_a_server(ask, address):
    with pytest.raises(ClientError, match=r"no server answers at .*(refused|No such file)") as caught:
        ask(address, timeout=10)
    assert caught.value.code.name == "UNAVAILABLE"


@pytest.mark.parametrize("host", ["a" * 70, "a..b"])
def test_what_can_be_no_name_of_a_host_is_not_known(ask, host):
    with pytest.raises(ClientError, match=f"the host in {host}:1 is not known here"):
        ask(f"{host}:1")
