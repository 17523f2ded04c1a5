"""A port that workers share, and nobody else."""

from __future__ import annotations

import errno
import socket

import pytest

from normfold.serving.workers.port import Port


@pytest.fixture
def held():
    port = Port("127.0.0.1:0")
    yield port
    port.release()


def bound(address: str, *options: int) -> socket.socket:
    sock = socket.socket()
    for option in options:
        sock.setsockopt(socket.SOL_SOCKET, option, 1)
    try:
        sock.bind(("127.0.0.1", int(address.rpartition(":")[2])))
    except OSError:
        sock.close()
        raise
    return sock


def test_port_0_becomes_a_real_one(held):
    assert int(held.address.removeprefix("127.0.0.1:")) > 0


def test_those_who_share_may_listen_and_get_connections(held):
    with bound(held.address, socket.SO_REUSEPORT) as one, bound(held.address, socket.SO_REUSEPORT) as two:
        one.listen()
        two.listen()
        one.setblocking(False)
        two.setblocking(False)
        host, _, port = held.address.rpartition(":")
        for _ in range(8):
            socket.create_connection((host, int(port)), timeout=5).close()
        assert _accepted(one) + _accepted(two) == 8


def _accepted(listener: socket.socket) -> int:
    count = 0
    while True:
        try:
            listener.accept()[0].close()
        except BlockingIOError:
            return count
        count += 1


@pytest.mark.parametrize("options", [(), (socket.SO_REUSEADDR,)])
def test_a_server_that_wants_it_alone_is_refused_even_while_nobody_listens(held, options):
    with pytest.raises(OSError, match="in use") as caught:
        bound(held.address, *options)
    assert caught.value.errno == errno.EADDRINUSE


def test_a_second_one_is_refused_while_nobody_listens_and_while_somebody_does(held):
    with pytest.raises(OSError, match="in use"):
        Port(held.address)
    with bound(held.address, socket.SO_REUSEPORT) as worker:
        worker.listen()
        with pytest.raises(OSError, match="in use"):
            Port(held.address)


def test_a_port_that_was_released_can_be_had(held):
    held.release()
    again = Port(held.address)
    assert again.address == held.address
    again.release()


def test_past_connections_that_linger_do_not_keep_it():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            listener.accept()[0].close()  # the end that closes first lingers
    Port(f"127.0.0.1:{port}").release()


def test_an_address_of_another_host_is_refused():
    with pytest.raises(OSError, match=r"assign|address"):
        Port("192.0.2.1:0")
