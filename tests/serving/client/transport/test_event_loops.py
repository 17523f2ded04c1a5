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
