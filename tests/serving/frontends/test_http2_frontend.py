"""The addresses that the http2 frontend listens on, and its end."""

from __future__ import annotations

import socket
import threading
import time

import grpc
import pytest
from tests.serving.frontends.raw import Raw, message

from normfold.serving.errors import StartError
from normfold.serving.frontends.http2.frontend import bound

HELLO = message(b"hello")


def test_it_listens_on_a_unix_socket_and_takes_it_away_again(start, tmp_path):
    path = tmp_path / "s.sock"
    with start(f"unix:{path}") as served:
        assert served.address == f"unix:{path}"
        with grpc.insecure_channel(served.address) as channel:
            assert channel.unary_unary("/t.T/Echo")(b"x", timeout=20) == b"x"
    assert not path.exists()


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
    with pytest.raises(StartError, match=r"cannot listen on unix:.*Address already in use"), start(f"unix:{path}"):
        pass
    assert path.read_text(encoding="utf-8") == "mine"


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
