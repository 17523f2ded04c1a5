"""An AsyncClient on one event loop after another."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading

import numpy as np
import pytest

from normfold.serving.client.async_client import AsyncClient
from normfold.serving.client.client import ClientError
from normfold.serving.wire import http2_frames as h2

from .counted import Counted
from .peer import Peer, serving


def test_an_async_client_works_on_one_loop_after_another():
    counted = Counted()

    async def ask() -> bool:
        return await client.is_live()

    with serving(counted) as address:
        client = AsyncClient(address)
        assert [asyncio.run(ask()), asyncio.run(ask())] == [True, True]
    assert len(counted.peers) == 2


@pytest.mark.parametrize("options", [{}, {"stream": True}, {"transport": "grpcio"}])
@pytest.mark.parametrize("call", ["live", "infer"])
def test_a_call_on_a_second_loop_while_the_first_runs_says_to_use_two_clients(options, call):
    counted = Counted()

    async def first() -> None:
        """Is used, then runs on while the client is used elsewhere, and works after that."""
        assert await client.is_live()
        if call == "infer":
            for _ in range(2):
                with contextlib.suppress(ClientError):
                    await client.infer("m", {"x": np.zeros(1, np.float32)}, timeout=0.2)
        with pytest.raises(RuntimeError, match="use one AsyncClient for each event loop"):
            await asyncio.to_thread(asyncio.run, second())
        assert await client.is_live()

    async def second() -> None:
        if call == "live":
            await client.is_live()
        else:
            await client.infer("m", {"x": np.zeros(1, np.float32)})

    with serving(counted) as address:
        client = AsyncClient(address, **options)
        asyncio.run(asyncio.wait_for(first(), 60))


@pytest.mark.parametrize("loop_is", ["closed", "stopped"])
@pytest.mark.parametrize("next_is", ["a call", "close"])
def test_the_connection_of_a_loop_that_is_over_is_closed_from_the_next_loop(loop_is, next_is):
    counted, ended = Counted(), threading.Semaphore(0)

    def handle(peer: Peer) -> None:
        try:
            counted(peer)
        finally:
            ended.release()

    async def ask() -> bool:
        return await client.is_live()

    gc.disable()  # it would close the socket, too, some time
    first = asyncio.new_event_loop()
    try:
        with serving(handle) as address:
            client = AsyncClient(address)
            assert first.run_until_complete(ask())
            if loop_is == "closed":
                first.close()

            async def go_on() -> None:
                assert await ask() if next_is == "a call" else await client.close() is None
                assert await asyncio.to_thread(ended.acquire, timeout=20)

            asyncio.run(asyncio.wait_for(go_on(), 60))
    finally:
        gc.enable()
        first.close()


def test_a_connection_that_comes_about_on_the_loop_before_is_not_used_on_the_next():
    async def two() -> list[bool]:
        return await asyncio.gather(client.is_live(20), client.is_live(20))  # the server takes one on a connection

    first, second = asyncio.new_event_loop(), asyncio.new_event_loop()
    with serving(Counted(MAX_CONCURRENT_STREAMS=1)) as address:
        client = AsyncClient(address)
        call = first.create_task(client.is_live())
        while "_dial" not in [task.get_coro().__name__ for task in asyncio.all_tasks(first)]:  # type: ignore[union-attr]
            first.run_until_complete(asyncio.sleep(0))
        assert second.run_until_complete(client.is_live())
        with pytest.raises(ClientError, match="CANCELLED: the client is used on another event loop now"):
            first.run_until_complete(call)
        assert second.run_until_complete(two()) == [True, True]
        second.run_until_complete(client.close())
    first.close()
    second.close()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("loop_is", "next_is"), [("running", "close"), ("stopped", "close"), ("stopped", "a call")])
def test_calls_that_are_left_on_a_loop_end(loop_is, next_is, stream):
    asked = threading.Event()

    def silent(peer: Peer) -> None:
        peer.greet()
        peer.refuse(peer.until(h2.DATA)[2], 12)  # the question for metadata
        peer.until(h2.DATA)
        asked.set()
        peer.wait_for_end()

    async def left() -> None:
        with pytest.raises(ClientError) as caught:
            await client.infer("m", {"x": np.zeros((1, 2), np.float32)})
        said = "the client was closed" if next_is == "close" else "the client is used on another event loop now"
        assert str(caught.value) == f"CANCELLED: {said}"

    async def elsewhere() -> None:
        if next_is == "close":
            await client.close()
        else:
            with pytest.raises(ClientError, match="DEADLINE_EXCEEDED"):
                await client.is_live(0.1)
            await client.close()

    async def beside() -> None:
        call = asyncio.create_task(left())
        await asyncio.to_thread(asked.wait, 20)
        await asyncio.to_thread(asyncio.run, elsewhere())
        await call

    with serving(silent, lambda peer: peer.wait_for_end()) as address, asyncio.Runner() as runner:
        client = AsyncClient(address, stream=stream, timeout=20)
        if loop_is == "running":
            runner.run(beside())
            return
        loop = runner.get_loop()
        call = loop.create_task(left())
        while not asked.is_set():
            loop.run_until_complete(asyncio.sleep(0.01))
        asyncio.run(elsewhere())
        loop.run_until_complete(call)
