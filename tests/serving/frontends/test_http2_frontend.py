"""The addresses that the http2 frontend listens on, and its end."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from pathlib import Path

import grpc
import pytest
from tests.serving.frontends.raw import Raw, message
from tests.waiting import wait_until

from normfold.serving.errors import StartError
from normfold.serving.frontends import FRONTENDS
from normfold.serving.frontends.http2.call import Service
from normfold.serving.frontends.http2.connection import ServerConnection
from normfold.serving.frontends.http2.connection_places import ConnectionPlaces
from normfold.serving.frontends.http2.frontend import bound
from normfold.serving.frontends.http2.holding import Holding
from normfold.serving.frontends.http2.requests import Requests
from normfold.serving.frontends.limits import DEFAULT_LIMITS
from normfold.serving.process import unix_socket
from normfold.serving.rpc.traffic import Traffic
from normfold.serving.wire import http2_frames as h2
from normfold.serving.workers.port import Port

HELLO = message(b"hello")


def test_it_listens_on_a_unix_socket_and_takes_it_away_again(start, tmp_path):
    path = tmp_path / "s.sock"
    with start(f"unix:{path}") as served:
        assert served.address == f"unix:{path}"
        with grpc.insecure_channel(served.address) as channel:
            assert channel.unary_unary("/t.T/Echo")(b"x", timeout=20) == b"x"
    assert not path.exists()


def test_what_a_client_has_still_to_read_from_a_unix_socket_is_not_waited_for(start, tmp_path):
    """It outlives the server's end of the socket."""
    with start(f"unix:{tmp_path}/s.sock") as served:
        client = Raw(served.address)
        data = message(bytes(60_000))
        client.ask(1, None)
        client.send(*(h2.frame(h2.DATA, 0, 1, data[at : at + 16_000]) for at in range(0, len(data), 16_000)))
        client.send(h2.frame(h2.DATA, h2.END_STREAM, 1, b""))
        wait_until(lambda: len(client.socket.recv(1 << 20, socket.MSG_PEEK)) > len(data))  # the answer is there
        stopped = asyncio.run_coroutine_threadsafe(served.frontend.stop(1.0), served.loop).result(20)
        assert stopped
        assert client.answer(1)[0] == data
        client.socket.close()


def test_a_socket_that_somebody_left_behind_is_replaced(start, tmp_path):
    path = tmp_path / "s.sock"
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()
    with start(f"unix:{path}"):
        pass


def test_a_file_is_not_replaced_by_a_socket(start, tmp_path):
    path = tmp_path / "file"
    path.write_text("mine", encoding="utf-8")
    said = r"cannot listen on unix:.*Address already in use: a file that is no socket has this name"
    with pytest.raises(StartError, match=said), start(f"unix:{path}"):
        pass
    with pytest.raises(StartError, match="already in use: a folder has this name"), start(f"unix:{tmp_path}"):
        pass
    missing = tmp_path / "run" / "s.sock"
    with pytest.raises(StartError, match=f"there is no folder {missing.parent}; make it"), start(f"unix:{missing}"):
        pass
    assert path.read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("name", FRONTENDS)
def test_a_socket_that_is_in_use_is_refused_and_stays(start, tmp_path, name):
    address = f"unix:{tmp_path / 's.sock'}"
    with start(address, name=name):
        with (
            pytest.raises(StartError, match=r"cannot listen on unix:.*Address already in use"),
            start(address, name=name),
        ):
            pass
        with grpc.insecure_channel(address) as channel:
            assert channel.unary_unary("/t.T/Echo")(b"x", timeout=20) == b"x"


def test_a_socket_with_a_full_queue_is_in_use(tmp_path):
    path = str(tmp_path / "s.sock")
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as waiting:
        busy.bind(path)
        busy.listen(0)
        waiting.connect(path)
        with pytest.raises(OSError, match="Address already in use"):
            unix_socket.listening(path, 1)


