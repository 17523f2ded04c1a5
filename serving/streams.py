"""Answers to a stream of requests, worked on together and given in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

Request = TypeVar("Request")
Response = TypeVar("Response")


async def in_order(
    requests: AsyncIterator[Request], answer: Callable[[Request], Awaitable[Response]], in_flight: int
) -> AsyncIterator[Response]:
    """``answer`` of each request in their order, up to ``in_flight`` of them worked on at a time.

    Ends when the requests end; when the caller stops listening, what is on its way is cancelled.
    """
    pending: asyncio.Queue[asyncio.Future[Response] | None] = asyncio.Queue(in_flight)

    async def read() -> None:
        try:
            async for request in requests:
                await pending.put(asyncio.ensure_future(answer(request)))
        finally:
            await pending.put(None)

    reader = asyncio.ensure_future(read())
    try:
        while (answered := await pending.get()) is not None:
            yield await answered
        await reader  # raises what ended the requests badly
    finally:
        reader.cancel()
        while not pending.empty():
            if (left := pending.get_nowait()) is not None:
                left.cancel()
