"""An AsyncClient that nobody closes, on an event loop that runs on."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from pathlib import Path

import numpy as np
import pytest

from normfold.serving.client.async_client import AsyncClient
from normfold.serving.client.transport.choice import TRANSPORTS

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
    async def ask() -> None:
        client = AsyncClient(server.server.address, stream=stream, transport=transport)
        np.testing.assert_array_equal((await client.infer("m", {"x": X}, version="1"))["y"], 2 * X)

    async def run() -> tuple[bool, int]:
        await ask()  # grpcio opens sockets of its own the first time
        gc.collect()
        await asyncio.sleep(0.1)
        before = sockets()
        for _ in range(5):
            await ask()
        gc.collect()
        for _ in range(500):
            if (more := sockets() > before) or len(asyncio.all_tasks()) > 1:
                await asyncio.sleep(0.01)
        return more, len(asyncio.all_tasks())

    assert asyncio.run(run()) == (False, 1)
