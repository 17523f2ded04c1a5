"""An AsyncClient that nobody closes, on an event loop that runs on."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest

from normfold.serving.client.async_client import AsyncClient
from normfold.serving.client.transport.choice import TRANSPORTS
from normfold.serving.wire import http2_frames as h2

from .transport.peer import Peer, serving

X = np.array([[1, 2, 3, 4]], np.float32)


def sockets() -> int:
    """Of this process: the client's, and those of the server, which is in it."""
    found = 0
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # that of the folder itself
            found += str(entry.readlink()).startswith("socket")
    return found


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_is_forgotten_leaves_neither_a_connection_nor_a_task(server, stream, transport):
    async def ask(in_cycle: bool = False) -> None:
        client = AsyncClient(server.server.address, stream=stream, transport=transport)
        if in_cycle:
            vars(client)["itself"] = client
        np.testing.assert_array_equal((await client.infer("m", {"x": X}, version="1"))["y"], 2 * X)

    async def run() -> tuple[bool, int]:
        await ask()  # grpcio opens sockets of its own the first time
        gc.collect()
        await asyncio.sleep(0.1)
        before = sockets()
        for number in range(6):
            await ask(in_cycle=number % 2 == 1)
        gc.collect()
        for _ in range(500):
            if (more := sockets() > before) or len(asyncio.all_tasks()) > 1:
                await asyncio.sleep(0.01)
        return more, len(asyncio.all_tasks())

    assert asyncio.run(run()) == (False, 1)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_waits_on_a_closed_loop_does_not_keep_the_client(stream):
    async def begin(address: str) -> weakref.ref[AsyncClient]:
        client = AsyncClient(address, stream=stream)
        call = asyncio.ensure_future(client.infer("m", {"x": X}))
        await asyncio.to_thread(asked.acquire, timeout=20)
        assert not call.done()
        return weakref.ref(client)

    def silent(peer: Peer) -> None:
        peer.greet()
        peer.until(h2.DATA)
        asked.release()
        peer.wait_for_end()

    asked = threading.Semaphore(0)
    with serving(silent) as address:
        loop = asyncio.new_event_loop()
        client = loop.run_until_complete(begin(address))
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
        del loop
        gc.collect()
        assert client() is None
