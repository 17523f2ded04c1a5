"""A client that is closed ends what waits; connections that come too late, or not, are closed or made anew."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from normfold.serving.client.async_client import AsyncClient
from normfold.serving.client.client import Client, ClientError
from normfold.serving.client.transport import sharing

from .counted import Counted
from .peer import Peer, serving


def test_closing_a_client_ends_what_waits_as_cancelled_and_so_do_later_calls():
    counted = Counted(held=9)
    with serving(counted) as address:
        client = Client(address)
        with ThreadPoolExecutor(3) as threads:
            waiting = [threads.submit(client.is_live) for _ in range(3)]
            while sum(len(peer.bodies) for peer in counted.peers) < 3:
                time.sleep(0.01)
            client.close()
            errors = [one.exception(20) for one in waiting]
        with pytest.raises(ClientError, match="the client was closed"):
            client.is_live()

        async def run() -> BaseException | None:
            client = AsyncClient(address)
            call = asyncio.create_task(client.is_live())
            await asyncio.sleep(0.1)
            await client.close()
            with contextlib.suppress(ClientError):
                await call
            return call.exception()

        errors.append(asyncio.run(asyncio.wait_for(run(), 60)))
    assert [str(error) for error in errors] == ["CANCELLED: the client was closed"] * 4


def in_time(act):
    """What ``act()`` returns or raises, which must come long before the pauses of 100 seconds in these tests."""
    found = []

    def run() -> None:
        try:
            found.append(act())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(30)
    return found[0] if found else "nothing within 30 s"


@pytest.mark.parametrize("kind", ["blocking", "loop"])
@pytest.mark.parametrize("when", ["before", "during", "between two tries", "while it connects"])
def test_a_closed_client_does_not_try_again(monkeypatch, kind, when):
    monkeypatch.setattr("normfold.serving.client.transport.retries.FIRST_SECONDS", 100.0)
    asked = threading.Event()

    def handle(peer: Peer) -> None:
        if when != "while it connects":
            peer.greet()
            number = peer.request()
            if when == "between two tries":
                peer.refuse(number, 14)
        asked.set()
        peer.wait_for_end()

    def blocking(address: str) -> object:
        client = Client(address)
        if when == "before":
            client.close()
        else:
            threading.Thread(target=lambda: (asked.wait(20), time.sleep(0.1), client.close()), daemon=True).start()
        return client.is_live(5000)

    async def loop(address: str) -> object:
        client = AsyncClient(address)
        if when == "before":
            await client.close()
        call = asyncio.create_task(client.is_live(5000))
        if when != "before":
            await asyncio.to_thread(asked.wait, 20)
            await asyncio.sleep(0.1)
            await client.close()
        return await call

    with serving(handle) as address:
        ended = in_time(lambda: blocking(address) if kind == "blocking" else asyncio.run(loop(address)))
    assert repr(ended) == "ClientError('CANCELLED: the client was closed')"


def test_a_connection_that_comes_about_once_the_client_is_closed_is_closed(monkeypatch):
    ends, dialled = [], sharing.dial

    def slow_dial(*arguments):
        client.close()
        found = dialled(*arguments)
        ends.append(found[0])
        return found

    monkeypatch.setattr(sharing, "dial", slow_dial)
    with serving(Counted()) as address:
        client = Client(address)
        assert repr(in_time(lambda: client.is_live(5000))) == "ClientError('CANCELLED: the client was closed')"
    assert [sock.fileno() for sock in ends] == [-1]


def test_a_connection_whose_making_somebody_cancelled_is_made_anew():
    async def run() -> bool:
        async with AsyncClient(address) as client:
            call = asyncio.create_task(client.is_live(60))
            while not (making := [task for task in asyncio.all_tasks() if task.get_coro().__name__ == "_dial"]):
                await asyncio.sleep(0)
            making[0].cancel()
            return await call

    with serving(Counted()) as address:
        assert asyncio.run(asyncio.wait_for(run(), 60))
