"""Both clients on our transport, asked in the same way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from normfold.serving.client.async_client import AsyncClient
from normfold.serving.client.client import Client


@pytest.fixture(params=["blocking", "loop"])
def ask(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """``ask(address, times=1, at_once=1, **options)``: calls ServerLive ``times`` times; gives the last answer."""

    def blocking(address: str, times: int = 1, timeout: float = 30, **options: Any) -> bool:
        with Client(address, **options) as client:
            return [client.is_live(timeout) for _ in range(times)][-1]

    def loop(address: str, times: int = 1, timeout: float = 30, **options: Any) -> bool:
        async def run() -> bool:
            async with AsyncClient(address, **options) as client:
                return [await client.is_live(timeout) for _ in range(times)][-1]

        return asyncio.run(asyncio.wait_for(run(), 60))

    return blocking if request.param == "blocking" else loop