def test_a_server_that_stops_removes_no_socket_of_another(start, tmp_path):
    path = tmp_path / "s.sock"
    with start(f"unix:{path}"):
        path.unlink()
        other = socket.socket(socket.AF_UNIX)
        other.bind(str(path))
    assert path.is_socket()
    other.close()


def test_a_server_that_stops_leaves_the_socket_of_the_next_one_that_has_its_inode(start, tmp_path, monkeypatch):
    """A file system may give the number of the file that was just removed to the next one."""
    path = tmp_path / "s.sock"
    monkeypatch.setattr(unix_socket, "identity", lambda path: (1, 2) if Path(path).exists() else None)
    with start(f"unix:{path}") as first:
        asyncio.run_coroutine_threadsafe(first.frontend.drain(0.1), first.loop).result(20)
        with start(f"unix:{path}"):
            asyncio.run_coroutine_threadsafe(first.frontend.stop(0.1), first.loop).result(20)
            assert path.is_socket()


@pytest.mark.parametrize("name", FRONTENDS)
def test_a_folder_that_is_not_there_is_the_reason(start, tmp_path, name):
    address = f"unix:{tmp_path}/nonexistent/x.sock"
    refused = pytest.raises(
        StartError, match=r"cannot listen on unix:.*: there is no folder .*/nonexistent; make it first"
    )
    with refused, start(address, name=name):
        pass


@pytest.mark.parametrize("name", FRONTENDS)
def test_all_addresses_of_ipv6_are_all_of_ipv4_too(start, name):
    with start("[::]:0", name=name) as served:
        port = served.address.rpartition(":")[2]
        for host in ("127.0.0.1", "[::1]"):
            with grpc.insecure_channel(f"{host}:{port}") as channel:
                assert channel.unary_unary("/t.T/Echo")(b"x", timeout=20) == b"x"


@pytest.mark.parametrize("name", FRONTENDS)
def test_each_of_two_workers_serves_all_addresses_of_ipv6_and_of_ipv4(start, name):
    held = Port("[::]:0")  # as the supervisor does
    port = held.address.rpartition(":")[2]

    def ask(number):
        for host in ("127.0.0.1", "[::1]"):
            options = [("number", number)]  # no connection is shared
            with grpc.insecure_channel(f"{host}:{port}", options) as channel:
                assert channel.unary_unary("/t.T/Echo")(b"x", timeout=20, wait_for_ready=True) == b"x"

    try:
        for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            with socket.socket(family) as other, pytest.raises(OSError, match="in use"):
                other.bind((host, int(port)))
        with start(held.address, name=name, reuse_port=True) as one:
            ask(1)
            with start(held.address, name=name, reuse_port=True) as two:
                assert one.address == two.address == held.address
                one.on_loop(one.frontend.stop(0.1))
                ask(2)
    finally:
        held.release()


def test_a_client_that_only_stops_sending_gets_its_answers(served):
    client = Raw(served.address)
    for stream in (1, 3):
        client.ask(stream, message(b"100000"), "Large")
    client.send(h2.frame(h2.WINDOW_UPDATE, 0, 0, b"\0\x10\0\0"), h2.settings({h2.INITIAL_WINDOW_SIZE: 1 << 20}))
    client.socket.shutdown(socket.SHUT_WR)
    assert client.answer(1)[0] == client.answer(3)[0] == message(bytes(100_000))
    assert client.ended_with() == -1


@pytest.mark.parametrize("farewell", ["of TLS", "of the socket"])
def test_a_client_with_tls_that_only_stops_sending_gets_its_answers(start, tls, certificate, farewell):
    with start(tls=tls) as served:
        client = Raw(served.address, ca=certificate.ca)
        for stream in (1, 3):
            client.ask(stream, message(b"100000"), "Large")
        client.send(h2.frame(h2.WINDOW_UPDATE, 0, 0, b"\0\x10\0\0"), h2.settings({h2.INITIAL_WINDOW_SIZE: 1 << 20}))
        if farewell == "of TLS":
            client.socket.say_farewell()
        else:
            client.socket.shutdown(socket.SHUT_WR)
        assert client.answer(1)[0] == client.answer(3)[0] == message(bytes(100_000))
        assert client.ended_with() == -1
        client.socket.close()


