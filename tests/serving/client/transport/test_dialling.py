"""A server with several addresses, of which some swallow packets or refuse."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import threading

import pytest

from normfold.serving.client.async_client import AsyncClient
from normfold.serving.client.client import Client
from normfold.serving.client.errors import ClientError
from normfold.serving.client.transport.dialling import tcp_socket
from normfold.serving.client.transport.lookup import Lookup

from .peer import Peer, serving, silent


@contextlib.contextmanager
def refusing():
    """An address at which nothing listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{sock.getsockname()[1]}"


def answers(peer: Peer) -> None:
    peer.greet()
    while True:
        peer.answer(peer.request())


@pytest.fixture
def named(monkeypatch):
    """Gives a name the addresses of a list "ipv4:…"."""
    asked = socket.getaddrinfo

    def found(host, port, *rest, flags=0, **options):
        if host != "several.example":
            return asked(host, port, *rest, flags=flags, **options)
        if flags & socket.AI_NUMERICHOST:
            raise socket.gaierror(socket.EAI_NONAME, "no number")
        places = [place.rsplit(":", 1) for place in given[0].removeprefix("ipv4:").split(",")]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, int(number))) for one, number in places]

    def name(address: str) -> str:
        given.append(address)
        return "several.example:1"

    given: list[str] = []
    monkeypatch.setattr(socket, "getaddrinfo", found)
    return name


@pytest.mark.parametrize("written", ["a list", "a name"])
@pytest.mark.parametrize("order", list(itertools.permutations(["silent", "refusing", "alive"])))
def test_the_first_address_that_takes_the_connection_is_used(ask, named, written, order):
    with silent() as hole, refusing() as closed, serving(answers) as alive:
        there = {"silent": hole, "refusing": closed, "alive": alive}
        address = "ipv4:" + ",".join(there[one] for one in order)
        assert ask(address if written == "a list" else named(address), timeout=5)


def test_the_address_that_worked_is_tried_first_when_a_connection_is_made_again(ask, monkeypatch):
    for module in ("dialling", "reaching"):
        monkeypatch.setattr(f"normfold.serving.client.transport.{module}.STAGGER_SECONDS", 2.0)
    tried = []

    def leaves(peer: Peer) -> None:
        peer.greet()
        number = peer.request()
        peer.answer(number)
        peer.goaway(number)
        peer.wait_for_end()

    with silent() as hole, serving(leaves) as alive:
        from normfold.serving.client.transport import dialling, reaching

        def socket_of(family):
            tried.append(family)
            return made(family)

        made = dialling.tcp_socket
        for module in (dialling, reaching):
            monkeypatch.setattr(module, "tcp_socket", socket_of)
        assert ask(f"ipv4:{hole},{alive}", times=4, timeout=20)
    assert len(tried) == 5


def test_where_no_address_takes_the_connection_the_last_refusal_is_the_reason(ask):
    with refusing() as one, refusing() as other, pytest.raises(ClientError, match="Connection refused"):
        ask(f"ipv4:{one},{other}")


@pytest.mark.parametrize("kind", ["blocking", "loop"])
def test_a_deadline_ends_a_call_that_no_address_takes(kind):
    def ask(address: str) -> None:
        async def loop() -> None:
            async with AsyncClient(address, timeout=0.6) as client:
                await client.is_live()

        if kind == "loop":
            asyncio.run(loop())
        else:
            Client(address, timeout=0.6).is_live()

    with silent() as one, silent() as other, pytest.raises(ClientError, match="DEADLINE_EXCEEDED"):
        ask(f"ipv4:{one},{other}")


def test_a_short_timeout_is_shared_by_the_addresses():
    with silent() as hole, serving(answers) as alive, Client(f"ipv4:{hole},{alive}") as client:
        assert client.is_live(timeout=0.24)


@pytest.fixture
def silent_names(monkeypatch):
    """A name server that says nothing until the test ends: the threads that ask it, and those that it has let go."""
    asked, let_go, over = [], [], threading.Event()
    real = socket.getaddrinfo

    def silent_server(host, *rest, flags=0, **options):
        if flags & socket.AI_NUMERICHOST:
            return real(host, *rest, flags=flags, **options)
        asked.append(threading.current_thread())
        over.wait(60)
        let_go.append(threading.current_thread())
        raise socket.gaierror(socket.EAI_AGAIN, "temporary failure")

    monkeypatch.setattr(socket, "getaddrinfo", silent_server)
    yield asked, let_go
    over.set()
    for thread in asked:
        thread.join(60)


def test_a_name_server_that_is_silent_keeps_no_call_behind_its_deadline_and_is_asked_once(silent_names):
    asked, let_go = silent_names
    with Client("slow.example:1") as client:
        for _ in range(3):
            with pytest.raises(ClientError, match="DEADLINE_EXCEEDED"):
                client.is_live(timeout=0.1)
    assert (len(asked), let_go) == (1, [])


def test_a_name_server_that_is_silent_keeps_no_event_loop_from_its_end(silent_names):
    async def loop() -> None:
        async with AsyncClient("slow.example:2") as client:
            await client.is_live(timeout=0.1)

    asked, let_go = silent_names
    with pytest.raises(ClientError, match="DEADLINE_EXCEEDED"):
        asyncio.run(loop())
    assert (len(asked), let_go) == (1, [])


def test_a_name_is_found_where_no_thread_can_be_started(ask, monkeypatch):
    def full(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(Lookup, "start", full)
    with serving(answers) as alive:
        assert ask(f"localhost:{alive.rpartition(':')[2]}")


@pytest.fixture
def full_socket(tmp_path):
    """A Unix socket that listens, with a full queue."""
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as waiting:
        listener.bind(str(tmp_path / "s"))
        listener.listen(0)
        waiting.connect(str(tmp_path / "s"))
        yield listener


def test_a_unix_socket_whose_queue_is_full_is_waited_for(ask, full_socket, monkeypatch):
    monkeypatch.setattr("normfold.serving.client.transport.retries.FIRST_SECONDS", 0.002)

    def serve() -> None:
        full_socket.accept()[0].close()
        with full_socket.accept()[0] as sock, contextlib.suppress(EOFError, OSError):
            answers(Peer(sock))

    timer = threading.Timer(0.3, serve)
    timer.start()
    assert ask(f"unix:{full_socket.getsockname()}")
    timer.join(30)


def test_a_client_that_is_closed_waits_no_more_for_a_unix_socket(full_socket):
    with Client(f"unix:{full_socket.getsockname()}") as client:
        timer = threading.Timer(0.1, client.close)
        timer.start()
        with pytest.raises(ClientError, match="CANCELLED: the client was closed"):
            client.is_live(timeout=20)
        timer.join(30)


def test_a_socket_sends_small_messages_at_once():
    with tcp_socket(socket.AF_INET) as sock:
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