@pytest.mark.parametrize("sent", [b"", HELLO, HELLO[:7], HELLO + HELLO[:3]])
@pytest.mark.parametrize(
    ("method", "headers"), [("Echo", {}), ("Stream", {}), ("Iterate", {}), ("Echo", {"content_length": "99"})]
)
def test_a_client_that_stops_sending_within_a_request_is_not_waited_for(served, method, headers, sent):
    client = Raw(served.address)
    client.ask(1, None, method, **headers)
    client.send(h2.frame(h2.DATA, 0, 1, sent))
    client.socket.shutdown(socket.SHUT_WR)
    client.socket.settimeout(10)  # the limit for a request that makes no progress is a minute
    assert client.ended_with() == -1
    assert served.on_loop(calls_under_way(served)) == 0


async def calls_under_way(served) -> int:
    return served.traffic.in_flight


def test_a_client_that_has_gone_cancels_its_calls_and_leaves_no_trace_in_the_log(served):
    errors = []
    served.loop.set_exception_handler(lambda loop, context: errors.append(context))
    client = Raw(served.address)
    for stream in range(1, 41, 2):
        client.ask(stream, HELLO, ("Soon", "Wait")[stream % 4 // 2])
    end = time.monotonic() + 10
    while served.methods.waiting < 10:
        assert time.monotonic() < end
    client.socket.close()
    while served.methods.cancelled < 10 or served.frontend._connections:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert not errors


def test_what_is_queued_for_a_connection_that_is_lost_is_not_written():
    class Gone(asyncio.Transport):
        def set_write_buffer_limits(self, high=None, low=None):
            pass

        def write(self, data):
            assert not lost

    async def run():
        nonlocal lost
        service = Service(Requests([]), Traffic(), 1, DEFAULT_LIMITS, Holding(1))
        one = ServerConnection(service, ConnectionPlaces(1))
        one.connection_made(Gone())
        one.flush_soon()
        one.sender.out.append(b"late")
        one.connection_lost(None)
        lost = True
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: errors.append(context))
        await asyncio.sleep(0.01)
        one.leave()

    lost, errors = False, []
    asyncio.run(run())
    assert not errors


def test_a_port_that_is_taken_is_told(start):
    with (
        start() as served,
        pytest.raises(StartError, match=f"cannot listen on {served.address}: Address already in use"),
        start(served.address),
    ):
        pass


def test_a_host_that_is_unknown_is_told(start):
    refused = pytest.raises(StartError, match=r"cannot listen on nowhere\.invalid:0: .*; choose another")
    with refused, start("nowhere.invalid:0"):
        pass


def test_all_addresses_of_a_host_get_the_same_free_port():
    sockets, address = bound("localhost:0", reuse_port=False)
    try:
        ports = {sock.getsockname()[1] for sock in sockets}
        assert len(ports) == 1
        assert address == f"localhost:{ports.pop()}"
    finally:
        for sock in sockets:
            sock.close()


def test_a_port_can_be_shared_by_those_who_want_it():
    first, address = bound("127.0.0.1:0", reuse_port=True)
    second, _ = bound(address, reuse_port=True)
    first[0].listen()
    with pytest.raises(OSError, match="Address already in use"):
        bound(address, reuse_port=False)
    for sock in first + second:
        sock.close()


def test_a_stop_waits_for_what_is_on_its_way(served):
    with grpc.insecure_channel(served.address) as channel:
        calls = [channel.unary_unary("/t.T/Soon").future(b"%d" % i, timeout=20) for i in range(50)]
        end = time.monotonic() + 10
        while not served.frontend._connections or not served.traffic.in_flight:
            assert time.monotonic() < end
        served.on_loop(served.frontend.stop(10))
        codes = {call.code() for call in calls}
    assert codes <= {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
    assert grpc.StatusCode.OK in codes
    assert not served.frontend._connections


def test_a_stop_ends_what_does_not_end_in_time(served):
    client = Raw(served.address)
    client.ask(1, HELLO, "Wait")
    end = time.monotonic() + 10
    while not served.methods.waiting:
        assert time.monotonic() < end
    served.on_loop(served.frontend.stop(0.05))
    assert client.ended_with() == 0
    assert served.methods.cancelled == 1


def ending(served, grace_seconds: float):
    """A thread in which the server refuses new calls, waits for those under way and stops, and the results of both."""

    async def end():
        closed = await served.traffic.close(grace_seconds)
        return closed, await served.frontend.stop(grace_seconds)

    results = []
    thread = threading.Thread(target=lambda: results.append(served.on_loop(end())))
    thread.start()
    end_of_patience = time.monotonic() + 10
    while not served.traffic.closing:
        assert time.monotonic() < end_of_patience
    return thread, results


def test_an_upload_that_is_on_the_wire_is_answered_at_the_end(served):
    client = Raw(served.address)
    client.ask(1, None)
    client.send(h2.frame(h2.DATA, 0, 1, HELLO[:7]))
    while not served.traffic.in_flight:
        time.sleep(0.005)
    thread, results = ending(served, 10)
    client.ask(3, HELLO)
    assert client.answer(3)[1]["grpc-status"] == "14"
    time.sleep(0.3)
    client.send(h2.frame(h2.DATA, h2.END_STREAM, 1, HELLO[7:]))
    assert client.answer(1)[0] == HELLO
    thread.join(10)
    assert results == [(True, True)]


@pytest.mark.parametrize("window", [1000, (1 << 31) - 1])
def test_an_answer_that_is_on_the_wire_arrives_at_the_end(served, window):
    client = Raw(served.address, {h2.INITIAL_WINDOW_SIZE: window})
    client.send(h2.frame(h2.WINDOW_UPDATE, 0, 0, b"\x3f\0\0\0"))
    client.ask(1, message(b"20000000"), "Large")
    client.until(h2.HEADERS)
    thread, results = ending(served, 20)
    time.sleep(0.5)
    assert thread.is_alive()
    if window == 1000:  # the other has no room for more
        client.send(h2.frame(h2.WINDOW_UPDATE, 0, 1, b"\x3f\0\0\0"))
    size = 0
    while (found := client.frame()) is not None and not (found.kind == h2.HEADERS and found.flags & h2.END_STREAM):
        size += len(found.payload) if found.kind == h2.DATA else 0
    assert size == 20_000_005
    client.socket.close()
    thread.join(10)
    assert results == [(True, True)]


@pytest.mark.parametrize("window", [1000, (1 << 31) - 1])
def test_an_answer_that_is_not_taken_in_time_is_reported(served, window):
    client = Raw(served.address, {h2.INITIAL_WINDOW_SIZE: window})
    client.send(h2.frame(h2.WINDOW_UPDATE, 0, 0, b"\x3f\0\0\0"))
    client.ask(1, message(b"20000000"), "Large")
    client.until(h2.HEADERS)
    thread, results = ending(served, 0.3)
    thread.join(10)
    assert False in results[0]
    assert not served.frontend._connections


def test_a_stop_lets_clients_know_what_was_not_looked_at(served):
    client = Raw(served.address)
    client.ask(1, HELLO, "Wait")
    end = time.monotonic() + 10
    while not served.methods.waiting:
        assert time.monotonic() < end
    stopping = threading.Thread(target=lambda: served.on_loop(served.frontend.stop(1)))
    stopping.start()
    while (found := client.frame()).kind != 7:
        pass
    assert found.payload == (1).to_bytes(4, "big") + bytes(4)
    client.ask(3, HELLO)
    assert client.ended_with() == -1
    stopping.join(10)
